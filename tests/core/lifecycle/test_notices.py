"""What a pod's owner is told of in the pod's log."""

from tests.fakes.manager import IMAGE, Manager
from virtlet.core.lifecycle import images, vms
from virtlet.model.event import EventKind
from virtlet.model.image import Credentials
from virtlet.model.vm import VmConfig, VmMetadata


def told(manager: Manager, config: VmConfig) -> list[str]:
    """What is told when a VM starts."""
    images.pull(manager.context, IMAGE, Credentials())
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
