"""The cluster's API server, by the kept Python client `kubernetes`, an optional dependency.

The client is imported when it is first needed: most nodes need none of it, and save its memory.
"""

import base64
import binascii
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import field, frozen

from virtlet.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unavailable,
    VirtletError,
)
from virtlet.model.option import TEXT, Option

KUBECONFIG: Option[str] = Option(
    field="kubeconfig",
    flag="--kubeconfig",
    env="VIRTLET_KUBECONFIG",
    kind=TEXT,
    default="",
    help="kubeconfig file of the manager's own account in the cluster (deploy/cluster/rbac.yaml), "
    "for ConfigMaps and Secrets that annotations name, and for objects of Virtlet's own kinds; "
    "empty for the service account of the pod that the manager runs in, or for no access where it "
    "runs in none. Needs the Python package `kubernetes`",
)
CONNECT_TIME = 5.0
"""Seconds for a connection to the API server."""
ANSWER_TIME = 10.0
"""Seconds for the next byte of an answer."""
FRESH = 5.0
"""Seconds for which an object that was read is not read again: so several pods that are created
together, and several annotations of one pod, cost one request."""
MOST_KEPT, MOST_KEPT_BYTES = 64, 8 << 20
"""Of objects that were read; one has at most a MiB."""

_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?")
_KEY = re.compile(r"[-._A-Za-z0-9]{1,253}")
_KINDS = {"configmap": "ConfigMap", "secret": "Secret"}
_IN_CLUSTER = "KUBERNETES_SERVICE_HOST"


@frozen
class ObjectName:
    """A ConfigMap or Secret, as an annotation names it: in the pod's own namespace."""

    kind: str
    """`ConfigMap` or `Secret`."""
    name: str
    key: str = ""
    """One key of it; "" for all."""

    @property
    def written(self) -> str:
        """As in the annotation, without the key."""
        return f"{self.kind.lower()}/{self.name}"


def parse_object_name(text: str, *, with_key: bool = False) -> ObjectName | None:
    """Read `configmap/NAME` or `secret/NAME`, with `/KEY` where that is allowed.

    Returns:
        None for the empty text.

    Raises:
        ValueError: it is none.
    """
    if not text:
        return None
    kind, _, rest = text.partition("/")
    name, slash, key = rest.partition("/")
    form = "configmap/NAME or secret/NAME" + (", with /KEY after it if need be" if with_key else "")
    if kind not in _KINDS or not _NAME.fullmatch(name) or (slash and not with_key):
        raise ValueError(f"{text[:300]!r} is not {form}")
    return ObjectName(_KINDS[kind], name, parse_object_key(key) if slash else "")


def parse_object_key(text: str) -> str:
    """Read the name of a key.

    Raises:
        ValueError: it is none.
    """
    if text and not _KEY.fullmatch(text):
        raise ValueError(f"{text[:300]!r} cannot be a key of a ConfigMap or Secret")
    return text


@frozen
class _Kept:
    data: Mapping[str, bytes] = field(repr=False)
    until: float

    @property
    def size(self) -> int:
        return sum(map(len, self.data.values()))


class Cluster:
    """Access to the API server, for any number of threads; connects when it is first asked.

    Args:
        kubeconfig: path of a file; "" for the service account of the pod that we run in.
        clock: monotonic seconds.
    """

    def __init__(self, kubeconfig: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._kubeconfig = kubeconfig
        self._clock = clock
        self._lock = threading.Lock()
        self._client: Any = None
        self._kept: OrderedDict[tuple[str, str, str], _Kept] = OrderedDict()

    @property
    def configured(self) -> bool:
        """Whether there is a way to the API server."""
        return bool(self._kubeconfig or os.environ.get(_IN_CLUSTER))

    def client(self) -> Any:
        """The connected `kubernetes.client.ApiClient`.

        Raises:
            FailedPrecondition: there is no way to the API server; says how to get one.
        """
        with self._lock:
            if self._client is None:
                self._client = self._connected()
            return self._client

    def _connected(self) -> Any:
        if not self.configured:
            raise FailedPrecondition(
                "the manager has no access to the cluster's API server: set kubeconfig "
                "(--kubeconfig) to a file of an account with the rights of deploy/cluster/rbac.yaml"
            )
        try:
            from kubernetes import client, config
        except ImportError:
            raise FailedPrecondition(
                "the manager cannot read objects of the cluster without the Python package "
                "kubernetes: install virtlet[kubernetes]"
            ) from None
        loaders: Any = config
        settings = client.Configuration()
        settings.retries = False
        try:
            if self._kubeconfig:
                path = Path(self._kubeconfig)
                loaders.load_kube_config(config_file=str(path), client_configuration=settings)
            else:
                loaders.load_incluster_config(client_configuration=settings)
        except Exception as error:
            # The client raises what its parsers raise, whose texts quote the file.
            reason = error.strerror if isinstance(error, OSError) else type(error).__name__
            if isinstance(error, config.ConfigException):
                reason = str(error).splitlines()[0][:300]
            where = f"kubeconfig {self._kubeconfig}" if self._kubeconfig else "the service account"
            raise FailedPrecondition(
                f"the manager has no access to the cluster's API server: {where}: {reason}"
            ) from None
        return client.ApiClient(settings)

    def read(self, namespace: str, wanted: ObjectName) -> Mapping[str, bytes]:
        """All keys of an object, decoded.

        Raises:
            NotFound: there is no such object.
            PermissionDenied: the manager's account may not read it.
            FailedPrecondition: see `client`.
            Unavailable: the API server cannot be reached, or does not answer in time.
        """
        place = (wanted.kind, namespace, wanted.name)
        kept = self._fresh(place)
        if kept is None:
            kept = _Kept(self._fetched(namespace, wanted), self._clock() + FRESH)
            self._keep(place, kept)
        return kept.data

    def read_key(self, namespace: str, wanted: ObjectName) -> bytes:
        """One key of an object.

        Raises:
            NotFound: the object does not have it, or is not there; else as for `read`.
        """
        data = self.read(namespace, wanted)
        if wanted.key not in data:
            raise NotFound(f"{wanted.kind} {namespace}/{wanted.name} has no key {wanted.key!r}")
        return data[wanted.key]

    def labels_of_node(self, name: str) -> Mapping[str, str]:
        """The labels of a node.

        Raises:
            NotFound: there is no such node; else as for `read`.
        """
        client = self.client()
        from kubernetes.client import CoreV1Api

        api: Any = CoreV1Api(client)
        with explained(f"Node {name}"):
            found = api.read_node(name, _request_timeout=(CONNECT_TIME, ANSWER_TIME))
        return dict(found.metadata.labels or {})

    def _fresh(self, place: tuple[str, str, str]) -> _Kept | None:
        with self._lock:
            now = self._clock()
            for old in [name for name, kept in self._kept.items() if kept.until <= now]:
                del self._kept[old]
            return self._kept.get(place)

    def _keep(self, place: tuple[str, str, str], kept: _Kept) -> None:
        with self._lock:
            self._kept[place] = kept
            total = sum(other.size for other in self._kept.values())
            while len(self._kept) > MOST_KEPT or total > MOST_KEPT_BYTES:
                total -= self._kept.popitem(last=False)[1].size

    def _fetched(self, namespace: str, wanted: ObjectName) -> Mapping[str, bytes]:
        what = f"{wanted.kind} {namespace}/{wanted.name}"
        client = self.client()
        from kubernetes.client import CoreV1Api

        api: Any = CoreV1Api(client)
        secret = wanted.kind == "Secret"
        read = api.read_namespaced_secret if secret else api.read_namespaced_config_map
        with explained(what):
            found = read(wanted.name, namespace, _request_timeout=(CONNECT_TIME, ANSWER_TIME))
        data = {key: _bytes(value) for key, value in (found.data or {}).items()}
        try:
            if secret:
                return {key: base64.b64decode(value, validate=True) for key, value in data.items()}
            binary = found.binary_data or {}
            return data | {key: base64.b64decode(v, validate=True) for key, v in binary.items()}
        except binascii.Error:
            raise Unavailable(f"{what}: the API server answers what is no base64") from None

    def close(self) -> None:
        """Let go of connections and of what was read."""
        with self._lock:
            client, self._client = self._client, None
            self._kept.clear()
        if client is not None:
            client.rest_client.close()


@contextmanager
def explained(what: str, verb: str = "read") -> Iterator[None]:
    """Turn what the client raises into our errors.

    Args:
        what: is being read, for messages.
        verb: what is done with it instead.
    """
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        raise _refusal(what, verb, error.status or 0, str(error.reason or "")) from None
    except (HTTPError, OSError) as error:
        # Their texts name the server, and never hold what was sent.
        raise Unavailable(
            f"{what}: the cluster's API server cannot be reached: {_short(error)}"
        ) from None


def _refusal(what: str, verb: str, status: int, reason: str) -> VirtletError:
    match status:
        case 404:
            return NotFound(f"{what} does not exist")
        case 401:
            return PermissionDenied(
                f"{what}: the cluster's API server does not know the manager's account (401): "
                "give the kubeconfig a token that is valid"
            )
        case 403:
            return PermissionDenied(
                f"{what}: the manager's account may not {verb} it (403): bind it the role of "
                "deploy/cluster/rbac.yaml in that namespace"
            )
        case 400 | 422:
            return InvalidArgument(f"{what}: the cluster's API server refuses the name")
        case _:
            return Unavailable(f"{what}: the cluster's API server answers {status} {reason[:100]}")


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


def _short(error: BaseException) -> str:
    words = re.sub(r"<[^>]*>", "", str(error)).replace("\n", " ")
    return words.strip(" :(),")[:200] or type(error).__name__
