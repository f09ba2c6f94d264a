"""Move the fragments of changelog.d into CHANGELOG.md, as a release's section at its top.

Usage: python hack/assemble_changelog.py [DATE]

The version is setup.cfg's. A section of that version takes the new fragments in, before its own.
"""

import configparser
import datetime
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
KINDS = {"feature": "New", "fix": "Mended"}
HEAD = "# Changelog\n\nWhat changed for users, the newest release first.\n"


def entry(text: str) -> str:
    """A fragment as an entry of a list."""
    return (
        "- "
        + text.strip().replace("](../", "](").replace("\n", "\n  ").replace("\n  \n", "\n\n")
        + "\n"
    )


def assemble(text: str, fragments: dict[str, str], version: str, date: str) -> str:
    """The changelog with fragments in the section of a version.

    Args:
        text: the changelog so far, or "".
        fragments: file name to text.
        version: the release.
        date: its date.
    """
    head, _, rest = (text or HEAD).partition("\n## ")
    ours = re.match(rf"{re.escape(version)} \(.*\)\n", rest)
    body, _, older = rest.partition("\n## ") if ours else ("", "", rest)
    section = f"## {version} ({date})\n"
    for kind, title in KINDS.items():
        names = sorted(name for name in fragments if name.endswith(f".{kind}.md"))
        entries = "".join(entry(fragments[name]) for name in names)
        before = re.search(rf"^### {title}\n\n(.*?)(?=^### |\Z)", body, re.M | re.S)
        entries += before[1].strip() + "\n" if before else ""
        section += f"\n### {title}\n\n{entries}" if entries else ""
    return f"{head.rstrip()}\n\n{section}" + (f"\n## {older}" if older else "")


def main() -> None:
    """Write the file, and remove the fragments."""
    date = sys.argv[1] if len(sys.argv) > 1 else datetime.date.today().isoformat()
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    version = setup["metadata"]["version"].partition("+")[0]
    files = sorted((ROOT / "changelog.d").glob("*.md"))
    path = ROOT / "CHANGELOG.md"
    old = path.read_text() if path.exists() else ""
    path.write_text(assemble(old, {file.name: file.read_text() for file in files}, version, date))
    for file in files:
        file.unlink()


if __name__ == "__main__":
    main()
