"""The core's own options; plugins declare theirs through `virtlet_options`.

Field, flag, environment variable and default are the original Virtlet's where it had one.
"""

import ipaddress
import re
from pathlib import Path
from typing import Any

from virtlet.model.option import BOOLEAN, BYTES, PATH, TEXT, Kind, Option, choice, integer


def _absolute(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute():
        raise ValueError(f"{text!r} is no absolute path")
    return path


def _host(text: str) -> str:
    if not text or re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", text):
        return text
    try:
        return str(ipaddress.IPv6Address(text))
    except ValueError:
        raise ValueError(f"{text!r} is no host name or IP address") from None


ABSOLUTE: Kind[Path] = Kind("absolute path", _absolute)
HOST: Kind[str] = Kind("host", _host)

DATA_DIR = Option(
    "dataDir",
    "--data-dir",
    "VIRTLET_DATA_DIR",
    ABSOLUTE,
    "/var/lib/virtlet",
    "root of everything the manager keeps, and of the other paths' defaults",
)
LISTEN = Option(
    "criSocketPath",
    "--listen",
    "VIRTLET_CRI_SOCKET_PATH",
    ABSOLUTE,
    "{socket_dir}/virtlet.sock",
    "unix socket to serve CRI on",
)
FD_SERVER_SOCKET = Option(
    "fdServerSocketPath",
    "--fd-server-socket-path",
    "VIRTLET_FD_SERVER_SOCKET_PATH",
    ABSOLUTE,
    "{data_dir}/tapfdserver.sock",
    "unix socket where vmwrapper fetches descriptors and arguments",
)
DATABASE = Option(
    "databasePath",
    "--database-path",
    "VIRTLET_DATABASE_PATH",
    ABSOLUTE,
    "{data_dir}/virtlet.db",
    "the database of pods, VMs and their effects",
)
IMAGE_DIR = Option(
    "imageDir",
    "--image-dir",
    "VIRTLET_IMAGE_DIR",
    ABSOLUTE,
    "{data_dir}/images",
    "the image store",
)
IMAGE_LIMIT = Option(
    "imageSizeLimit",
    "--image-size-limit",
    "VIRTLET_IMAGE_SIZE_LIMIT",
    BYTES,
    "64Gi",
    "largest image file, and largest virtual disk an image may declare (times 16)",
)
EMULATOR_USER = Option(
    "emulatorUser",
    "--emulator-user",
    "VIRTLET_EMULATOR_USER",
    TEXT,
    "libvirt-qemu",
    "user the emulator runs as; root when there is no such user",
)
EMULATOR = Option(
    "emulator",
    "--emulator",
    "VIRTLET_EMULATOR",
    PATH,
    "/usr/bin/qemu-system-x86_64",
    "the emulator that vmwrapper starts",
)
CGROUP_DRIVER = Option(
    "cgroupDriver",
    "--cgroup-driver",
    "VIRTLET_CGROUP_DRIVER",
    choice("systemd", "cgroupfs"),
    "systemd",
    "cgroup driver to tell the kubelet",
)
STREAM_PORT = Option(
    "streamPort",
    "--stream-port",
    "VIRTLET_STREAM_PORT",
    integer(0, 65535),
    "10010",
    "port of the streaming server (exec, attach, port-forward); 0 takes a free one",
)
STREAM_ADDRESS = Option(
    "streamAddress",
    "--stream-address",
    "VIRTLET_STREAM_ADDRESS",
    TEXT,
    "127.0.0.1",
    "IP address of the streaming server; the kubelet connects to it from the node itself",
)
STREAM_HOST = Option(
    "streamHost",
    "--stream-host",
    "VIRTLET_STREAM_HOST",
    HOST,
    "",
    "name or IP address in streaming URLs, such as the one that the certificate is for; must lead "
    "to `streamAddress`. Empty is that address, or loopback where it is a wildcard",
)
STREAM_TLS_CERT = Option(
    "streamTLSCert",
    "--stream-tls-cert",
    "VIRTLET_STREAM_TLS_CERT",
    TEXT,
    "",
    "PEM file with the streaming server's certificate chain; empty serves plain HTTP",
)
STREAM_TLS_KEY = Option(
    "streamTLSKey",
    "--stream-tls-key",
    "VIRTLET_STREAM_TLS_KEY",
    TEXT,
    "",
    "PEM file with the key of that certificate",
)
DISABLE_LOGGING = Option(
    "disableLogging",
    "--disable-logging",
    "VIRTLET_DISABLE_LOGGING",
    BOOLEAN,
    "false",
    "do not write the VMs' consoles to pod logs",
)
LOG_LEVEL = Option(
    "logLevel",
    "--v",
    "VIRTLET_LOGLEVEL",
    integer(0, 5),
    "1",
    "0 errors, 1 changes, 2 and more every call",
)

CORE_OPTIONS: tuple[Option[Any], ...] = (
    DATA_DIR,
    LISTEN,
    FD_SERVER_SOCKET,
    DATABASE,
    IMAGE_DIR,
    IMAGE_LIMIT,
    EMULATOR_USER,
    EMULATOR,
    CGROUP_DRIVER,
    STREAM_ADDRESS,
    STREAM_PORT,
    STREAM_HOST,
    STREAM_TLS_CERT,
    STREAM_TLS_KEY,
    DISABLE_LOGGING,
    LOG_LEVEL,
)
