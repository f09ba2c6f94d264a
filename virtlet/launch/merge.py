"""Several plugins' parts become one launch."""

import contextlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from attrs import define, field

from virtlet.errors import PluginError
from virtlet.model.launch import ENV_SOCKET, ENV_TOKEN, ENV_VM, LaunchFd, LaunchPart, Visible

HOOK = "virtlet_launch"
MOST_FDS = 253
"""As many as the kernel passes in one message (SCM_MAX_FD)."""
_REFERENCE = re.compile(r"\{fd:([^}]*)\}?")
_RESERVED = frozenset({ENV_SOCKET, ENV_VM, ENV_TOKEN})


@define
class Launch:
    """All that vmwrapper is told; owns its descriptors."""

    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(factory=dict, repr=False)
    fds: tuple[LaunchFd, ...] = ()
    cgroups: tuple[Path, ...] = ()
    oom_score_adj: int | None = None
    emulator: Path | None = None
    jail: bool = False
    visible: tuple[Visible, ...] = ()
    io_uring: bool = False
    alone: bool = False

    def close(self) -> None:
        """Close the descriptors; idempotent."""
        fds, self.fds = self.fds, ()
        close_all(fds)


def close_all(fds: Iterable[LaunchFd]) -> None:
    """Close descriptors that go nowhere."""
    for item in fds:
        with contextlib.suppress(OSError):
            os.close(item.fd)


def merge_launch(parts: Sequence[tuple[str, LaunchPart]]) -> Launch:
    """Put the parts together, in order.

    Args:
        parts: plugin name and its part. Their descriptors belong to the launch afterwards; when
            the merge fails they are closed.

    Raises:
        PluginError: two plugins clash, or one asks for what cannot be; names who and how.
    """
    try:
        return _merge(parts)
    except BaseException:
        close_all(item for _, part in parts for item in part.fds)
        raise


def _merge(parts: Sequence[tuple[str, LaunchPart]]) -> Launch:
    launch = Launch()
    names: dict[str, str] = {}
    setters: dict[str, str] = {}
    shown: dict[Path, tuple[str, bool]] = {}
    chooser = ""
    for plugin, part in parts:
        _check_text(plugin, part)
        for item in part.fds:
            if item.name in names:
                raise _clash(names[item.name], plugin, f"name a descriptor {item.name!r}")
            names[item.name] = plugin
        for name, value in part.environment.items():
            if name in _RESERVED or not name or "=" in name:
                raise PluginError(
                    plugin,
                    HOOK,
                    f"sets the environment variable {name!r}, which cannot be or is the manager's",
                    "choose another name",
                )
            if launch.environment.get(name, value) != value:
                raise _clash(setters[name], plugin, f"set the variable {name} differently")
            launch.environment[name] = value
            setters[name] = plugin
        if part.emulator is not None:
            if launch.emulator not in (None, part.emulator):
                raise _clash(chooser, plugin, "choose different emulators")
            launch.emulator, chooser = part.emulator, plugin
        launch.arguments += part.arguments
        launch.cgroups += tuple(c for c in part.cgroups if c not in launch.cgroups)
        launch.fds += part.fds
        launch.jail = launch.jail or part.jail
        launch.io_uring = launch.io_uring or part.io_uring
        launch.alone = launch.alone or part.alone
        for place in part.visible:
            before = shown.setdefault(place.path, (plugin, place.writable))
            if before[0] != plugin and before[1] != place.writable:
                raise _clash(before[0], plugin, f"show {place.path}, one to be written, one not")
        launch.visible += part.visible
        if part.oom_score_adj is not None:
            launch.oom_score_adj = part.oom_score_adj
    if len(launch.fds) > MOST_FDS:
        raise _clash(
            *(", ".join(sorted(set(names.values()))), "the others"),
            f"pass {len(launch.fds)} descriptors, more than {MOST_FDS}",
        )
    for plugin, part in parts:
        _check_arguments(plugin, part.arguments, names)
    return launch


def _check_text(plugin: str, part: LaunchPart) -> None:
    """No string of a process can hold a NUL byte."""
    strings = [*part.arguments, *part.environment, *part.environment.values()]
    strings += [*(item.name for item in part.fds), str(part.emulator or "")]
    strings += [f"{item.path}{item.source or ''}" for item in part.visible]
    if any("\0" in text for text in strings):
        raise PluginError(plugin, HOOK, "a string holds a NUL character", "mend the plugin")
    for item in part.visible:
        if not item.path.is_absolute() or ".." in item.path.parts or len(item.path.parts) < 2:
            raise PluginError(
                plugin,
                HOOK,
                f"shows {str(item.path)!r}, which is not the absolute path of something",
                "name the file or directory itself",
            )


def _check_arguments(plugin: str, arguments: Iterable[str], names: dict[str, str]) -> None:
    for argument in arguments:
        for match in _REFERENCE.finditer(argument):
            if match[1] not in names or not match[0].endswith("}"):
                raise PluginError(
                    plugin,
                    HOOK,
                    f"an argument refers to the descriptor {match[1]!r}, which no plugin passes",
                    "pass a LaunchFd of that name",
                )


def _clash(one: str, other: str, problem: str) -> PluginError:
    return PluginError(
        f"{one} and {other}",
        HOOK,
        f"both {problem}",
        "take one of the two plugins out of the handler's profile",
    )
