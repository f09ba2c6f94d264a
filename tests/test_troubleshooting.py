"""The troubleshooting page quotes what the code says."""

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import click
import pytest

from criproxy.__main__ import main as criproxy
from virtlet.cli.main import group
from virtlet.core.config.load import SECTIONS
from virtlet.core.config.options import CORE_OPTIONS
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.registry import discover

ROOT = Path(__file__).parents[1]
PATH = ROOT / "docs" / "guide" / "troubleshooting.md"
PAGE = PATH.read_text()
QUOTED = [
    line.strip()
    for block in re.findall(r"^```text\n(.*?)^```", PAGE, re.M | re.S)
    for line in block.splitlines()
]
SPANS = [
    " ".join(span.split())
    for span in re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", PAGE, flags=re.M | re.S))
]


@cache
def _texts() -> str:
    """All texts of the code but docstrings, one a line; what is filled in stands as `…`."""
    found = []
    for package in ("virtlet", "criproxy", "vmwrapper"):
        for file in (ROOT / package).rglob("*.py"):
            if "cri" in file.parent.name and file.name.startswith("api_pb2"):
                continue
            tree = ast.parse(file.read_text())
            docstrings = {
                id(node.value)
                for node in ast.walk(tree)
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            }
            for node in ast.walk(tree):
                if id(node) in docstrings:
                    continue
                if isinstance(node, ast.JoinedStr):
                    parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(found)


@pytest.mark.parametrize("message", QUOTED)
def test_every_message_is_one_of_the_code(message: str) -> None:
    """Piece by piece: what stands between two pieces is filled in."""
    pieces = [piece.strip() for piece in re.split("…", message) if len(piece.strip()) > 3]
    assert pieces
    texts = [text for text in _texts().splitlines() if all(piece in text for piece in pieces)]
    assert texts, f"no text of the code has {pieces}"


def _commands(program: str) -> list[list[str]]:
    spans = [shlex.split(span) for span in SPANS if re.match(rf"{program} [a-z-]", span)]
    assert spans
    return spans


def test_every_command_of_virtlet_and_its_options_exist() -> None:
    context = click.Context(group)
    for _, name, *arguments in _commands("virtlet"):
        command = group.get_command(context, name)
        assert command is not None, name
        known = {option for parameter in command.params for option in parameter.opts}
        assert {a for a in arguments if a.startswith("-")} <= known


def test_every_setting_and_annotation_exists() -> None:
    hooks = Hooks(discover())
    settings = {option.field for option in [*CORE_OPTIONS, *(o for _, o in hooks.options())]}
    named = {
        span
        for span in SPANS
        if re.fullmatch(
            r"(cni|image|raw|stream|emulator|kubelet|hook|forgotten|guest|log)[A-Z]\w+", span
        )
    }
    assert named
    assert named <= settings
    assert "handlers" in SECTIONS
    annotations = set(re.findall(r"\bVirtlet[A-Z]\w+", PAGE))
    documented = (ROOT / "docs" / "settings.md").read_text()
    assert annotations
    assert {name for name in annotations if f"| {name} |" not in documented} == set()


def test_every_metric_exists() -> None:
    metrics = set(re.findall(r"\bvirtlet_vm_\w+", PAGE))
    assert metrics
    assert {name for name in metrics if name not in _texts()} == set()


def test_the_proxys_options_exist() -> None:
    known = {option for parameter in criproxy.params for option in parameter.opts}
    for _, *arguments in _commands("criproxy"):
        assert {word for word in arguments if word.startswith("-")} <= known


def test_links_and_files_lead_somewhere() -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", PAGE):
        page = (PATH.parent / target).resolve() if target else PATH
        assert page.exists(), target
        if anchor:
            assert anchor in {
                _anchor(title) for title in re.findall(r"^#+ (.*)$", page.read_text(), re.M)
            }
    for file in re.findall(r"\bdeploy/[\w/.-]+\w", PAGE):
        assert (ROOT / file).exists(), file


def _anchor(title: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


@pytest.mark.parametrize(
    "symptom",
    [
        "Pending",
        "OOMKilled",
        "boot",
        "network",
        "volume",
        "image",
        "Terminating",
        "Exec",
        "resize",
        "Metrics",
    ],
)
def test_every_symptom_has_its_section(symptom: str) -> None:
    assert re.search(rf"^## .*{symptom}", PAGE, re.M)


def test_the_readme_leads_to_it() -> None:
    assert "(docs/guide/troubleshooting.md)" in (ROOT / "README.md").read_text()
