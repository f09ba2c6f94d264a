"""The environment of a command in a guest."""

from collections.abc import Mapping

from virtlet.model.vm import VmConfig

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where container runtimes look for programs, too, when nothing else is said."""
SCRIPT_ENVIRONMENT = (f"PATH={PATH}", "LC_ALL=C")
"""For our own scripts."""


def environment_of(vm: VmConfig, more: Mapping[str, str], *, tty: bool) -> dict[str, str]:
    """What a command finds: the usual, then the container's variables, then `more`.

    The agent's own environment is a service manager's and not passed on.
    """
    usual = {"PATH": PATH, "HOME": "/root"}
    if tty:
        usual["TERM"] = "xterm"
    return {**usual, **dict(vm.envs), **more}


def as_list(environment: Mapping[str, str]) -> list[str]:
    """In the form of the agent: `NAME=value`."""
    return [f"{name}={value}" for name, value in environment.items()]
