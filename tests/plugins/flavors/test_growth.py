"""Machines that can change while they run."""

from pathlib import Path

import pytest

from tests.fakes.model import make_image, make_pod
from virtlet.errors import InvalidArgument
from virtlet.model.flavor import Flavor
from virtlet.model.resources import Resources
from virtlet.model.vm import VmConfig, VmMetadata
from virtlet.plugins.flavors.plugin import Plugin

IMAGE = make_image(Path("/nonexistent"))
MIB = 1 << 20


def choose(profile: dict[str, object], resources: Resources, **marks: str) -> Flavor:
    pod = make_pod(marks, flavor=profile)
    flavor = Plugin().virtlet_flavor(
        pod, VmConfig(metadata=VmMetadata(name="vm"), image="x", resources=resources), IMAGE
    )
    assert flavor is not None
    return flavor


@pytest.mark.parametrize(
    ("quota", "period", "vcpus"),
    [
        (0, 0, 2),
        (-1, 100_000, 2),
        (1000, 100_000, 1),
        (100_000, 100_000, 1),
        (100_001, 100_000, 2),
        (250_000, 0, 3),
        (30_000, 10_000, 3),
        (10**9, 1000, 4),
    ],
)
def test_where_vcpus_can_change_the_cpu_limit_says_how_many_there_are(
    quota: int, period: int, vcpus: int
) -> None:
    """As many as it keeps busy, one at least, and never more than the most."""
    profile: dict[str, object] = {"vcpus": 2, "max_vcpus": 4}
    chosen = choose(profile, Resources(cpu_quota=quota, cpu_period=period))
    assert (chosen.vcpus, chosen.max_vcpus) == (vcpus, 4)


@pytest.mark.parametrize("profile", [{"vcpus": 3}, {"vcpus": 1, "max_vcpus": 1}])
def test_where_they_cannot_the_limit_changes_nothing(profile: dict[str, object]) -> None:
    """A flavor without `max_vcpus` has the number it names."""
    limit = Resources(cpu_quota=200_000, cpu_period=100_000)
    assert choose(profile, limit).vcpus == profile["vcpus"]


def test_annotations_win_over_the_profile() -> None:
    """For the most a VM can have, too."""
    profile: dict[str, object] = {"max_vcpus": 2, "max_memory": "1Gi"}
    chosen = choose(profile, Resources(), VirtletMaxVCPUCount="8", VirtletMaxMemory="3000M")
    assert chosen.max_vcpus == 8
    assert chosen.max_memory == 2861 * MIB


def test_more_vcpus_than_the_most_are_refused() -> None:
    """Before anything is made."""
    pod = make_pod({"VirtletVCPUCount": "4"}, flavor={"max_vcpus": 2})
    with pytest.raises(InvalidArgument, match="gets 4 vCPUs and can have 2 at most"):
        Plugin().virtlet_admit_pod(pod)


def test_a_topology_has_to_fit_the_most_vcpus() -> None:
    """libvirt wants them all to have a place."""
    marks = {
        "VirtletLibvirtCPUSetting": "topology: {sockets: 4, cores: 1, threads: 1}",
        "VirtletMaxVCPUCount": "4",
    }
    Plugin().virtlet_admit_pod(make_pod(marks))
    marks["VirtletMaxVCPUCount"] = "2"
    with pytest.raises(InvalidArgument, match='set VirtletMaxVCPUCount to "4"'):
        Plugin().virtlet_admit_pod(make_pod(marks))


def test_memory_beyond_all_machines_is_refused() -> None:
    """As it is for the limit."""
    with pytest.raises(InvalidArgument, match="16777216Mi is the most"):
        Plugin().virtlet_admit_pod(make_pod({"VirtletMaxMemory": "17Ti"}))


@pytest.mark.parametrize("cpus", ["65000", "0-65535", "x", "1-", "-1", "3-1", "0,,1", " "])
def test_a_cpuset_that_cannot_be_is_refused(cpus: str) -> None:
    """Before the VM is made, not by an emulator that does not start."""
    with pytest.raises(InvalidArgument, match="cpuset_cpus"):
        choose({}, Resources(cpuset_cpus=cpus))


@pytest.mark.parametrize(
    ("profile", "rules"),
    [
        ({}, set()),
        ({"max_vcpus": 2}, {"cpu"}),
        ({"max_vcpus": 2, "max_memory": "2Gi"}, {"cpu", "memory"}),
    ],
)
def test_a_guest_is_told_to_use_what_it_will_be_given(
    profile: dict[str, object], rules: set[str]
) -> None:
    """By udev rules: kernels leave a CPU offline otherwise."""
    part = Plugin().virtlet_cloud_init(choose(profile, Resources(memory_limit=64 * MIB)))
    files = part.user_data["write_files"] if part else []
    told = {
        s for file in files for s in ("cpu", "memory") if f'SUBSYSTEM=="{s}"' in file["content"]
    }
    assert told == rules


def test_the_flavor_of_another_plugin_counts_for_what_the_guest_is_told() -> None:
    """Its own choice for the pod would have no rule at all."""
    part = Plugin().virtlet_cloud_init(Flavor(vcpus=1, max_vcpus=4))
    assert part is not None
    (file,) = part.user_data["write_files"]
    assert 'SUBSYSTEM=="cpu"' in file["content"]
