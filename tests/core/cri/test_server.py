"""The server: who waits for whom, and what errors become."""

import logging
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from queue import SimpleQueue

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.core.cri.serving import Serving
from tests.polling import until
from virtlet.cli.client import CallFailed, Client
from virtlet.core import log_setup
from virtlet.core.cri.calls import Call, CallClient, CallKind
from virtlet.cri import api_pb2 as cri
from virtlet.errors import FailedPrecondition, PluginError, ResourceExhausted, Unavailable
from virtlet.model.hypervisor import HypervisorHealth


class Service:
    """A few calls whose behaviour the tests choose."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.error: Exception | None = None
        self.health = HypervisorHealth(ready=True)
        self.finished = 0
        self.abandoned = False
        self.about: dict[str, Mapping[str, str]] = {}
        """What each call found that it was said to be about."""

    def stop(self, request: cri.StopContainerRequest) -> cri.StopContainerResponse:
        self.release.wait(30)
        self.finished += 1
        if self.error:
            raise self.error
        return cri.StopContainerResponse()

    def listed(self, request: cri.ListContainersRequest) -> cri.ListContainersResponse:
        self.about["list"] = log_setup.about.get({})
        return cri.ListContainersResponse(containers=[cri.Container(id="one")])

    def create(self, request: cri.CreateContainerRequest) -> cri.CreateContainerResponse:
        self.about["create"] = dict(log_setup.about.get({}))
        if self.error:
            raise self.error
        return cri.CreateContainerResponse(container_id="vm")

    def pull(self, request: cri.PullImageRequest, caller: CallClient) -> cri.PullImageResponse:
        while caller.waits():
            time.sleep(0.02)
        self.abandoned = True
        raise Unavailable("nobody waits")

    def calls(self) -> list[Call]:
        return [
            Call("ImageService.PullImage", CallKind.WORK, self.pull, attended=True),
            Call("RuntimeService.StopContainer", CallKind.WORK, self.stop),
            Call("RuntimeService.ListContainers", CallKind.READ, self.listed),
            Call("RuntimeService.CreateContainer", CallKind.WORK, self.create),
        ]


def _serve(socket: Path, service: Service) -> Serving:
    return Serving(socket, lambda loop: service.calls(), lambda: service.health)


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s.sock"


@pytest.fixture
def client(service: Service, tmp_path: Path) -> Iterator[Client]:
    serving = _serve(tmp_path / "s.sock", service)
    with Client(tmp_path / "s.sock", timeout=20) as client:
        yield client
    service.release.set()
    serving.stop()


def _median(work: Callable[[], object], count: int = 30) -> float:
    times = []
    for _ in range(count):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return sorted(times)[count // 2]


def test_a_hundred_held_stops_leave_lists_as_quick_as_before(
    client: Client, service: Service
) -> None:
    before = _median(client.containers)
    stops = [
        client.runtime.StopContainer.future(cri.StopContainerRequest(container_id=str(n)))
        for n in range(100)
    ]
    time.sleep(0.5)
    during = _median(client.containers)
    assert during < max(5 * before, 1.0)
    assert service.finished == 0
    service.release.set()
    for stop in stops:
        stop.result(20)
    assert service.finished == 100


def test_a_worker_knows_what_its_call_is_about_and_the_next_call_nothing_of_it(
    client: Client, service: Service
) -> None:
    config = cri.ContainerConfig(metadata=cri.ContainerMetadata(name="guest"))
    client.runtime.CreateContainer(cri.CreateContainerRequest(pod_sandbox_id="pod", config=config))
    client.containers()
    assert service.about == {
        "create": {"call": "CreateContainer", "pod": "pod", "vm_name": "guest"},
        "list": {},
    }


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ResourceExhausted("the disk is full"), "RESOURCE_EXHAUSTED"),
        (FailedPrecondition("not now"), "FAILED_PRECONDITION"),
        (PluginError("p", "h", "broke", "mend it"), "INTERNAL"),
    ],
)
def test_our_errors_become_their_status_with_their_message(
    client: Client, service: Service, error: Exception, code: str
) -> None:
    service.error = error
    error.add_note("and something was left")
    with pytest.raises(CallFailed) as caught:
        client.call("CreateContainer", cri.CreateContainerRequest())
    assert caught.value.code.name == code
    assert caught.value.details == f"{error}; and something was left"


def test_an_endless_message_is_cut_and_keeps_its_status(client: Client, service: Service) -> None:
    service.error = FailedPrecondition("…" * 10_000)
    with pytest.raises(CallFailed) as caught:
        client.call("CreateContainer", cri.CreateContainerRequest())
    assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
    assert caught.value.details.startswith("……")


def test_an_unexpected_error_tells_its_kind_but_not_its_text(
    client: Client, service: Service
) -> None:
    service.error = RuntimeError("hunter2")
    with pytest.raises(CallFailed, match="RuntimeError inside the manager") as caught:
        client.call("CreateContainer", cri.CreateContainerRequest())
    assert caught.value.code is grpc.StatusCode.INTERNAL
    assert "hunter2" not in caught.value.details


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("RuntimeService/ListContainers", b"\x0a\x05\x0a\x03a"),
        ("RuntimeService/CreateContainer", b"\x0a\x05pod"),
        ("RuntimeService/StopContainer", b"\x0a\x02\xff\xfe"),
    ],
    ids=["cut short, read", "cut short, work", "no UTF-8"],
)
def test_a_message_that_cannot_be_read_is_refused(
    client: Client, method: str, message: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    name = method.partition("/")[2]
    with grpc.insecure_channel(f"unix:{client.socket}") as channel:
        call = channel.unary_unary(f"/runtime.v1.{method}", _as_it_is, _as_it_is)
        with pytest.raises(grpc.RpcError) as caught:
            call(message, timeout=5)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "cannot be read" in str(caught.value)
    assert f"runtime.v1.{name}Request" in str(caught.value)
    [line] = caplog.records
    assert (line.levelname, line.getMessage()) == ("WARNING", "call refused")


def test_a_stream_asked_for_with_a_message_that_cannot_be_read_is_refused(client: Client) -> None:
    method = "/runtime.v1.RuntimeService/GetContainerEvents"
    with grpc.insecure_channel(f"unix:{client.socket}") as channel:
        call = channel.unary_stream(method, _as_it_is, _as_it_is)
        with pytest.raises(grpc.RpcError) as caught:
            list(call(b"\x0a\x05", timeout=5))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def _as_it_is(message: bytes) -> bytes:
    return message


def test_health_follows_the_hypervisor(tmp_path: Path) -> None:
    service = Service()
    serving = _serve(tmp_path / "s.sock", service)
    kinds = health_pb2.HealthCheckResponse
    with grpc.insecure_channel(f"unix:{tmp_path}/s.sock") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest()
        assert stub.Check(request, timeout=5).status == kinds.SERVING
        service.health = HypervisorHealth(ready=False, message="it is away")
        assert stub.Check(request, timeout=5).status == kinds.NOT_SERVING
    serving.stop()


def test_attended_work_hears_that_its_client_went_away(client: Client, service: Service) -> None:
    with pytest.raises(CallFailed, match="DEADLINE_EXCEEDED"):
        client.call("PullImage", cri.PullImageRequest(), timeout=0.3)
    until(lambda: service.abandoned)


def test_work_goes_on_when_its_client_goes_away(client: Client, service: Service) -> None:
    with pytest.raises(CallFailed, match="DEADLINE_EXCEEDED"):
        client.call("StopContainer", cri.StopContainerRequest(), timeout=0.3)
    service.release.set()
    until(lambda: service.finished != 0)
    assert service.finished == 1


def test_work_that_fails_after_its_client_went_away_is_logged(
    client: Client, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(CallFailed, match="DEADLINE_EXCEEDED"):
        client.call("StopContainer", cri.StopContainerRequest(), timeout=0.3)
    until(lambda: caplog.records)  # the server hears of it later than the client
    service.error = FailedPrecondition("not now")
    service.release.set()
    until(lambda: "after its client went away" in caplog.text)
    assert [r.problem for r in caplog.records if "client went away" in r.message] == ["not now"]  # type: ignore[attr-defined]


def test_the_socket_is_for_its_owner_and_group(client: Client) -> None:
    assert stat.S_IMODE(client.socket.stat().st_mode) == 0o660


def test_a_stale_socket_is_replaced_and_anything_else_is_refused(
    service: Service, tmp_path: Path
) -> None:
    path = tmp_path / "s.sock"
    path.write_text("precious")
    with pytest.raises(FailedPrecondition, match="is not a socket"):
        _serve(path, service)
    assert path.read_text() == "precious"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    serving = _serve(path, service)
    with Client(path) as client:
        assert client.containers()
    serving.stop()


def test_a_socket_that_somebody_serves_on_is_left_to_them(client: Client, service: Service) -> None:
    with pytest.raises(FailedPrecondition, match="somebody serves on"):
        _serve(client.socket, service)
    assert client.containers()


def test_a_socket_in_a_place_that_cannot_be_is_refused(service: Service, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FailedPrecondition, match="cannot listen"):
        _serve(tmp_path / "file" / "s.sock", service)


def test_a_path_too_long_for_a_socket_is_refused(service: Service, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="107 bytes"):
        _serve(tmp_path / ("x" * 120), service)


def test_a_stop_waits_for_calls_under_way_and_for_no_longer(service: Service, path: Path) -> None:
    serving = _serve(path, service)
    with Client(path) as client:
        stop = client.runtime.StopContainer.future(cri.StopContainerRequest(container_id="a"))
        client.containers()  # served after the other has begun
        started = time.monotonic()
        threading.Timer(0.5, service.release.set).start()
        serving.stop(grace=20)
        assert 0.4 < time.monotonic() - started < 10
        stop.result(10)


def test_a_watch_of_the_health_does_not_hold_up_the_end(service: Service, path: Path) -> None:
    serving = _serve(path, service)
    kinds = health_pb2.HealthCheckResponse
    with grpc.insecure_channel(f"unix:{path}") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == kinds.SERVING
        started = time.monotonic()
        serving.stop(grace=20)
        assert time.monotonic() - started < 10
        assert [reply.status for reply in watch] == [kinds.NOT_SERVING]


def test_a_stream_that_nobody_ends_holds_up_the_end_for_a_moment_only(
    service: Service, path: Path
) -> None:
    serving = _serve(path, service)
    with grpc.insecure_channel(f"unix:{path}") as channel:
        ask: SimpleQueue[reflection_pb2.ServerReflectionRequest] = SimpleQueue()
        ask.put(reflection_pb2.ServerReflectionRequest(list_services=""))
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        replies = stub.ServerReflectionInfo(iter(ask.get, None))
        assert next(replies).list_services_response.service
        started = time.monotonic()
        serving.stop(grace=20)
        assert time.monotonic() - started < 10
        ask.put(None)
