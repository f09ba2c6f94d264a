"""What a call is about: whole ids in the place of their beginnings."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from tests.fakes import models
from virtlet.core.cri.subjects import Subjects
from virtlet.core.store.records import PodPhase, PodRecord, VmPhase, VmRecord
from virtlet.core.store.store import Store
from virtlet.cri import api_pb2 as cri
from virtlet.errors import FailedPrecondition
from virtlet.model.image import Image

PODS = ("3f47" + "0" * 28, "3f99" + "1" * 28, "5c" + "2" * 30)
VM = "3f47" + "9" * 28
HIDDEN = "77" + "3" * 30
DIGEST = f"sha256:{models.DIGEST}"

_POD = {"pod": PODS[0], "pod_name": "default/web"}
_IMAGE = {"image": "tiny", "image_id": DIGEST}
_VM = {"vm": VM, "pod": PODS[0], "pod_name": "default/web", "vm_name": "guest", **_IMAGE}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Three pods, one with a VM, and a pod that is being made."""
    store = Store(tmp_path / "virtlet.db")
    pod = models.pod(tmp_path)
    for pod_id in PODS:
        store.put_pod(PodRecord(evolve(pod, id=pod_id), PodPhase.READY))
    store.put_pod(PodRecord(evolve(pod, id=HIDDEN), PodPhase.CREATING))
    vm = evolve(models.vm(tmp_path), id=VM, pod=evolve(pod, id=PODS[0]))
    store.put_vm(VmRecord(vm, VmPhase.RUNNING))
    yield store
    store.close()


def _completed(store: Store, request: Any) -> Any:
    Subjects(store).completer(request.DESCRIPTOR)(request)
    return request


@pytest.mark.parametrize(
    ("given", "whole"),
    [
        (PODS[0][:13], PODS[0]),
        ("5", PODS[2]),
        (PODS[1], PODS[1]),
        ("", ""),
        ("unknown", "unknown"),
        (PODS[0] + "0", PODS[0] + "0"),
        (HIDDEN[:13], HIDDEN[:13]),
    ],
)
def test_the_beginning_of_one_id_becomes_the_id_and_all_else_stays(
    store: Store, given: str, whole: str
) -> None:
    request = _completed(store, cri.StopPodSandboxRequest(pod_sandbox_id=given))
    assert request.pod_sandbox_id == whole


@pytest.mark.parametrize(
    "request_type",
    [cri.ListPodSandboxRequest, cri.StreamPodSandboxesRequest, cri.ListPodSandboxStatsRequest],
)
def test_a_filter_by_a_pods_id_takes_its_beginning(store: Store, request_type: Any) -> None:
    request = _completed(store, request_type(filter={"id": "5c"}))
    assert request.filter.id == PODS[2]


@pytest.mark.parametrize(
    "request_type",
    [cri.ListContainersRequest, cri.StreamContainersRequest, cri.ListContainerStatsRequest],
)
def test_a_filter_of_containers_takes_the_beginning_of_both_ids(
    store: Store, request_type: Any
) -> None:
    request = _completed(store, request_type(filter={"id": "3f", "pod_sandbox_id": "5c"}))
    assert (request.filter.id, request.filter.pod_sandbox_id) == (VM, PODS[2])


@pytest.mark.parametrize(
    "request_",
    [
        cri.PodSandboxStatusRequest(pod_sandbox_id="3f"),
        cri.ListPodSandboxRequest(filter=cri.PodSandboxFilter(id="3f")),
        cri.ListContainersRequest(filter=cri.ContainerFilter(pod_sandbox_id="3f")),
    ],
    ids=["call", "filter", "filter by pod"],
)
def test_the_beginning_of_several_ids_is_told_with_them(store: Store, request_: Any) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        _completed(store, request_)
    for part in ("pod sandbox id 3f", "2 ids", PODS[0], PODS[1], "give more"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("request_", "reply", "facts"),
    [
        (
            cri.RunPodSandboxRequest(config={"metadata": {"name": "n", "namespace": "s"}}),
            cri.RunPodSandboxResponse(pod_sandbox_id=PODS[0]),
            {"pod": PODS[0], "pod_name": "s/n"},
        ),
        (cri.StopPodSandboxRequest(pod_sandbox_id=PODS[0]), None, _POD),
        (cri.StopPodSandboxRequest(pod_sandbox_id="none"), None, {"pod": "none"}),
        (
            cri.CreateContainerRequest(
                pod_sandbox_id=PODS[0],
                config={"metadata": {"name": "g"}, "image": {"image": "cirros"}},
            ),
            None,
            {**_POD, "vm_name": "g", "image": "cirros"},
        ),
        (cri.StopContainerRequest(container_id=VM), b"kept", _VM),
        (cri.ListContainersRequest(filter={"id": VM}), None, _VM),
        (cri.ListPodSandboxRequest(filter={"id": PODS[0]}), None, _POD),
        (cri.ListContainersRequest(), None, {}),
        (
            cri.PullImageRequest(
                image={"image": "cirros", "annotations": {"a": "hunter2"}},
                auth={"password": "hunter2"},
                sandbox_config={"metadata": {"name": "n", "namespace": "s"}},
            ),
            cri.PullImageResponse(image_ref="sha256:1"),
            {"image": "cirros", "pod_name": "s/n", "image_id": "sha256:1"},
        ),
        (
            cri.PullImageRequest(image={"image": "virtlet.cloud/https://bob:p@h/x?token=t"}),
            None,
            {"image": "virtlet.cloud/https://h/x"},
        ),
        (cri.RemoveImageRequest(image={"image": DIGEST}), None, _IMAGE),
        (cri.VersionRequest(), None, {}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_facts_of_a_call_are_ids_and_names(
    store: Store, request_: Any, reply: Any, facts: dict[str, str]
) -> None:
    image = Image(
        id=DIGEST, path=Path("image"), format="raw", size=1, virtual_size=1, names=("tiny",)
    )
    subjects = Subjects(store, lambda asked: image if asked.digest == DIGEST else None)
    assert subjects.facts(request_, reply) == facts


def test_a_clients_text_is_cut(store: Store) -> None:
    facts = Subjects(store).facts(cri.StopContainerRequest(container_id="x" * 10_000))
    assert facts == {"vm": "x" * 256}


def test_a_request_without_a_filter_gets_none(store: Store) -> None:
    assert not _completed(store, cri.ListContainersRequest()).HasField("filter")
