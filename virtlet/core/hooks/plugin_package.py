"""A plugin's package as its author has it: reading it without installing it, and checking it.

Checking says what the manager would refuse or warn of at its start.
"""

import configparser
import importlib.util
import inspect
import logging
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from attrs import frozen

from virtlet import PROJECT
from virtlet.core.hooks import hook_contract
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.registry import BUILTIN_PACKAGE, discover
from virtlet.errors import InvalidArgument, VirtletError

_WANTED = (
    f"wanted is an entry point in the group {PROJECT!r}, such as `my_plugin = "
    f'"my_plugin:Plugin"` below [project.entry-points.{PROJECT}] of pyproject.toml'
)


@frozen(kw_only=True)
class SourcePackage:
    """A package of plugins."""

    directory: Path
    name: str
    version: str
    plugins: Mapping[str, str]
    """Name of a plugin to its `module:object`."""

    @property
    def import_paths(self) -> tuple[Path, ...]:
        """Directories to import it from."""
        return tuple(path for path in (self.directory / "src", self.directory) if path.is_dir())

    def entry_points(self) -> list[EntryPoint]:
        """What an installed package would have."""
        return [EntryPoint(name, value, PROJECT) for name, value in self.plugins.items()]


def read_package(directory: Path) -> SourcePackage:
    """Read a package's metadata from its pyproject.toml or setup.cfg.

    Raises:
        InvalidArgument: it has neither, they cannot be read, or they name no plugin.
    """
    directory = directory.absolute()
    for name, read in (("pyproject.toml", _pyproject), ("setup.cfg", _setup_cfg)):
        file = directory / name
        if not file.is_file():
            continue
        try:
            found = read(file)
        except (tomllib.TOMLDecodeError, configparser.Error, UnicodeDecodeError, OSError) as error:
            raise InvalidArgument(f"{file}: cannot be read: {type(error).__name__}") from None
        if found["plugins"]:
            return SourcePackage(
                directory=directory,
                name=str(found["name"] or directory.name),
                version=str(found["version"] or "0"),
                plugins={str(name): str(value) for name, value in found["plugins"].items()},
            )
    raise InvalidArgument(f"{directory}: no package with a plugin: {_WANTED}")


def pretend_installed(packages: Iterable[SourcePackage], directory: Path) -> list[Path]:
    """Have packages found by their entry points without installing them.

    An installed package of the same name gives way.

    Args:
        packages: the packages.
        directory: where their metadata is written.

    Returns:
        Directories to put before all others in PYTHONPATH.
    """
    paths = [directory]
    for package in packages:
        word = package.name.replace("-", "_")
        info = directory / f"{word}-{package.version}.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        head = f"Metadata-Version: 2.1\nName: {package.name}\nVersion: {package.version}\n"
        (info / "METADATA").write_text(head)
        lines = [f"{name} = {value}" for name, value in package.plugins.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{PROJECT}]", *lines, ""]))
        paths += package.import_paths
    return paths


def _pyproject(file: Path) -> dict[str, Any]:
    project = tomllib.loads(file.read_text()).get("project", {})
    return {
        "name": project.get("name"),
        "version": project.get("version"),
        "plugins": project.get("entry-points", {}).get(PROJECT, {}),
    }


def _setup_cfg(file: Path) -> dict[str, Any]:
    setup = configparser.ConfigParser()
    setup.read_string(file.read_text())
    lines = setup.get("options.entry_points", PROJECT, fallback="").splitlines()
    pairs = (line.split("=", 1) for line in lines if "=" in line)
    return {
        "name": setup.get("metadata", "name", fallback=""),
        "version": setup.get("metadata", "version", fallback=""),
        "plugins": {name.strip(): value.strip() for name, value in pairs},
    }


def read_module(file: Path) -> SourcePackage:
    """Take a single file for a package: its plugins are the classes that have hooks.

    The module is imported.

    Raises:
        InvalidArgument: it has no plugin, or cannot be imported.
    """
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise InvalidArgument(f"{file}: is not a Python module")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        what = f"{type(error).__name__}: {error}"
        raise InvalidArgument(f"{file}: importing it raised {what}") from None
    classes = [
        name
        for name, kind in inspect.getmembers(module, inspect.isclass)
        if kind.__module__ == file.stem and hasattr(kind, "VIRTLET_HOOK_API")
    ]
    if not classes:
        raise InvalidArgument(f"{file}: has no class with VIRTLET_HOOK_API")
    return SourcePackage(
        directory=file.absolute().parent,
        name=file.stem,
        version="0",
        plugins={f"{file.stem}.{name}": f"{file.stem}:{name}" for name in classes},
    )


# Checking


@frozen(kw_only=True)
class Findings:
    """What is wrong with a plugin."""

    flaws: tuple[str, ...] = ()
    """Why the manager refuses it."""
    warnings: tuple[str, ...] = ()
    """What it takes, and the plugin's author may not mean."""


def check(entries: Iterable[EntryPoint]) -> Mapping[str, Findings]:
    """Load plugins, each beside the built-in ones, and look at hooks and declarations.

    Returns:
        Name of each plugin to what is wrong with it.
    """
    return {entry.name: _check(entry) for entry in entries}


def _check(entry: EntryPoint) -> Findings:
    try:
        plugin = entry.load()
        flaws, warnings = hook_contract.flaws(plugin), hook_contract.doubts(plugin)
    except (Exception, SystemExit):
        flaws, warnings = [], []  # Discovery says why.
    return Findings(flaws=tuple(flaws or _refusals(entry)), warnings=tuple(warnings))


def _refusals(entry: EntryPoint) -> list[str]:
    """Why a manager's start refuses a plugin that has no flaw to be seen."""
    builtin = [e for e in entry_points(group=PROJECT) if e.value.startswith(BUILTIN_PACKAGE)]
    with quiet():
        registry = discover([*builtin, entry])
        hooks = Hooks(registry)
        hooks.options()
        try:
            hooks.annotations()
        except VirtletError as error:
            return [str(error)]
    return [registry.refused[entry.name]] if entry.name in registry.refused else []


@contextmanager
def quiet() -> Iterator[None]:
    """Log nothing: what is refused is told otherwise."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
