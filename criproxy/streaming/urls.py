"""Streaming URLs: absolute ones reach the client as they are, relative ones lead through here."""

from __future__ import annotations

from typing import Any

from criproxy.rpc.status import Code, RpcError
from criproxy.runtimes.runtime import Runtime


class StreamUrls:
    """Rewrites relative URLs.

    Attributes:
        base: `http://host:port` of this proxy's own streaming relay, set once it listens.
    """

    def __init__(self) -> None:
        self.base: str | None = None

    def through(self, runtime: Runtime, answer: Any) -> bool:
        """Make the URL in an answer reachable; says whether it was changed.

        Raises:
            RpcError: FAILED_PRECONDITION when the URL is relative and the configuration does not
                say to what.
        """
        url = answer.url
        if not url.startswith("/") or url.startswith("//"):
            return False
        if runtime.config.stream_url is None or self.base is None:
            raise RpcError(
                Code.FAILED_PRECONDITION,
                f"{runtime.where} gave a streaming URL without a host; set its 'stream_url' in "
                "criproxy's configuration to the address of its streaming server",
            )
        answer.url = f"{self.base}/{runtime.name}{url}"
        return True
