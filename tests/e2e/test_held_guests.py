"""Clones of an unmodified cloud image, which is held before cloud-init's first stage."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from tests.e2e.conftest import AS_THE_UNIT, MANIFEST, Pod
from tests.e2e.test_warm_start import is_clone, templates, wait_for_notice
from tests.fakes import kubelet
from tests.polling import until
from virtlet.cli.client import Client
from virtlet.cli.manifest import PodManifest, pod_manifest
from virtlet.cli.playground import Playground
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


def failures(client: Client) -> list[str]:
    """Why templates could not be made."""
    status = client.call("Status", cri.StatusRequest(verbose=True))
    known = json.loads(status.info["templates"])
    return [one["reason"] for one in known if one["state"] == "failed"]


def made(node: Playground, client: Client) -> bool:
    assert failures(client) == []
    return bool(templates(node))


def ask(pod: Pod, script: str) -> str:
    output = pod.exec("/bin/sh", "-c", script, timeout=BOOTED)
    assert output.exit_code == 0, f"{output.stdout}{output.stderr}"
    return output.stdout


def test_clones_of_a_cloud_image_are_machines_of_their_own(node: Playground) -> None:
    """Each has run a first cloud-init of its own, without errors."""
    with node.client() as client:
        first = Pod(node, client, manifest(node, "first")).up()
        wait_for_notice(first, "a template: one is being made")
        assert not is_clone(first)
        first.down()
        until(lambda: made(node, client), "a template", BOOTED)

        clones = [Pod(node, client, manifest(node, name)).up() for name in ("one", "other")]
        assert [is_clone(clone) for clone in clones] == [True, True]
        told = []
        for clone in clones:
            # A command waits until cloud-init is done.
            words = ask(clone, IDENTITY).splitlines()
            assert len(words) == 8
            status = json.loads(ask(clone, "cloud-init status --format json"))
            assert (status["status"], status["errors"]) == ("done", [])
            assert status["recoverable_errors"] == {}
            assert status["datasource"] == "nocloud"
            assert words[0] == clone.pod.hostname
            addresses = json.loads(ask(clone, "ip -j -4 addr show scope global"))
            (found,) = (a["local"] for link in addresses for a in link.get("addr_info", []))
            assert found == clone.address
            told.append([*words, found])
            before = time.time()
            said = float(ask(clone, "date +%s"))
            assert before - 5 < said < time.time() + 5
            assert ask(clone, "systemctl list-units --failed --plain --no-legend") == ""
            assert "Linux version" in ask(clone, "journalctl --boot --quiet")
        for one, other in zip(*told, strict=True):
            assert one != other
        for clone in clones:
            clone.down()
