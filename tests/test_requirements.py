"""requirements.txt pins all that an installation takes, with hashes; `make lock` writes it."""

import configparser
import re
import tomllib
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def pins(file: str) -> dict[str, str]:
    """Version of each distribution; every line has to be a pin with its hashes."""
    text = re.sub(r"^ *#.*\n?|^\n", "", (ROOT / file).read_text(), flags=re.MULTILINE)
    found: dict[str, str] = {}
    for line in text.replace("\\\n", " ").splitlines():
        pinned, *hashes = (word.strip() for word in re.split(r"\s+(?=--)", line.strip()))
        requirement = Requirement(pinned)
        [only] = requirement.specifier
        assert only.operator == "==", line
        assert hashes, line
        assert all(map(HASH.fullmatch, hashes)), line
        found[canonicalize_name(requirement.name)] = only.version
    return found


def agrees(requirements: Iterable[str], pinned: dict[str, str]) -> None:
    for requirement in map(Requirement, requirements):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])


def test_it_agrees_with_what_is_required_and_with_the_constraints() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    pinned = pins("requirements.txt")
    agrees(setup["options"]["install_requires"].split(), pinned)
    for extra in ("encryption", "traces"):
        agrees(setup["options.extras_require"][extra].split(), pinned)
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    constraints = [line for line in lines if line and not line.startswith("#")]
    agrees([c for c in constraints if canonicalize_name(Requirement(c).name) in pinned], pinned)
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    agrees(build, pins("requirements-build.txt"))


def test_nothing_is_missing_that_is_needed_in_turn() -> None:
    """pip would refuse the whole file then."""
    pinned = pins("requirements.txt")
    for name in pinned:
        for text in distribution(name).requires or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                assert canonicalize_name(needed.name) in pinned, f"{name} needs {needed.name}"
