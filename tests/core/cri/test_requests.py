"""What a request may hold, and what is said about what it may not."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.cri import bad_fields
from tests.core.cri.bad_fields import Edit, good_pod, good_vm, setting
from virtlet.console.cri_log import CriLog
from virtlet.core.cri import fields, requests
from virtlet.cri import api_pb2 as cri
from virtlet.errors import InvalidArgument
from virtlet.host import cgroups
from virtlet.model.pod import PortMapping

ODD = st.text(
    st.one_of(st.sampled_from("/./.-a\0\n \x1b\u2028é"), st.characters(codec="utf-8")), max_size=40
)
"""Texts in which separators, dots and control characters are as frequent as letters."""
LONG = st.builds(lambda text, times: text * times, ODD, st.integers(1, 200))
TEXTS = st.one_of(ODD, LONG, st.builds("/{}".format, ODD))


def _ids(table: list[bad_fields.Bad]) -> list[str]:
    return [title for title, _, _ in table]


def _check(message: str, says: str) -> None:
    assert message.startswith(says)
    assert any(word in message for word in ("must be", "is empty", "is negative", "a range in it"))
    assert len(message) < 500
    assert bad_fields.SECRET not in message
    assert message.isprintable()


@pytest.mark.parametrize(
    ("edit", "says"), [bad[1:] for bad in bad_fields.PODS], ids=_ids(bad_fields.PODS)
)
def test_a_pod_that_cannot_be_is_refused_by_the_field_at_fault(edit: Edit, says: str) -> None:
    message = good_pod()
    edit(message)
    with pytest.raises(InvalidArgument) as caught:
        requests.pod_config(message)
    _check(str(caught.value), says)


@pytest.mark.parametrize(
    ("edit", "says"), [bad[1:] for bad in bad_fields.VMS], ids=_ids(bad_fields.VMS)
)
def test_a_container_that_cannot_be_is_refused_by_the_field_at_fault(edit: Edit, says: str) -> None:
    message = good_vm()
    edit(message)
    with pytest.raises(InvalidArgument) as caught:
        requests.vm_config(message)
    _check(str(caught.value), says)


@pytest.mark.parametrize(
    "user", [{"run_as_user": cri.Int64Value()}, {"run_as_username": "web"}], ids=str
)
def test_a_group_beside_a_user_is_taken(user: dict[str, Any]) -> None:
    message = good_vm()
    context = cri.LinuxContainerSecurityContext(run_as_group=cri.Int64Value(value=7), **user)
    message.linux.security_context.CopyFrom(context)
    requests.vm_config(message)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "coredns-66bc5c9577-x8k2l"),
        ("metadata.name", "sandbox_of.a.test:1"),
        ("metadata.name", "a" * 253),
        ("metadata.uid", "2f1a3b4c5d6e7f8091a2b3c4d5e6f708"),
        ("metadata.uid", "0c4f3e76-2cd5-4a3b-8a07-6d5a3c1b9e55"),
        ("hostname", ""),
        ("hostname", "h" * 64),
        ("hostname", "web-0.web.default.svc.cluster.local"),
        ("log_directory", ""),
        ("log_directory", "/var/log/pods/kube-system_kube-proxy-8xk2l_0c4f3e76"),
        ("log_directory", "/" + "d" * 255),
        ("linux.cgroup_parent", ""),
        ("linux.cgroup_parent", "/kubepods/besteffort/pod0c4f3e76-2cd5"),
        ("linux.cgroup_parent", "kubepods-burstable-pod0c4f3e76_2cd5.slice"),
        ("linux.cgroup_parent", "/kubepods.slice/kubepods-pod1.slice"),
        ("linux.resources.cpu_quota", -1),
        ("linux.resources.cpu_quota", 1000),
        ("linux.resources.cpu_period", 1000),
        ("linux.resources.cpu_period", 1_000_000),
        ("linux.resources.memory_swap_limit_in_bytes", -1),
        ("linux.resources.cpuset_cpus", "0-3,8"),
    ],
)
def test_what_kubelets_send_for_a_pod_is_taken(path: str, value: Any) -> None:
    message = good_pod()
    setting(path, value)(message)
    requests.pod_config(message)


def test_labels_and_annotations_hold_any_text() -> None:
    message = good_pod()
    message.labels["a b/c\n"] = "x\0"
    message.annotations["note"] = "two\nlines = ünïcode"
    config = requests.pod_config(message)
    assert config.labels == {**good_pod().labels, "a b/c\n": "x\0"}
    assert config.annotations == {**good_pod().annotations, "note": "two\nlines = ünïcode"}


@pytest.mark.parametrize("field", ["labels", "annotations"])
@pytest.mark.parametrize(
    ("good", "read"), [(good_pod, requests.pod_config), (good_vm, requests.vm_config)]
)
def test_ten_megabytes_of_annotations_are_refused_by_name(
    field: str, good: Callable[[], Any], read: Callable[[Any], object]
) -> None:
    """Two such pods would make every list of pods larger than a message may be."""
    message = good()
    texts = getattr(message, field)
    texts.update({"small": "x", "huge": "ü" * (5 << 20)})
    with pytest.raises(InvalidArgument, match=f"^{field} have 1048[0-9]+ bytes, 'huge' the most"):
        read(message)
    texts["huge"] = "x" * (256 << 10)  # What Kubernetes takes.
    read(message)


def test_ports_as_kubelets_publish_them() -> None:
    message = good_pod()
    message.port_mappings.add(container_port=80)
    message.port_mappings.add(
        container_port=65535, host_port=65535, host_ip="::1", protocol=cri.Protocol.SCTP
    )
    assert requests.pod_config(message).port_mappings == (
        PortMapping(container_port=80, host_port=0),
        PortMapping(container_port=65535, host_port=65535, protocol="SCTP", host_ip="::1"),
    )


@pytest.mark.parametrize(
    "path", ["", "0.log", "guest/0.log", "./guest/12.log", "..a/b..", "x" * 255]
)
def test_logs_in_the_pods_directory_are_taken(path: str) -> None:
    message = good_vm()
    message.log_path = path
    assert requests.vm_config(message).log_path == path


def test_environments_as_kubernetes_allows_them() -> None:
    message = good_vm()
    for key, value in (("my.var-1", "a=b\nc"), ("with space", ""), ("KEY", "ü")):
        message.envs.add(key=key, value=value.encode())
    assert requests.vm_config(message).envs[-3:] == (
        ("my.var-1", "a=b\nc"),
        ("with space", ""),
        ("KEY", "ü"),
    )


def test_a_log_is_as_long_as_linux_takes_it_with_its_directory() -> None:
    directory = "/" + "d" * 200
    fields.log_file(directory, "a/" * 1940 + "b" * (fields.LONGEST_PATH - len(directory) - 3881))
    with pytest.raises(InvalidArgument, match="log_path .* must be shorter"):
        fields.log_file(directory, "a/" * 1947 + "bb")


@given(TEXTS)
def test_a_name_is_one_word_and_stays_in_its_directory(text: str) -> None:
    """Whatever is taken can be a file's name, and one field of a line."""
    try:
        fields.name(text, "metadata.name")
    except InvalidArgument:
        return
    assert text.split() == [text]
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, text).touch()
        assert os.listdir(directory) == [text]


@settings(deadline=None)
@given(TEXTS)
def test_a_log_that_is_taken_can_be_made_and_stays_in_the_pods_directory(text: str) -> None:
    """Any other is refused, with nothing made."""
    try:
        fields.log_path(text)
    except InvalidArgument:
        return
    if not text:
        return
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / text
        CriLog.at(path).close()
        assert path.is_file()
        assert Path(directory).resolve() in path.resolve().parents


@given(TEXTS)
def test_a_log_directory_that_is_taken_can_be_made(text: str) -> None:
    """Below another root here, where it stays."""
    try:
        fields.log_directory(text)
    except InvalidArgument:
        return
    with tempfile.TemporaryDirectory() as root:
        path = Path(root, text.lstrip("/"))
        path.mkdir(parents=True, exist_ok=True)
        assert Path(root).resolve() in (path.resolve(), *path.resolve().parents)


@given(st.one_of(TEXTS, TEXTS.map("{}.slice".format), st.from_regex(r"[a-c./-]{1,60}\.slice")))
def test_a_group_that_is_taken_stays_in_its_hierarchy(text: str) -> None:
    """And the kernel can be asked for it."""
    try:
        fields.cgroup_parent(text)
    except InvalidArgument:
        return
    with tempfile.TemporaryDirectory() as mount:
        mounts = Path(mount, "mounts")
        mounts.write_text(f"cgroup2 {mount} cgroup2 rw 0 0\n")
        assert cgroups.find(text, "0" * 32, mounts) == ()
        path = Path(mount, cgroups.expand(text))
        path.mkdir(parents=True, exist_ok=True)
        assert Path(mount).resolve() in (path.resolve(), *path.resolve().parents)


@given(TEXTS, TEXTS)
def test_any_text_anywhere_is_taken_or_an_invalid_argument(text: str, other: str) -> None:
    """Nothing else is raised, and no message shows a variable's value."""
    pod, vm = good_pod(), good_vm()
    pod.metadata.name, pod.hostname, pod.linux.cgroup_parent = text, other, text
    pod.log_directory, pod.linux.resources.cpuset_cpus = other, text
    pod.port_mappings.add(container_port=1, host_ip=text)
    vm.metadata.name, vm.log_path = text, other
    vm.envs.add(key=other, value=f"{bad_fields.SECRET}\0".encode())
    vm.mounts.add(container_path=text, host_path=other)
    assert bad_fields.SECRET not in _refusal(lambda: requests.pod_config(pod))
    assert bad_fields.SECRET not in _refusal(lambda: requests.vm_config(vm))


def _refusal(convert: Callable[[], object]) -> str:
    try:
        convert()
    except InvalidArgument as error:
        return str(error)
    return ""


def test_what_restricts_processes_on_the_node_is_taken_without_effect() -> None:
    """A VM's guest is no process of the node: docs/node.md says so."""
    plain, restricted = good_vm(), good_vm()
    context = restricted.linux.security_context
    context.run_as_user.value = 1000
    context.run_as_group.value = 1000
    context.supplemental_groups.append(7)
    context.no_new_privs = True
    context.readonly_rootfs = True
    context.capabilities.drop_capabilities.append("ALL")
    context.seccomp.profile_type = cri.SecurityProfile.RuntimeDefault
    context.masked_paths.append("/proc/kcore")
    context.namespace_options.pid = cri.NamespaceMode.CONTAINER
    assert requests.vm_config(restricted) == requests.vm_config(plain)


def test_a_volume_may_be_an_image() -> None:
    message = good_vm()
    # As a kubelet 1.36 mounts it: by the id of what it pulled.
    image = cri.ImageSpec(image="sha256:" + "5" * 64, user_specified_image="registry.test/x:1")
    message.mounts.append(cri.Mount(container_path="/img", readonly=True, image=image))
    message.mounts[-1].image_sub_path = "./usr//share/"
    mount = requests.vm_config(message).mounts[-1]
    assert (mount.guest_path, mount.host_path, mount.readonly) == ("/img", "", True)
    assert (mount.image, mount.user_image) == (image.image, "registry.test/x:1")
    assert mount.image_sub_path == "usr/share"
    for path in ("/etc", "a/../../b", ".."):
        message.mounts[-1].image_sub_path = path
        with pytest.raises(InvalidArgument, match="/img.*is no path inside the image"):
            requests.vm_config(message)
    message.mounts[-1].image.Clear()
    message.mounts[-1].image.SetInParent()
    with pytest.raises(InvalidArgument, match="/img.*names no image"):
        requests.vm_config(message)
