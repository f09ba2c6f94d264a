"""Clones of an unmodified cloud image, which is held before cloud-init's first stage."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from tests.e2e.conftest import AS_THE_UNIT, MANIFEST, Pod
from tests.e2e.test_warm_start import failures, is_clone, templates, wait_for_notice
from tests.fakes import kubelet
from tests.polling import until
from virtlet.cli.client import CallFailed
from virtlet.cli.manifest import PodManifest, pod_manifest
from virtlet.cli.playground import Playground
from virtlet.core.lifecycle import guest_hold
from virtlet.cri import api_pb2 as cri

BOOTED = 480
"""Seconds that a guest may take on a loaded machine without KVM."""
IDENTITY = """
hostname; cat /etc/machine-id; head -c 32 /dev/urandom | base64 -w 0; echo
cat /proc/sys/kernel/random/uuid; cat /etc/ssh/ssh_host_ed25519_key.pub
cat /sys/class/net/e*/address; cat /var/lib/cloud/data/instance-id
base64 -w 0 /var/lib/systemd/random-seed; echo
"""
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def node(debian_image: Path) -> Iterator[Playground]:
    # A distribution runs more code than the default buffer holds.
    flavor = {"warm": True, "translation_buffer": "192Mi"}
    with Playground(
        {"debian": debian_image},
        subnet="10.140.0.0/16",
        settings={"handlers": {"": {"flavor": flavor}}},
        wrapper=AS_THE_UNIT,
    ) as playground:
        yield playground
        assert playground.settled_leftovers() == []


def manifest(node: Playground, name: str) -> PodManifest:
    document = kubelet.document(MANIFEST, name)
    (container,) = document["spec"]["containers"]
    container["image"] = "virtlet.cloud/debian"
    container["resources"]["limits"]["memory"] = "512Mi"
    made = evolve(pod_manifest(document, node.log_root), handler="")
    kubelet.complete(made, node.kubelet_dir)
    return made


def ask(pod: Pod, script: str) -> str:
    output = pod.exec("/bin/sh", "-c", script, timeout=BOOTED)
    assert output.exit_code == 0, f"{output.stdout}{output.stderr}"
    return output.stdout


def addresses(pod: Pod) -> list[str]:
    """The guest's own, without those of links."""
    links = json.loads(ask(pod, "ip -j -4 addr show scope global"))
    return [a["local"] for link in links for a in link.get("addr_info", [])]


def rebooted(pod: Pod, boot: str) -> bool:
    """Whether a guest that is no longer in some boot answers; its agent is away meanwhile."""
    with contextlib.suppress(CallFailed):
        words = pod.exec("/bin/cat", "/proc/sys/kernel/random/boot_id", timeout=BOOTED)
        return words.exit_code == 0 and words.stdout != boot
    return False


def test_clones_of_a_cloud_image_are_machines_of_their_own(node: Playground) -> None:
    """Each has run a first cloud-init of its own, without errors, and stays who it is: when it gets
    other addresses, and when it boots again."""
    with node.client() as client:
        # Its guest is not needed: it is gone before it has booted.
        first = Pod(node, client, manifest(node, "first")).up()
        wait_for_notice(first, "a template: one is being made")
        assert not is_clone(first)
        first.down()
        until(lambda: bool(templates(node)), "a template", BOOTED)
        assert failures(client) == []

        clones = [Pod(node, client, manifest(node, name)).up() for name in ("one", "other")]
        assert [is_clone(clone) for clone in clones] == [True, True]
        told = []
        for clone in clones:
            # A command waits for cloud-init, but no longer than five minutes from the start.
            ask(clone, "until [ -e /run/cloud-init/result.json ]; do sleep 1; done")
            words = ask(clone, IDENTITY).splitlines()
            assert len(words) == 8
            result = json.loads(ask(clone, "cat /run/cloud-init/result.json"))["v1"]
            assert result["errors"] == []
            assert "NoCloud" in result["datasource"]
            assert words[0] == clone.pod.hostname
            assert addresses(clone) == [clone.address]
            told.append([*words, clone.address])
            before = time.time()
            said = float(ask(clone, "date +%s"))
            assert before - 5 < said < time.time() + 5
        for one, other in zip(*told, strict=True):
            assert one != other
        clones[1].down()

        clone, words = clones[0], told[0]
        status = json.loads(ask(clone, "cloud-init status --format json"))
        assert (status["status"], status["errors"]) == ("done", [])
        assert (status["recoverable_errors"], status["datasource"]) == ({}, "nocloud")
        assert ask(clone, "systemctl list-units --failed --plain --no-legend") == ""
        assert "Linux version" in ask(clone, "journalctl --boot --quiet")
        # As when it goes on from a checkpoint, in another network than that of its files.
        old = "192.0.2.7"
        files = "/etc/netplan/*.yaml"
        ask(clone, f"sed -i s/{clone.address}/{old}/g {files} && netplan apply")
        until(lambda: addresses(clone) == [old], "the old address", 60)
        output = clone.exec(*guest_hold.move(1), timeout=120)
        assert output.exit_code == 0, output.stderr
        until(lambda: addresses(clone) == [clone.address], "the new address", 60)

        boot = ask(clone, "cat /proc/sys/kernel/random/boot_id")
        ask(clone, "systemd-run --on-active=1 systemctl reboot 2>/dev/null")
        until(lambda: rebooted(clone, boot), "another boot", BOOTED)
        after = ask(clone, IDENTITY).splitlines()
        # Random bytes and the seed of them are new.
        assert [after[n] for n in (0, 1, 4, 5, 6)] == [words[n] for n in (0, 1, 4, 5, 6)]
        assert addresses(clone) == [clone.address]
        assert json.loads(ask(clone, "cloud-init status --format json"))["status"] == "done"
        assert clone.status.state == cri.CONTAINER_RUNNING
        clone.down()
