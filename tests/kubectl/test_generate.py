"""`kubectl virtlet gen`: a manifest that a node takes, and those that install a cluster."""

import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from tests.cluster_install.manifests import rendered
from virtlet.kubectl.main import group

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJhqWmGKn0zoYJ6dNnWw6pDVy2m7mC0mQ1bL0Hn4c1Zr me\n"


def test_a_generated_pod_would_be_taken(tmp_path: Path) -> None:
    keys, data = tmp_path / "keys", tmp_path / "data"
    keys.write_text(KEY)
    data.write_text("#cloud-config\npackages: [tmux]\n")
    words = ["gen", "web", "--image", "virtlet.cloud/tiny", "--cpu", "2", "-n", "shop"]
    words += ["--root-size", "20Gi", "--ssh-key", str(keys), "--user-data", str(data)]
    made = CliRunner().invoke(group, words)
    assert made.exit_code == 0, made.output
    pod = yaml.safe_load(made.output)
    assert pod["metadata"]["namespace"] == "shop"
    assert pod["metadata"]["annotations"]["VirtletSSHKeys"] == KEY
    [vm] = pod["spec"]["containers"]
    assert (vm["image"], vm["resources"]["limits"]["cpu"]) == ("virtlet.cloud/tiny", "2")
    assert (vm["stdin"], vm["tty"]) == (True, True)
    judged = CliRunner().invoke(group, ["validate", "-"], input=made.output)
    assert judged.exit_code == 0, judged.output


def test_a_pod_of_little_has_no_annotations() -> None:
    made = CliRunner().invoke(group, ["gen", "web", "--image", "virtlet.cloud/tiny"])
    assert yaml.safe_load(made.output)["metadata"] == {"name": "web"}


def test_a_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(b"\xff\xfe")
    words = ["gen", "web", "--image", "virtlet.cloud/tiny", "--ssh-key", str(file)]
    made = CliRunner().invoke(group, words)
    assert made.exit_code == 1
    assert "is not UTF-8 text" in made.output


def test_without_a_name_the_manifests_are_those_that_kustomize_makes() -> None:
    made = CliRunner().invoke(group, ["gen"])
    assert made.exit_code == 0, made.output
    assert made.stdout == rendered(), "run `make docs`"


def test_the_cluster_takes_its_image_from_where_it_is_said() -> None:
    image = "registry.example.com:5000/virtlet/node:2.0.0"
    made = CliRunner().invoke(group, ["gen", "--node-image", image])
    assert made.exit_code == 0, made.output
    assert re.findall(r"image: (\S+)", made.stdout) == [image]
    assert made.stdout == re.sub(r"(image: )localhost/\S+", rf"\1{image}", rendered())


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--image", "virtlet.cloud/tiny"], "give its NAME"),
        (["web"], "give its name by --image"),
        (["web", "--image", "x", "--node-image", "y/z"], "have no NAME"),
        (["--node-image", "a\nkind: Pod"], "no name of a container image"),
        (["--node-image", "NODE"], "no name of a container image"),
    ],
)
def test_what_does_not_go_together_is_told(words: list[str], problem: str) -> None:
    made = CliRunner().invoke(group, ["gen", *words])
    assert made.exit_code == 2
    assert problem in made.output
