"""Which server gets which credentials."""

import base64
import binascii
from urllib.parse import unquote, urlsplit

from attrs import field, frozen

from virtlet.errors import InvalidArgument
from virtlet.model.image import Credentials, ImageSource

_PORTS = {"http": 80, "https": 443}


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of an address.

    Raises:
        ValueError: the port is none.
    """
    address = urlsplit(url)
    port = address.port or _PORTS.get(address.scheme, 0)
    return address.scheme, (address.hostname or "").lower(), port


def may_follow(source: str, target: str) -> bool:
    """Whether what was meant for one server may be told to another after a redirect.

    Only the same server may know, or the same host's https port after its http port.
    """
    before, after = origin(source), origin(target)
    upgraded = before[0] == "http" and before[2] == 80 and after == ("https", before[1], 443)
    return before == after or upgraded


@frozen
class Authorization:
    """What the source's own server is shown."""

    header: str = field(default="", repr=False)
    """The Authorization header's value, or ""."""
    of_pod: bool = False
    """Whether it is an image pull secret's."""
    _refusal: str = ""

    def kept_back(self, scheme: str, *, own: bool) -> str:
        """Why it is not shown, or "" where it is or there is none.

        Args:
            scheme: of the address that is asked.
            own: whether that is the source's own server.
        """
        if self._refusal or not self.header:
            return self._refusal
        if not own:
            return "it was redirected to another server"
        if self.of_pod and scheme != "https":
            return "pull secrets are not sent over plain http"
        return ""


def authorization(source: ImageSource, credentials: Credentials) -> Authorization:
    """What to show to the source's own server.

    What the address itself holds goes first: it is the operator's. The pod's credentials count
    when they name this server. A kubelet names none: it picks them by the registry in the image's
    name, so they count for that host, and for the address that a translation file gives the name.

    Raises:
        InvalidArgument: the address or the credentials are malformed.
    """
    try:
        address = urlsplit(source.url)
    except ValueError:
        raise InvalidArgument(f"image {source.name}: its address is malformed") from None
    if address.username is not None:
        return Authorization(_basic(unquote(address.username), unquote(address.password or "")))
    header = _header(source, credentials)
    if header and not _meant_for(credentials.server_address, source):
        return Authorization(refusal="the pull secret is another registry's")
    return Authorization(header, of_pod=True)


def _header(source: ImageSource, credentials: Credentials) -> str:
    token = credentials.registry_token
    if token:
        if not (token.isascii() and token.isprintable()):
            raise InvalidArgument(f"image {source.name}: the credentials hold no usable token")
        return f"Bearer {token}"
    if credentials.username:
        return _basic(credentials.username, credentials.password)
    if credentials.auth:
        if not _is_base64(credentials.auth):
            raise InvalidArgument(f"image {source.name}: the credentials' auth is no base64")
        return f"Basic {credentials.auth}"
    return ""


def _meant_for(server_address: str, source: ImageSource) -> bool:
    if not server_address and source.trusted:
        return True
    named = server_address or _registry(source.name)
    scheme, host, port = origin(source.url)
    try:
        return origin(named if "://" in named else f"{scheme}://{named}")[1:] == (host, port)
    except ValueError:
        return False


def _registry(name: str) -> str:
    """The registry of an image name; "" is Docker's, for which a kubelet sends its secret.

    Source: splitDockerDomain of the distribution project's reference package.
    """
    scheme, found, rest = name.rpartition("://")
    host = rest.partition("/")[0]
    named = found or "." in host or ":" in host or host == "localhost"
    return f"{scheme}{found}{host}" if named else ""


def _basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True
