"""Methods that the stubs do not know, and texts found in their messages."""

from __future__ import annotations

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from criproxy.routes.unknown import replaced, texts
from tests.criproxy.fakes.proxy import VM, Client, RunningProxy, said
from tests.criproxy.fakes.runtime import FakeRuntime
from virtlet.cri import api_pb2 as cri

NEWER = "/runtime.v1.RuntimeService/FreezeContainer"


def field(number: int, text: str) -> bytes:
    """A text field."""
    return bytes((number << 3 | 2, len(text))) + text.encode()


def test_a_call_without_a_known_id_goes_to_the_primary(client: Client) -> None:
    call = client.raw(NEWER)
    assert call(b"whatever \xff") == b"containerd:whatever \xff"


def test_a_call_with_a_known_id_goes_to_its_owner(client: Client) -> None:
    container = client.create(client.run_pod(target=VM))
    message = b"\x08\x05" + b"\x15abcd" + b"\x19abcdefgh" + field(4, container) + field(5, "x")
    assert client.raw(NEWER)(message) == VM.encode() + b":" + message


def test_an_old_id_is_put_into_its_owners_form(client: Client) -> None:
    container = client.create(client.run_pod(target=VM))
    sent = field(1, f"{VM}__{container}") + field(2, "rest")
    got = field(1, container) + field(2, "rest")
    assert client.raw(NEWER)(sent) == VM.encode() + b":" + got


def test_streams_in_both_directions_pass(client: Client) -> None:
    container = client.create(client.run_pod(target=VM))
    first = field(1, container)
    call = client.raw_stream(NEWER)
    answers = call(iter((first, b"two", b"three")))
    prefix = VM.encode() + b":"
    assert list(answers) == [prefix + first, prefix + b"two", prefix + b"three"]


def test_a_request_without_a_message_passes(client: Client, containerd: FakeRuntime) -> None:
    assert list(client.raw_stream(NEWER)(iter(()))) == []
    assert "unknown" in containerd.metadata


def test_other_services_go_to_the_primary(client: Client) -> None:
    call = client.raw("/grpc.health.v1.Health/Check")
    assert call(b"") == b"containerd:"


def test_an_owner_that_is_away_is_told_of(
    client: Client, proxy: RunningProxy, virtlet: FakeRuntime
) -> None:
    container = client.create(client.run_pod(target=VM))
    virtlet.stop()
    proxy.wait_until(VM, answering=False)
    with pytest.raises(grpc.RpcError) as caught:
        client.raw(NEWER)(field(1, container))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert VM in said(caught)


TEXT = st.text(min_size=1, max_size=60)


@given(st.binary(max_size=200))
def test_no_bytes_are_a_problem(message: bytes) -> None:
    for field in texts(message):
        assert 0 <= field.size_at < field.end <= len(message)


@given(TEXT, TEXT, st.integers(-(2**31), 2**31), st.text(min_size=1, max_size=250))
def test_texts_are_found_and_replaced_like_a_decoder_would(
    first: str, second: str, number: int, new: str
) -> None:
    message = cri.CheckpointContainerRequest(
        container_id=first, location=second, timeout=number
    ).SerializeToString()
    fields = list(texts(message))
    assert [f.text for f in fields] == [first, second]
    changed = cri.CheckpointContainerRequest.FromString(replaced(message, fields[0], new))
    assert (changed.container_id, changed.location, changed.timeout) == (new, second, number)
