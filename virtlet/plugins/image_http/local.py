"""Images that are files of the node.

A `file://` address comes from a translation file, which is the operator's, or from whoever speaks
CRI to us directly, who may use any directory of the node anyway: the kubelet lets no image name
with a scheme through. So any path goes, as long as it is plainly a file.
"""

import os
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

from virtlet.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from virtlet.model.image import FetchedImage, ImageSource, Staging

_CHUNK = 1 << 20


def fetch_file(source: ImageSource, staging: Staging) -> FetchedImage:
    """Copy a file of the node into the staging file.

    Raises:
        InvalidArgument: the address is no absolute path.
        NotFound: there is no such file.
        FailedPrecondition: it is no regular file.
        Unavailable: it changed while it was read.
    """
    path = _path(source)
    try:
        # Looked at before it is opened, because opening a device can have effects.
        if not stat.S_ISREG(path.stat().st_mode):
            raise FailedPrecondition(f"image {source.name}: {path} is no regular file")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"image {source.name}: there is no file {path} on this node") from None
    except OSError as error:
        raise FailedPrecondition(f"image {source.name}: {path}: {error.strerror}") from None
    with open(descriptor, "rb", buffering=0) as file:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise FailedPrecondition(f"image {source.name}: {path} is no regular file")
        validator = _validator(before)
        if not (staging.complete and staging.validator == validator):
            offset = staging.size if staging.validator == validator else 0
            if staging.complete:
                offset = 0
            staging.begin(validator, offset, before.st_size)
            file.seek(offset)
            while chunk := file.read(_CHUNK):
                staging.write(chunk)
            if _validator(os.fstat(descriptor)) != validator:
                raise Unavailable(f"image {source.name}: {path} changed while it was read")
    return FetchedImage(size=before.st_size)


def _path(source: ImageSource) -> Path:
    address = urlsplit(source.url)
    path = unquote(address.path)
    if address.netloc not in ("", "localhost") or not path.startswith("/"):
        raise InvalidArgument(
            f"image {source.name}: a file address is file:// and an absolute path"
        )
    if "\0" in path or ".." in path.split("/"):
        raise InvalidArgument(f"image {source.name}: a file address has no .. in its path")
    return Path(path)


def _validator(status: os.stat_result) -> str:
    return f"{status.st_dev}-{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"
