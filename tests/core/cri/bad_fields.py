"""Fields that no request may hold so: for the checks themselves and for the real socket."""

from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.message import Message

from tests.fakes import kubelet
from virtlet.cri import api_pb2 as cri

_M = TypeVar("_M", bound=Message)

SECRET = "hunter2"
"""Stands in values that no message may show."""

Edit = Callable[[Any], object]
Bad = tuple[str, Edit, str]
"""What is wrong, how a good message gets so, and the beginning of what is said about it."""


def setting(path: str, value: Any) -> Edit:
    """Sets a field, given as `a.b.c`."""

    def edit(message: Any) -> None:
        *above, last = path.split(".")
        for part in above:
            message = getattr(message, part)
        setattr(message, last, value)

    return edit


def _set(path: str, *values: Any) -> list[Bad]:
    return [(f"{path}={str(v)[:20]!r}", setting(path, v), path) for v in values]


def _port(field: str, **mapping: Any) -> Bad:
    good = {"container_port": 80, "host_port": 8080, **mapping}
    title = f"port {field}={mapping[field]}"
    return (title, lambda pod: pod.port_mappings.add(**good), f"port_mappings[0].{field}")


def _env(key: str, value: bytes, says: str) -> Bad:
    return (f"env {key!r}={value!r}", lambda vm: vm.envs.add(key=key, value=value), says)


def _mount(says: str, **paths: str) -> Bad:
    good = {"container_path": "/data", "host_path": "/tmp", **paths}
    return (f"mount {says}", lambda vm: vm.mounts.add(**good), says)


def _group(message: Any) -> None:
    message.linux.security_context.ClearField("run_as_user")
    message.linux.security_context.run_as_group.value = 0


_GROUP: Bad = ("group without a user", _group, "linux.security_context.run_as_group 0")

NAMES = ("", ".", "..", "a/b", "/", "a\0b", "a\nb", "a\x7fb", "a b", "\u2028", "a" * 254, "é" * 127)
FILE_NAMES = ("a\0b", "a\nb", "x" * 256, "é" * 128)

_RESOURCES: list[Bad] = [
    *_set("linux.resources.cpu_period", -1, 1, 999, 1_000_001),
    *_set("linux.resources.cpu_quota", -2, 1, 999),
    *_set("linux.resources.cpu_shares", -1),
    *_set("linux.resources.memory_limit_in_bytes", -1, -(1 << 40)),
    *_set("linux.resources.memory_swap_limit_in_bytes", -2),
    *_set("linux.resources.oom_score_adj", -1001, 1001),
    *_set("linux.resources.cpuset_cpus", "x", "0-", "3-1", "0\0"),
    *_set("linux.resources.cpuset_mems", "x", "0,,1"),
]

PODS: list[Bad] = [
    *_set("metadata.name", *NAMES),
    *_set("metadata.namespace", *NAMES),
    *_set("metadata.uid", *NAMES),
    *_set("hostname", "a b", "-x", "x\n", "a/b", "x" * 254, "é"),
    *_set("log_directory", "logs", "./logs", "/a/../b", "/..", "/" + "a/" * 2048),
    *_set("log_directory", *(f"/{part}" for part in FILE_NAMES)),
    *_set("linux.cgroup_parent", "a/b", "../x", "/a/../b", "/..", "a", "a.slice/b.slice"),
    *_set("linux.cgroup_parent", ".slice", "-.slice", "-a.slice", "a--b.slice", "a-.slice"),
    *_set("linux.cgroup_parent", "a\0.slice", "x" * 250 + ".slice", "a-" * 110 + "b.slice"),
    *_set("linux.cgroup_parent", "/" + "a/" * 2000, *(f"/{part}" for part in FILE_NAMES)),
    _port("container_port", container_port=0),
    _port("container_port", container_port=-1),
    _port("container_port", container_port=65536),
    _port("host_port", host_port=-1),
    _port("host_port", host_port=65536),
    _port("protocol", protocol=7),
    *(_port("host_ip", host_ip=ip) for ip in ("nonsense", "10.0.0", "10.0.0.0/8", "fe80::1%eth0")),
    *_RESOURCES,
    *_set("linux.overhead.cpu_period", 1),
    _GROUP,
    *_set("linux.overhead.memory_limit_in_bytes", -1),
]

VMS: list[Bad] = [
    *_set("metadata.name", *NAMES),
    *_set("log_path", ".", "..", "./", "a/", "a/.", "a/..", "/", "/a", "../a", "a/../b", "a/../.."),
    *_set("log_path", "a/" * 2047 + "bb", *FILE_NAMES, *(f"a/{part}" for part in FILE_NAMES)),
    _env("", b"value", "envs: key ''"),
    _env("A=B", SECRET.encode(), "envs: key 'A=B'"),
    _env("A\nB", SECRET.encode(), "envs: key 'A\\nB'"),
    _env("A\0", SECRET.encode(), "envs: key 'A\\x00'"),
    _env("KEY", SECRET.encode() + b"\0", "envs: the value of 'KEY'"),
    _env("KEY", SECRET.encode() + b"\xff", "envs: the value of 'KEY'"),
    _mount("mounts: container_path 'data'", container_path="data"),
    _mount("mounts: container_path '/a\\x00b'", container_path="/a\0b"),
    _mount("mount '/data': host_path 'tmp'", host_path="tmp"),
    _mount("mount '/data': host_path '/a\\x00b'", host_path="/a\0b"),
    _mount("mount '/data': host_path '/xxx", host_path="/" + "x" * 256),
    (
        "device",
        lambda vm: vm.devices.add(container_path="/dev/x", host_path="/dev/a\0"),
        "devices: host_path '/dev/a\\x00'",
    ),
    _GROUP,
    *_RESOURCES,
]


def good_pod() -> cri.PodSandboxConfig:
    """A pod as a kubelet with the cgroupfs driver asks for it."""
    config: cri.PodSandboxConfig = kubelet.recorded("RunPodSandbox")[0].message.config
    return _copy(config)


def good_vm() -> cri.ContainerConfig:
    """A container as a kubelet asks for it."""
    config: cri.ContainerConfig = next(
        one.message.config
        for one in kubelet.recorded("CreateContainer")
        if one.message.config.metadata.name == "guest"
        and not any(mount.HasField("image") for mount in one.message.config.mounts)
    )
    return _copy(config)


def _copy(message: _M) -> _M:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
