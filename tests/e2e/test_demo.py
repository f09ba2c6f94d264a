"""`virtlet demo`, as `make demo` runs it: what it shows, and that its advice works."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, TINY, Pod, make_manifest
from tests.polling import until
from virtlet.cli.playground import Playground

DEMO = [sys.executable, "-m", "virtlet.cli.main", "demo"]


def test_the_demo_shows_every_step_the_console_and_the_answer_and_leaves_nothing() -> None:
    started = time.monotonic()
    with subprocess.Popen(DEMO, cwd=ROOT, stdout=subprocess.PIPE, text=True) as demo:
        until(lambda: _node_of(demo.pid) != "", "the demo's manager", 60)
        node = _node_of(demo.pid)
        shown, _ = demo.communicate(timeout=150)
    assert time.monotonic() - started < 120
    assert demo.returncode == 0, shown
    for step in (
        "RunPodSandbox",
        "PullImage",
        "CreateContainer",
        "StartContainer",
        "StopPodSandbox",
        "RemovePodSandbox",
        "nothing is left: domain, process, netns, link, mount, file",
    ):
        assert re.search(rf"✓ .*{step}.* \d+\.\d\d s", shown), step
    assert re.search(r"\| .*Linux version", shown)
    address = re.search(r"pod address (\S+),", shown)
    assert address is not None
    assert f"http://{address[1]}/ answers: Virtlet tiny guest" in shown
    _is_gone(node)


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("", id="while the manager starts"),
        pytest.param("emulation", id="while the pod's network is made"),
        pytest.param("StartContainer", id="while the guest boots"),
        pytest.param("to that answer", id="while the guest is stopped"),
    ],
)
def test_sigterm_ends_the_demo_and_leaves_nothing(moment: str) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen(DEMO, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as demo:
        until(lambda: _node_of(demo.pid) != "", "the demo's manager", 60)
        node = _node_of(demo.pid)
        assert demo.stdout is not None
        while moment and moment not in demo.stdout.readline():
            assert demo.poll() is None
        # As `timeout` and `make` do, one each.
        demo.terminate()
        demo.terminate()
        _, said = demo.communicate(timeout=120)
    assert demo.returncode == 128 + signal.SIGTERM
    # Nor was anything taken away by force.
    assert said == "ended by SIGTERM\n"
    _is_gone(node)


def test_a_terminal_that_is_closed_ends_the_demo_and_leaves_nothing() -> None:
    ours, theirs = os.openpty()
    # A run of the tests by nohup ignores it.
    argv = ["env", "--default-signal=HUP", "setsid", "--ctty", *DEMO]
    with subprocess.Popen(argv, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs) as demo:
        os.close(theirs)
        shown = b""
        while b"StartContainer" not in shown:
            shown += os.read(ours, 4096)
        node = _node_of(demo.pid)
        os.close(ours)
        assert demo.wait(120) == 128 + signal.SIGHUP
    assert node
    _is_gone(node)


def test_a_node_goes_even_if_its_manager_cannot_remove_its_pods(
    capsys: pytest.CaptureFixture[str],
) -> None:
    node = Playground({"tiny": TINY})
    node.create()
    with node.client() as client:
        Pod(node, client, make_manifest(node)).up()
    node.kill()
    node.config_file.write_text("nonsense")
    node.destroy()
    told = capsys.readouterr().err
    assert "the manager ended with status" in told
    for kind in ("process", "mount", "file", "domain", "interface", "address"):
        assert f"not removed by the manager: {kind} " in told
    _is_gone(str(node.directory))


def test_what_a_kept_demo_says_to_type_next_works_to_the_end() -> None:
    done = subprocess.run(
        [*DEMO, "--keep"], cwd=ROOT, capture_output=True, text=True, timeout=150, check=True
    )
    advice, end = done.stdout.split("What to type next:")[1].split("And to end it:")
    try:
        said = _type(advice.replace("logs -f", "logs"))
        assert "tiny" in said
        assert "Linux version" in said
        assert "Virtlet tiny guest" in said
    finally:
        environment = next(line for line in advice.splitlines() if "export" in line)
        _type(environment + end)
    _is_gone(end.split()[-1])


def _type(lines: str) -> str:
    """What a shell answers to some lines; it finds our command where this interpreter is."""
    command = shlex.quote(str(Path(sys.executable).with_name("virtlet")))
    script = lines.replace(".venv/bin/virtlet", command)
    done = subprocess.run(
        ["sh", "-e"], input=script, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _node_of(pid: int) -> str:
    """Directory of the throwaway node whose manager a process has started; "" before."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{child}/cmdline").read_text()
            if found := re.search(r"/var/tmp/virtlet-[^/\0]+", command):
                return found[0]
    return ""


def _is_gone(node: str) -> None:
    assert not Path(node).exists()
    assert node not in Path("/proc/mounts").read_text()
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            assert node.encode() not in process.read_bytes()
