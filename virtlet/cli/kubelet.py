"""What a kubelet adds to a pod's manifest of its own accord, in every request.

Source: the requests of a kubelet 1.36, recorded in tests/fakes/kubelet/requests.jsonl, and the
documentation of QoS classes and DNS policies of Kubernetes. What takes a cluster or the kubelet's
own directories is left out (docs/decisions/0044-run-as-a-kubelet.md).
"""

import json
import re
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from virtlet.cri import api_pb2 as cri
from virtlet.model.quantity import parse_bytes, parse_quantity

GRACE_PERIOD = "io.kubernetes.pod.terminationGracePeriod"
"""The annotation of a container that tells its pod's grace period, in seconds."""
CPU_PERIOD = 100_000
"""Microseconds; the kubelet's period."""
MIN_QUOTA = 1000
MIN_SHARES = 2

GUARANTEED_OOM_SCORE = -997
BEST_EFFORT_OOM_SCORE = 1000

RESOLV_CONF = Path("/etc/resolv.conf")
MEMORY_INFO = Path("/proc/meminfo")
HUGE_PAGES = Path("/sys/kernel/mm/hugepages")
MAX_NAME_SERVERS = 3
MAX_HOST_NAME = 63

_PORT = ("name", "hostPort", "containerPort", "protocol", "hostIP")

MASKED_PATHS = (
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def host_name(name: str) -> str:
    """A pod's host name, cut to what a kernel takes."""
    return name[:MAX_HOST_NAME].rstrip("-.")


def image_name(name: str) -> str:
    """An image's name as a kubelet asks for it: with the tag `latest` where it has none."""
    last = name.rsplit("/", 1)[-1]
    return name if ":" in last or "@" in last else f"{name}:latest"


def pull_policy(container: Mapping[str, Any]) -> str:
    """When the image is pulled; the API server's default goes by the tag."""
    latest = image_name(container["image"]).endswith(":latest")
    return container.get("imagePullPolicy") or ("Always" if latest else "IfNotPresent")


def pod_annotations(seen: int) -> dict[str, str]:
    """Where a pod comes from: a file, which a kubelet watches too.

    Args:
        seen: since when its manifest is as it is, in nanoseconds of Unix time.
    """
    at = datetime.fromtimestamp(seen // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return {
        "kubernetes.io/config.seen": f"{at}.{seen % 10**9:09d}Z",
        "kubernetes.io/config.source": "file",
    }


def container_annotations(container: Mapping[str, Any], grace: int) -> dict[str, str]:
    """What a kubelet must find again at a container, but for the number of its restarts."""
    text = json.dumps(container, sort_keys=True, default=str)
    annotations = {
        "io.kubernetes.container.hash": f"{zlib.crc32(text.encode()):x}",
        "io.kubernetes.container.terminationMessagePath": container.get("terminationMessagePath")
        or "/dev/termination-log",
        "io.kubernetes.container.terminationMessagePolicy": container.get(
            "terminationMessagePolicy"
        )
        or "File",
        GRACE_PERIOD: str(grace),
    }
    if container.get("ports"):
        ports = [
            {name: value for name in _PORT if (value := {"protocol": "TCP", **port}.get(name))}
            for port in container["ports"]
        ]
        annotations["io.kubernetes.container.ports"] = json.dumps(ports, separators=(",", ":"))
    return annotations


def dns(spec: Mapping[str, Any]) -> cri.DNSConfig:
    """The resolver settings of a kubelet without a cluster's DNS: the node's, and the pod's own."""
    servers: list[str] = []
    searches: list[str] = []
    options: dict[str, str] = {}
    if spec.get("dnsPolicy") != "None":
        servers, searches, options = _resolver(RESOLV_CONF)
    asked = spec.get("dnsConfig") or {}
    for option in asked.get("options") or []:
        name, value = option["name"], option.get("value")
        options[name] = name if value is None else f"{name}:{value}"
    servers += asked.get("nameservers") or []
    searches += asked.get("searches") or []
    return cri.DNSConfig(
        servers=list(dict.fromkeys(servers))[:MAX_NAME_SERVERS],
        searches=list(dict.fromkeys(searches)),
        options=options.values(),
    )


def _resolver(path: Path) -> tuple[list[str], list[str], dict[str, str]]:
    servers: list[str] = []
    searches: list[str] = []
    options: dict[str, str] = {}
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return servers, searches, options
    for line in lines:
        match line.split():
            case ["nameserver", address, *_]:
                servers.append(address)
            case ["search", *names]:
                searches = [name for name in names if name != "."]
            case ["options", *named]:
                options = {option.split(":")[0]: option for option in named}
    return servers, searches, options


def pod_resources(container: Mapping[str, Any]) -> cri.LinuxContainerResources:
    """The sandbox's: the sum of its containers, of which there is one."""
    limits, requests = _resources(container)
    quota = int(parse_quantity(str(limits.get("cpu", 0))) * CPU_PERIOD)
    return cri.LinuxContainerResources(
        cpu_period=CPU_PERIOD,
        cpu_quota=max(quota, MIN_QUOTA) if quota else 0,
        cpu_shares=_shares(requests),
        memory_limit_in_bytes=parse_bytes(str(limits.get("memory", 0))),
    )


def overhead(spec: Mapping[str, Any]) -> cri.LinuxContainerResources:
    """The runtime class's, where the manifest has it; nothing asks a cluster for it."""
    asked = spec.get("overhead")
    return (
        pod_resources({"resources": {"limits": asked}})
        if asked
        else (cri.LinuxContainerResources())
    )


def container_resources(container: Mapping[str, Any]) -> cri.LinuxContainerResources:
    """A container's resources; it gets no swap, and what the kernel kills first is said."""
    resources = pod_resources(container)
    resources.memory_swap_limit_in_bytes = resources.memory_limit_in_bytes
    resources.oom_score_adj = _oom_score(container)
    limits, _ = _resources(container)
    for name, size in _huge_page_sizes():
        limit = parse_bytes(str(limits.get(f"hugepages-{_binary(size)}", 0)))
        resources.hugepage_limits.add(page_size=name, limit=limit)
    return resources


def _resources(container: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Limits and requests; a request that is not made is the limit, as in the API server."""
    asked = container.get("resources") or {}
    limits = asked.get("limits") or {}
    return limits, {**limits, **(asked.get("requests") or {})}


def _shares(requests: Mapping[str, Any]) -> int:
    return max(MIN_SHARES, int(parse_quantity(str(requests.get("cpu", 0))) * 1024))


def _oom_score(container: Mapping[str, Any]) -> int:
    """By the pod's QoS class; source: "Node out of memory behavior" of Kubernetes."""
    limits, requests = _resources(container)
    if not ({"cpu", "memory"} & requests.keys()):
        return BEST_EFFORT_OOM_SCORE
    if all(
        name in limits and parse_quantity(str(limits[name])) == parse_quantity(str(requests[name]))
        for name in ("cpu", "memory")
    ):
        return GUARANTEED_OOM_SCORE
    asked = parse_bytes(str(requests.get("memory", 0)))
    return min(max(3, 1000 - 1000 * asked // _memory()), 999)


def _memory() -> int:
    """Bytes of memory of this node."""
    found = re.search(r"^MemTotal:\s*(\d+) kB", MEMORY_INFO.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 1 << 30


def _huge_page_sizes() -> list[tuple[str, int]]:
    """The sizes that this node's kernel knows, as CRI names them, with their bytes."""
    sizes = sorted(
        int(path.name.removeprefix("hugepages-").removesuffix("kB")) * 1024
        for path in HUGE_PAGES.glob("hugepages-*kB")
    )
    return [(_binary(size).removesuffix("i") + "B", size) for size in sizes]


def _binary(size: int) -> str:
    """2 MiB as `2Mi`."""
    for unit, factor in (("Gi", 1 << 30), ("Mi", 1 << 20)):
        if size >= factor:
            return f"{size // factor}{unit}"
    return f"{size // 1024}Ki"


def namespaces(spec: Mapping[str, Any]) -> cri.NamespaceOption:
    """What the pod shares with the node."""
    node, pod, container = (
        cri.NamespaceMode.NODE,
        cri.NamespaceMode.POD,
        cri.NamespaceMode.CONTAINER,
    )
    processes = pod if spec.get("shareProcessNamespace") else container
    return cri.NamespaceOption(
        network=node if spec.get("hostNetwork") else pod,
        pid=node if spec.get("hostPID") else processes,
        ipc=node if spec.get("hostIPC") else pod,
        userns_options=cri.UserNamespace(mode=node),
    )


def sandbox_security(
    spec: Mapping[str, Any], container: Mapping[str, Any]
) -> cri.LinuxSandboxSecurityContext:
    """The sandbox's security context: the pod's own, and whether a container is privileged."""
    own = spec.get("securityContext") or {}
    return cri.LinuxSandboxSecurityContext(
        namespace_options=namespaces(spec),
        run_as_user=_number(own.get("runAsUser")),
        run_as_group=_number(own.get("runAsGroup")),
        supplemental_groups=_groups(own),
        privileged=(container.get("securityContext") or {}).get("privileged"),
        seccomp=_seccomp(own, cri.SecurityProfile.RuntimeDefault),
    )


def container_security(
    spec: Mapping[str, Any], container: Mapping[str, Any]
) -> cri.LinuxContainerSecurityContext:
    """A container's security context: its own over the pod's."""
    whole = spec.get("securityContext") or {}
    both = {**whole, **(container.get("securityContext") or {})}
    return cri.LinuxContainerSecurityContext(
        namespace_options=namespaces(spec),
        privileged=both.get("privileged"),
        # A disk image names no user, for which a kubelet writes root's number.
        run_as_user=_number(both.get("runAsUser", 0)),
        run_as_group=_number(both.get("runAsGroup")),
        readonly_rootfs=both.get("readOnlyRootFilesystem"),
        supplemental_groups=_groups(whole),
        no_new_privs=both.get("allowPrivilegeEscalation") is False,
        masked_paths=MASKED_PATHS,
        readonly_paths=READONLY_PATHS,
        seccomp=_seccomp(both, cri.SecurityProfile.Unconfined),
    )


def _number(value: int | None) -> cri.Int64Value | None:
    return None if value is None else cri.Int64Value(value=value)


def _groups(context: Mapping[str, Any]) -> list[int]:
    own = context.get("fsGroup")
    return [*([] if own is None else [own]), *(context.get("supplementalGroups") or [])]


def _seccomp(context: Mapping[str, Any], unasked: int) -> cri.SecurityProfile:
    asked = (context.get("seccompProfile") or {}).get("type")
    kinds = cri.SecurityProfile.ProfileType
    return cri.SecurityProfile(profile_type=kinds.Value(asked) if asked else unasked)  # type: ignore[arg-type]
