"""Pods whose VMs start from a template."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import AS_THE_UNIT, BOOT_TIMEOUT, TINY, Pod, make_manifest
from tests.polling import until
from virtlet.cli.playground import Playground

HANDLERS = {
    "": {"flavor": {"warm": True}},
    "pc": {"flavor": {"warm": True, "machine": "pc"}},
}
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
