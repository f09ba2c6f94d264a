"""The pictures of the documentation are whole, and fetch nothing from elsewhere."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hack import draw_demo

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
