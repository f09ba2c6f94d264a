"""One embedded driver for all tests: a process can have no second one."""

from collections.abc import Iterator

import pytest

from tests.plugins.libvirt_qemu.rig import Rig, make_open_node, open_directory


@pytest.fixture(scope="session")
def rig() -> Iterator[Rig]:
    with open_directory() as directory:
        rig = Rig(make_open_node(directory), "qemu:///embed")
        rig.open()
        yield rig
        rig.close()
