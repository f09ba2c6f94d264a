"""The core's own options; plugins declare theirs through `virtlet_options`.

Field, flag, environment variable and default are the original Virtlet's where it had one.
"""

import ipaddress
import re
from pathlib import Path
from typing import Any

from virtlet.core.log_setup import FORMS, LEVELS
from virtlet.model.endpoint import socket_path
from virtlet.model.option import BOOLEAN, BYTES, PATH, TEXT, WORDS, Kind, Option, choice, integer
from virtlet.model.plain import quote

LEAST_ID, MOST_ID = 65536, 0x7FFF_FFFF
"""Of users: below are those of the system, people and systemd; what is above is negative to some
programs."""


def _absolute(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute():
        raise ValueError(f"{text!r} is no absolute path")
    return path


def _socket(text: str) -> Path:
    return _absolute(socket_path(text))


def _host(text: str) -> str:
    if not text or re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", text):
        return text
    try:
        return str(ipaddress.IPv6Address(text))
    except ValueError:
        raise ValueError(f"{text!r} is no host name or IP address") from None


def _ids(text: str) -> range | None:
    if text == "shared":
        return None
    match = re.fullmatch(r"([0-9]{1,10})-([0-9]{1,10})", text)
    ids = range(int(match[1]), int(match[2]) + 1) if match else range(0)
    if not ids:
        raise ValueError(f"{quote(text)} is neither FIRST-LAST nor shared")
    if ids[0] < LEAST_ID or ids[-1] > MOST_ID:
        raise ValueError(f"ids are from {LEAST_ID} to {MOST_ID}")
    return ids


def _ip_port(text: str) -> tuple[str, int] | None:
    if not text:
        return None
    host, _, port = text.rpartition(":")
    try:
        address = str(ipaddress.ip_address(host.removeprefix("[").removesuffix("]")))
    except ValueError:
        address = ""
    if not address or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError(f"{quote(text)} is no ADDRESS:PORT, such as 127.0.0.1:10011")
    return address, int(port)


def _level(text: str) -> str:
    numbers = {"0": "error", "1": "info", **dict.fromkeys("2345", "debug")}
    return choice(*LEVELS).parse(numbers.get(text.strip(), text.strip()))


ABSOLUTE: Kind[Path] = Kind(name="absolute path", parse=_absolute)
SOCKET: Kind[Path] = Kind(name="absolute path or unix:// URL", parse=_socket)
IDS: Kind[range | None] = Kind(name="FIRST-LAST or shared", parse=_ids)
IP_PORT: Kind[tuple[str, int] | None] = Kind(name="ADDRESS:PORT", parse=_ip_port)
HOST: Kind[str] = Kind(name="host", parse=_host)

DATA_DIR = Option(
    field="dataDir",
    flag="--data-dir",
    env="VIRTLET_DATA_DIR",
    kind=ABSOLUTE,
    default="/var/lib/virtlet",
    help="root of everything the manager keeps, and of the other paths' defaults",
)
LISTEN = Option(
    field="criSocketPath",
    flag="--listen",
    env="VIRTLET_CRI_SOCKET_PATH",
    kind=SOCKET,
    default="{socket_dir}/virtlet.sock",
    help="unix socket to serve CRI on",
)
FD_SERVER_SOCKET = Option(
    field="fdServerSocketPath",
    flag="--fd-server-socket-path",
    env="VIRTLET_FD_SERVER_SOCKET_PATH",
    kind=SOCKET,
    default="{data_dir}/tapfdserver.sock",
    help="unix socket where vmwrapper fetches descriptors and arguments",
)
DATABASE = Option(
    field="databasePath",
    flag="--database-path",
    env="VIRTLET_DATABASE_PATH",
    kind=ABSOLUTE,
    default="{data_dir}/virtlet.db",
    help="the database of pods, VMs and their effects",
)
IMAGE_DIR = Option(
    field="imageDir",
    flag="--image-dir",
    env="VIRTLET_IMAGE_DIR",
    kind=ABSOLUTE,
    default="{data_dir}/images",
    help="the image store",
)
IMAGE_LIMIT = Option(
    field="imageSizeLimit",
    flag="--image-size-limit",
    env="VIRTLET_IMAGE_SIZE_LIMIT",
    kind=BYTES,
    default="64Gi",
    help="largest image file, and largest virtual disk an image may declare (times 16)",
    mappable=True,
)
PINNED_IMAGES = Option(
    field="pinnedImages",
    flag="--pinned-images",
    env="VIRTLET_PINNED_IMAGES",
    kind=WORDS,
    default="",
    help="images that the kubelet's garbage collection leaves alone: names with or without tag, "
    "and globs, such as fedora:* or registry.example.com/golden/*",
    mappable=True,
)
EMULATOR_USER = Option(
    field="emulatorUser",
    flag="--emulator-user",
    env="VIRTLET_EMULATOR_USER",
    kind=TEXT,
    default="libvirt-qemu",
    help="user of emulators whose VM has none of its own (`vmUsers`), and of what is asked of the "
    "emulator apart from VMs; must exist, and not be root",
)
VM_USERS = Option(
    field="vmUsers",
    flag="--vm-users",
    env="VIRTLET_VM_USERS",
    kind=IDS,
    default="2100000000-2100065535",
    help="ids FIRST-LAST that nobody else on the node has: each VM's emulator runs as a user and "
    "group of its own out of these. `shared` has all run as `emulatorUser`",
)
EMULATOR = Option(
    field="emulator",
    flag="--emulator",
    env="VIRTLET_EMULATOR",
    kind=PATH,
    default="/usr/bin/qemu-system-x86_64",
    help="the emulator that vmwrapper starts",
)
CGROUP_DRIVER = Option(
    field="cgroupDriver",
    flag="--cgroup-driver",
    env="VIRTLET_CGROUP_DRIVER",
    kind=choice("systemd", "cgroupfs"),
    default="systemd",
    help="cgroup driver to tell the kubelet",
)
VM_CGROUP = Option(
    field="vmCgroup",
    flag="--vm-cgroup",
    env="VIRTLET_VM_CGROUP",
    kind=choice("required", "optional"),
    default="required",
    help="whether a VM starts although its emulator cannot be put into a cgroup below its pod's, "
    "where the node would neither account for it nor limit it",
)
TEMPLATE_LIMIT = Option(
    field="templateLimit",
    flag="--template-limit",
    env="VIRTLET_TEMPLATE_LIMIT",
    kind=integer(0, 1000),
    default="4",
    help="templates of VMs (`warm`) that the node keeps; the one that was used least recently "
    "makes way. 0 has none",
    mappable=True,
)
TEMPLATE_MEMORY = Option(
    field="templateMemory",
    flag="--template-memory",
    env="VIRTLET_TEMPLATE_MEMORY",
    kind=BYTES,
    default="8Gi",
    help="memory of all templates' guests together; a VM of more has no template",
    mappable=True,
)
TEMPLATE_DISK = Option(
    field="templateDisk",
    flag="--template-disk",
    env="VIRTLET_TEMPLATE_DISK",
    kind=BYTES,
    default="16Gi",
    help="disk space that all templates together take at most, beside the one that is being made",
    mappable=True,
)
TEMPLATE_AGE = Option(
    field="templateAge",
    flag="--template-age",
    env="VIRTLET_TEMPLATE_AGE",
    kind=integer(1, 87600),
    default="168",
    help="hours after which a template goes from which no VM has started",
    mappable=True,
)
STREAM_PORT = Option(
    field="streamPort",
    flag="--stream-port",
    env="VIRTLET_STREAM_PORT",
    kind=integer(0, 65535),
    default="10010",
    help="port of the streaming server (exec, attach, port-forward); 0 takes a free one",
)
STREAM_ADDRESS = Option(
    field="streamAddress",
    flag="--stream-address",
    env="VIRTLET_STREAM_ADDRESS",
    kind=TEXT,
    default="127.0.0.1",
    help="IP address of the streaming server; the kubelet connects to it from the node itself",
)
STREAM_HOST = Option(
    field="streamHost",
    flag="--stream-host",
    env="VIRTLET_STREAM_HOST",
    kind=HOST,
    default="",
    help="name or IP address in streaming URLs, such as the one that the certificate is for; must "
    "lead "
    "to `streamAddress`. Empty is that address, or loopback where it is a wildcard",
)
STREAM_TLS_CERT = Option(
    field="streamTLSCert",
    flag="--stream-tls-cert",
    env="VIRTLET_STREAM_TLS_CERT",
    kind=TEXT,
    default="",
    help="PEM file with the streaming server's certificate chain; empty serves plain HTTP",
)
STREAM_TLS_KEY = Option(
    field="streamTLSKey",
    flag="--stream-tls-key",
    env="VIRTLET_STREAM_TLS_KEY",
    kind=TEXT,
    default="",
    help="PEM file with the key of that certificate",
)
METRICS_ADDRESS = Option(
    field="metricsAddress",
    flag="--metrics-address",
    env="VIRTLET_METRICS_ADDRESS",
    kind=IP_PORT,
    default="",
    help="where /healthz, /readyz, /metrics and /metrics/pods are served over HTTP, such as "
    "127.0.0.1:10011; anybody who reaches it reads names and figures of all pods. Empty is nowhere",
)
DISABLE_LOGGING = Option(
    field="disableLogging",
    flag="--disable-logging",
    env="VIRTLET_DISABLE_LOGGING",
    kind=BOOLEAN,
    default="false",
    help="do not write the VMs' consoles to pod logs",
    mappable=True,
)
LOG_LEVEL = Option(
    field="logLevel",
    flag="--log-level",
    env="VIRTLET_LOGLEVEL",
    kind=Kind(name="error or warning or info or debug", parse=_level),
    default="info",
    help="what to log, of plugins too: `info` has every change, `debug` every call. The original's "
    "numbers and its flag `--v` are understood: 0 is `error`, 1 `info`, 2 to 5 `debug`",
    mappable=True,
)
LOG_FORMAT = Option(
    field="logFormat",
    flag="--log-format",
    env="VIRTLET_LOG_FORMAT",
    kind=choice(*FORMS),
    default="json",
    help="a JSON object for each line of the log, or text",
    mappable=True,
)
HOOK_PATIENCE = Option(
    field="hookPatience",
    flag="--hook-patience",
    env="VIRTLET_HOOK_PATIENCE",
    kind=integer(1, 86400),
    default="60",
    help="seconds after which a plugin that has not returned from a hook is named in the log, and "
    "calls about its pod answer with an error that names it instead of waiting; the file's "
    "`plugins` has it for single plugins",
    mappable=True,
)
SHOW_PLUGIN_ERRORS = Option(
    field="showPluginErrors",
    flag="--show-plugin-errors",
    env="VIRTLET_SHOW_PLUGIN_ERRORS",
    kind=BOOLEAN,
    default="false",
    help="write the texts of what plugins raise into the log, for their authors. They can quote "
    "user-data, passwords and whole documents of pods: not for a node with pods of other people",
)
NODE_NAME = Option(
    field="nodeName",
    flag="--node-name",
    env="KUBE_NODE_NAME",
    kind=TEXT,
    default="",
    help="the node's name in the cluster, by which VirtletConfigMappings are for it; empty is the "
    "host's name",
)
CONFIG_NAMESPACE = Option(
    field="configMappingNamespace",
    flag="--config-mapping-namespace",
    env="VIRTLET_CONFIG_MAPPING_NAMESPACE",
    kind=TEXT,
    default="kube-system",
    help="namespace whose VirtletConfigMapping objects set options of nodes, where the manager has "
    "access to the cluster (`kubeconfig`); empty for none",
)
FORGOTTEN_PLUGINS = Option(
    field="forgottenPlugins",
    flag="--forgotten-plugins",
    env="VIRTLET_FORGOTTEN_PLUGINS",
    kind=WORDS,
    default="",
    help="plugins that are not installed any more and whose pods are to go all the same: what they "
    "made stays on the node; without effect for a plugin that is installed",
)

CORE_OPTIONS: tuple[Option[Any], ...] = (
    DATA_DIR,
    LISTEN,
    FD_SERVER_SOCKET,
    DATABASE,
    IMAGE_DIR,
    IMAGE_LIMIT,
    PINNED_IMAGES,
    EMULATOR_USER,
    VM_USERS,
    EMULATOR,
    CGROUP_DRIVER,
    VM_CGROUP,
    TEMPLATE_LIMIT,
    TEMPLATE_MEMORY,
    TEMPLATE_DISK,
    TEMPLATE_AGE,
    STREAM_ADDRESS,
    STREAM_PORT,
    STREAM_HOST,
    STREAM_TLS_CERT,
    STREAM_TLS_KEY,
    METRICS_ADDRESS,
    DISABLE_LOGGING,
    LOG_LEVEL,
    LOG_FORMAT,
    HOOK_PATIENCE,
    SHOW_PLUGIN_ERRORS,
    NODE_NAME,
    CONFIG_NAMESPACE,
    FORGOTTEN_PLUGINS,
)
