"""The pictures of the documentation are whole, and fetch nothing from elsewhere."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hack import draw_demo, draw_snapshots

PICTURES = sorted((Path(__file__).parents[2] / "docs" / "pictures").glob("*.svg"))
OUTPUT = """\
\u2713 StartContainer             0.33 s
  | \x1bcSeaBIOS (version 1)
  | Loading vmlinuz... ok
  | [    0.086456] Kernel command line: console=ttyS0
  |\x20
  | log in as root & have fun
"""


def test_the_guests_boot_is_one_line() -> None:
    drawn = draw_demo.draw(draw_demo.told(OUTPUT))
    text = "".join(ElementTree.fromstring(drawn).itertext()).replace("\xa0", " ")
    assert "StartContainer" in text
    assert "log in as root & have fun" in text
    assert "\u2026" in text
    assert not re.search("SeaBIOS|vmlinuz|command line", text)


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.name)
def test_a_picture_is_whole_and_fetches_nothing(picture: Path) -> None:
    text = picture.read_text()
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert not re.search(r"(?:src|href)=\"[^#]|url\(['\"]?http|@import", text)


def test_starts_from_a_template_are_drawn_of_the_benchmarks_figures(tmp_path: Path) -> None:
    names = [*draw_snapshots.TIMES, *draw_snapshots.MEMORY]
    rows = [
        {"name": name, "samples": {"warm": [1.0, 2.5, 9.0], "cold": [30.0 + number, 41.5, 50.0]}}
        for number, name in enumerate(names)
    ]
    files = [tmp_path / "warm.json", tmp_path / "debian.json"]
    for file, part in zip(files, (rows[:1], rows[1:]), strict=True):
        file.write_text(json.dumps({"rows": part}))
    drawn = tmp_path / "snapshots.svg"
    draw_snapshots.draw(draw_snapshots.rows(files), drawn)
    words = list(ElementTree.fromstring(drawn.read_text()).itertext())
    assert [words.count("2.5"), words.count("41.5")] == [len(names), len(names)]
    assert {"boots", "from a template"} <= set(words)
