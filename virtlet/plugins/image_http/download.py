"""Images on http and https servers, resumed where that is safe.

Source: RFC 9110 for validators (8.8), If-Range and If-None-Match (13.1) and ranges (14).
"""

import email.utils
import re
from collections.abc import Mapping

import httpx

from virtlet.errors import (
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    Unavailable,
    VirtletError,
)
from virtlet.image_servers.ahead import ahead
from virtlet.image_servers.authorization import authorization
from virtlet.image_servers.pace import Bounds, paced
from virtlet.image_servers.session import Session
from virtlet.model.image import Credentials, FetchedImage, ImageSource, Staging

_PASSING = (407, 408, 425, 429, 500, 502, 503, 504)
_NO_MORE = re.compile(r"bytes \*/(\d{1,18})")
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_SETTLED = 60.0
"""Seconds after which a modification date is taken as a strong validator."""


class _StartOver(Exception):
    """What is in the staging file cannot be continued."""


def download(
    source: ImageSource, credentials: Credentials, staging: Staging, bounds: Bounds
) -> FetchedImage:
    """Bring an image into the staging file, going on from what is there when it is unchanged.

    Raises:
        NotFound, PermissionDenied: the server says so.
        InvalidArgument: the address or the credentials are malformed.
        FailedPrecondition: trying again as it is cannot help.
        Unavailable: the server cannot be reached, or the connection broke.
    """
    session = Session(source, authorization(source, credentials), bounds.reach)
    # A silent server would keep the thread and the connection of a pull that nobody waits for.
    staging.at_end(session.close)
    try:
        return _attempt(session, staging, _conditions(staging), bounds.least_rate)
    except _StartOver:
        return _attempt(session, staging, {}, bounds.least_rate)


def _attempt(
    session: Session, staging: Staging, asked: Mapping[str, str], least_rate: int
) -> FetchedImage:
    with session.get(asked) as response:
        if response.status_code == 304 and "If-None-Match" in asked:
            return FetchedImage(size=staging.size)
        if response.status_code == 416 and _is_whole(response, staging):
            return FetchedImage(size=staging.size)
        offset, total = _extent(session, response, staging, asked)
        if not (session.pinned or _tells_its_end(response)):
            raise FailedPrecondition(
                f"image {session.name}: {session.server} tells neither its length nor its end, so "
                "nobody could tell a part from the whole; pin it with @sha256:… or use a server "
                "that sends Content-Length"
            )
        staging.begin(_validator(response) if offset == 0 else staging.validator, offset, total)
        pieces = paced(session.name, session.server, response.iter_raw(), least_rate)
        # The session closes the answer: nobody may read from it then.
        with ahead(pieces, session.close) as chunks:
            for chunk in chunks:
                staging.write(chunk)
        return FetchedImage(
            size=staging.size if total is None else total, annotations=_told(response)
        )


def _is_whole(response: httpx.Response, staging: Staging) -> bool:
    """Whether the rest that was asked for is empty, of what is the same still."""
    match = _NO_MORE.fullmatch(response.headers.get("Content-Range", ""))
    same = response.headers.get("ETag", staging.validator) == staging.validator
    return match is not None and int(match[1]) == staging.size and same


def _extent(
    session: Session, response: httpx.Response, staging: Staging, asked: Mapping[str, str]
) -> tuple[int, int | None]:
    """Offset of the answer's body, and bytes of the image in all, where known."""
    status = response.status_code
    if "Range" in asked and status == 416:
        raise _StartOver
    if "Range" in asked and status == 206:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        tag = response.headers.get("ETag", staging.validator)
        changed = staging.validator.startswith('"') and tag != staging.validator
        if match is None or int(match[1]) != staging.size or changed:
            raise _StartOver
        return staging.size, None if match[3] == "*" else int(match[3])
    if status != 200:
        raise _refusal(session, status)
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise FailedPrecondition(
            f"image {session.name}: {session.server} sends it in {encoding[:20]!r} encoding, "
            "although asked for the plain file"
        )
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None


def _tells_its_end(response: httpx.Response) -> bool:
    """Whether an answer that breaks off differs from one that is whole (RFC 9112, 6.3)."""
    codings = response.headers.get("Transfer-Encoding", "").lower()
    return "Content-Length" in response.headers or codings.endswith("chunked")


def _refusal(session: Session, status: int) -> VirtletError:
    about = f"image {session.name}: {session.server}"
    if status in (404, 410):
        return NotFound(f"{about} does not have it (HTTP {status})")
    if status in (401, 403):
        why = session.kept_back or "check the image pull secret"
        return PermissionDenied(f"{about} refuses it (HTTP {status}); {why}")
    if status in _PASSING:
        return Unavailable(f"{about} cannot serve it now (HTTP {status})")
    return FailedPrecondition(f"{about} answers with HTTP {status}")


def _conditions(staging: Staging) -> dict[str, str]:
    """Headers that ask for no more than what is missing."""
    if not staging.validator or not staging.size:
        return {}
    if not staging.complete:
        return {"Range": f"bytes={staging.size}-", "If-Range": staging.validator}
    # Not by date: servers answer "not modified" to any date that is late enough, and a file may
    # have been replaced by one with an older date.
    return {"If-None-Match": staging.validator} if staging.validator.startswith('"') else {}


def _validator(response: httpx.Response) -> str:
    """A strong validator: an ETag that is not weak, or a date that lies back far enough."""
    tag: str = response.headers.get("ETag", "")
    if tag.startswith('"'):
        return tag
    modified: str = response.headers.get("Last-Modified", "")
    try:
        age = (
            email.utils.parsedate_to_datetime(response.headers.get("Date", ""))
            - email.utils.parsedate_to_datetime(modified)
        ).total_seconds()
    except (TypeError, ValueError):
        return ""
    return modified if age >= _SETTLED else ""


def _told(response: httpx.Response) -> dict[str, str]:
    """What is worth showing; the address is not, it may hold a secret."""
    shown = {"mediaType": "Content-Type", "lastModified": "Last-Modified"}
    headers = response.headers
    return {key: headers[name] for key, name in shown.items() if name in headers}
