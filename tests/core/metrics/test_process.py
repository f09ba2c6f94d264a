"""A process's figures, out of /proc."""

import os
import resource
import signal
import socket
import subprocess
import time

from virtlet.core.metrics.sample import process_files, process_usage


def test_this_process_is_measured_as_the_kernel_counts_it() -> None:
    used = time.process_time()
    while time.process_time() - used < 0.05:
        pass
    usage = process_usage(os.getpid())
    assert usage is not None
    assert abs(usage.user + usage.system - time.process_time_ns()) < 100_000_000
    assert usage.resident > usage.file_backed > 0
    assert usage.threads >= 1
    assert usage.minor_faults > 0


def test_a_process_that_is_gone_has_no_figures_and_another_of_its_id_is_told_apart() -> None:
    started = []
    for _ in range(2):
        with subprocess.Popen(["sleep", "60"]) as process:
            usage = process_usage(process.pid)
            assert usage is not None
            started.append(usage.started)
            process.send_signal(signal.SIGKILL)
        assert process_usage(process.pid) is None
        assert process_files(process.pid) is None
        time.sleep(2 / os.sysconf("SC_CLK_TCK"))
    assert started[0] < started[1]


def test_open_files_and_sockets_are_counted() -> None:
    before = process_files(os.getpid())
    ends = socket.socketpair()
    after = process_files(os.getpid())
    for end in ends:
        end.close()
    assert before is not None
    assert after is not None
    assert after.sockets - before.sockets == after.descriptors - before.descriptors == 2
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert after.most == (None if soft == resource.RLIM_INFINITY else soft)
