"""The criproxy command: help, exit codes, signals, and a restart under load."""

from __future__ import annotations

import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from tests.criproxy.fakes.command import ProxyProcess
from tests.criproxy.fakes.proxy import VM, Client
from tests.criproxy.fakes.runtime import FakeRuntime
from tests.criproxy.load import Load
from tests.polling import until
from virtlet.cri import api_pb2 as cri

Connect = Callable[[Path | str], Client]


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "criproxy", *args],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


@pytest.fixture
def process(run_dir: Path, containerd: FakeRuntime, virtlet: FakeRuntime) -> Iterator[ProxyProcess]:
    """A proxy process in front of both runtimes."""
    process = ProxyProcess(
        run_dir / "p.sock",
        "--connect",
        f"{containerd.path},{VM}:{virtlet.path}",
        "--state-dir",
        str(run_dir / "state"),
        "--http",
        "127.0.0.1:0",
    ).start()
    yield process
    process.stop()


def test_help_says_what_it_is_and_how_to_start() -> None:
    answer = run("--help")
    assert answer.returncode == 0
    assert "Serve several CRI runtimes on one socket." in answer.stdout
    assert "virtlet.cloud:/run/virtlet.sock" in answer.stdout


def test_a_wrong_option_is_wrong_usage() -> None:
    answer = run("--conect", "x")
    assert answer.returncode == 2
    assert "--connect" in answer.stderr


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ((), "no socket to listen on"),
        (("--listen", "/run/x.sock"), "no runtimes"),
        (("--listen", "/run/x.sock", "--connect", "a"), "--connect, part 1"),
        (("--config", "/none.yaml"), "cannot read the configuration /none.yaml"),
        (("--listen", "/run/x.sock", "--connect", "/run/x.sock"), "it would call itself"),
        (("--listen", "/run/x.sock", "--connect", "/a,b:/b,b:/c"), "two runtimes are called 'b'"),
        (("--listen", "/run/x.sock", "--connect", "/dev/null"), "/dev/null is not a socket"),
        (
            ("--state-dir", "rel", "--listen", "/run/x.sock", "--connect", "/a"),
            "--state-dir: 'rel' is not an absolute path",
        ),
        (("--grace", "soon", "--listen", "/run/x", "--connect", "/a"), "--grace: 'soon'"),
        (("--http", "x", "--listen", "/run/x", "--connect", "/a"), "--http: 'x'"),
    ],
)
def test_a_configuration_that_cannot_work_is_told_in_one_line(
    args: tuple[str, ...], complaint: str
) -> None:
    answer = run(*args)
    assert answer.returncode == 78
    assert answer.stderr.startswith("criproxy: ")
    assert complaint in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_what_may_be_different_in_a_moment_is_no_wrong_configuration(
    run_dir: Path, process: ProxyProcess
) -> None:
    for listen, complaint in (
        (run_dir / "none" / "q.sock", f"there is no directory {run_dir}/none"),
        (process.listen, "another process serves it"),
    ):
        answer = run("--listen", str(listen), "--connect", str(run_dir / "a.sock"))
        assert answer.returncode == 71
        assert answer.stderr == f"criproxy: cannot listen on {listen}: {complaint}\n"


def test_an_address_that_is_taken_is_told(run_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        answer = run(
            "--listen",
            str(run_dir / "p.sock"),
            "--connect",
            str(run_dir / "a.sock"),
            "--state-dir",
            "",
            "--http",
            address,
        )
    assert answer.returncode == 71
    assert "cannot listen" in answer.stderr


def test_check_only_checks(run_dir: Path) -> None:
    config = run_dir / "criproxy.yaml"
    config.write_text(
        f"listen: {run_dir}/p.sock\n"
        f"runtimes: [{{name: a, socket: {run_dir}/a.sock}}, {{name: b, socket: {run_dir}/b.sock}}]"
    )
    answer = run("--config", str(config), "--check")
    assert (answer.returncode, answer.stdout) == (0, "2 runtimes; the configuration can work\n")
    assert not (run_dir / "p.sock").exists()


def test_check_works_before_the_unit_ran_and_on_a_running_node(
    run_dir: Path, process: ProxyProcess
) -> None:
    for listen, note in (
        (run_dir / "none" / "p.sock", "there is no directory"),
        (process.listen, "another process serves it"),
    ):
        answer = run("--listen", str(listen), "--connect", str(run_dir / "a.sock"), "--check")
        assert answer.returncode == 0
        assert answer.stdout == "1 runtimes; the configuration can work\n"
        assert note in answer.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(process: ProxyProcess, connect: Connect, number: int) -> None:
    runtime = connect(process.listen).runtime
    # gRPC's C core 1.85 can try again for ever, and take all memory, when a connection ends in the
    # moment in which it is made.
    runtime.Version(cri.VersionRequest(), timeout=10)
    events = runtime.GetContainerEvents(cri.GetEventsRequest(), timeout=30)
    assert process.end(number) == 0
    with pytest.raises(grpc.RpcError) as caught:
        next(events)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert not process.listen.exists()
    assert "traceback" not in process.log.read_text()


def test_calls_under_way_may_end_before_it_does(
    process: ProxyProcess, connect: Connect, containerd: FakeRuntime
) -> None:
    began, release = threading.Event(), threading.Event()

    def wait(request: object, context: object) -> object:
        began.set()
        release.wait(5)
        return cri.VersionResponse(version="late")

    containerd.instead["Version"] = wait
    call = connect(process.listen).runtime.Version.future(cri.VersionRequest())
    assert began.wait(5)
    threading.Timer(0.3, release.set).start()
    assert process.end() == 0
    assert call.result(timeout=5).version == "late"


def test_the_socket_is_for_its_owner_and_group(process: ProxyProcess) -> None:
    assert stat.S_IMODE(process.listen.stat().st_mode) == 0o660


def test_it_tells_the_service_manager_when_it_is_ready(
    run_dir: Path, containerd: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(run_dir / "notify"))
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(run_dir / "notify"))
        process = ProxyProcess(
            run_dir / "p.sock", "--connect", str(containerd.path), "--state-dir", ""
        ).start()
        try:
            assert manager.recv(100) == b"READY=1"
            process.end()
            assert manager.recv(100) == b"STOPPING=1"
        finally:
            process.stop()


def test_killed_and_started_again_under_load_it_serves_on_and_forgets_nothing(
    process: ProxyProcess, connect: Connect, virtlet: FakeRuntime
) -> None:
    client = connect(process.listen)
    pods = {client.run_pod("a"), client.run_pod("b", target=VM), client.run_pod("c", target=VM)}
    with Load(process.listen, {pod: client.create(pod) for pod in pods}).running() as load:
        for _ in range(2):
            load.more(50)
            process.end(signal.SIGKILL)
            process.start()
        load.more(50)
    assert not load.wrong
    assert load.codes <= {grpc.StatusCode.UNAVAILABLE}


def test_each_runtime_killed_and_started_again_under_load_loses_no_pod(
    process: ProxyProcess, connect: Connect, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    client = connect(process.listen)
    pods = {client.run_pod("a"), client.run_pod("b", target=VM)}
    with Load(process.listen, {pod: client.create(pod) for pod in pods}).running() as load:
        for runtime in (virtlet, containerd):
            runtime.stop()
            load.more(50)
            runtime.start()
            load.more(50)
    assert not load.wrong
    assert not load.errors

    def ready() -> bool:
        conditions = client.runtime.Status(cri.StatusRequest()).status.conditions
        return all(condition.status for condition in conditions)

    until(ready)


def test_it_needs_little_memory_also_after_many_calls(
    process: ProxyProcess, connect: Connect
) -> None:
    client = connect(process.listen)
    for i in range(50):
        client.run_pod(f"p{i}", target=VM if i % 2 else "")
    for _ in range(300):
        client.pods()
    before = process.rss()
    for _ in range(1500):
        client.pods()
    assert process.rss() < 50_000_000
    assert process.rss() - before < 2_000_000
