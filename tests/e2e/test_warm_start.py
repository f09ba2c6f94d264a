"""Pods whose VMs start from a template."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.conftest import AS_THE_UNIT, BOOT_TIMEOUT, TINY, Pod, make_manifest
from tests.polling import until
from virtlet.cli.client import Client
from virtlet.cli.playground import Playground

HANDLERS = {
    "": {"flavor": {"warm": True}},
    "pc": {"flavor": {"warm": True, "machine": "pc"}},
}
CLONES = 5
IDENTITY = """
hostname; cat /etc/machine-id; head -c 32 /dev/urandom | base64; cat /proc/sys/kernel/random/uuid
dropbearkey -y -f /run/tiny/host_key | grep ssh; cat /sys/class/net/eth0/address
"""


@pytest.fixture(scope="module")
def node() -> Iterator[Playground]:
    with Playground(
        {"tiny": TINY},
        subnet="10.139.0.0/16",
        settings={"handlers": HANDLERS},
        wrapper=AS_THE_UNIT,
    ) as playground:
        yield playground


def templates(node: Playground) -> list[Path]:
    return [path for path in (node.data_dir / "templates").iterdir() if not path.suffix]


def is_clone(pod: Pod) -> bool:
    """Whether the pod's emulator was started to load a state."""
    return "-incoming" in pod.command_line


def wait_for_notice(pod: Pod, text: str) -> None:
    log = Path(pod.status.log_path)
    until(lambda: text in log.read_text(errors="replace"), f"{text!r} in the pod's log")


def virtlet(node: Playground, *arguments: str) -> str:
    """What a command of the node prints."""
    argv = [sys.executable, "-m", "virtlet.cli.main", *arguments, "--socket", str(node.socket)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def up_at_once(node: Playground, client: Client, count: int) -> list[Pod]:
    with ThreadPoolExecutor(count) as threads:
        return list(
            threads.map(lambda _: Pod(node, client, make_manifest(node)).up(), range(count))
        )


def test_clones_that_start_at_once_are_machines_of_their_own(node: Playground) -> None:
    """They are listed with their template, and go on when that is removed."""
    with node.client() as client:
        cold = Pod(node, client, make_manifest(node)).up()
        cold.wait_for_answer()
        wait_for_notice(cold, "a template: one is being made")
        # What a guest says to being frozen whose kernel knows no generation id.
        hide = "mount -t tmpfs none /sys/bus; virtlet-thaw freeze; code=$?; umount /sys/bus"
        refused = cold.exec("sh", "-c", f"{hide}; exit $code")
        assert (refused.exit_code, "generation id" in refused.stderr) == (3, True)
        until(lambda: bool(templates(node)), "a template", BOOT_TIMEOUT)

        def age() -> float:
            return time.time() - templates(node)[0].stat().st_ctime

        until(lambda: age() > 10, "a template whose clock is late", 60)
        clones = up_at_once(node, client, CLONES)
        told = [clone.exec("sh", "-c", IDENTITY).stdout.splitlines() for clone in clones]
        assert all(is_clone(clone) for clone in clones)
        for clone, words in zip(clones, told, strict=True):
            assert len(words) == 6
            assert words[0] == clone.manifest.pod.metadata.name
            words.append(clone.address)
            before = time.time()
            said = float(clone.exec("date", "+%s").stdout)
            assert before - 5 < said < time.time() + 5
        for one in zip(*told, strict=True):
            assert len(set(one)) == CLONES, one

        (listed,) = json.loads(virtlet(node, "templates", "-o", "json"))["templates"]
        assert (listed["state"], listed["image"]) == ("ready", "virtlet.cloud/tiny")
        assert sorted(listed["vms"]) == sorted(clone.vm for clone in clones)
        assert virtlet(node, "templates", "-q").split() == [listed["key"]]
        table = virtlet(node, "templates")
        assert listed["key"][:12] in table
        assert "virtlet.cloud/tiny" in table
        assert virtlet(node, "templates", "rm", listed["key"][:8]).split() == [listed["key"]]
        assert virtlet(node, "templates", "-q") == ""
        assert templates(node) == []
        assert sum(bool(clone.wait_for_answer()) for clone in clones) == CLONES
        for pod in (cold, *clones):
            pod.down()


def test_the_first_vm_boots_and_the_next_start_from_its_likes_memory(node: Playground) -> None:
    """Each has its own identity; a template that is broken means that a VM boots."""
    with node.client() as client:
        cold = Pod(node, client, make_manifest(node)).up()
        assert not is_clone(cold)
        cold.wait_for_answer()
        until(lambda: bool(templates(node)), "a template", BOOT_TIMEOUT)

        clones = [Pod(node, client, make_manifest(node)).up() for _ in range(2)]
        assert all(is_clone(clone) for clone in clones)
        told = []
        for clone in clones:
            assert clone.manifest.pod.metadata.name in clone.wait_for_answer()
            told.append(clone.exec("sh", "-c", IDENTITY).stdout.splitlines())
            told[-1].append(clone.address)
        assert [len(words) for words in told] == [7, 7]
        assert all(one != other for one, other in zip(*told, strict=True))
        assert [words[0] for words in told] == [c.manifest.pod.metadata.name for c in clones]

        # Those that run from it go on when it is gone, and one that is broken is.
        (template,) = templates(node)
        (template / "state").chmod(0o600)
        booted = Pod(node, client, make_manifest(node)).up()
        assert not is_clone(booted)
        booted.wait_for_answer()
        wait_for_notice(booted, "boots instead of starting from a template")
        assert booted.status.state == 1
        assert template not in templates(node)
        assert clones[0].wait_for_answer()

        # A manager that is killed finds them again, and they are removed as any other.
        emulators = [clone.emulator for clone in clones]
        node.kill()
        node.start()
        assert [clone.emulator for clone in clones] == emulators
        assert clones[1].exec("hostname").stdout.strip() == told[1][0]
        for pod in (cold, *clones, booted):
            pod.down()


def test_a_machine_without_templates_boots_and_says_why(node: Playground) -> None:
    """Its pod's log tells the reason."""
    with node.client() as client:
        pod = Pod(node, client, make_manifest(node, handler="pc")).up()
        assert not is_clone(pod)
        wait_for_notice(pod, "machine type pc has no free ports")
        pod.down()
