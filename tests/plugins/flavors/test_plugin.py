from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.model import make_image, make_node, make_pod, make_vm_config
from virtlet.cluster.api import KUBECONFIG
from virtlet.errors import FailedPrecondition, InvalidArgument
from virtlet.model.flavor import Flavor
from virtlet.model.option import Settings
from virtlet.plugins.flavors import annotations
from virtlet.plugins.flavors.plugin import FLAVORS_DIR, Plugin

IMAGE = make_image(Path("/nonexistent"))
MIB = 1 << 20
UUID = "6c4b4fd3-6d3b-4a0f-8d5a-0d2f2f0e2c11"


def choose(
    marks: Mapping[str, str] | None = None,
    flavor: Mapping[str, Any] | None = None,
    memory_limit: int = 0,
    handler: str = "gpu",
) -> Flavor:
    """Admit a pod and its VM, then choose: as the core does."""
    plugin, config = Plugin(), make_vm_config(memory_limit)
    pod = make_pod(marks, flavor=flavor, handler=handler)
    plugin.virtlet_admit_pod(pod)
    plugin.virtlet_admit_vm(pod, config)
    chosen = plugin.virtlet_flavor(pod, config, IMAGE)
    assert chosen is not None
    return chosen


def test_a_pod_that_says_nothing_gets_the_defaults() -> None:
    assert choose() == Flavor(
        vcpus=1,
        memory=1 << 30,
        cpu_model="",
        machine="q35",
        firmware="bios",
        disk_bus="scsi",
        root_size=0,
        system_uuid="",
        guest_agent=True,
    )


def test_annotations_choose_the_machine() -> None:
    chosen = choose(
        {
            "VirtletVCPUCount": "4",
            "VirtletCPUModel": "host-model",
            "VirtletDiskDriver": "virtio",
            "VirtletRootVolumeSize": "10Gi",
            "VirtletSystemUUID": UUID.upper().replace("-", ""),
            "VirtletLibvirtCPUSetting": "mode: host-passthrough",
        }
    )
    assert chosen == Flavor(
        vcpus=4,
        cpu_model="host-model",
        disk_bus="virtio",
        root_size=10 << 30,
        system_uuid=UUID,
        extras={"domain_cpu": '<cpu mode="host-passthrough" />'},
    )


def test_the_memory_limit_is_the_memory() -> None:
    assert choose(memory_limit=160 * MIB).memory == 160 * MIB


def test_memory_is_whole_mebibytes_and_never_over_the_limit() -> None:
    assert choose(memory_limit=200_000_000).memory == 190 * MIB


PROFILE = {
    "vcpus": 2,
    "memory": "2Gi",
    "cpu_model": "Skylake-Server-noTSX-IBRS",
    "machine": "pc-q35-9.2",
    "firmware": "uefi",
    "disk_bus": "virtio",
    "disk_cache": "none",
    "disk_io": "native",
    "disk_iothreads": 2,
    "disk_iops": 500,
    "disk_iops_burst": 1000,
    "disk_bandwidth": "50Mi",
    "disk_bandwidth_burst": "100Mi",
    "disk_burst_seconds": 10,
    "root_size": "20Gi",
    "guest_agent": False,
    "tpm": True,
    "guest_os": "windows",
    "video": "vga",
    "watchdog": True,
    "lock_memory": True,
    "usb": True,
    "cpu_features": {"pcid": "require", "hle": "disable"},
    "sound": "ich9",
    "rng": False,
    "boot": ["cdroms", "root"],
    "on_reboot": "end",
    "on_panic": "keep",
    "kernel": "/etc/passwd",
    "initrd": "/etc/group",
    "kernel_args": "console=ttyS0",
    "nested": True,
    "translation_buffer": "128Mi",
    "extras": {"gpu": "a100", "slots": 2},
}


def test_the_handler_s_profile_chooses_where_the_pod_does_not() -> None:
    assert choose(flavor=PROFILE) == Flavor(
        vcpus=2,
        memory=2 << 30,
        cpu_model="Skylake-Server-noTSX-IBRS",
        machine="pc-q35-9.2",
        firmware="uefi",
        disk_bus="virtio",
        disk_cache="none",
        disk_io="native",
        disk_iothreads=2,
        disk_iops=500,
        disk_iops_burst=1000,
        disk_bandwidth=50 << 20,
        disk_bandwidth_burst=100 << 20,
        disk_burst_seconds=10,
        root_size=20 << 30,
        guest_agent=False,
        tpm=True,
        guest_os="windows",
        video="vga",
        watchdog=True,
        lock_memory=True,
        usb=True,
        cpu_features={"pcid": "require", "hle": "disable"},
        sound="ich9",
        rng=False,
        boot=("cdroms", "root"),
        on_reboot="end",
        on_panic="keep",
        kernel="/etc/passwd",
        initrd="/etc/group",
        kernel_args="console=ttyS0",
        nested=True,
        translation_buffer=128 << 20,
        extras={"gpu": "a100", "slots": "2"},
    )


def test_the_pod_wins_over_the_profile() -> None:
    marks = {
        "VirtletVCPUCount": "1",
        "VirtletCPUModel": "host-model",
        "VirtletDiskDriver": "scsi",
        "VirtletRootVolumeSize": "1Gi",
    }
    chosen = choose(marks, PROFILE, memory_limit=64 * MIB)
    assert (chosen.vcpus, chosen.cpu_model, chosen.disk_bus) == (1, "host-model", "scsi")
    assert (chosen.root_size, chosen.memory) == (1 << 30, 64 * MIB)


def test_an_empty_annotation_leaves_the_choice_to_the_profile() -> None:
    marks = {annotation.name: "" for annotation in annotations.ALL}
    assert choose(marks, PROFILE) == choose(None, PROFILE)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("VirtletVCPUCount", "0"),
        ("VirtletVCPUCount", "256"),
        ("VirtletVCPUCount", "two"),
        ("VirtletCPUModel", "host-passthrough"),
        ("VirtletFirmware", "efi"),
        ("VirtletDiskDriver", "ide"),
        ("VirtletDiskIOPS", "0"),
        ("VirtletDiskIOPS", "-5"),
        ("VirtletDiskIOPS", "1k"),
        ("VirtletDiskIOPSBurst", "100"),
        ("VirtletDiskBandwidth", "much"),
        ("VirtletDiskBandwidth", "0"),
        ("VirtletDiskBandwidth", "1Ki"),
        ("VirtletDiskBandwidthBurst", "2T"),
        ("VirtletRootVolumeSize", "1GiB"),
        ("VirtletRootVolumeSize", "-1Gi"),
        ("VirtletRootVolumeSize", "65Ti"),
        ("VirtletSystemUUID", "not-a-uuid"),
        ("VirtletLibvirtCPUSetting", "models: x"),
    ],
)
def test_a_wrong_annotation_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^annotation {name}: "):
        choose({name: text})


def test_a_topology_that_does_not_fit_the_vcpus_is_refused_before_anything_is_made() -> None:
    marks = {"VirtletLibvirtCPUSetting": "topology: {cores: 2, threads: 2}"}
    with pytest.raises(
        InvalidArgument, match=r'makes 4 vCPUs.*gets 1: set VirtletVCPUCount to "4"'
    ):
        Plugin().virtlet_admit_pod(make_pod(marks))
    assert choose(marks | {"VirtletVCPUCount": "4"}).vcpus == 4


@pytest.mark.parametrize("limit", [1, 32 * MIB - 1, (1 << 44) + 1, 1 << 62])
def test_memory_that_no_guest_can_have_is_refused(limit: int) -> None:
    with pytest.raises(InvalidArgument, match=r"pod shop/web-1: its memory limit gives the VM"):
        choose(memory_limit=limit)


def test_impossible_memory_of_a_profile_names_the_handler() -> None:
    with pytest.raises(InvalidArgument, match="the flavor of 'gpu' gives the VM 1024 bytes"):
        choose(flavor={"memory": "1Ki"})


@pytest.mark.parametrize(
    ("flavor", "message"),
    [
        ({"memories": 1}, "unknown key 'memories' (did you mean 'memory'?); known: vcpus, max_"),
        ({1: 1}, "unknown key 1; known"),
        ({"vcpus": 0}, "vcpus: 0 is not between 1 and 255"),
        ({"vcpus": True}, "vcpus: must be a number or a quantity"),
        ({"vcpus": [1]}, "vcpus: must be a number or a quantity"),
        ({"memory": "lots"}, "memory: 'lots' is no quantity"),
        ({"cpu_model": "a b"}, "cpu_model: must be a word"),
        ({"machine": "../x"}, "machine: must be a word"),
        ({"machine": 35}, "machine: must be a word"),
        ({"firmware": "efi"}, "firmware: 'efi' is none of 'bios', 'uefi', 'uefi-sec"),
        ({"firmware": "uefi-secure", "machine": "pc"}, "uefi-secure takes machine q35, not pc"),
        ({"firmware": None}, "firmware: must be a word"),
        ({"disk_bus": "ide"}, "disk_bus: 'ide' is none of"),
        ({"disk_bus": ["scsi"]}, "disk_bus: must be a word"),
        ({"disk_cache": "all"}, "disk_cache: 'all' is none of 'none', 'writethrough'"),
        ({"disk_io": "aio"}, "disk_io: 'aio' is none of 'threads', 'native', 'io_uring'"),
        ({"disk_io": "native"}, "disk_io: native takes disk_cache: none or directsync"),
        ({"disk_iothreads": 0}, "disk_iothreads: 0 is not between 1 and 64"),
        ({"disk_iops": 0}, "disk_iops: 0 is not between 1 and"),
        ({"disk_bandwidth": "1"}, "disk_bandwidth: '1' is not between 64Ki and 1T"),
        ({"disk_iops_burst": 5}, "disk_iops_burst needs disk_iops"),
        ({"disk_iops": 5, "disk_iops_burst": 4}, "disk_iops_burst is less than disk_iops"),
        ({"disk_bus": "nvme", "disk_iops": 5}, "disks with I/O limits are on scsi or virtio"),
        ({"root_size": "65Ti"}, "root_size: '65Ti' is more than the largest"),
        ({"guest_os": "dos"}, "guest_os: 'dos' is none of 'linux', 'windows'"),
        ({"video": "none"}, "video: 'none' is none of 'virtio', 'vga'"),
        ({"watchdog": "reset"}, "watchdog: must be true or false"),
        ({"cpu_features": ["avx"]}, "cpu_features: must be a mapping of features' names to"),
        ({"cpu_features": {"avx": "force"}}, "cpu_features: must be a mapping of features'"),
        ({"cpu_features": {"vmx": "require"}}, "cpu_features: vmx takes `nested: true`"),
        ({"sound": "loud"}, "sound: 'loud' is none of 'ich9', 'virtio'"),
        ({"boot": "root"}, "boot: must be a list of root, disks, cdroms"),
        ({"boot": ["net"]}, "boot: must be a list of root, disks, cdroms"),
        ({"boot": ["root", "root"]}, "boot: names something twice"),
        ({"on_reboot": "stop"}, "on_reboot: 'stop' is none of 'restart', 'end'"),
        ({"on_panic": "reset"}, "on_panic: 'reset' is none of 'end', 'keep'"),
        ({"kernel": "vmlinuz"}, "kernel: must be an absolute path, without . and .."),
        ({"kernel": "/a/../b"}, "kernel: must be an absolute path, without . and .."),
        ({"initrd": "/initrd"}, "initrd and kernel_args take a kernel"),
        ({"kernel": "image:vmlinuz"}, "kernel: must be an absolute path, without . and .."),
        ({"kernel": "image:/k", "initrd": "/i"}, "both of the node, or both of an image"),
        ({"kernel": "/k", "initrd": "image:/i"}, "both of the node, or both of an image"),
        ({"kernel": "/k", "kernel_args": "a\nb"}, "kernel_args: must be one line"),
        ({"tpm": "2.0"}, "tpm: must be true or false"),
        ({"guest_agent": "no"}, "guest_agent: must be true or false"),
        ({"translation_buffer": "2Gi"}, "translation_buffer: must be between 16Mi and 1Gi"),
        ({"extras": ["a"]}, "extras: must be a mapping"),
        ({"extras": {"a": {"b": 1}}}, "extras: must be a mapping of names to texts or numbers"),
    ],
)
def test_a_wrong_profile_is_refused_by_handler_and_key(
    flavor: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        Plugin().virtlet_admit_pod(make_pod(flavor=flavor, handler="gpu"))
    assert str(caught.value).startswith("configuration: handler 'gpu': flavor")
    assert message in str(caught.value)


@given(
    st.fixed_dictionaries(
        {},
        optional={a.name: st.text(max_size=30) for a in annotations.ALL},
    )
)
def test_any_annotations_choose_a_sane_machine_or_are_refused(marks: dict[str, str]) -> None:
    try:
        chosen = choose(marks)
    except InvalidArgument:
        return
    assert 1 <= chosen.vcpus <= 255
    assert 0 <= chosen.root_size <= annotations.MAX_ROOT_SIZE
    assert chosen.disk_bus in ("scsi", "virtio", "nvme")


def test_a_pod_chooses_its_firmware() -> None:
    assert choose({"VirtletFirmware": "uefi"}).firmware == "uefi"
    assert (
        choose({"VirtletFirmware": "uefi-secure"}, {"firmware": "uefi"}).firmware == "uefi-secure"
    )
    assert choose({"VirtletFirmware": "bios"}, {"firmware": "uefi"}).firmware == "bios"


@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_a_pod_cannot_do_without_the_secure_boot_of_its_handler(firmware: str) -> None:
    with pytest.raises(InvalidArgument, match=f"asks for secure boot, which '{firmware}' lacks"):
        choose({"VirtletFirmware": firmware}, {"firmware": "uefi-secure"})


def test_secure_boot_on_a_machine_that_cannot_have_it_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"pod shop/web-1: firmware uefi-secure takes"):
        choose({"VirtletFirmware": "uefi-secure"}, {"machine": "pc-i440fx-10.0"})


LIMITS = {"disk_iops": 500, "disk_iops_burst": 1000, "disk_bandwidth": "50Mi"}


def test_a_pod_lowers_its_handlers_limits() -> None:
    marks = {"VirtletDiskIOPS": "100", "VirtletDiskIOPSBurst": "200"}
    chosen = choose(marks | {"VirtletDiskBandwidth": "1Mi"}, LIMITS)
    assert (chosen.disk_iops, chosen.disk_iops_burst) == (100, 200)
    assert (chosen.disk_bandwidth, chosen.disk_bandwidth_burst) == (1 << 20, 0)
    assert choose(marks).disk_iops_burst == 200


@pytest.mark.parametrize(
    ("marks", "problem"),
    [
        ({"VirtletDiskIOPS": "501"}, "VirtletDiskIOPS: 501 is more than the 500 of the handler's"),
        ({"VirtletDiskIOPSBurst": "1001"}, "IOPSBurst: 1001 is more than the 1000"),
        ({"VirtletDiskIOPSBurst": "400"}, "IOPSBurst: 400 is less than the limit 500"),
        ({"VirtletDiskBandwidth": "51Mi"}, "is more than the 52428800"),
        ({"VirtletDiskBandwidthBurst": "51Mi"}, "is more than the 52428800"),
        ({"VirtletDiskDriver": "nvme"}, "disks with I/O limits are on scsi or virtio, not nvme"),
    ],
)
def test_a_pod_gets_no_more_than_its_handlers_limits(marks: dict[str, str], problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem):
        choose(marks, LIMITS)


def test_a_burst_without_a_limit_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="a burst needs a limit: set VirtletDiskIOPS too"):
        choose({"VirtletDiskIOPSBurst": "100"})


def _configure(tmp_path: Path, handlers: Mapping[str, Any]) -> None:
    values = {FLAVORS_DIR.field: tmp_path / "flavors", KUBECONFIG.field: ""}
    sections = {"handlers": handlers}
    Plugin().virtlet_configure(Settings(values=values, sections=sections), make_node(tmp_path))


@pytest.mark.parametrize(
    ("flavor", "problem"),
    [
        ({"vcpus": "many"}, "handler 'gpu': flavor: vcpus: 'many' is no whole number"),
        ({"vcpu": 2}, r"handler 'gpu': flavor has the unknown key 'vcpu' \(did you mean 'vcpus'"),
    ],
)
def test_a_flavor_that_cannot_be_ends_the_start(
    tmp_path: Path, flavor: Mapping[str, Any], problem: str
) -> None:
    with pytest.raises(FailedPrecondition, match=problem):
        _configure(tmp_path, {"": {"flavor": {"vcpus": 2}}, "gpu": {"flavor": flavor}})


def test_a_flavor_that_another_plugin_reads_is_left_to_it(tmp_path: Path) -> None:
    _configure(tmp_path, {"theirs": {"without": ["flavors"], "flavor": {"size": "xl"}}})


@pytest.mark.parametrize("section", [None, 5, {}, {"flavor": None}, {"flavor": 5, "without": 7}])
def test_a_section_that_has_no_flavor_is_left_to_the_core(tmp_path: Path, section: object) -> None:
    _configure(tmp_path, {"odd": section})


CELLS = "numa: {cells: [{memory: 512, unit: MiB, cpus: 0}, {memory: 512, unit: MiB, cpus: '1'}]}"


def test_numa_cells_are_within_the_memory_and_the_vcpus() -> None:
    marks = {"VirtletLibvirtCPUSetting": CELLS, "VirtletVCPUCount": "2"}
    assert choose(marks, memory_limit=1 << 30).vcpus == 2
    with pytest.raises(InvalidArgument, match="NUMA cells have 1073741824 bytes together"):
        choose(marks, memory_limit=1000 * MIB)
    with pytest.raises(InvalidArgument, match="a NUMA cell has vCPU 1, but the VM gets 1"):
        choose(marks | {"VirtletVCPUCount": "1"}, memory_limit=1 << 30)


@pytest.mark.parametrize("feature", ["{name: vmx}", "{name: svm, policy: force}"])
def test_a_pod_gets_nested_virtualisation_only_where_the_handler_allows_it(feature: str) -> None:
    marks = {"VirtletLibvirtCPUSetting": f"mode: host-model\nfeature: {feature}"}
    assert choose(marks, {"nested": True}).nested
    with pytest.raises(InvalidArgument, match="does not allow nested virtualisation"):
        choose(marks)
