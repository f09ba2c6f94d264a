"""Run the demo and draw what it prints as docs/pictures/demo.svg (`make picture`)."""

import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
WIDTH = 96
BOOT = re.compile(r"  \| (\[ *\d+\.\d+\]|SeaBIOS|Machine UUID|Booting|SYSLINUX|Loading|Probing)")
"""Lines of the guest's boot that say nothing of Virtlet."""


def told(output: str) -> list[str]:
    """The lines to draw: the guest's boot in one, no empty ones of its console."""
    lines: list[str] = []
    for line in re.sub(r"\x1bc|[^\S\n]+$|[^\n -\U0010ffff]", "", output, flags=re.M).splitlines():
        if BOOT.match(line):
            line = "  | …"
        if line.strip() != "|" and lines[-1:] != [line]:
            lines.append(line)
    return lines


def draw(lines: list[str]) -> str:
    """An SVG that fetches no font from elsewhere."""
    console = Console(record=True, width=WIDTH, file=StringIO())
    console.print(Text("# make demo", style="bold"))
    for line in lines:
        style = "green" if line.startswith("✓") else "dim" if line.startswith("  |") else ""
        console.print(Text(line, style=style), overflow="ellipsis", no_wrap=True)
    picture = console.export_svg(title="Virtlet", unique_id="demo")
    return re.sub(r"@font-face \{.*?\}\n", "", picture, flags=re.S) + "\n"


if __name__ == "__main__":
    argv = [sys.executable, "-m", "virtlet.cli.main", "demo"]
    ran = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    (ROOT / "docs" / "pictures" / "demo.svg").write_text(draw(told(ran.stdout)))
