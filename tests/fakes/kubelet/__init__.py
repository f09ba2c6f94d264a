"""A kubelet as the manager meets it: what one sent, and what ours must not go beyond.

requests.jsonl holds the requests of a kubelet 1.36.2 between its start and the end of its pods, one
line for each shape: pods with every kind of volume, probes, hooks, a resize in place, an init
container, a Job, exec, attach, port-forward and restarts; with stock gates, and for calls that
only they make, with the gates that the line names.
"""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from attrs import frozen
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from criproxy.methods import BY_NAME
from virtlet.cli.manifest import PodManifest
from virtlet.cri import api_pb2 as cri

REQUESTS = Path(__file__).with_name("requests.jsonl")

KUBERNETES_KEYS = ("io.kubernetes.", "kubernetes.io/")
"""Beginnings of the labels and annotations that are a kubelet's own; others are a pod's."""
OF_A_POD = (
    "kubernetes.io/target-runtime",
    "kubernetes.io/ingress-bandwidth",
    "kubernetes.io/egress-bandwidth",
)
"""Annotations with such a beginning that a pod has itself."""

ASKED_FOR = {
    "CreateContainer": {
        "config.mounts.image_sub_path": "the subPath of a volume that is an image",
        "config.command": "command",
        "config.args": "args",
        "config.working_dir": "workingDir",
        "config.stdin_once": "stdinOnce",
        "config.devices": "volumeDevices",
        "config.devices.container_path": "volumeDevices",
        "config.devices.host_path": "volumeDevices",
        "config.devices.permissions": "volumeDevices",
        "config.linux.security_context.run_as_group": "runAsGroup",
        "config.linux.security_context.run_as_group.value": "runAsGroup",
        "config.linux.security_context.capabilities": "capabilities",
        "config.linux.security_context.capabilities.drop_capabilities": "capabilities",
        "config.linux.security_context.no_new_privs": "allowPrivilegeEscalation: false",
        "config.linux.security_context.apparmor": "appArmorProfile",
        "config.linux.security_context.apparmor.profile_type": "appArmorProfile",
        "config.linux.security_context.selinux_options": "seLinuxOptions",
        "config.linux.security_context.selinux_options.level": "seLinuxOptions",
        "config.linux.resources.cpuset_cpus": "the static CPU manager",
        "config.linux.resources.hugepage_limits.limit": "hugepages-2Mi",
    },
    "RunPodSandbox": {
        "config.metadata.attempt": "nothing: a pod whose sandbox ended gets another",
        "config.port_mappings.protocol": "protocol: UDP",
        "config.port_mappings.host_ip": "hostIP",
        "config.linux.security_context.run_as_group": "runAsGroup",
        "config.linux.security_context.run_as_group.value": "runAsGroup",
        "config.linux.security_context.selinux_options": "seLinuxOptions",
        "config.linux.security_context.selinux_options.level": "seLinuxOptions",
    },
}
"""Fields that a kubelet sends where a pod asks for what is named; no recorded pod asked for it."""

CLUSTER_DNS = cri.DNSConfig(
    servers=["10.96.0.10"],
    searches=["default.svc.cluster.local", "svc.cluster.local", "cluster.local"],
    options=["ndots:5"],
)
SERVICE = "10.96.0.1"


@frozen
class Recorded:
    """One request of the kubelet's."""

    method: str
    gates: str
    """Names of the feature gates of the kubelet that sent it; none for a stock one."""
    message: Any


@cache
def recorded(method: str = "") -> tuple[Recorded, ...]:
    """The requests for a method, or all."""
    found = []
    for line in map(json.loads, REQUESTS.read_text().splitlines()):
        if method in ("", line["method"]):
            message = BY_NAME[line["method"]].request()
            json_format.ParseDict(line["request"], message)
            found.append(Recorded(line["method"], line["gates"], message))
    return tuple(found)


def field_paths(message: Message) -> set[str]:
    """The fields that are set, at any depth, as `config.linux.resources`.

    A map's keys are told from each other where they are a kubelet's own: `labels[io.kubernetes…]`.
    """
    found: set[str] = set()
    for field, value in message.ListFields():
        found.add(field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            found |= {f"{field.name}[{key if _own(key) else '*'}]" for key in value}
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for one in value if field.is_repeated else [value]:
                found |= {f"{field.name}.{path}" for path in field_paths(one)}
    return found


def _own(key: str) -> bool:
    return key.startswith(KUBERNETES_KEYS) and key not in OF_A_POD


def unrecorded(method: str, message: Message, asked: bool = False) -> set[str]:
    """The fields of a request that no kubelet was seen to set.

    Args:
        method: the call.
        message: its request.
        asked: whether fields are allowed that a kubelet sets where a pod asks for it.
    """
    known = {path for one in recorded(method) for path in field_paths(one.message)}
    pod = {path for one in recorded("RunPodSandbox") for path in field_paths(one.message)}
    if asked:
        known |= ASKED_FOR.get(method, {}).keys()
        pod |= ASKED_FOR["RunPodSandbox"].keys()
    # In the request of another call a pod is as it is in its own.
    return field_paths(message) - known - {f"sandbox_{path}" for path in pod}


def check(*requests: Message) -> None:
    """Fail if a request has a field that no kubelet sends, whatever the pod asks for."""
    for request in requests:
        method = request.DESCRIPTOR.name.removesuffix("Request")
        strange = unrecorded(method, request, asked=True)
        assert not strange, f"no kubelet sends {sorted(strange)} in {method}"


def complete(manifest: PodManifest, pods: Path) -> None:
    """Add to a pod what its manifest has from a cluster, and its mounts from a kubelet.

    The pod's control group is left to the tests that are about it: see tests/fakes/pod_cgroup.py.

    Args:
        manifest: of the pod, as `virtlet run` reads it.
        pods: the kubelet's directory of pods; this pod's is made there.
    """
    pod, container = manifest.pod, manifest.container
    pod.dns_config.CopyFrom(CLUSTER_DNS)
    pod.annotations["kubernetes.io/config.source"] = "api"
    for name, value in {
        "KUBERNETES_SERVICE_HOST": SERVICE,
        "KUBERNETES_SERVICE_PORT": "443",
        "KUBERNETES_SERVICE_PORT_HTTPS": "443",
        "KUBERNETES_PORT": f"tcp://{SERVICE}:443",
        "KUBERNETES_PORT_443_TCP": f"tcp://{SERVICE}:443",
        "KUBERNETES_PORT_443_TCP_PROTO": "tcp",
        "KUBERNETES_PORT_443_TCP_PORT": "443",
        "KUBERNETES_PORT_443_TCP_ADDR": SERVICE,
    }.items():
        container.envs.add(key=name, value=value.encode())
    directory = pods / pod.metadata.uid
    account = directory / "volumes" / "kubernetes.io~projected" / "kube-api-access-x2zkq"
    if not account.exists():
        write_account(account, "token\n")
    directory.chmod(0o750)
    hosts = directory / "etc-hosts"
    hosts.write_text(f"127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.1.1\t{pod.hostname}\n")
    words = directory / "containers" / container.metadata.name / "7a33e70e"
    words.parent.mkdir(parents=True, exist_ok=True)
    words.touch()
    container.mounts.add(
        container_path="/var/run/secrets/kubernetes.io/serviceaccount",
        host_path=str(account),
        readonly=True,
    )
    container.mounts.add(container_path="/etc/hosts", host_path=str(hosts))
    container.mounts.add(container_path="/dev/termination-log", host_path=str(words))


def document(path: Path, name: str) -> dict[str, Any]:
    """A pod's manifest under another name."""
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    found["metadata"] |= {"name": name, "uid": f"uid-{name}"}
    return found


def write_account(account: Path, token: str, second: int = 0) -> None:
    """A service account with a token, a new one where there is one."""
    texts = {"token": token, "ca.crt": "ca\n", "namespace": "default"}
    files = {name: (text.encode(), 0o644, 0) for name, text in texts.items()}
    write_atomic(account, files, second)


def write_atomic(volume: Path, files: dict[str, tuple[bytes, int, int]], second: int = 0) -> None:
    """Files (content, mode, group) as a kubelet writes them: links to a version of all of them."""
    version = volume / f"..2026_11_27_10_00_0{second}.1"
    version.mkdir(parents=True)
    for name, (content, mode, group) in files.items():
        (version / name).write_bytes(content)
        (version / name).chmod(mode)
        os.chown(version / name, 0, group)
        if not (volume / name).is_symlink():
            (volume / name).symlink_to(f"..data/{name}")
    (volume / "..data_tmp").symlink_to(version.name)
    (volume / "..data_tmp").replace(volume / "..data")
