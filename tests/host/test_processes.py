"""Processes that are followed by descriptor."""

import os
import subprocess
import time
from collections.abc import Collection
from pathlib import Path

from tests.polling import until
from virtlet.host.processes import (
    end_process,
    ended,
    environment,
    kill,
    open_process,
    open_started,
    sessions,
)


def test_only_the_one_that_is_meant() -> None:
    """A process is found by its id and an argument; another with that id is not."""
    process = subprocess.Popen(["sleep", "60.125"])
    try:
        # A moment passes until it has become `sleep`.
        pidfd = until(lambda: open_process(process.pid, "60.125"))
        assert pidfd is not None
        assert not ended(pidfd)
        assert open_process(process.pid, "60.126") is None
        end_process(pidfd, grace=5.0)
        assert ended(pidfd)
        os.close(pidfd)
    finally:
        process.kill()
        process.wait()
    assert open_process(process.pid, "60.125") is None


def test_one_that_will_not_go() -> None:
    """A process that ignores SIGTERM is killed after its grace."""
    script = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    process = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    pidfd = open_process(process.pid, script)
    assert pidfd is not None
    started = time.monotonic()
    end_process(pidfd, grace=0.2)
    assert time.monotonic() - started >= 0.2
    assert ended(pidfd)
    assert not Path(f"/proc/{process.pid}").exists()  # not even as a zombie
    process.wait()
    process.stdout.close()
    os.close(pidfd)


def test_all_of_a_session_and_of_an_environment() -> None:
    """What a process started is found with it, but for what began a session of its own."""

    def marked(variables: Collection[bytes]) -> bool:
        return b"MARK=here" in variables

    script = "setsid sh -c 'echo $$; exec sleep 600' & sleep 600 & wait"
    process = subprocess.Popen(
        ["sh", "-c", script], env={"MARK": "here"}, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    left = os.pidfd_open(int(process.stdout.readline()))
    until(lambda: len(sessions()[process.pid]) >= 2)
    members = sessions()[process.pid]
    assert process.pid in members
    assert [pid for pid in members if not marked(environment(pid))] == []
    assert open_started(os.getpid(), marked) is None
    found = [pidfd for pid in members if (pidfd := open_started(pid, marked)) is not None]
    assert len(found) == 2
    assert kill(found, within=30)
    assert not ended(left)
    assert not marked(environment(process.pid))
    process.wait()
    process.stdout.close()
    assert kill([left], within=30)
    for pidfd in (*found, left):
        os.close(pidfd)
