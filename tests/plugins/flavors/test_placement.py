"""Machines with CPUs and huge pages of their own: what a pod or its node lacks is named."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from tests.fakes.model import make_pod
from virtlet.errors import FailedPrecondition, InvalidArgument
from virtlet.model.flavor import Flavor
from virtlet.model.resources import Resources
from virtlet.model.vm import Mount, VmConfig, VmMetadata
from virtlet.plugins.flavors.choose import choose
from virtlet.plugins.flavors.flavor_keys import read_flavor
from virtlet.plugins.flavors.placement import check_cpus, check_kernel, check_pages, check_vsock
from virtlet.plugins.flavors.plugin import Plugin

MIB = 1 << 20


def config(resources: Resources) -> VmConfig:
    return VmConfig(metadata=VmMetadata(name="vm"), image="x", resources=resources)


def chosen(resources: Resources, profile: Mapping[str, Any], **marks: str) -> Flavor:
    return choose(make_pod(marks, flavor=profile), config(resources))


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """/sys of a machine with two memory nodes, 100 + 60 pages of 2 MiB free, and 20 promised."""
    for node, cpus, free in ((0, "0-3", 100), (1, "4-7", 60)):
        directory = tmp_path / f"devices/system/node/node{node}"
        (directory / "hugepages/hugepages-2048kB").mkdir(parents=True)
        (directory / "cpulist").write_text(f"{cpus}\n")
        (directory / "hugepages/hugepages-2048kB/free_hugepages").write_text(f"{free}\n")
    (tmp_path / "devices/system/node/online").write_text("0-1\n")
    pages = tmp_path / "kernel/mm/hugepages/hugepages-2048kB"
    pages.mkdir(parents=True)
    (pages / "free_hugepages").write_text("160\n")
    (pages / "resv_hugepages").write_text("20\n")
    return tmp_path


def test_memory_is_as_much_as_the_pod_has_of_huge_pages() -> None:
    """Its memory limit is for the emulator then. A kubelet tells of all sizes, most of them 0."""
    limits = {"2MB": 512 * MIB, "1GB": 0}
    flavor = chosen(Resources(memory_limit=256 * MIB, hugepage_limits=limits), {"memory": "2Gi"})
    assert (flavor.memory, flavor.page_size) == (512 * MIB, 2 * MIB)
    flavor = chosen(Resources(memory_limit=256 * MIB, hugepage_limits={"2MB": 0}), {})
    assert (flavor.memory, flavor.page_size) == (256 * MIB, 0)


@pytest.mark.parametrize(
    ("limits", "profile", "problem"),
    [
        ({"2MB": 64 * MIB, "1GB": 1 << 30}, {}, r"of several sizes \(1GB, 2MB\)"),
        ({"big": 64 * MIB}, {}, "'big' is no size of pages"),
        ({"2MB": 2 * MIB}, {}, "its limit of huge pages gives the VM 2097152 bytes"),
        ({"2MB": 64 * MIB}, {"max_memory": "1Gi"}, "on huge pages cannot grow: leave out Virt"),
    ],
)
def test_huge_pages_that_no_machine_can_have_are_refused(
    limits: Mapping[str, int], profile: Mapping[str, Any], problem: str
) -> None:
    with pytest.raises(InvalidArgument, match=problem):
        chosen(Resources(hugepage_limits=limits), profile)


@pytest.mark.parametrize(
    ("flavor", "resources", "problem"),
    [
        (Flavor(memory=280 * MIB, page_size=2 * MIB), Resources(), ""),
        (Flavor(memory=282 * MIB, page_size=2 * MIB), Resources(), "141 huge .* and 140 are free:"),
        (Flavor(memory=2 << 30, page_size=1 << 30), Resources(), "no huge pages of 1048576KiB:"),
        (
            Flavor(memory=140 * MIB, page_size=2 * MIB),
            Resources(cpuset_mems="1"),
            "70 huge pages of 2048KiB, and 60 are free on memory nodes 1: set more aside",
        ),
        (Flavor(memory=320 * MIB, page_size=2 * MIB), Resources(cpuset_mems="0-1"), ""),
        (
            Flavor(memory=240 * MIB, page_size=2 * MIB, numa=True),
            Resources(cpuset_cpus="0"),
            "120 huge .* 100 are free on memory nodes 0",
        ),
        (Flavor(memory=1 << 40), Resources(), ""),
    ],
)
def test_huge_pages_that_are_not_there_are_refused(
    system: Path, flavor: Flavor, resources: Resources, problem: str
) -> None:
    """Where the VM would have them, before anything is made."""
    if not problem:
        check_pages(make_pod(), flavor, resources, system)
        return
    with pytest.raises(FailedPrecondition, match=problem):
        check_pages(make_pod(), flavor, resources, system)


def test_a_vm_is_admitted_only_with_pages_that_are_there() -> None:
    """A resize of one that has them asks no more."""
    pod = make_pod()
    wanted = config(Resources(hugepage_limits={"2MB": 1 << 43}))
    with pytest.raises(FailedPrecondition, match="4194304 huge pages of 2048KiB"):
        Plugin().virtlet_admit_vm(pod, wanted)
    assert choose(pod, wanted).page_size == 2 * MIB


@pytest.mark.parametrize(
    ("resources", "problem"),
    [
        (Resources(), "and the container has none: give it whole CPUs"),
        (Resources(cpuset_cpus="0-1", cpu_shares=512), "shares CPUs 0-1 with others: give it"),
        (Resources(cpuset_cpus="0", cpu_shares=1024), "has 1 of its own for 2 vCPUs: limit its"),
    ],
)
def test_cpus_that_are_not_the_containers_own_are_refused(
    resources: Resources, problem: str
) -> None:
    with pytest.raises(InvalidArgument, match=f"has dedicated_cpus, .*{problem}"):
        chosen(resources, {"dedicated_cpus": True, "vcpus": 2})


def test_a_container_with_cpus_of_its_own_is_admitted() -> None:
    """More than vCPUs are for the emulator."""
    own = Resources(cpuset_cpus="0-1", cpu_shares=2048)
    for vcpus in (1, 2):
        assert chosen(own, {"dedicated_cpus": True, "vcpus": vcpus}).dedicated_cpus


@pytest.mark.parametrize(
    ("profile", "problem"),
    [
        ({"numa": True}, "numa needs dedicated_cpus"),
        ({"dedicated_cpus": True, "max_vcpus": 2}, "fixed number of vCPUs: leave max_vcpus out"),
        (
            {"dedicated_cpus": True, "numa": True, "max_memory": "2Gi"},
            "numa takes a fixed amount of memory: leave max_memory out",
        ),
        ({"numa": 1}, "numa: must be true or false"),
        ({"lock_memory": True, "max_memory": "2Gi"}, "lock_memory takes a fixed amount of memory"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(
    profile: Mapping[str, Any], problem: str
) -> None:
    with pytest.raises(FailedPrecondition, match=problem):
        Plugin().virtlet_admit_pod(make_pod(flavor=profile))


def test_a_pod_cannot_contradict_its_flavor() -> None:
    pod = make_pod({"VirtletMaxVCPUCount": "4"}, flavor={"dedicated_cpus": True})
    with pytest.raises(InvalidArgument, match="pod shop/web-1: dedicated_cpus takes a fixed"):
        Plugin().virtlet_admit_pod(pod)


@pytest.mark.parametrize(
    ("flavor", "problem"),
    [
        (Flavor(extras={"domain_cpu": "<cpu/>"}), "take VirtletLibvirtCPUSetting out"),
        (Flavor(memory=1 << 30, page_size=1 << 30), "has 1 pages for 2 nodes"),
    ],
)
def test_a_guest_has_memory_nodes_or_is_refused(system: Path, flavor: Flavor, problem: str) -> None:
    wanted = evolve(flavor, dedicated_cpus=True, numa=True, vcpus=2)
    resources = Resources(cpuset_cpus="0-1", cpu_shares=2048)
    nodes = system / "devices/system/node"
    (nodes / "node0/cpulist").write_text("0\n")
    (nodes / "node1/cpulist").write_text("1\n")
    with pytest.raises(InvalidArgument, match=problem):
        check_cpus(make_pod(), wanted, resources, nodes)
    for node in range(2):
        (nodes / f"node{node}/cpulist").unlink()
        (nodes / f"node{node}").rename(system / f"gone{node}")
    with pytest.raises(InvalidArgument, match="kernel has no memory nodes"):
        check_cpus(make_pod(), wanted, resources, nodes)


def test_a_kernel_that_the_emulator_cannot_read_is_refused(tmp_path: Path) -> None:
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd"
    flavor = Flavor(kernel=str(kernel), initrd=str(initrd))
    with pytest.raises(FailedPrecondition, match="kernel .*: No such file or directory: put the"):
        check_kernel(make_pod(), flavor, ())
    kernel.touch(0o644)
    initrd.touch(0o600)
    with pytest.raises(FailedPrecondition, match="initrd .* is no file that everybody may read"):
        check_kernel(make_pod(), flavor, ())
    initrd.chmod(0o644)
    check_kernel(make_pod(), flavor, ())
    with pytest.raises(FailedPrecondition, match="kernel .* is no file that everybody may read"):
        check_kernel(make_pod(), Flavor(kernel=str(tmp_path)), ())


def test_a_kernel_of_an_image_that_the_pod_does_not_mount_is_refused() -> None:
    flavor = Flavor(kernel="image:/kernel/vmlinuz")
    directory = Mount(guest_path="/kernel", host_path="/srv")
    image = Mount(guest_path="/kernel", host_path="", image="sha256:1")
    check_kernel(make_pod(), flavor, (directory, image))
    for mounts in ((), (directory,), (evolve(image, guest_path="/kern"),)):
        with pytest.raises(FailedPrecondition, match="is below no mount of an image: mount a vol"):
            check_kernel(make_pod(), flavor, mounts)


def test_vsock_is_refused_where_the_kernel_has_none(tmp_path: Path) -> None:
    device = tmp_path / "vhost-vsock"
    check_vsock(make_pod(), Flavor(), device)
    with pytest.raises(FailedPrecondition, match="vsock, and this node has no .* load the module"):
        check_vsock(make_pod(), Flavor(vsock=True), device)
    device.touch()
    check_vsock(make_pod(), read_flavor("here", {"vsock": True}), device)
