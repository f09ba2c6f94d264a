"""Running one CNI plugin (section 2 of the CNI specification)."""

import json
import logging
import os
import signal
import subprocess
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from virtlet.errors import DeadlineExceeded, FailedPrecondition, VirtletError
from virtlet.host import processes
from virtlet.plugins.network_cni.options import CNI_BIN_DIR
from virtlet.plugins.network_cni.unreadable import reason

_log = logging.getLogger(__name__)

TRY_AGAIN = 11
"""The error code of what is only so for now."""
_ROUNDS = 5
"""A process may start another one just before it is ended."""
_PATIENCE = 2.0
"""Seconds that those that are ended may take; it takes milliseconds."""

_MEANINGS = {
    1: "incompatible CNI version",
    2: "unsupported field in the configuration",
    3: "container unknown",
    4: "wrong environment variables",
    5: "input/output failure",
    6: "failed to decode",
    7: "invalid network configuration",
    TRY_AGAIN: "try again later",
    50: "the plugin is not available",
    51: "the plugin is not available, and pods may have lost connectivity",
}
"""Error codes that the specification knows."""


class CniError(VirtletError):
    """A CNI plugin failed, or answered what nobody can read.

    Args:
        plugin: type of the plugin.
        command: ADD, DEL, CHECK, …
        problem: what happened.
        code: the plugin's error code; 0 when it gave none.
    """

    status: ClassVar[str] = "UNAVAILABLE"

    def __init__(self, plugin: str, command: str, problem: str, code: int = 0) -> None:
        self.plugin = plugin
        self.command = command
        self.code = code
        super().__init__(f"CNI plugin {plugin} failed to {command}: {problem}")


def find(directory: Path, plugin: str) -> Path:
    """The executable of a plugin.

    Raises:
        FailedPrecondition: it is missing, or its directory cannot be entered.
    """
    path = directory / plugin
    try:
        os.stat(f"{directory}/.")
    except OSError as error:
        raise FailedPrecondition(
            f"cannot look into the directory of CNI's plugins {directory}: "
            f"{reason(directory, error, 'the CNI plugins', CNI_BIN_DIR.flag)}"
        ) from None
    if not os.access(path, os.X_OK) or not path.is_file():
        raise FailedPrecondition(f"CNI plugin {plugin} is missing in {directory}: install it")
    return path


def invoke(
    directory: Path,
    plugin: str,
    command: str,
    parameters: Mapping[str, str],
    config: Mapping[str, Any],
    *,
    timeout: float,
) -> Any:
    """Run a plugin.

    Args:
        directory: where plugins are; also where they find the plugins they delegate to.
        plugin: its type.
        command: ADD, DEL, CHECK, STATUS, GC or VERSION.
        parameters: CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME and CNI_ARGS, as the command needs.
        config: the execution configuration it reads.
        timeout: seconds before it is killed.

    Returns:
        The JSON document it printed, or None when it printed nothing.

    Raises:
        FailedPrecondition: the plugin is missing.
        DeadlineExceeded: it took longer than `timeout`.
        CniError: it failed or printed something else.
    """
    path = find(directory, plugin)
    environment = {name: v for name, v in os.environ.items() if not name.startswith("CNI_")}
    environment.update(parameters, CNI_COMMAND=command, CNI_PATH=str(directory))
    try:
        process = subprocess.Popen(
            [path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise CniError(plugin, command, f"cannot run {path}: {error.strerror}") from None
    with process:
        try:
            output, log = process.communicate(json.dumps(config).encode(), timeout)
        except subprocess.TimeoutExpired:
            # The whole group: plugins that it delegated to hold our pipes open.
            os.killpg(process.pid, signal.SIGKILL)
            raise DeadlineExceeded(
                f"CNI plugin {plugin} did not finish {command} within {timeout:g} s"
            ) from None
    if process.returncode != 0:
        raise _error(plugin, command, process.returncode, output, log)
    if not output.strip():
        return None
    try:
        return json.loads(output)
    except (ValueError, RecursionError):
        raise CniError(plugin, command, "it printed no valid JSON") from None


def end_interrupted(directory: Path, container_ids: Iterable[str]) -> None:
    """End the plugins that an earlier manager had begun to run, with all they started.

    They outlive it, and would go on beside what is done to their pods from now on. A daemon that
    a plugin left behind, in a session of its own, is none of them.

    Args:
        directory: where plugins are.
        container_ids: whose plugins; others use the directory, too.
    """
    path = os.fsencode(f"CNI_PATH={directory}")
    ours = {os.fsencode(f"CNI_CONTAINERID={container_id}") for container_id in container_ids}
    if not ours:
        return

    def is_ours(environment: Collection[bytes]) -> bool:
        return path in environment and not ours.isdisjoint(environment)

    begun: set[int] = set()
    for _ in range(_ROUNDS):
        sessions = processes.sessions()
        begun.update(
            leader
            for leader, members in sessions.items()
            if leader in members
            and is_ours(processes.environment(leader))
            and _runs_from(directory, leader)
        )
        members = [pid for leader in begun for pid in sessions.get(leader, ())]
        opened = (processes.open_started(pid, is_ours) for pid in members)
        found = [pidfd for pidfd in opened if pidfd is not None]
        if not found:
            return
        _log.warning("CNI plugins that an earlier manager had begun to run are ended")
        over = processes.kill(found, within=_PATIENCE)
        for pidfd in found:
            os.close(pidfd)
        if not over:
            _log.error("a CNI plugin that an earlier manager had begun to run does not end")
            return


def _runs_from(directory: Path, pid: int) -> bool:
    """Whether a process was started from a directory; a script is an argument of its shell."""
    return any(
        os.path.dirname(argument) == os.fsencode(directory) for argument in processes.arguments(pid)
    )


def _error(plugin: str, command: str, status: int, output: bytes, log: bytes) -> CniError:
    """What a failed plugin says of itself."""
    try:
        said = json.loads(output)
        code = int(said.get("code", 0))
        message = ": ".join(str(said[key]) for key in ("msg", "details") if said.get(key))
    except (ValueError, TypeError, AttributeError, RecursionError):
        code, message = 0, ""
    if not code and not message:
        end = (log or output).decode(errors="replace").strip()[-500:]
        return CniError(plugin, command, f"status {status}: {end or 'it said nothing'}")
    meaning = _MEANINGS.get(code)
    problem = f"code {code}" + (f" ({meaning})" if meaning else "")
    return CniError(plugin, command, f"{problem}: {message[:1000] or 'it gave no message'}", code)
