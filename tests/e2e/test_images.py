"""Images as a kubelet asks for them, and what they boot to."""

import subprocess
from pathlib import Path

import yaml

from tests.e2e.conftest import TINY, PodFactory
from virtlet.cli.playground import Playground
from virtlet.cri import api_pb2 as cri


def _offer(node: Playground, name: str, path: Path) -> None:
    """Have an image name stand for a file of the node."""
    translations = {"translations": [{"name": name, "url": f"file://{path}"}]}
    (node.directory / "images" / f"{name}.yaml").write_text(yaml.safe_dump(translations))


def test_a_machine_boots_from_a_raw_image(node: Playground, new_pod: PodFactory) -> None:
    raw = node.directory / "tiny.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(TINY), str(raw)], check=True)
    _offer(node, "raw", raw)
    pod = new_pod()
    pod.manifest.container.image.image = "raw"
    pod = pod.up()
    pod.wait_for_console("login:")
    assert pod.status.state == cri.CONTAINER_RUNNING
    pod.down()
