"""Names of CDI devices, looked up in specs of a temporary directory."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.core.cri.bad_fields import good_vm
from virtlet.core.cri import requests
from virtlet.errors import FailedPrecondition, InvalidArgument
from virtlet.host import cdi
from virtlet.model.vm import Device, Mount

GPU = """\
cdiVersion: 0.6.0
kind: vendor.com/gpu
containerEdits:
  deviceNodes: [{path: /dev/vfio/vfio}]
  env: [VENDOR_DRIVER=535]
  hooks: [{hookName: createContainer, path: /usr/bin/vendor-hook}]
devices:
- name: "0"
  containerEdits:
    deviceNodes: [{path: /dev/vfio/7, hostPath: /dev/vfio/7, permissions: rw, type: c, major: 240}]
    mounts:
    - {hostPath: /opt/vendor/lib, containerPath: /usr/lib/vendor, options: [ro, nosuid, bind]}
- name: 1
  containerEdits: {deviceNodes: [{path: /dev/vfio/12}], env: [ONE=a=b]}
"""


@pytest.fixture
def directories(tmp_path: Path) -> tuple[Path, Path]:
    """Places in the order of /etc/cdi and /var/run/cdi, the first of which has GPUs."""
    static, changing = tmp_path / "etc", tmp_path / "run"
    static.mkdir()
    changing.mkdir()
    (static / "gpu.yaml").write_text(GPU)
    return static, changing


def write(directory: Path, name: str, kind: str = "vendor.com/gpu", **edits: Any) -> None:
    devices = [{"name": "0", "containerEdits": edits}]
    spec = {"cdiVersion": "0.6.0", "kind": kind, "devices": devices}
    (directory / f"{name}.json").write_text(json.dumps(spec))


def test_devices_bring_nodes_mounts_and_variables(directories: tuple[Path, Path]) -> None:
    """Those of the whole spec once, however many of its devices there are."""
    edits = cdi.resolve(["vendor.com/gpu=0", "vendor.com/gpu=1"], directories)
    assert [device.host_path for device in edits.devices] == [
        "/dev/vfio/vfio",
        "/dev/vfio/7",
        "/dev/vfio/12",
    ]
    assert edits.mounts == (
        Mount(guest_path="/usr/lib/vendor", host_path="/opt/vendor/lib", readonly=True),
    )
    assert edits.envs == (("VENDOR_DRIVER", "535"), ("ONE", "a=b"))


def test_a_claims_spec_wins_over_the_nodes(directories: tuple[Path, Path]) -> None:
    write(directories[1], "claim", deviceNodes=[{"path": "/dev/vfio/30"}])
    assert cdi.resolve(["vendor.com/gpu=0"], directories).devices == (
        Device(guest_path="/dev/vfio/30", host_path="/dev/vfio/30", permissions="rw"),
    )
    assert cdi.resolve([], directories) == cdi.Edits()


def test_a_container_has_what_its_cdi_devices_bring(directories: tuple[Path, Path]) -> None:
    """A device that a plugin brings both ways is one."""
    message = good_vm()
    before = requests.vm_config(message)
    message.CDI_devices.add(name="vendor.com/gpu=0")
    message.devices.add(container_path="/dev/vfio/7", host_path="/dev/vfio/7", permissions="rw")
    config = requests.vm_config(message, directories)
    paths = [device.host_path for device in config.devices[len(before.devices) :]]
    assert paths == ["/dev/vfio/7", "/dev/vfio/vfio"]
    assert config.mounts[-1].guest_path == "/usr/lib/vendor"
    assert config.envs[-1] == ("VENDOR_DRIVER", "535")


def test_what_no_spec_has_is_refused_with_the_files_that_are_none(
    directories: tuple[Path, Path],
) -> None:
    (directories[1] / "half.json").write_text('{"kind": ')
    with pytest.raises(FailedPrecondition, match=r"no CDI spec .*'vendor.com/gpu=9'.*half\.json"):
        cdi.resolve(["vendor.com/gpu=9"], directories)
    for name in ("gpu", "gpu=0", "vendor.com/gpu="):
        with pytest.raises(InvalidArgument, match="must be VENDOR/CLASS=DEVICE"):
            cdi.resolve([name], directories)


def test_a_device_of_two_specs_is_refused_by_both(directories: tuple[Path, Path]) -> None:
    write(directories[0], "again")
    with pytest.raises(FailedPrecondition, match=r"is in .*again\.json and .*gpu\.yaml: remove"):
        cdi.resolve(["vendor.com/gpu=0"], directories)


@pytest.mark.parametrize(
    ("edits", "problem"),
    [
        ({"netDevices": [{"hostInterfaceName": "eth1", "name": "net1"}]}, "use a network of the"),
        ({"deviceNodes": [{"hostPath": "/dev/vfio/7"}]}, "is no CDI spec .*path"),
        ({"deviceNodes": [{"path": "dev/vfio/7"}]}, "'dev/vfio/7' is no absolute path"),
        ({"mounts": "all"}, "is no CDI spec"),
        ({"env": ["NO_VALUE"]}, "is no CDI spec"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_a_spec_that_cannot_be_is_named(
    directories: tuple[Path, Path], edits: dict[str, Any], problem: str
) -> None:
    write(directories[1], "odd", "vendor.com/nic", **edits)
    with pytest.raises(FailedPrecondition, match=f"CDI device 'vendor.com/nic=0'.*{problem}"):
        cdi.resolve(["vendor.com/nic=0"], directories)
