"""A node without QEMU and qemu-img serves the handlers that need neither."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, TINY, Pod, make_manifest
from virtlet.cli.client import CallFailed
from virtlet.cli.playground import Playground
from virtlet.cri import api_pb2 as cri

HANDLERS = {
    "kernels": {
        "plugins": ["diskless"],
        "without": ["libvirt_qemu", "disk_qcow2", "domain_xml", "image_formats", "network_cni"],
    }
}
QEMU = "/nowhere/qemu-system-x86_64"
NO_QEMU = f"emulator {QEMU}: No such file or directory: install QEMU (package qemu-system-x86)"


def _programs_without_qemu(directory: Path) -> Path:
    """A directory for PATH with all programs of this machine but QEMU's."""
    for place in ("/usr/sbin", "/usr/bin", "/sbin", "/bin"):
        for program in Path(place).iterdir():
            link = directory / program.name
            if not program.name.startswith("qemu") and not link.is_symlink():
                link.symlink_to(program)
    return directory


@pytest.fixture(scope="module")
def bare_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Playground]:
    """A node where QEMU is not installed, with a hypervisor of somebody else's."""
    installed = tmp_path_factory.mktemp("installed")
    info = installed / "diskless-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: diskless\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[virtlet]\ndiskless = tests.fakes.diskless:Plugin\n")
    kernel = installed / "kernel"
    kernel.write_bytes(b"MZ" + bytes(510))
    with Playground(
        {"tiny": TINY, "kernel": kernel},
        settings={"handlers": HANDLERS, "emulator": QEMU},
        environment={
            "PYTHONPATH": f"{installed}:{ROOT}",
            "PATH": str(_programs_without_qemu(tmp_path_factory.mktemp("bin"))),
        },
    ) as playground:
        yield playground


def _pod(node: Playground, image: str, handler: str) -> Pod:
    manifest = make_manifest(node, handler=handler)
    manifest.container.image.image = f"virtlet.cloud/{image}:latest"
    return Pod(node, node.client(), manifest)


def test_a_handler_that_needs_no_qemu_runs_a_vm_of_an_image_of_its_own_kind(
    bare_node: Playground,
) -> None:
    pod = _pod(bare_node, "kernel", "kernels").up()
    try:
        assert pod.status.state == cri.CONTAINER_RUNNING
        request = cri.ImageStatusRequest(image=pod.image, verbose=True)
        info = json.loads(pod.client.call("ImageStatus", request).info["info"])
        assert (info["format"], info["recognizedBy"]) == ("kernel", "diskless")
    finally:
        pod.down()
    assert bare_node.settled_leftovers() == []


def test_a_pod_of_the_default_handler_is_refused_with_what_to_install(
    bare_node: Playground,
) -> None:
    with pytest.raises(CallFailed) as caught:
        _pod(bare_node, "tiny", "").run()
    assert f"handler '' cannot be served: {NO_QEMU}" in str(caught.value)
    assert bare_node.settled_leftovers() == []


def test_a_disk_image_is_refused_with_what_to_install(bare_node: Playground) -> None:
    with pytest.raises(CallFailed, match="qemu-img is not installed.*package qemu-utils"):
        bare_node.client().pull(cri.ImageSpec(image="virtlet.cloud/tiny:latest"))


def test_the_runtime_is_ready_and_says_what_is_missing(bare_node: Playground) -> None:
    status = bare_node.client().call("Status", cri.StatusRequest(verbose=True))
    ready = next(c for c in status.status.conditions if c.type == "RuntimeReady")
    assert ready.status
    assert NO_QEMU in ready.message
    assert [handler.name for handler in status.runtime_handlers] == ["", "kernels"]
    info = json.loads(status.info["info"])
    assert list(info["handlers"]) == ["kernels"]
    assert NO_QEMU in info["brokenHandlers"][""]
