"""Plugins of others on one node with the built-in ones: each step replaced, per handler."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from tests.e2e.conftest import ROOT, TINY, Pod, make_manifest
from tests.polling import until
from virtlet.cli.client import CallFailed
from virtlet.cli.playground import Playground
from virtlet.core.hooks.plugin_package import SourcePackage, pretend_installed
from virtlet.cri import api_pb2 as cri

EXAMPLES = {
    "copy": "example_disk",
    "local": "example_image",
    "routed": "example_network",
    "watchdog": "example_domain",
    "labelled": "example_launch",
    "audited": "example_events",
}
"""Handler to the example plugin that serves it."""

BROKEN = {
    "raises": "Raises",
    "wrong": "WrongType",
    "clash": "Clash",
    "misspelt": "Misspelt",
    "old": "OtherApi",
    "optionless": "FailsToStart",
    "unset": "FailsToConfigure",
    "exits": "Exits",
    "spoilt": "Spoilt",
    "noxml": "NoXml",
}
"""Handler, and plugin name, to the class of a plugin that breaks its contract."""

SECRET = "hunter2"
"""Stands in user-data and in what the broken plugins say."""


@pytest.fixture(scope="module")
def plugin_node(
    example_plugins: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Playground]:
    """A node with all example plugins and all broken ones, a handler for each."""
    broken = SourcePackage(
        directory=ROOT,
        name="broken",
        version="1.0",
        plugins={name: f"tests.fakes.broken_plugins:{kind}" for name, kind in BROKEN.items()},
    )
    paths = pretend_installed([broken], tmp_path_factory.mktemp("broken"))
    handlers = {handler: {"plugins": [name]} for handler, name in EXAMPLES.items()}
    handlers |= {name: {"plugins": [name]} for name in BROKEN}
    path = os.pathsep.join([example_plugins, *map(str, paths)])
    with Playground(
        {"tiny": TINY},
        subnet="10.126.0.0/16",
        settings={"handlers": handlers},
        environment={"PYTHONPATH": path},
    ) as playground:
        images = playground.data_dir / "local-images"
        images.mkdir()
        shutil.copy(TINY, images / "tiny.qcow2")
        yield playground


@pytest.fixture
def pods(plugin_node: Playground) -> Iterator[Playground]:
    """The node, without pods afterwards."""
    yield plugin_node
    with plugin_node.client() as client:
        for pod in client.pods():
            client.remove_pod(pod.id)
    assert plugin_node.settled_leftovers() == []


def _pod(node: Playground, handler: str) -> Pod:
    manifest = make_manifest(node, handler=handler)
    if handler == "local":
        manifest.container.image.image = "local/tiny"
    if handler == "raises":
        script = f"#!/bin/sh\n: {SECRET}\n"
        manifest.pod.annotations["VirtletCloudInitUserDataScript"] = script
    return Pod(node, node.client(), manifest)


@pytest.mark.parametrize("handler", ["copy", "routed"])
def test_a_machine_boots_with_the_replacement_beside_one_with_the_built_in_plugin(
    pods: Playground, handler: str
) -> None:
    ours, theirs = _pod(pods, "").up(), _pod(pods, handler).up()
    for pod in (ours, theirs):
        assert pod.manifest.pod.metadata.name in pod.wait_for_answer()
    _check(handler, ours, theirs)


def _check(handler: str, ours: Pod, theirs: Pod) -> None:
    """What the replacement does differently."""
    if handler == "copy":
        texts = theirs.node.log_file.read_text().splitlines()
        lines = [json.loads(text) for text in texts if "virtlet_example_disk" in text]
        [line] = [line for line in lines if line["message"] == "root disk copied"]
        assert (line["level"], line["pod"]) == ("info", theirs.id)
        metadata = theirs.manifest.pod.metadata
        assert line["pod_name"] == f"{metadata.namespace}/{metadata.name}"
        assert line["vm_name"] == "guest"
        assert (_volumes(theirs) / "root.raw").exists()
        assert not (_volumes(theirs) / "root.qcow2").exists()
        assert (_volumes(ours) / "root.qcow2").exists()
    elif handler == "routed":
        assert theirs.address.startswith("10.78.")
        assert ours.address.startswith("10.126.")


def test_a_kubelet_that_names_no_handler_gets_what_the_pods_plugin_fetches(
    pods: Playground,
) -> None:
    pod, name = _pod(pods, "local").run(), "virtlet.cloud/local/tiny"
    client = pod.client

    def image(reference: str) -> cri.Image:
        request = cri.ImageStatusRequest(image=cri.ImageSpec(image=reference))
        found: cri.Image = client.call("ImageStatus", request).image
        return found

    for old in (image(f"{name}:latest"), image("local/tiny")):
        client.call(
            "RemoveImage", cri.RemoveImageRequest(image=cri.ImageSpec(image=old.id or name))
        )
    assert image(f"{name}:latest").id == ""
    pulled = client.pull(f"{name}:latest", pod.pod)
    assert image(name).id == image(f"{name}:latest").id == image(pulled).id == pulled
    assert f"{name}:latest" in image(pulled).repo_tags
    # Nor does crictl name a handler, and no pod either.
    assert client.pull(f"{name}:v2") == pulled
    assert f"{name}:v2" in image(pulled).repo_tags


def _volumes(pod: Pod) -> Path:
    return pod.node.data_dir / "volumes" / pod.vm


def _command(pod: Pod) -> str:
    """The emulator's command line."""
    return Path(f"/proc/{pod.emulator}/cmdline").read_text()


def test_an_observer_hears_of_its_handlers_pods_alone(pods: Playground) -> None:
    silent, heard = _pod(pods, "").up(), _pod(pods, "audited").up()
    heard.down()
    audit = pods.data_dir / "audit.jsonl"
    # Observers are told beside the call that they hear of, maybe a moment after its return.
    until(lambda: "pod-removed" in audit.read_text(), "the observer's last event", 10)
    lines = audit.read_text().splitlines()
    events = [(e["what"], e["subject"]) for e in map(json.loads, lines)]
    assert events == [
        ("pod-created", heard.id),
        ("image-pulled", heard.client.containers(silent.id)[0].image_id),
        ("vm-created", heard.vm),
        ("vm-started", heard.vm),
        ("pod-stopped", heard.id),
        ("vm-stopped", heard.vm),
        ("vm-removed", heard.vm),
        ("pod-removed", heard.id),
    ]


@pytest.mark.parametrize(
    ("handler", "parts"),
    [
        ("raises", ["'raises'", "virtlet_root_disk", "KeyError", "`plugins`"]),
        ("wrong", ["'wrong'", "virtlet_root_disk", "returned a str instead of Disk"]),
        ("clash", ["clash", "cloudinit", "virtlet_cloud_init", "local-hostname"]),
        ("spoilt", ["'spoilt'", "virtlet_launch", "arguments[0] is an int instead of str"]),
        ("noxml", ["'noxml'", "virtlet_customize_domain", "cannot be written as XML"]),
    ],
)
def test_a_plugin_that_breaks_its_contract_is_named_and_the_others_go_on(
    pods: Playground, handler: str, parts: list[str]
) -> None:
    pod = _pod(pods, handler).run()
    before = pods.leftovers()
    with pytest.raises(CallFailed) as caught:
        pod.up()
    for part in parts:
        assert part in caught.value.details
    assert SECRET not in caught.value.details
    assert SECRET not in pods.log_file.read_text()
    for made in pod.client.containers(pod.id):
        pod.client.remove(made.id)
    assert pods.settled_leftovers(before) == []
    other = _pod(pods, "").up()
    assert other.status.state == cri.CONTAINER_RUNNING


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        ("misspelt", "virtlet_rot_disk"),
        ("old", "built for version 99"),
        ("optionless", "virtlet_options: raised ValueError: no colour is set"),
        ("unset", "virtlet_configure: raised ValueError: no red today"),
    ],
)
def test_a_refused_plugin_breaks_its_handler_alone_and_says_why(
    pods: Playground, handler: str, reason: str
) -> None:
    with pytest.raises(CallFailed, match=reason) as caught:
        _pod(pods, handler).run()
    assert caught.value.code.name == "FAILED_PRECONDITION"
    with pods.client() as client:
        status = client.call("Status", cri.StatusRequest(verbose=True))
        assert handler not in {h.name for h in status.runtime_handlers}
        assert reason in json.loads(status.info["info"])["brokenHandlers"][handler]


def test_a_plugin_that_exits_ends_nothing_but_its_own_call(pods: Playground) -> None:
    served_by = pods.process
    with pytest.raises(CallFailed, match="'exits', hook virtlet_admit_pod: raised SystemExit"):
        _pod(pods, "exits").run()
    assert _pod(pods, "").up().status.state == cri.CONTAINER_RUNNING
    assert pods.process is served_by is not None
    assert served_by.poll() is None


def test_what_is_refused_at_the_start_is_a_line_each(pods: Playground) -> None:
    text = pods.log_file.read_text()
    for handler in ("misspelt", "old", "optionless", "unset"):
        assert any(f"plugin '{handler}' refused: " in line for line in text.splitlines())
    assert "Traceback" not in text
    assert SECRET not in text


def test_what_served_a_pod_undoes_it_whatever_the_configuration_says_later(
    pods: Playground,
) -> None:
    pod = evolve(_pod(pods, "copy")).up()
    text = pods.config_file.read_text()
    try:
        pods.stop()
        pods.config_file.write_text(text.replace("- example_disk", "- example_events"))
        pods.start()
        assert pod.status.state == cri.CONTAINER_RUNNING
        pod.down()
        assert pods.settled_leftovers() == []
    finally:
        pods.stop()
        pods.config_file.write_text(text)
        pods.start()
