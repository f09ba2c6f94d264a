"""Methods that the stubs do not know, as a newer CRI or another service has them."""

from __future__ import annotations

import grpc
import pytest

from tests.criproxy.fakes.proxy import VM, Client, RunningProxy, said
from tests.criproxy.fakes.runtime import FakeRuntime

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
