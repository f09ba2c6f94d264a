"""An emulator that its guest has taken over plants links and files while the manager is killed."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, TINY, Pod, make_manifest
from tests.fakes import planting_plugin
from tests.polling import until
from virtlet.cli.playground import Playground
from virtlet.cri import api_pb2 as cri

SOURCE = ROOT / "tests" / "fakes" / "planter.c"


@pytest.fixture
def attacked_node(tmp_path: Path) -> Iterator[Playground]:
    """A node whose handler `attacked` has such emulators, in their jail."""
    info = tmp_path / "planting-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: planting\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[virtlet]\nplanting = tests.fakes.planting_plugin:Plugin\n"
    )
    node = Playground(
        {"tiny": TINY},
        subnet="10.142.0.0/16",
        settings={"handlers": {"attacked": {"plugins": ["planting"]}}},
    )
    library, victim = node.directory / "planter.so", node.directory / "victim"
    subprocess.run(["cc", "-shared", "-fPIC", "-pthread", "-o", library, SOURCE], check=True)
    victim.mkdir(mode=0o700)
    (victim / "file").write_text("the node's")
    node.environment |= {
        "PYTHONPATH": f"{tmp_path}:{ROOT}",
        planting_plugin.LIBRARY: str(library),
        planting_plugin.VICTIM: str(victim),
    }
    with node:
        yield node


def _state(directory: Path) -> dict[str, tuple[int, ...]]:
    """What of a directory and all in it changes when somebody changes or replaces it."""
    found: dict[str, tuple[int, ...]] = {}
    for path in (directory, *directory.rglob("*")):
        seen = path.lstat()
        found[str(path)] = (seen.st_mode, seen.st_ino, seen.st_uid, seen.st_gid, seen.st_ctime_ns)
    return found


def _owners(directory: Path) -> dict[str, tuple[int, ...]]:
    """The files of a directory and who may do what with them; a guest changes their contents."""
    return {path: state[:4] for path, state in _state(directory).items()}


def test_nothing_is_planted_while_a_manager_is_killed_and_the_next_one_recovers(
    attacked_node: Playground,
) -> None:
    """It goes on while none runs, while the next one starts, and until its VM is removed. With a 9p
    share its user is the one of all such VMs, who owns its directory: the jail holds it alone."""
    node = attacked_node
    victim, share = node.directory / "victim", node.directory / "share"
    share.mkdir()
    share.chmod(0o777)
    client = node.client()
    other = Pod(node, client, make_manifest(node, "other")).up()
    attacker = Pod(node, client, make_manifest(node, "attacker", "attacked"))
    attacker.pod.annotations["VirtletShareDriver"] = "9p"
    del attacker.manifest.container.mounts[:]
    attacker.manifest.container.mounts.add(container_path="/data", host_path=str(share))
    attacker = attacker.up()
    rounds = share / "rounds"

    def another_round() -> None:
        before = rounds.stat().st_size if rounds.exists() else 0
        # One may be under way.
        until(lambda: rounds.exists() and rounds.stat().st_size > before + 1, "another round")

    another_round()
    other.wait_for_console("login:")
    others = node.data_dir / "volumes" / other.vm
    emulators = (other.emulator, attacker.emulator)
    before, disks = _state(victim), _owners(others)
    node.kill()
    another_round()
    node.start()
    another_round()
    for pod, emulator in zip((other, attacker), emulators, strict=True):
        assert pod.status.state == cri.CONTAINER_RUNNING
        assert pod.emulator == emulator
    links = [path for path in planting_plugin.below(node.data_dir) if path.is_symlink()]
    leading = {path.parent.name for path in links if os.readlink(path) == str(victim)}
    client.stop(attacker.vm, 0)
    client.remove(attacker.vm)
    attacker.down()
    # It plants where it may, in its pod's volume, and nowhere else.
    lines = (share / "planted").read_text().splitlines()
    places = {line.partition(" ")[2] for line in lines}
    assert {Path(place).parent.name for place in places} == {attacker.vm}, sorted(places)
    assert len(places) == 1
    assert {line.partition(" ")[0] for line in lines} >= {"link", "directory", "file"}
    assert leading == {Path(place).name for place in places}
    assert (share / "link0").readlink() == victim
    assert _state(victim) == before
    assert _owners(others) == disks
    assert other.exec("echo", "alive").stdout == "alive\n"
    other.down()
    assert node.settled_leftovers() == []
    assert _state(victim) == before
