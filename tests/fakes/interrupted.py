"""Tests of a run that is interrupted: no part of the usual ones; see tests/e2e/test_interrupt.py.

A test that has a VM running writes where its node is, and waits.
"""

import os
import time
from pathlib import Path

from tests.e2e.conftest import PodFactory, new_pod, node
from virtlet.cli.playground import Playground

__all__ = ["new_pod", "node"]

FILE = "VIRTLET_INTERRUPTED_FILE"


def test_waits_with_a_vm(node: Playground, new_pod: PodFactory) -> None:
    new_pod().up()
    file = Path(os.environ[FILE])
    file.with_suffix(".new").write_text(str(node.directory))
    file.with_suffix(".new").rename(file)
    time.sleep(250)
