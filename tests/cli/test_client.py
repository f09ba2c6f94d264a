"""What our client says of a runtime that it does not reach."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.criproxy.fakes.runtime import FakeRuntime
from virtlet.cli.client import CallFailed, Client, NoRuntime
from virtlet.cri import api_pb2 as cri

NOBODY = 65534


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[FakeRuntime]:
    """A runtime."""
    runtime = FakeRuntime(tmp_path / "r.sock", "fake").start()
    yield runtime
    runtime.stop()


@contextmanager
def _nobody() -> Iterator[None]:
    """Let all threads, gRPC's among them, act as another user for a while."""
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("scheme", ["", "unix:", "unix://"])
def test_a_runtime_is_named_by_its_path_or_as_a_kubelet_and_crictl_name_it(
    runtime: FakeRuntime, scheme: str
) -> None:
    with Client(f"{scheme}{runtime.path}") as client:
        assert client.call("Version", cri.VersionRequest()).runtime_name == "fake"


def test_an_endpoint_that_is_no_unix_socket_is_refused_with_what_to_write() -> None:
    with pytest.raises(NoRuntime, match="no unix socket: write its path"):
        Client("tcp://127.0.0.1:1234")


def test_a_socket_that_may_not_be_opened_is_told_so(runtime: FakeRuntime) -> None:
    runtime.path.chmod(0o600)
    with (
        _nobody(),
        Client(runtime.path) as client,
        pytest.raises(NoRuntime, match="permission denied: run this as root") as caught,
    ):
        client.call("Version", cri.VersionRequest())
    assert str(runtime.path) in str(caught.value)
    assert "all addresses" not in str(caught.value)


def test_a_socket_that_nobody_listens_on_is_told_so(tmp_path: Path) -> None:
    """As a manager that was killed leaves it."""
    path = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with Client(path) as client, pytest.raises(NoRuntime, match="no runtime listens on"):
        client.call("Version", cri.VersionRequest())


def test_what_a_runtime_itself_answers_stands(runtime: FakeRuntime) -> None:
    runtime.missing.add("Version")
    with Client(runtime.path) as client, pytest.raises(CallFailed, match="UNIMPLEMENTED"):
        client.call("Version", cri.VersionRequest())
