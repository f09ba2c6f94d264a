"""The log of a proxy process: what each line says, and at which level."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.criproxy.fakes.command import ProxyProcess
from tests.criproxy.fakes.proxy import VM, Client
from tests.criproxy.fakes.runtime import FakeRuntime
from tests.polling import until
from virtlet.cri import api_pb2 as cri

SECRET = "hunter2"


@pytest.fixture
def start(
    run_dir: Path, containerd: FakeRuntime, virtlet: FakeRuntime
) -> Iterator[Callable[..., ProxyProcess]]:
    """Starts a proxy process in front of both runtimes."""
    started: list[ProxyProcess] = []

    def make(*options: str) -> ProxyProcess:
        connect = f"containerd:{containerd.path},{VM}:{virtlet.path}"
        arguments = ("--connect", connect, "--state-dir", "", *options)
        started.append(ProxyProcess(run_dir / "p.sock", *arguments).start())
        return started[-1]

    yield make
    for process in started:
        process.stop()


def _lines(process: ProxyProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in process.log.read_text().splitlines()]


def _calls(process: ProxyProcess, count: int) -> list[dict[str, Any]]:
    """The lines of calls, once there are so many."""
    found: list[dict[str, Any]] = []

    def there() -> bool:
        found[:] = [line for line in _lines(process) if "call" in line]
        return len(found) >= count

    until(there)
    return found


def test_every_change_is_a_line_with_the_ids_and_names_it_is_about(
    start: Callable[..., ProxyProcess], connect: Callable[[Path | str], Client]
) -> None:
    process = start()
    client = connect(process.listen)
    spec = cri.ImageSpec(image=f"{VM}/tiny", annotations={"a": SECRET})
    auth = cri.AuthConfig(username="u", password=SECRET)
    ref = client.image.PullImage(cri.PullImageRequest(image=spec, auth=auth)).image_ref
    pod = client.run_pod("web", target=VM, user_data=SECRET)
    vm = client.create(pod, image=f"{VM}/tiny")
    client.runtime.StartContainer(cri.StartContainerRequest(container_id=vm[:13]))
    client.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=vm))
    client.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod))
    pulled, run, create, started, stopped = _calls(process, 5)
    assert (pulled["call"], pulled["image"], pulled["image_id"]) == ("PullImage", f"{VM}/tiny", ref)
    for line in (run, create, started, stopped):
        assert line["message"] == "call"
        assert (line["level"], line["code"], line["runtime"]) == ("info", "OK", VM)
        assert (line["pod"], line["pod_name"]) == (pod, "default/web")
        assert line["ms"] > 0
    for line in (create, started):
        assert (line["container"], line["container_name"]) == (vm, "main")
        assert line["image"] == f"{VM}/tiny"
    assert SECRET not in process.log.read_text()


def test_a_change_that_failed_is_a_warning_with_the_reason(
    start: Callable[..., ProxyProcess],
    connect: Callable[[Path | str], Client],
    virtlet: FakeRuntime,
) -> None:
    process = start()
    client = connect(process.listen)
    pod = client.run_pod("web", target=VM)
    virtlet.instead["CreateContainer"] = lambda request, context: context.abort(
        grpc.StatusCode.FAILED_PRECONDITION, "größer than that"
    )
    with pytest.raises(grpc.RpcError):
        client.create(pod, image=f"{VM}/tiny", name="guest")
    line = _calls(process, 2)[-1]
    assert (line["level"], line["code"]) == ("warning", "FAILED_PRECONDITION")
    assert line["problem"] == "größer than that"
    assert (line["pod_name"], line["container_name"]) == ("default/web", "guest")


def test_a_password_in_an_images_name_is_not_logged(
    start: Callable[..., ProxyProcess],
    connect: Callable[[Path | str], Client],
    containerd: FakeRuntime,
) -> None:
    process = start()
    client = connect(process.listen)
    address = f"https://bob:{SECRET}@host/disk.img?token={SECRET}"
    containerd.instead["PullImage"] = lambda request, context: context.abort(
        grpc.StatusCode.INVALID_ARGUMENT, f"no reference: {request.image.image}"
    )
    client.image.PullImage(cri.PullImageRequest(image={"image": f"{VM}/{address}"}))
    with pytest.raises(grpc.RpcError):
        client.image.PullImage(cri.PullImageRequest(image={"image": address}))
    pulled, refused = _calls(process, 2)
    assert pulled["image"] == f"{VM}/https://host/disk.img"
    assert refused["image"] == "https://host/disk.img"
    assert refused["problem"] == "no reference: https://host/disk.img"
    assert SECRET not in process.log.read_text()


def test_at_debug_every_call_is_a_line(
    start: Callable[..., ProxyProcess], connect: Callable[[Path | str], Client]
) -> None:
    process = start("--log-level", "debug")
    client = connect(process.listen)
    client.pods()
    with pytest.raises(grpc.RpcError):
        client.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id="none"))
    lists, status = _calls(process, 2)
    assert (lists["call"], lists["runtime"], lists["level"]) == ("ListPodSandbox", "all", "debug")
    assert (status["container"], status["code"]) == ("none", "NOT_FOUND")


def test_as_text_the_same_facts_are_on_one_line(
    start: Callable[..., ProxyProcess], connect: Callable[[Path | str], Client]
) -> None:
    process = start("--log-format", "text")
    pod = connect(process.listen).run_pod("web")
    until(lambda: "RunPodSandbox" in process.log.read_text())
    [line] = [text for text in process.log.read_text().splitlines() if "RunPodSandbox" in text]
    for part in (" INFO    call ", " code=OK ", f" pod={pod} ", " pod_name=default/web "):
        assert part in f"{line} "
