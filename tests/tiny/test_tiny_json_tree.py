"""json-tree.awk: what the guest reads its seed with."""

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny.tiny_guest import ROOT

SCRIPT = ROOT / "images" / "tiny" / "rootfs" / "usr" / "lib" / "tiny" / "json-tree.awk"

# No line separators of Unicode and such are special to the script, quotes and escapes are.
text = st.text(st.sampled_from('ab"\\/\n\t{}[]:,u0é€😀 #%.')) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0")
)
names = text.filter(lambda name: len(name.encode()) < 60)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | text
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=8,
)


def convert(directory: Path, document: str) -> subprocess.CompletedProcess[str]:
    source = directory / "document"
    source.write_text(document, encoding="utf-8", newline="")
    command = ["busybox", "awk", "-v", f"root={directory}/tree", "-f", str(SCRIPT), str(source)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def read_back(path: Path) -> object:
    """The tree as objects; arrays are recognised by their first entry, an object else."""
    if path.is_file():
        return path.read_bytes()
    return {child.name: read_back(child) for child in path.iterdir()}


def encoded(key: str) -> str:
    key = key.replace("%", "%25").replace("/", "%2f").replace("\n", "%0a")
    return "%2e" + key[1:] if key.startswith(".") else key or "%"


def expected(value: object) -> object:
    if isinstance(value, dict):
        items = {encoded(key): item for key, item in value.items()}
    elif isinstance(value, list):
        items = {f"{index:04d}": item for index, item in enumerate(value)}
    elif isinstance(value, str):
        return value.encode()
    else:
        return json.dumps(value).encode()
    return {name: expected(item) for name, item in items.items() if item is not None}


@settings(max_examples=150, deadline=None)
@given(
    value=st.dictionaries(names, values, max_size=4),
    ascii_only=st.booleans(),
    indent=st.none() | st.just(2),
)
def test_tree_holds_any_document(
    tmp_path_factory: pytest.TempPathFactory, value: object, ascii_only: bool, indent: int | None
) -> None:
    """Every key and value of a JSON object is found again, byte for byte."""
    directory = tmp_path_factory.mktemp("json")
    document = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    done = convert(directory, "#cloud-config\n" + document)
    assert (done.returncode, done.stderr) == (0, "")
    assert read_back(directory / "tree") == expected(value)


def test_numbers_are_listed(tmp_path: Path) -> None:
    """A number can be told from a string of the same digits."""
    convert(tmp_path, '{"a": 420, "b": "420", "c": [true, -1.5e3]}')
    listed = (tmp_path / "tree.numbers").read_text().split()
    assert listed == [f"{tmp_path}/tree/a", f"{tmp_path}/tree/c/0001"]


@pytest.mark.parametrize("document", ["", "#cloud-config\n", "# a\n  # b", " \n"])
def test_nothing_makes_nothing(tmp_path: Path, document: str) -> None:
    """A document of comments alone is no error and leaves no tree."""
    assert convert(tmp_path, document).returncode == 0
    assert not (tmp_path / "tree").exists()


@pytest.mark.parametrize(
    "document",
    [
        *("{", "[1,]", '{"a"}', '{"a":1,}', '{"a" 1}', '"x', "nul", "[1 2]", '{"a":01}', "[1]]"),
        *("hostname: x", "- a", '{"a":"\\x"}', '{"a":"\\u12g4"}', "{1:2}", "[,1]", "{]", "1 2"),
    ],
)
def test_other_than_json_is_refused(tmp_path: Path, document: str) -> None:
    """What is not JSON ends with status 1 and one line that says why."""
    done = convert(tmp_path, document)
    assert done.returncode == 1
    assert done.stderr.startswith("not JSON: ")
    assert done.stderr.count("\n") == 1


def test_megabytes_take_no_minutes(tmp_path: Path) -> None:
    """Time grows with the size of a document, not with its square."""
    value = {"quotes": 'line "quoted" of text\n' * 40_000, "plain": "A" * 1_000_000}
    done = convert(tmp_path, json.dumps(value))
    assert done.returncode == 0
    assert read_back(tmp_path / "tree") == expected(value)
