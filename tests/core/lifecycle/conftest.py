"""A node in memory and the managers that run on it, one after the other."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.manager import Manager, Node


class Managers:
    """The manager of now; `restart` makes the next one, and `kill` makes it die first."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.now = Manager(node)

    def restart(self) -> Manager:
        """The successor, recovered."""
        self.now = self.now.restarted()
        return self.now


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """What outlives managers."""
    return Node(tmp_path)


@pytest.fixture
def managers(node: Node) -> Iterator[Managers]:
    """Managers of the node."""
    made = Managers(node)
    yield made
    made.now.close()


@pytest.fixture
def manager(managers: Managers) -> Manager:
    """The node's first manager."""
    return managers.now
