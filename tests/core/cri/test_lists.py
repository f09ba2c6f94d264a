"""Replies that are kept until a record changes."""

from collections.abc import Iterator

import pytest

from virtlet.core.cri.lists import ReplyCache
from virtlet.cri import api_pb2 as cri
from virtlet.errors import NotFound


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


def test_a_change_of_any_record_has_replies_made_anew(records: Records) -> None:
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
