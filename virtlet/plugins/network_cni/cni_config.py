"""CNI network configuration: found, read and checked (section 1 of the CNI specification)."""

import json
import os
import pwd
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from virtlet.errors import FailedPrecondition
from virtlet.model.option import PATH, Option

CNI_CONF_DIR: Option[Path] = Option(
    field="cniConfigDir",
    flag="--cni-conf-dir",
    env="VIRTLET_CNI_CONFIG_DIR",
    kind=PATH,
    default="/etc/cni/net.d",
    help="Directory of the CNI configuration; the first file by name is used.",
)

SUPPORTED = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""Versions of the specification we speak, oldest first."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_ENDINGS = (".conf", ".conflist", ".json")


def at_least(version: str, wanted: str) -> bool:
    """Whether a supported version is the wanted one or later."""
    return SUPPORTED.index(version) >= SUPPORTED.index(wanted)


@frozen
class PluginConfig:
    """One plugin of a network, as its author configured it."""

    type: str
    """File name of its executable."""
    document: Mapping[str, Any]

    @property
    def capabilities(self) -> frozenset[str]:
        """What it wants to be told of in `runtimeConfig`."""
        declared = self.document.get("capabilities") or {}
        return frozenset(name for name, wanted in declared.items() if wanted is True)

    @property
    def executables(self) -> tuple[str, ...]:
        """Its own executable, and that of the address management it hands on to."""
        ipam = self.document.get("ipam")
        delegate = ipam.get("type") if isinstance(ipam, dict) else None
        return (self.type, delegate) if isinstance(delegate, str) and delegate else (self.type,)


@frozen
class NetworkList:
    """A network: plugins that are run one after the other."""

    name: str
    version: str
    plugins: tuple[PluginConfig, ...]
    disable_check: bool = False
    allow_spoofing: bool = False
    """Ours: whether guests may send from addresses that are not theirs."""

    def execution_config(self, plugin: PluginConfig) -> dict[str, Any]:
        """What a plugin reads of its own and the network's configuration."""
        return {
            **{key: value for key, value in plugin.document.items() if key != "capabilities"},
            "name": self.name,
            "cniVersion": self.version,
        }

    @property
    def checkable(self) -> bool:
        """Whether its version and its author allow CHECK."""
        return not self.disable_check and at_least(self.version, "0.4.0")

    @property
    def capabilities(self) -> frozenset[str]:
        """What any of its plugins wants to be told of."""
        return frozenset().union(*(plugin.capabilities for plugin in self.plugins))


def load(directory: Path) -> NetworkList:
    """Read the network that pods of this node get: the first file by name.

    A broken first file is an error, although others may follow: a pod must not come up in
    another network than the operator put first.

    Raises:
        FailedPrecondition: there is no file, or it is wrong; the message names it.
    """
    try:
        names = sorted(p.name for p in directory.iterdir() if p.suffix in _ENDINGS)
    except OSError as error:
        raise FailedPrecondition(
            f"cannot read the CNI configuration directory {directory}: "
            f"{why_unreadable(directory, error, 'a network add-on', CNI_CONF_DIR.flag)}"
        ) from None
    if not names:
        raise FailedPrecondition(
            f"no CNI configuration in {directory}: install a network add-on for this node"
        )
    path = directory / names[0]
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise FailedPrecondition(
            f"cannot read the CNI configuration {path}: {error.strerror}"
        ) from None
    except ValueError as error:
        raise FailedPrecondition(f"CNI configuration {path}: no valid JSON: {error}") from None
    try:
        return parse(document, path.parent)
    except ValueError as error:
        raise FailedPrecondition(f"CNI configuration {path}: {error}") from None


def parse(document: Any, directory: Path | None = None) -> NetworkList:
    """Check a configuration list, or a single plugin's configuration, which is a list of one.

    Args:
        document: the JSON document.
        directory: where plugins of the list may stand in files of their own.

    Raises:
        ValueError: what is wrong with it.
    """
    if not isinstance(document, dict):
        raise ValueError("must be a JSON object")
    name = _text(document, "name")
    if not _NAME.fullmatch(name):
        raise ValueError(f"name {name!r} is not valid: use letters, digits, '_', '.' and '-'")
    if "type" in document and "plugins" not in document:
        entries = [document]
    else:
        entries = _entries(document, name, directory)
    return NetworkList(
        name=name,
        version=_version(document),
        plugins=tuple(_plugin(entry, number) for number, entry in enumerate(entries)),
        disable_check=_flag(document, "disableCheck"),
        allow_spoofing=_flag(document, "virtletAllowSpoofing"),
    )


def _entries(document: Mapping[str, Any], name: str, directory: Path | None) -> list[Any]:
    entries = document.get("plugins", [])
    if not isinstance(entries, list):
        raise ValueError("plugins must be a list")
    entries = list(entries)
    if directory is not None and not _flag(document, "loadOnlyInlinedPlugins"):
        for path in sorted((directory / name).glob("*.conf")):
            try:
                entries.append(json.loads(path.read_bytes()))
            except (OSError, ValueError) as error:
                raise ValueError(f"plugin file {path}: {error}") from None
    if not entries:
        raise ValueError("the list of plugins is empty")
    return entries


def _plugin(entry: Any, number: int) -> PluginConfig:
    if not isinstance(entry, dict):
        raise ValueError(f"plugins[{number}] must be an object")
    kind = _text(entry, "type", f"plugins[{number}].type")
    if "/" in kind or kind in (".", ".."):
        raise ValueError(f"plugins[{number}].type {kind!r} is not a file name")
    if not isinstance(entry.get("capabilities") or {}, dict):
        raise ValueError(f"plugins[{number}].capabilities must be an object")
    return PluginConfig(kind, entry)


def _version(document: Mapping[str, Any]) -> str:
    """The newest version that both the network's author and we offer."""
    offered = document.get("cniVersions") or []
    if not isinstance(offered, list):
        raise ValueError("cniVersions must be a list")
    wanted = [version for version in (*offered, document.get("cniVersion")) if version is not None]
    known = [version for version in SUPPORTED if version in wanted]
    if not known:
        raise ValueError(
            f"cniVersion {', '.join(map(repr, wanted)) or 'is missing'}: "
            f"supported are {', '.join(SUPPORTED)}"
        )
    return known[-1]


def _text(document: Mapping[str, Any], key: str, shown: str | None = None) -> str:
    value = document.get(key)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{shown or key} must be a non-empty text")
    return value


def _flag(document: Mapping[str, Any], key: str) -> bool:
    # The specification once had it as the text "true".
    value = document.get(key, False)
    if value in (True, "true"):
        return True
    if value in (False, "false"):
        return False
    raise ValueError(f"{key} must be true or false")


def why_unreadable(directory: Path, error: OSError, content: str, flag: str) -> str:
    """Say why a directory of the node cannot be read, and what to do about it.

    Args:
        directory: as it is configured.
        error: what reading it failed with.
        content: what is to be installed there.
        flag: that of the setting that names it.
    """
    match error:
        case FileNotFoundError():
            return f"it does not exist: install {content}, or name another one with {flag}"
        case NotADirectoryError():
            return f"it is not a directory: name another one with {flag}"
        case PermissionError():
            return f"{_closed(directory)}, or name another one with {flag}"
    return f"{error.strerror}: mend it, or name another one with {flag}"


def _closed(directory: Path) -> str:
    directory = Path(os.path.realpath(directory))
    for path in (*reversed(directory.parents), directory):
        needed = os.R_OK | os.X_OK if path == directory else os.X_OK
        if not os.access(path, needed, effective_ids=True):
            return (
                f"permission denied to {_user(os.geteuid())} at {path}{_mode(path)}: let it enter "
                "and read there (a service with ProtectHome= sees nothing of /root and /home)"
            )
    return "permission denied: see the node's security module (AppArmor, SELinux), let it read"


def _mode(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return ""
    return f" ({stat.filemode(status.st_mode)}, of {_user(status.st_uid)})"


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"
