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
from virtlet.cri import api_pb2 as cri

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
def plain_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny guest without a virtlet-thaw: a file that is no program takes its place."""
    directory = tmp_path_factory.mktemp("plain")
    disk, initramfs = directory / "disk", directory / "initrd.img"
    convert = ["qemu-img", "convert", "-O"]
    subprocess.run([*convert, "raw", TINY, disk], check=True)
    name = Path("usr/sbin/virtlet-thaw")
    (directory / name).parent.mkdir(parents=True)
    (directory / name).touch(mode=0o644)
    packed = ["cpio", "-o", "-H", "newc", "--quiet"]
    more = subprocess.run(
        packed, cwd=directory, input=f"{name}\n", capture_output=True, text=True, check=True
    )
    partition = f"{disk}@@1M"
    subprocess.run(["mcopy", "-i", partition, "::/initrd.img", initramfs], check=True)
    content = initramfs.read_bytes()
    padding = b"\0" * (-len(content) % 4)
    initramfs.write_bytes(content + padding + more.stdout.encode())
    subprocess.run(["mcopy", "-o", "-i", partition, initramfs, "::/initrd.img"], check=True)
    image = directory / "plain.qcow2"
    subprocess.run([*convert, "qcow2", disk, image], check=True)
    return image


@pytest.fixture(scope="module")
def node(plain_image: Path) -> Iterator[Playground]:
    with Playground(
        {"tiny": TINY, "plain": plain_image},
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


def failures(client: Client) -> list[str]:
    """Why templates could not be made."""
    status = client.call("Status", cri.StatusRequest(verbose=True))
    known = json.loads(status.info["templates"])
    return [one["reason"] for one in known if one["state"] == "failed"]


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
    """They are listed with their template, and go on when that is removed, or broken, and when the
    manager is killed; a template that is broken means that a VM boots."""
    with node.client() as client:
        cold = Pod(node, client, make_manifest(node)).up()
        assert not is_clone(cold)
        cold.wait_for_answer()
        wait_for_notice(cold, "a template: one is being made")
        # What a guest says to being frozen whose kernel knows no generation id.
        hide = "mount -t tmpfs none /sys/bus; virtlet-thaw freeze; code=$?; umount /sys/bus"
        refused = cold.exec("sh", "-c", f"{hide}; exit $code")
        assert (refused.exit_code, "generation id" in refused.stderr) == (3, True)
        cold.down()
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
        assert all(c.manifest.pod.metadata.name in c.wait_for_answer() for c in clones)
        for clone in clones[2:]:
            clone.down()
        del clones[2:]

        (listed,) = json.loads(virtlet(node, "templates", "-o", "json"))["templates"]
        assert (listed["state"], listed["image"]) == ("ready", "virtlet.cloud/tiny")
        assert sorted(listed["vms"]) == sorted(clone.vm for clone in clones)
        assert virtlet(node, "templates", "-q").split() == [listed["key"]]
        table = virtlet(node, "templates")
        assert listed["key"][:12] in table
        assert "virtlet.cloud/tiny" in table

        # What is removed is put back, and broken: another one would take a boot.
        (template,) = templates(node)
        kept = node.data_dir / "kept-template"
        subprocess.run(["cp", "-a", "--sparse=always", template, kept], check=True)
        assert virtlet(node, "templates", "rm", listed["key"][:8]).split() == [listed["key"]]
        assert virtlet(node, "templates", "-q") == ""
        assert templates(node) == []
        (kept / "state").chmod(0o600)
        kept.rename(template)
        booted = Pod(node, client, make_manifest(node)).up()
        assert not is_clone(booted)
        wait_for_notice(booted, "boots instead of starting from a template")
        assert booted.status.state == 1
        assert template not in templates(node)
        booted.down()

        # A manager that is killed finds them again, and they are removed as any other.
        emulators = [clone.emulator for clone in clones]
        node.kill()
        node.start()
        assert [clone.emulator for clone in clones] == emulators
        for clone, words in zip(clones, told, strict=False):
            assert clone.wait_for_answer()
            assert clone.exec("hostname").stdout.strip() == words[0]
            clone.down()


def test_a_machine_without_templates_boots_and_says_why(node: Playground) -> None:
    """Its pod's log tells the reason."""
    with node.client() as client:
        pod = Pod(node, client, make_manifest(node, handler="pc")).up()
        assert not is_clone(pod)
        wait_for_notice(pod, "machine type pc has no free ports")
        pod.down()


def test_a_guest_that_can_not_be_frozen_boots_and_says_why(node: Playground) -> None:
    """It has neither virtlet-thaw nor cloud-init; the reason comes with the pod's event."""
    with node.client() as client:

        def plain() -> Pod:
            manifest = make_manifest(node)
            manifest.container.image.image = "virtlet.cloud/plain"
            return Pod(node, client, manifest).up()

        first = plain()
        wait_for_notice(first, "a template: one is being made")
        first.down()
        parent = node.data_dir / "templates"
        until(lambda: list(parent.glob("*.new")) == [], "the template's failure", BOOT_TIMEOUT)
        (reason,) = failures(client)
        assert reason.startswith("its guest cannot be frozen (exit code 3): it has no /usr/sbin/v")
        second = plain()
        assert not is_clone(second)
        wait_for_notice(
            second,
            "be frozen (exit code 3): it has no /usr/sbin/virtlet-thaw, and nothing holds its",
        )
        second.down()
