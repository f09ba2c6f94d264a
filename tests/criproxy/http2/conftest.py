"""A raw client of the proxy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.criproxy.fakes.proxy import RunningProxy
from tests.criproxy.http2.raw import RawClient


@pytest.fixture
def raw(proxy: RunningProxy) -> Iterator[RawClient]:
    """A raw client of the proxy, connected."""
    client = RawClient(proxy.config.listen)
    yield client
    client.socket.close()
