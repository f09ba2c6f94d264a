"""The ways to the API server, each with the rights of the person at the browser."""

import asyncio
import os
import ssl
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from attrs import frozen

from virtlet.cli.ending import CommandFailed
from virtlet.kubectl.webconsole.gate import Asked

_CA = Path("/var/run/secrets/kubernetes.io/serviceaccount/ca.crt")
"""Of the API server, where pods have it; the token beside it is not read."""
_SECONDS = 10.0

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Api(ABC):
    """A way to the API server."""

    @abstractmethod
    async def connect(self) -> Connection:
        """A new connection.

        Raises:
            OSError: it cannot be reached.
        """

    @abstractmethod
    def headers(self, asked: Asked) -> Sequence[str]:
        """Of each request there: Host, and whose it is."""

    @abstractmethod
    def away(self, error: OSError) -> str:
        """What to tell a person when it cannot be reached."""


@frozen
class KubectlProxy(Api):
    """`kubectl proxy`, which has the user's credentials.

    Args:
        socket: its unix socket.
    """

    socket: Path

    async def connect(self) -> Connection:
        """By its socket."""
        return await asyncio.open_unix_connection(self.socket)

    def headers(self, asked: Asked) -> Sequence[str]:
        """kubectl adds who asks."""
        return ["Host: localhost"]

    def away(self, error: OSError) -> str:
        """It ends with the console, or by itself."""
        return "kubectl proxy has ended: start the console again"


@frozen
class OwnCluster(Api):
    """The API server of the cluster that we run in, which hears the token that came with a request.

    Args:
        host: its name or address.
        port: of it.
        trust: by what its certificate is verified.
    """

    host: str
    port: int
    trust: ssl.SSLContext

    @classmethod
    def find(cls, ca: Path = _CA) -> "OwnCluster":
        """That which a pod's environment and files tell of.

        Raises:
            CommandFailed: we run in no pod, or it has no certificate of the API server's authority.
        """
        host, port = (os.environ.get(f"KUBERNETES_SERVICE_{what}", "") for what in ("HOST", "PORT"))
        if not host or not port.isdecimal():
            raise CommandFailed(
                "--behind is for a console in a cluster, and no KUBERNETES_SERVICE_HOST and _PORT "
                "are in the environment: use deploy/console/console.yaml"
            )
        try:
            trust = ssl.create_default_context(cafile=str(ca))
        except OSError as error:
            raise CommandFailed(
                f"{ca}: {error.strerror or error}: the certificate of the API server's authority "
                "has to be there (ConfigMap kube-root-ca.crt; see deploy/console/console.yaml)"
            ) from None
        return cls(host, int(port), trust)

    async def connect(self) -> Connection:
        """By TLS."""
        async with asyncio.timeout(_SECONDS):
            return await asyncio.open_connection(self.host, self.port, ssl=self.trust)

    def headers(self, asked: Asked) -> Sequence[str]:
        """The user's own token."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        token = asked.headers["authorization"]
        return [f"Host: {name}:{self.port}", f"Authorization: {token}"]

    def away(self, error: OSError) -> str:
        """What TLS or the network says."""
        return f"the API server at {self.host}:{self.port} is not reached: {error}"
