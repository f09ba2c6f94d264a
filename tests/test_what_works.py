"""docs/what-works.md lists all that there is, and names tests and manifests that exist."""

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from virtlet.cli.manifest import BadManifest, pod_manifest, read_manifest
from virtlet.core.config.options import CORE_OPTIONS
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.registry import discover

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "what-works.md").read_text()
EXAMPLES = sorted((ROOT / "examples" / "pods").glob("*.yaml"))
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))


def _rows(title: str) -> list[list[str]]:
    """The cells of a section's table; of the first cell, what stands before a colon."""
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    lines = [line.strip("| ") for line in section.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in re.split(r" ?\| ?", line)] for line in lines[1:]]
    return [[row[0].partition(":")[0], *row[1:]] for row in rows]


def _first(title: str) -> list[str]:
    return sorted({row[0] for row in _rows(title)})


@cache
def _functions(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def _built_in() -> tuple[Hooks, set[str]]:
    registry = discover()
    return Hooks(registry), set(registry.builtin)


def test_every_annotation_has_a_row() -> None:
    hooks, built_in = _built_in()
    declared = {one.name for plugin, one in hooks.annotations() if plugin in built_in}
    assert _first("Annotations") == sorted(declared)


def test_every_option_has_a_row() -> None:
    hooks, built_in = _built_in()
    declared = [one.field for one in CORE_OPTIONS]
    declared += [one.field for plugin, one in hooks.options() if plugin in built_in]
    assert _first("Options of the manager") == sorted(declared)


def _pod(path: Path) -> dict[str, Any]:
    (pod,) = (one for one in yaml.safe_load_all(path.read_text()) if one["kind"] == "Pod")
    found: dict[str, Any] = pod
    return found


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_in_the_table_with_what_it_uses(path: Path) -> None:
    """The manifest of an annotation's row has the annotation, and that of a volume's the volume."""
    rows = {
        title: {row[0] for row in _rows(title) if f"`examples/pods/{path.name}`" in row[1]}
        for title in ("Annotations", "Volumes", "Image sources", "Image formats")
    }
    assert any(rows.values())
    pod = _pod(path)
    assert rows["Annotations"] <= pod["metadata"].get("annotations", {}).keys()
    volumes = pod["spec"].get("volumes", [])
    used = {key for volume in volumes for key in volume if key != "name"}
    assert rows["Volumes"] <= used
    assert used <= set(_first("Volumes"))


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_every_test_exists(file: str, name: str) -> None:
    assert name in _functions(file)


@pytest.mark.parametrize(
    "title",
    ["Annotations", "Volumes", "Image sources", "Image formats", "Options of the manager"],
)
def test_every_row_names_a_test_and_what_boots_has_a_manifest(title: str) -> None:
    rows = _rows(title)
    assert rows
    assert [row[0] for row in rows if "::test_" not in row[-1]] == []
    if title in ("Annotations", "Volumes"):
        served = [row for row in rows if not row[2].startswith("refused: ")]
        assert [row[0] for row in served if not row[1]] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_of_one_document_without_a_kubelets_volumes_runs_by_hand(
    path: Path, tmp_path: Path
) -> None:
    """`virtlet run` takes it; others it refuses with the reason, and drops nothing of them."""
    documents = list(yaml.safe_load_all(path.read_text()))
    if len(documents) == 1 and "volumes" not in _pod(path)["spec"]:
        image = read_manifest(path, tmp_path).container.image.image
        assert image == _pod(path)["spec"]["containers"][0]["image"]
    else:
        with pytest.raises(BadManifest, match="holds . documents|takes a kubelet"):
            read_manifest(path, tmp_path)


def test_the_guides_pods_and_annotations_are_real(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "guide" / "your-image.md").read_text()
    blocks = [
        yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```", guide, re.M | re.S)
    ]
    (pod,) = (block for block in blocks if block.get("kind") == "Pod")
    pod_manifest(pod, tmp_path)
    hooks, _ = _built_in()
    declared = {one.name for _, one in hooks.annotations()}
    for page in ("your-image", "storage", "configuration"):
        text = (ROOT / "docs" / "guide" / f"{page}.md").read_text()
        assert set(re.findall(r"\bVirtlet[A-Z]\w+", text)) <= declared, page
