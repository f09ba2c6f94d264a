"""What a pod's annotations take from ConfigMaps and Secrets of its namespace.

Objects are read when the VM is made: a change of them is for the next one.
"""

import base64
import binascii
import posixpath
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from attrs import evolve, field, frozen

from virtlet.cluster.api import Cluster, ObjectName
from virtlet.errors import InvalidArgument, VirtletError
from virtlet.host.guest_files import GuestFile
from virtlet.model.bounded_yaml import load_yaml
from virtlet.model.option import Annotation
from virtlet.model.plain import UnquotedError, kind_of
from virtlet.model.pod import Pod
from virtlet.plugins.cloudinit.seed_annotations import (
    FILES_SOURCE,
    SSH_KEY_SOURCE,
    SSH_KEYS,
    USER_DATA,
    USER_DATA_OVERWRITE,
    USER_DATA_SCRIPT,
    USER_DATA_SOURCE,
    USER_DATA_SOURCE_ENCODING,
    USER_DATA_SOURCE_KEY,
    parse_keys,
)

KEYS_KEY = "authorized_keys"
CLOUD_CONFIG = "#cloud-config"
_PATH, _ENCODING = "_path", "_encoding"


@frozen
class Sources:
    """What annotations and the objects that they name give to the seed."""

    keys: tuple[str, ...] = ()
    """Public keys, also those of the annotation."""
    user_data: Mapping[str, Any] = field(factory=dict, repr=False)
    """A cloud-config document, to be merged over the annotation's."""
    script: str = field(default="", repr=False)
    """All of the user-data; "" for none."""
    files: tuple[GuestFile, ...] = ()


def check_sources(pod: Pod) -> None:
    """Refuse annotations that contradict each other.

    Raises:
        InvalidArgument: says which.
    """
    source = USER_DATA_SOURCE.of(pod)
    if source and USER_DATA_SCRIPT.of(pod):
        raise InvalidArgument(
            f"annotations {USER_DATA_SCRIPT.name} and {USER_DATA_SOURCE.name}: the script is the "
            "whole user-data, so choose one"
        )
    if USER_DATA_SOURCE_KEY.of(pod) and not source:
        raise InvalidArgument(
            f"annotation {USER_DATA_SOURCE_KEY.name}: {USER_DATA_SOURCE.name} does not say which "
            "object has this key"
        )
    if USER_DATA_SOURCE_ENCODING.of(pod) != "plain" and not USER_DATA_SOURCE_KEY.of(pod):
        raise InvalidArgument(
            f"annotation {USER_DATA_SOURCE_ENCODING.name}: it is about the content under "
            f"{USER_DATA_SOURCE_KEY.name}, which is not given"
        )


def read_sources(pod: Pod, cluster: Cluster) -> Sources:
    """Read all that the pod's annotations name.

    Raises:
        InvalidArgument: the content is not what the annotation wants.
        NotFound, PermissionDenied, FailedPrecondition, Unavailable: see `Cluster.read`.
    """
    sources = Sources(keys=_public_keys(pod, cluster))
    named = USER_DATA_SOURCE.of(pod)
    if named is not None and (key := USER_DATA_SOURCE_KEY.of(pod)):
        text = _whole(pod, cluster, evolve(named, key=key))
        if not text.startswith(CLOUD_CONFIG):
            return evolve(sources, script=text, files=_files(pod, cluster))
        with _about(USER_DATA_SOURCE, named, key):
            sources = evolve(sources, user_data=_mapping(text))
    elif named is not None:
        sources = evolve(sources, user_data=_by_key(pod, cluster, named))
    return evolve(sources, files=_files(pod, cluster))


@contextmanager
def _about(annotation: Annotation[Any], named: ObjectName, key: str = "") -> Iterator[None]:
    """Name annotation, object and key in an error; what they hold is never quoted."""
    where = f"annotation {annotation.name}"
    try:
        yield
    except VirtletError as error:
        raise type(error)(f"{where}: {error}") from None
    except UnquotedError as error:
        under = f", key {key}" if key else ""
        raise InvalidArgument(f"{where}: {named.written}{under}: {error}") from None


def _public_keys(pod: Pod, cluster: Cluster) -> tuple[str, ...]:
    own, named = SSH_KEYS.of(pod), SSH_KEY_SOURCE.of(pod)
    if named is None or (own and USER_DATA_OVERWRITE.of(pod)):
        return own
    named = evolve(named, key=named.key or KEYS_KEY)
    with _about(SSH_KEY_SOURCE, named, named.key):
        content = cluster.read_key(pod.config.metadata.namespace, named)
        return parse_keys(_text(content)) + own


def _whole(pod: Pod, cluster: Cluster, named: ObjectName) -> str:
    with _about(USER_DATA_SOURCE, named, named.key):
        content = cluster.read_key(pod.config.metadata.namespace, named)
        if USER_DATA_SOURCE_ENCODING.of(pod) == "base64":
            content = _decoded(content)
        text = _text(content)
        if not text.strip():
            raise UnquotedError("it is empty")
        if not text.startswith(CLOUD_CONFIG) and USER_DATA.of(pod):
            raise UnquotedError(
                f"it is no {CLOUD_CONFIG} document, so it is the whole user-data, as a script is: "
                f"take the annotation {USER_DATA.name} out"
            )
        return text


def _by_key(pod: Pod, cluster: Cluster, named: ObjectName) -> dict[str, Any]:
    with _about(USER_DATA_SOURCE, named):
        data = cluster.read(pod.config.metadata.namespace, named)
    document = {}
    for key, content in sorted(data.items()):
        with _about(USER_DATA_SOURCE, named, key):
            document[key] = load_yaml(_text(content))
    return document


def _mapping(text: str) -> dict[str, Any]:
    document = load_yaml(text)
    if not isinstance(document, dict | None):
        raise UnquotedError(f"must be a mapping, not {kind_of(document)}")
    return document or {}


def _files(pod: Pod, cluster: Cluster) -> tuple[GuestFile, ...]:
    named = FILES_SOURCE.of(pod)
    if named is None:
        return ()
    with _about(FILES_SOURCE, named):
        data = cluster.read(pod.config.metadata.namespace, named)
    mode = 0o600 if named.kind == "Secret" else 0o644
    files: dict[str, GuestFile] = {}
    for key in sorted(data):
        with _about(FILES_SOURCE, named, key):
            suffix = next((s for s in (_PATH, _ENCODING) if key.endswith(s)), "")
            if suffix and key.removesuffix(suffix) in data:
                continue
            if suffix:
                raise UnquotedError(f"there is no key {key.removesuffix(suffix)} that it is about")
            file = GuestFile(_guest_path(data, key), _content(data, key), mode)
            if file.path in files:
                raise UnquotedError("another key has the same path")
            files[file.path] = file
    return tuple(files.values())


def _guest_path(data: Mapping[str, bytes], key: str) -> str:
    if key + _PATH not in data:
        raise UnquotedError(f"there is no key {key}{_PATH} that says where the file goes")
    path = _text(data[key + _PATH]).strip()
    parts = path.split("/")
    if not path.startswith("/") or ".." in parts or not path.isprintable() or path.endswith("/"):
        raise UnquotedError(f"what is under {key}{_PATH} is no absolute path of a file")
    return posixpath.normpath(f"/{path.lstrip('/')}")


def _content(data: Mapping[str, bytes], key: str) -> bytes:
    match _text(data.get(key + _ENCODING, b"base64")).strip():
        case "plain":
            return data[key]
        case "base64":
            return _decoded(data[key])
    raise UnquotedError(f"what is under {key}{_ENCODING} is neither plain nor base64")


def _decoded(content: bytes) -> bytes:
    try:
        return base64.b64decode(b"".join(content.split()), validate=True)
    except binascii.Error:
        raise UnquotedError("it is no base64") from None


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise UnquotedError("it is no UTF-8 text") from None
