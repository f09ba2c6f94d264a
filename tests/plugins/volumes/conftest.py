import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.model import POD_UID, make_config, make_node
from virtlet.host.files import remove_tree
from virtlet.plugins.volumes.plugin import KUBELET_ROOT_DIR, RAW_DEVICES, Plugin

EMULATOR = 64055


@pytest.fixture
def kubelet_root(tmp_path: Path) -> Path:
    return tmp_path / "pods"


@pytest.fixture
def pod_dir(kubelet_root: Path) -> Path:
    """The kubelet's directory of the pod."""
    directory = kubelet_root / POD_UID
    directory.mkdir(parents=True)
    return directory


@pytest.fixture
def vm_dir(tmp_path: Path) -> Iterator[Path]:
    """The VM's directory."""
    directory = tmp_path / "data/volumes/vm"
    directory.mkdir(parents=True)
    yield directory
    remove_tree(directory)


@pytest.fixture
def plugin(tmp_path: Path, kubelet_root: Path) -> Plugin:
    return configured(tmp_path, kubelet_root)


def configured(
    root: Path,
    kubelet_root: Path,
    raw_devices: str = "loop*",
    host_paths: str = "all",
    ceph_monitors: str = "",
) -> Plugin:
    made = Plugin()
    config = make_config(
        made.virtlet_options(),
        kubeletRootDir=str(kubelet_root),
        rawDevices=raw_devices,
        hostPaths=host_paths,
        cephMonitors=ceph_monitors,
    )
    assert config[KUBELET_ROOT_DIR] == kubelet_root
    assert config[RAW_DEVICES] == tuple(raw_devices.split(","))
    data_dir = root / "data"
    data_dir.mkdir(exist_ok=True)
    made.virtlet_configure(config, make_node(data_dir, EMULATOR, EMULATOR))
    return made


@pytest.fixture
def block_node(tmp_path: Path) -> Path:
    """The node of a block device; nothing ever opens it."""
    path = tmp_path / "block-node"
    os.mknod(path, 0o600 | stat.S_IFBLK, os.makedev(7, 0))
    return path
