"""Which server gets which credentials."""

import base64
import binascii
from urllib.parse import unquote, urlsplit

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


def authorization(source: ImageSource, credentials: Credentials) -> str:
    """The Authorization header's value for the source's own server, or "".

    What the address itself holds goes first: it is the operator's. The pod's credentials count
    when they name no server, or this one.

    Raises:
        InvalidArgument: the credentials are malformed.
    """
    address = urlsplit(source.url)
    if address.username is not None:
        return _basic(unquote(address.username), unquote(address.password or ""))
    if not _meant_for(credentials.server_address, source.url):
        return ""
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


def _meant_for(server_address: str, url: str) -> bool:
    if not server_address:
        return True
    scheme, host, port = origin(url)
    named = server_address if "://" in server_address else f"{scheme}://{server_address}"
    try:
        return origin(named)[1:] == (host, port)
    except ValueError:
        return False


def _basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True
