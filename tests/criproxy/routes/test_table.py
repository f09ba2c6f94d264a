"""The routing table as a whole."""

from __future__ import annotations

import grpc
import pytest

from criproxy.methods import BY_NAME
from tests.criproxy.fakes.proxy import Client, RunningProxy, said


def test_every_method_of_the_cri_has_a_rule(proxy: RunningProxy) -> None:
    assert proxy.proxy is not None
    assert set(proxy.proxy.table.rules) == set(BY_NAME)


def test_a_call_that_went_round_in_a_circle_is_refused(client: Client, proxy: RunningProxy) -> None:
    assert proxy.proxy is not None
    version = client.raw("/runtime.v1.RuntimeService/Version")
    with pytest.raises(grpc.RpcError) as caught:
        version(b"", metadata=(("criproxy-loop", proxy.proxy.identity.decode()),))
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "loop" in said(caught)
