"""What a pod's owner is told in the pod's log, also of several containers."""

import time
from pathlib import Path

import pytest

from tests.fakes.manager import IMAGE, Manager
from tests.polling import until
from virtlet.core.lifecycle import exits, image_handlers, notices, pods, vms
from virtlet.errors import FailedPrecondition
from virtlet.model.event import EventKind
from virtlet.model.hypervisor import DomainState, Observation
from virtlet.model.image import Credentials
from virtlet.model.pod import PodConfig, PodMetadata
from virtlet.model.reference import parse_reference
from virtlet.model.resources import Resources
from virtlet.model.vm import VmConfig, VmExit, VmMetadata


def told(manager: Manager, config: VmConfig) -> list[str]:
    """What is told when a VM starts."""
    image_handlers.pull(manager.context, parse_reference(IMAGE), Credentials())
    vm_id = vms.create_vm(manager.context, manager.run(), config)
    manager.start(vm_id)
    manager.start(vm_id)
    return [e.reason for e in manager.told.events if e.kind is EventKind.VM_NOTICE]


def test_fields_without_effect_are_told_once_at_the_start(manager: Manager) -> None:
    config = VmConfig(
        metadata=VmMetadata(name="guest"),
        image=IMAGE,
        log_path="guest/0.log",
        command=("/bin/sh",),
        args=("-c", "echo hunter2"),
        working_dir="/srv",
    )
    (notice,) = told(manager, config)
    assert notice.startswith("command, args and workingDir of container guest have no effect: ")
    assert "VirtletCloudInitUserData (runcmd)" in notice
    assert "hunter2" not in notice
    log = manager.node.root / "logs/web/guest/0.log"
    assert f" stderr F [virtlet: {notice}]\n" in log.read_text()


def test_a_vm_that_asks_for_none_of_them_is_told_nothing(manager: Manager) -> None:
    config = VmConfig(metadata=VmMetadata(name="guest"), image=IMAGE, log_path="guest/0.log")
    assert told(manager, config) == []


def _resets(manager: Manager, times: int) -> list[str]:
    """What is told of a guest that has reset itself so often."""
    (vm_id,) = manager.store.vms
    for _ in range(times):
        reset = Observation(vm_id=vm_id, state=DomainState.RUNNING, rebooted=True)
        exits.on_change(manager.context, reset)
    return [e.reason for e in manager.told.events if e.topic == "GuestRestarts"]


def test_a_guest_that_starts_anew_over_and_over_is_told_of_once(manager: Manager) -> None:
    manager.start(manager.create(manager.run()))
    assert _resets(manager, 2) == []
    (notice,) = _resets(manager, 1)
    assert notice.startswith("the guest has restarted 3 times within 10 minutes: ")
    assert _resets(manager, 9) == [notice]
    log = manager.node.root / "logs/web/guest/0.log"
    assert f" stderr F [virtlet: {notice}]\n" in log.read_text()


def test_a_guest_that_reboots_now_and_then_is_not_told_of(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager.start(manager.create(manager.run()))
    now = time.time_ns()
    for minute in range(0, 60, 6):
        monkeypatch.setattr(time, "time_ns", lambda at=now + minute * 60 * 10**9: at)
        assert _resets(manager, 1) == []
    assert _resets(manager, 1) != []


SMALL = Resources(cpu_shares=2)
"""Of a container that asks for nothing."""
LARGE = Resources(cpu_shares=1024, cpu_quota=100000, memory_limit=128 << 20)


def _run(manager: Manager, resources: Resources) -> str:
    """RunPodSandbox, with what the kubelet counted for all containers of the pod."""
    image_handlers.pull(manager.context, parse_reference(IMAGE), Credentials())
    metadata = PodMetadata(name="web", uid="uid-web", namespace="default")
    logs = str(manager.node.root / "logs")
    config = PodConfig(metadata=metadata, log_directory=logs, resources=resources)
    return pods.run_pod(manager.context, config, "")


def _start(manager: Manager, pod: str, name: str, resources: Resources, attempt: int = 0) -> str:
    """CreateContainer and StartContainer."""
    config = VmConfig(
        metadata=VmMetadata(name=name, attempt=attempt),
        image=IMAGE,
        log_path=f"{name}.log",
        resources=resources,
    )
    vm_id = vms.create_vm(manager.context, pod, config)
    manager.start(vm_id)
    return vm_id


def _log(manager: Manager, name: str) -> str:
    file: Path = manager.node.root / "logs" / f"{name}.log"
    return file.read_text() if file.exists() else ""


def test_the_log_of_a_container_that_is_not_all_of_its_pod_says_what_the_others_wait_for(
    manager: Manager,
) -> None:
    pod = _run(manager, LARGE)
    init = _start(manager, pod, "init", SMALL)
    until(lambda: "until this guest powers off" in _log(manager, "init"), "the notice", 10)
    assert " stderr F [virtlet: the pod has resources beyond" in _log(manager, "init")
    # Once it is done the next is the last one, and waits for nobody.
    manager.stop(init)
    manager.stop(_start(manager, pod, "guest", SMALL))
    assert "[virtlet:" not in _log(manager, "guest")


@pytest.mark.parametrize("attempt", [0, 1])
def test_the_log_of_a_pods_only_container_says_nothing_of_others(
    manager: Manager, attempt: int
) -> None:
    own = LARGE if attempt == 0 else SMALL  # A later attempt may have been resized.
    pod = _run(manager, LARGE)
    manager.stop(_start(manager, pod, "guest", own, attempt))
    assert "[virtlet:" not in _log(manager, "guest")


def test_a_container_beside_a_running_init_container_or_sidecar_is_told_what_to_do(
    manager: Manager,
) -> None:
    pod = _run(manager, LARGE)
    _start(manager, pod, "proxy", SMALL)
    with pytest.raises(FailedPrecondition) as caught:
        _start(manager, pod, "guest", LARGE)
    message = str(caught.value)
    assert "default/web/proxy (attempt 0) runs in this pod" in message
    assert "once that guest has powered off, as an init container's has to" in message
    assert "put a sidecar (an init container with restartPolicy: Always)" in message


def test_events_say_whose_pod_it_is_what_they_are_about_and_how_a_vm_ended(
    manager: Manager,
) -> None:
    config = VmConfig(
        metadata=VmMetadata(name="guest"), image=IMAGE, log_path="guest/0.log", command=("sh",)
    )
    told(manager, config)
    (vm_id,) = manager.store.vms
    manager.node.hypervisor.end(vm_id, VmExit(exit_code=1, reason="Error", message="it panicked"))
    until(lambda: manager.vm(vm_id).exit, "the end")
    seen = [e for e in manager.told.events if e.pod_id]
    assert {e.pod.name for e in seen if e.pod} == {manager.vm(vm_id).vm.pod.config.metadata.name}
    (notice,) = [e for e in seen if e.kind is EventKind.VM_NOTICE]
    assert notice.topic == "FieldsWithoutEffect"
    (end,) = [e for e in seen if e.kind is EventKind.VM_STOPPED]
    assert (end.reason, end.message) == ("Error", "it panicked")


def test_the_first_answer_of_a_guest_is_told_once_and_only_if_this_manager_started_it(
    manager: Manager,
) -> None:
    vm_id = manager.create(manager.run())
    manager.start(vm_id)
    for _ in range(2):
        notices.tell_answered(manager.context, vm_id)
    (event,) = [e for e in manager.told.events if e.kind is EventKind.GUEST_READY]
    assert event.subject == vm_id
    manager.context.answered.clear()
    manager.context.since = manager.vm(vm_id).started_at + 1
    notices.tell_answered(manager.context, vm_id)
    notices.tell_answered(manager.context, "no such VM")
    assert len([e for e in manager.told.events if e.kind is EventKind.GUEST_READY]) == 1
