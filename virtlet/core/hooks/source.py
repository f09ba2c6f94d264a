"""A plugin's package as its author has it: a directory that need not be installed."""

import configparser
import importlib.util
import inspect
import tomllib
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from attrs import frozen

from virtlet import PROJECT
from virtlet.errors import InvalidArgument

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
