from pathlib import Path

import pytest

from tests.fakes.model import make_config, make_node
from virtlet.cluster.api import KUBECONFIG
from virtlet.plugins.cloudinit.plugin import Plugin

EMULATOR = 64055
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGexample me@host"


@pytest.fixture
def plugin(tmp_path: Path) -> Plugin:
    made = Plugin()
    made.virtlet_configure(make_config([KUBECONFIG]), make_node(tmp_path, EMULATOR, EMULATOR))
    return made
