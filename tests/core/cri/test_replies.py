"""Replies: kept until a record changes, and what they say of a VM's image."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from tests.fakes.model import make_image, make_vm
from virtlet.core.cri.replies import ReplyCache, vm_item, vm_status
from virtlet.core.store.records import VmPhase, VmRecord
from virtlet.cri import api_pb2 as cri
from virtlet.errors import NotFound

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


class Records:
    """What the replies are about."""

    def __init__(self) -> None:
        self.version = 1
        self.made: list[str] = []

    def make(self, key: str) -> cri.ContainerStatusResponse:
        self.made.append(key)
        return cri.ContainerStatusResponse(
            status=cri.ContainerStatus(id=key, started_at=self.version)
        )


@pytest.fixture
def records() -> Records:
    return Records()


def _ask(kept: ReplyCache, records: Records, key: str) -> cri.ContainerStatus:
    reply = kept.reply(key, lambda: records.make(key))
    return cri.ContainerStatusResponse.FromString(reply).status


def test_a_reply_is_made_once_for_each_key(records: Records) -> None:
    kept = ReplyCache(lambda: records.version)
    assert [_ask(kept, records, key).id for key in "abab"] == list("abab")
    assert records.made == ["a", "b"]


def test_a_change_of_any_record_has_replies_made_again(records: Records) -> None:
    kept = ReplyCache(lambda: records.version)
    _ask(kept, records, "a")
    records.version = 2
    assert _ask(kept, records, "a").started_at == 2


def test_a_change_while_a_reply_is_made_is_not_missed(records: Records) -> None:
    """The reply may be of before, but it is not taken for one of after."""
    versions: Iterator[int] = iter((1, 2))
    kept = ReplyCache(lambda: next(versions))
    _ask(kept, records, "a")
    records.version = 2
    assert _ask(kept, records, "a").started_at == 2


def test_an_error_is_not_kept(records: Records) -> None:
    kept = ReplyCache(lambda: records.version)

    def missing() -> cri.ContainerStatusResponse:
        raise NotFound("there is no container a")

    with pytest.raises(NotFound):
        kept.reply("a", missing)
    assert _ask(kept, records, "a").id == "a"
