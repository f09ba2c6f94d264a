"""What `kubectl virtlet console` and `ssh` say where they cannot be had."""

from pathlib import Path
from typing import Any

import pytest

from tests.kubectl.conftest import PODS, ApiServer, Run, pod
from virtlet.cli.ending import CommandFailed

WAITING = [{"name": "vm", "state": {"waiting": {"reason": "ContainerCreating"}}}]


@pytest.mark.parametrize("command", ["console", "ssh"])
@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (pod("db", "sandboxed"), "pod shop/db is no VM: it has RuntimeClass sandboxed"),
        (pod("db", None), "pod shop/db is no VM: it has no RuntimeClass"),
        (pod("db", phase="Pending", containerStatuses=WAITING), "Pending, ContainerCreating"),
        (pod("db", phase="Failed", containerStatuses=[]), "does not run: phase Failed"),
    ],
)
def test_a_pod_without_a_running_vm_is_told(
    api: ApiServer, run: Run, command: str, found: dict[str, Any], problem: str
) -> None:
    api.documents[f"{PODS}/db"] = found
    said = run(command, "db")
    assert isinstance(said.exception, CommandFailed)
    assert problem in str(said.exception)


@pytest.mark.parametrize("command", ["console", "ssh"])
def test_a_user_without_rights_is_told_so(api: ApiServer, run: Run, command: str) -> None:
    api.refuse(f"{PODS}/db", 403, "Forbidden", 'pods "db" is forbidden: User "eve" cannot get it')
    assert 'User "eve" cannot get it' in str(run(command, "db").exception)


def test_a_console_that_takes_nothing_is_told(api: ApiServer, run: Run) -> None:
    api.documents[f"{PODS}/db"] = pod("db")
    assert "write `stdin: true`" in str(run("console", "db").exception)


def test_a_vm_without_a_network_is_told(api: ApiServer, run: Run) -> None:
    api.documents[f"{PODS}/db"] = pod("db", podIP="")
    assert "has no address: its VM has no network" in str(run("ssh", "db").exception)


def test_without_ssh_it_is_asked_for(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "install an SSH client" in str(run("ssh", "db").exception)
