"""What passes through a call: metadata, deadlines, cancellation, status, bytes."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.criproxy.fakes.proxy import VM, Client, RunningProxy, said
from tests.criproxy.fakes.runtime import FakeRuntime
from tests.polling import until
from virtlet.cri import api_pb2 as cri

MERGED = "ListPodSandbox"
RELAYED = "Version"


def call(client: Client, name: str) -> Any:
    """One of the calls that need no more than a name."""
    return getattr(client.runtime, name)


def request(name: str) -> Any:
    """Its request."""
    return getattr(cri, f"{name}Request")()


@pytest.mark.parametrize("name", [RELAYED, MERGED, "Status", "UpdateRuntimeConfig"])
def test_metadata_passes_to_the_runtimes_and_back(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime, name: str
) -> None:
    plain = getattr(containerd, f"_{name}")

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        context.send_initial_metadata((("initial", "one"), ("initial-bin", b"\x00\xff")))
        context.set_trailing_metadata((("trailing", "two"), ("trailing-bin", b"\xfe\x00")))
        return plain(request, context)

    containerd.instead[name] = answer
    _, done = call(client, name).with_call(
        request(name), metadata=(("mine", "a b"), ("mine-bin", b"\x01\x02"))
    )
    for runtime in (containerd,) if name == RELAYED else (containerd, virtlet):
        assert runtime.metadata[name]["mine"] == "a b"
        assert runtime.metadata[name]["mine-bin"] == b"\x01\x02"
    assert ("initial", "one") in done.initial_metadata()
    assert ("initial-bin", b"\x00\xff") in done.initial_metadata()
    assert ("trailing", "two") in done.trailing_metadata()
    assert ("trailing-bin", b"\xfe\x00") in done.trailing_metadata()


@pytest.mark.parametrize("name", [RELAYED, MERGED, "Status"])
def test_a_status_passes_with_its_details(
    client: Client, containerd: FakeRuntime, name: str
) -> None:
    def fail(request: Any, context: grpc.ServicerContext) -> None:
        context.set_trailing_metadata((("grpc-status-details-bin", b"\x08\x05\x00"),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "größer 100%\nthan that")

    containerd.instead[name] = fail
    with pytest.raises(grpc.RpcError) as caught:
        call(client, name)(request(name))
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert said(caught) == "größer 100%\nthan that"
    trailing: Any = caught.value.trailing_metadata()
    assert ("grpc-status-details-bin", b"\x08\x05\x00") in trailing


@pytest.mark.parametrize("code", [c for c in grpc.StatusCode if c != grpc.StatusCode.OK])
def test_every_status_code_passes(
    client: Client, containerd: FakeRuntime, code: grpc.StatusCode
) -> None:
    containerd.instead[RELAYED] = lambda request, context: context.abort(code, "so it is")
    with pytest.raises(grpc.RpcError) as caught:
        call(client, RELAYED)(request(RELAYED))
    assert (caught.value.code(), said(caught)) == (code, "so it is")


@pytest.mark.parametrize("name", [RELAYED, MERGED])
def test_the_deadline_reaches_the_runtime(
    client: Client, containerd: FakeRuntime, name: str
) -> None:
    left: list[float] = []

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        left.append(context.time_remaining())
        return getattr(containerd, f"_{name}")(request, context)

    containerd.instead[name] = answer
    call(client, name)(request(name), timeout=1.5)
    # gRPC rounds a deadline up a little when it sends it.
    assert 0.5 < left[0] <= 1.6


@pytest.mark.parametrize("name", [RELAYED, MERGED])
def test_a_missed_deadline_is_told_in_time_and_ends_the_runtimes_call(
    client: Client, containerd: FakeRuntime, name: str
) -> None:
    ended = threading.Event()

    def hang(request: Any, context: grpc.ServicerContext) -> Any:
        context.add_callback(ended.set)
        ended.wait(30)
        return getattr(cri, f"{name}Response")()

    containerd.instead[name] = hang
    start = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        call(client, name)(request(name), timeout=0.3)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - start < 10
    assert ended.wait(10)


@pytest.mark.parametrize("name", [RELAYED, MERGED])
def test_a_cancelled_call_is_cancelled_at_the_runtime(
    client: Client, containerd: FakeRuntime, name: str
) -> None:
    began, ended = threading.Event(), threading.Event()

    def hang(request: Any, context: grpc.ServicerContext) -> Any:
        context.add_callback(ended.set)
        began.set()
        ended.wait(30)
        return getattr(cri, f"{name}Response")()

    containerd.instead[name] = hang
    future = call(client, name).future(request(name))
    assert began.wait(10)
    future.cancel()
    assert ended.wait(10)


def test_a_client_that_vanishes_cancels_its_calls(
    proxy: RunningProxy, connect: Callable[[Path | str], Client], containerd: FakeRuntime
) -> None:
    began, ended = threading.Event(), threading.Event()

    def hang(request: Any, context: grpc.ServicerContext) -> Any:
        context.add_callback(ended.set)
        began.set()
        ended.wait(30)
        return cri.VersionResponse()

    containerd.instead[RELAYED] = hang
    client = connect(proxy.config.listen)
    future = client.runtime.Version.future(cri.VersionRequest())
    assert began.wait(10)
    client.close()
    assert ended.wait(10)
    assert future.done()


def unknown_field(number: int, text: bytes) -> bytes:
    """A field that the stubs do not know, as a newer CRI would have."""
    tag = number << 3 | 2
    return bytes((tag & 0x7F | 0x80, tag >> 7, len(text))) + text


def test_fields_that_the_stubs_do_not_know_pass_both_ways(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    extra = unknown_field(900, b"newer")
    pod = client.run_pod(target=VM)
    container = client.create(pod, image=f"{VM}/x")
    virtlet.instead["ContainerStatus"] = lambda request, context: (
        cri.ContainerStatusResponse.FromString(
            cri.ContainerStatusResponse(
                status=cri.ContainerStatus(id=container, image=cri.ImageSpec(image="x"))
            ).SerializeToString()
            + extra
        )
    )
    raw = client.raw("/runtime.v1.RuntimeService/ContainerStatus")
    sent = cri.ContainerStatusRequest(container_id=container).SerializeToString() + extra
    answer = raw(sent)
    assert virtlet.called("ContainerStatus")[0].SerializeToString() == sent
    assert extra in answer
    assert f"{VM}/x".encode() in answer


def test_merged_lists_keep_fields_that_the_stubs_do_not_know(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    for runtime, text in ((containerd, b"first"), (virtlet, b"second")):
        item = cri.Container(id=runtime.name).SerializeToString() + unknown_field(900, text)
        runtime.raw["ListContainers"] = b"\x0a" + bytes((len(item),)) + item
    raw = client.raw("/runtime.v1.RuntimeService/ListContainers")
    answer = raw(b"")
    assert unknown_field(900, b"first") in answer
    assert unknown_field(900, b"second") in answer


def test_the_primarys_answers_pass_byte_for_byte(client: Client, containerd: FakeRuntime) -> None:
    # Fields out of order and a default value spelt out: no encoder would write this.
    odd = b"\x1a\x01c\x12\x01b\x0a\x00\x22\x02v1"

    containerd.raw[RELAYED] = odd
    raw = client.raw("/runtime.v1.RuntimeService/Version")
    assert raw(b"") == odd


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_requests_are_understood_and_passed(
    client: Client, virtlet: FakeRuntime, algorithm: grpc.Compression
) -> None:
    pod = client.run_pod(target=VM)
    config = cri.ContainerConfig(image=cri.ImageSpec(image=f"{VM}/x"), labels={"long": "l" * 5000})
    made = client.runtime.CreateContainer(
        cri.CreateContainerRequest(pod_sandbox_id=pod, config=config), compression=algorithm
    )
    client.runtime.ExecSync(
        cri.ExecSyncRequest(container_id=made.container_id, cmd=["c" * 5000]),
        compression=algorithm,
    )
    assert virtlet.called("CreateContainer")[0].config.image.image == "x"
    assert virtlet.called("ExecSync")[0].cmd == ["c" * 5000]


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_answers_are_understood_and_passed(
    client: Client, proxy: RunningProxy, virtlet: FakeRuntime, algorithm: grpc.Compression
) -> None:
    virtlet.stop()
    proxy.wait_until(VM, answering=False)
    virtlet.compression = algorithm
    virtlet.start()
    proxy.wait_until(VM, answering=True)
    # Long, since what does not get shorter is not compressed.
    virtlet.ids = ["a" * 5000, "b" * 5000]
    pod = client.run_pod(target=VM)
    container = client.create(pod, image=f"{VM}/" + "x" * 5000)
    status = client.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container))
    assert status.status.image.image == f"{VM}/" + "x" * 5000
    assert client.pods() == {pod}
    assert set(client.containers()) == {container}
    streamed = client.runtime.StreamPodSandboxes(cri.StreamPodSandboxesRequest())
    assert [p.id for message in streamed for p in message.pod_sandboxes] == [pod]
    answer = client.runtime.ExecSync(cri.ExecSyncRequest(container_id=container, cmd=["c" * 5000]))
    assert answer.stdout == b"c" * 5000


def test_messages_of_32_mib_pass_both_ways(client: Client, containerd: FakeRuntime) -> None:
    container = client.create(client.run_pod())
    containerd.instead["ExecSync"] = lambda request, context: cri.ExecSyncResponse(
        stdout=bytes(range(256)) * (32 << 12)
    )
    answer = client.runtime.ExecSync(cri.ExecSyncRequest(container_id=container))
    assert answer.stdout == bytes(range(256)) * (32 << 12)


def test_a_request_too_long_to_be_routed_is_refused(client: Client) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        client.runtime.ExecSync(cri.ExecSyncRequest(container_id="x", cmd=["y" * (17 << 20)]))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "16777216" in said(caught)


def test_one_slow_call_holds_nobody_up(
    client: Client, containerd: FakeRuntime, virtlet: FakeRuntime
) -> None:
    release = threading.Event()

    def hang(request: Any, context: grpc.ServicerContext) -> Any:
        release.wait(60)
        return cri.ExecSyncResponse()

    containerd.instead["ExecSync"] = hang
    container = client.create(client.run_pod())
    slow = [
        client.runtime.ExecSync.future(cri.ExecSyncRequest(container_id=container))
        for _ in range(63)
    ]
    try:
        until(lambda: len(containerd.called("ExecSync")) == 63)
        start = time.monotonic()
        client.runtime.Version(cri.VersionRequest())
        client.pods()
        assert time.monotonic() - start < 20
    finally:
        release.set()
    for call_ in slow:
        call_.result(timeout=20)


def test_a_reader_that_stops_reading_does_not_stop_the_others(
    client: Client,
    connect: Callable[[Path | str], Client],
    proxy: RunningProxy,
    containerd: FakeRuntime,
) -> None:
    def endless(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        while context.is_active():
            yield cri.StreamPodSandboxesResponse(pod_sandboxes=[cri.PodSandbox(id="x" * 100_000)])

    containerd.instead["StreamPodSandboxes"] = endless
    reader = connect(proxy.config.listen)
    stream = reader.runtime.StreamPodSandboxes(cri.StreamPodSandboxesRequest())
    next(stream)
    time.sleep(0.3)
    client.runtime.Version(cri.VersionRequest(), timeout=20)
    stream.cancel()


def test_something_that_is_not_grpc_is_told_so(client: Client, proxy: RunningProxy) -> None:
    with socket.socket(socket.AF_UNIX) as plain:
        plain.settimeout(10)
        plain.connect(proxy.config.listen)
        plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b""
        while chunk := plain.recv(4096):
            received += chunk
    assert b"not HTTP/2" in received
    client.runtime.Version(cri.VersionRequest())


@pytest.mark.parametrize("name", ["ContainerStatus", "ListContainers", "ListPodSandbox", "Status"])
def test_a_malformed_answer_is_an_error_that_names_the_runtime(
    client: Client, virtlet: FakeRuntime, name: str
) -> None:
    virtlet.raw[name] = b"\x0a\xff\xff"
    raw = client.raw(f"/runtime.v1.RuntimeService/{name}")
    sent = cri.ContainerStatusRequest(container_id=f"{VM}__x").SerializeToString()
    with pytest.raises(grpc.RpcError) as caught:
        raw(sent if name == "ContainerStatus" else b"")
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert VM in said(caught)
    assert name in said(caught)


def test_the_tests_own_client_waits_for_a_greeting_that_comes_late(run_dir: Path) -> None:
    path = run_dir / "late.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with Client(path) as late:
            call = late.raw("/runtime.v1.RuntimeService/Version").future(b"")
            accepted, _ = listener.accept()
            time.sleep(0.5)
            with accepted, accepted.makefile("rb") as received:
                accepted.sendall(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")  # SETTINGS
                received.read(24)  # the preface
                while (head := received.read(9))[3] != 1:  # HEADERS: the call
                    received.read(int.from_bytes(head[:3]))
            call.cancel()


def test_new_clients_are_greeted_while_long_answers_pass(
    client: Client, proxy: RunningProxy, containerd: FakeRuntime
) -> None:
    pods = (cri.PodSandbox(id=f"{n:064x}", labels={"long": "l" * 500}) for n in range(2000))
    containerd.raw["ListPodSandbox"] = cri.ListPodSandboxResponse(items=pods).SerializeToString()
    lists = [client.raw("/runtime.v1.RuntimeService/ListPodSandbox") for _ in range(4)]
    under_way = [call.future(b"") for call in lists]
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as plain:
            # A kubelet waits this long for a connection.
            plain.settimeout(5.0)
            plain.connect(proxy.config.listen)
            assert plain.recv(9)[3] == 4  # SETTINGS
        under_way += [call.future(b"") for call in lists]
    assert all(len(answer.result()) > 1_000_000 for answer in under_way)
