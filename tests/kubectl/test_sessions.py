"""What `kubectl virtlet console`, `ssh`, `vnc` and `screenshot` say where they cannot be had."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.kubectl.conftest import PODS, ApiServer, Run, pod
from virtlet.cli.ending import CommandFailed
from virtlet.kubectl.main import group

COMMANDS = [["console", "db"], ["ssh", "db"], ["vnc", "--proxy-only", "db"]]
COMMANDS += [["screenshot", "db", "screen.png"]]
WAITING = [{"name": "vm", "state": {"waiting": {"reason": "ContainerCreating"}}}]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[0])
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
    api: ApiServer, run: Run, command: list[str], found: dict[str, Any], problem: str
) -> None:
    api.documents[f"{PODS}/db"] = found
    said = run(*command)
    assert isinstance(said.exception, CommandFailed)
    assert problem in str(said.exception)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[0])
def test_a_user_without_rights_is_told_so(api: ApiServer, run: Run, command: list[str]) -> None:
    api.refuse(f"{PODS}/db", 403, "Forbidden", 'pods "db" is forbidden: User "eve" cannot get it')
    assert 'User "eve" cannot get it' in str(run(*command).exception)


def test_a_console_that_takes_nothing_is_told(api: ApiServer, run: Run) -> None:
    api.documents[f"{PODS}/db"] = pod("db")
    assert "write `stdin: true`" in str(run("console", "db").exception)


def test_a_vm_without_a_network_is_told(api: ApiServer, run: Run) -> None:
    api.documents[f"{PODS}/db"] = pod("db", podIP="")
    assert "has no address: its VM has no network" in str(run("ssh", "db").exception)


def test_a_vm_without_a_screen_is_told_in_the_words_of_the_node(
    api: ApiServer, run: Run, tmp_path: Path
) -> None:
    """Nothing is forwarded by this server, and no file is made."""
    api.documents[f"{PODS}/db"] = pod("db")
    file = tmp_path / "screen.png"
    said = str(run("screenshot", "db", str(file)).exception)
    assert "of pod db cannot be reached: " in said
    assert not file.exists()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "no VNC viewer is there: install one"),
        (["--viewer", "seer -x"], "viewer 'seer -x' is not there"),
        (["--viewer", "seer '"], "No closing quotation"),
    ],
)
def test_a_viewer_that_is_not_there_is_asked_for_before_a_port_is_opened(
    api: ApiServer,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    problem: str,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert problem in str(run("vnc", *words, "db").exception)
    assert not api.asked


def test_virsh_says_what_does_its_commands() -> None:
    def said(*words: str) -> str:
        result = CliRunner().invoke(group, ["virsh", *words])
        assert isinstance(result.exception, CommandFailed)
        return f"{result.output}{result.exception}"

    assert "`virsh list`: kubectl virtlet vms" in said("-c", "list", "--all")
    assert "screenshot  " in said()
    assert "nothing does `virsh migrate`" in said("migrate", "db")


def test_without_ssh_it_is_asked_for(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "install an SSH client" in str(run("ssh", "db").exception)
