"""What is sampled of networks and processes."""

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.polling import until
from virtlet.core.metrics.sample import NicSample, nic_samples, parse, process_files, process_usage
from virtlet.model.network import Network, Nic

TABLE = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0
  eth0:    1001      12    3    4    0     0          0         0     5006      17    8    9    0
  net1:1002002      22    0    0    0     0          0         0        7       1    0    0    0
  tap0:       9       9    9    9    9     9          9         9        9       9    9    9    9
"""


def test_each_interface_of_the_pod_has_its_own_counters_in_the_order_asked_for() -> None:
    assert parse(TABLE, ("net1", "gone", "eth0")) == (
        NicSample("net1", 1002002, 0, 7, 0, rx_packets=22, tx_packets=1),
        NicSample(
            "eth0",
            rx_bytes=1001,
            rx_packets=12,
            rx_errors=3,
            rx_dropped=4,
            tx_bytes=5006,
            tx_packets=17,
            tx_errors=8,
            tx_dropped=9,
        ),
    )


def test_a_pod_whose_namespace_is_gone_has_no_figures(tmp_path: Path) -> None:
    nic = Nic(name="eth0", mac="02:00:00:00:00:01", mtu=1500)
    assert nic_samples(Network(netns=tmp_path / "gone", nics=(nic,))) == ()


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


def test_sockets_that_nobody_may_look_for_are_not_known() -> None:
    """As those of an emulator without CAP_SYS_PTRACE; 0 would be a figure."""
    look = (
        "import sys; from virtlet.core.metrics.sample import process_files; "
        "files = process_files(int(sys.argv[1])); print(files.sockets, files.descriptors > 0)"
    )
    drop = ("setpriv", "--bounding-set=-sys_ptrace")
    with subprocess.Popen(
        ["setpriv", "--reuid=65534", "--clear-groups", "cat"], stdin=subprocess.PIPE
    ) as other:
        until(lambda: Path(f"/proc/{other.pid}").stat().st_uid == 65534, "cat runs")
        done = subprocess.run(
            [*drop, sys.executable, "-c", look, str(other.pid)], capture_output=True, text=True
        )
    assert done.stdout == "None True\n", done.stderr


def test_open_files_and_sockets_are_counted() -> None:
    before = process_files(os.getpid())
    ends = socket.socketpair()
    after = process_files(os.getpid())
    for end in ends:
        end.close()
    assert before is not None
    assert after is not None
    assert before.sockets is not None
    assert after.sockets is not None
    assert after.sockets - before.sockets == after.descriptors - before.descriptors == 2
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert after.most == (None if soft == resource.RLIM_INFINITY else soft)
