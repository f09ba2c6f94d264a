"""hack/run_tests.py: what failed beside other tests runs once more, alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.polling import until

SCRIPT = Path(__file__).parents[1] / "hack" / "run_tests.py"
SIDE_BY_SIDE = ["-n", "2", "--dist", "loadscope", "--no-loadscope-reorder"]
FLAKY = """
from pathlib import Path

def test_fails_once():
    mark = Path(__file__).with_suffix(".ran")
    first = not mark.exists()
    mark.touch()
    assert not first

def test_passes():
    with Path(__file__).with_suffix(".passed").open("a") as runs:
        runs.write("x")
"""
FAILS = "def test_fails():\n    assert False\n"


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    (folder / "pytest.ini").write_text("[pytest]\n")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    return subprocess.Popen(
        [sys.executable, SCRIPT, *SIDE_BY_SIDE, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(folder: Path, **files: str) -> tuple[int, str]:
    for name, text in files.items():
        (folder / f"test_{name}.py").write_text(text)
    with start(folder) as process:
        output, _ = process.communicate(timeout=120)
    return process.returncode, output


def test_what_passes_alone_is_named_as_flaky(tmp_path: Path) -> None:
    code, output = run(tmp_path, a=FLAKY, b=FLAKY)
    assert code == 0
    assert "2 failed; they run once more, alone." in output
    flaky = output.partition("Flaky, as they passed alone")[2]
    assert "  test_a.py::test_fails_once\n  test_b.py::test_fails_once\n" in flaky
    assert (tmp_path / "test_a.passed").read_text() == "x"


def test_what_fails_twice_fails_the_run(tmp_path: Path) -> None:
    code, output = run(tmp_path, a=FLAKY, b=FAILS)
    assert code == 1
    assert "Flaky" not in output


def test_failures_all_over_do_not_run_again(tmp_path: Path) -> None:
    code, output = run(tmp_path, a=FLAKY, b=FLAKY, c=FLAKY, d=FLAKY)
    assert code == 1
    assert "Failures in 4 files: they do not run again." in output


def test_tests_that_cannot_be_read_fail_the_run(tmp_path: Path) -> None:
    code, output = run(tmp_path, a="import nothing_of_this_name\n")
    assert code != 0
    assert "Flaky" not in output


@pytest.mark.parametrize("files", [{}, {"a": "def test_passes():\n    pass\n"}])
def test_a_run_without_failures_ends_as_pytest_does(tmp_path: Path, files: dict[str, str]) -> None:
    code, output = run(tmp_path, **files)
    assert code == (0 if files else 5)
    assert "once more" not in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_tidies_up_and_fails(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C, which a terminal sends to all, and what make passes on to its command alone."""
    (tmp_path / "test_a.py").write_text(
        "import pathlib, signal, time\n"
        "def test_waits():\n"
        f"    signal.signal({number.value}, signal.default_int_handler)\n"
        "    pathlib.Path('started').touch()\n"
        "    try:\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        "        time.sleep(1)\n"
        "        pathlib.Path('tidied').touch()\n"
    )
    with start(tmp_path, "-n", "0") as process:
        until((tmp_path / "started").exists, "the test starts", 60)
        begun = time.monotonic()
        send = os.killpg if number == signal.SIGINT else os.kill
        send(process.pid, number)
        process.communicate(timeout=60)
    assert process.returncode == 2
    assert (tmp_path / "tidied").exists()
    assert time.monotonic() - begun < 50
