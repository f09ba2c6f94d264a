"""The bar of `virtlet pull`, against a runtime that tells how far it is."""

import io
import json
import re
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from rich.console import Console as Terminal

from tests.polling import until
from virtlet.cli.client import Client
from virtlet.cli.pull_progress import progress_bar
from virtlet.cri import api_pb2 as cri
from virtlet.cri import api_pb2_grpc


class Images(api_pb2_grpc.ImageServiceServicer):
    """Has one pull under way, and counts who asks."""

    def __init__(self) -> None:
        self.asked = 0

    def ImageStatus(  # noqa: N802
        self, request: cri.ImageStatusRequest, context: grpc.ServicerContext
    ) -> cri.ImageStatusResponse:
        """As the manager for an image that is not there."""
        self.asked += 1
        assert request.verbose
        arrived = min(4_000_000 + 1_000_000 * self.asked, 9_000_000)
        pull = {"name": "x", "reference": "x", "bytes": arrived, "total": 10_000_000}
        return cri.ImageStatusResponse(info={"info": json.dumps({"pullsUnderWay": [pull]})})


@pytest.fixture
def service() -> Images:
    return Images()


@pytest.fixture
def client(service: Images, tmp_path: Path) -> Iterator[Client]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    api_pb2_grpc.add_ImageServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"unix:{tmp_path}/cri.sock")
    server.start()
    with Client(tmp_path / "cri.sock") as client:
        yield client
    server.stop(0)


def _plain(shown: io.StringIO) -> str:
    """What a terminal shows, without its colours."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())


def test_a_terminal_shows_rate_and_time_left(client: Client, service: Images) -> None:
    shown = io.StringIO()
    terminal = Terminal(file=shown, force_terminal=True, width=120)
    with progress_bar(client, "virtlet.cloud/x:latest", terminal):
        until(lambda: "5.0/10.0 MB" in shown.getvalue(), "the bar", 30)
        measured = r"[6-9]\.0/10\.0 MB +[0-9.]+ [kM]B/s +0:00:\d\d"
        until(lambda: re.search(measured, _plain(shown)), "the rate and the time left", 30)


def test_nothing_is_shown_or_asked_without_a_terminal(client: Client, service: Images) -> None:
    shown = io.StringIO()
    with progress_bar(client, "virtlet.cloud/x", Terminal(file=shown)):
        pass
    assert (shown.getvalue(), service.asked) == ("", 0)


def test_a_runtime_that_does_not_tell_is_no_trouble(tmp_path: Path) -> None:
    terminal = Terminal(file=io.StringIO(), force_terminal=True)
    with Client(tmp_path / "nobody.sock") as client, progress_bar(client, "x", terminal):
        pass
