"""What clients are shown of a VM's image."""

from pathlib import Path

import pytest
from attrs import evolve

from tests.fakes.model import make_image, make_vm
from virtlet.core.cri.replies import vm_item, vm_status
from virtlet.core.store.records import VmPhase, VmRecord

ID = "sha256:" + "a1" * 32


@pytest.mark.parametrize(
    ("asked", "user", "name", "repository"),
    [
        (ID, "virtlet.cloud/tiny", "virtlet.cloud/tiny", "virtlet.cloud/tiny"),
        (ID, "tiny:v2", "tiny:v2", "virtlet.cloud/tiny"),
        ("other:latest", "", "other:latest", "other"),
        (ID, "", "other:latest", "other"),
        (ID, "a b", "a b", "other"),
    ],
)
def test_an_image_of_many_names_is_shown_by_the_one_that_the_pod_has(
    tmp_path: Path, asked: str, user: str, name: str, repository: str
) -> None:
    image = evolve(
        make_image(tmp_path / "image"),
        id=ID,
        names=("other:latest", "virtlet.cloud/tiny:latest", "virtlet.cloud/tiny:v2"),
        digests=(f"other@{ID}", f"virtlet.cloud/tiny@{ID}"),
    )
    vm = make_vm(tmp_path, image=image)
    vm = evolve(vm, config=evolve(vm.config, image=asked, user_image=user))
    record = VmRecord(vm=vm, phase=VmPhase.CREATED, hypervisor="libvirt_qemu")
    for shown in (vm_item(record), vm_status(record)):
        assert (shown.image.image, shown.image.user_specified_image) == (name, user)
        assert (shown.image_ref, shown.image_id) == (f"{repository}@{ID}", ID)
