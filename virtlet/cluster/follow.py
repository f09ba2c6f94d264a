"""A copy of all objects of a kind, in a namespace or the cluster, kept by list and watch."""

import contextlib
import socket
from collections.abc import Callable, Mapping
from typing import Any

from attrs import frozen

from virtlet.cluster.api import ANSWER_TIME, CONNECT_TIME, Cluster, explained
from virtlet.errors import Unavailable, VirtletError

WATCH_TIME = 300
"""Seconds after which the server ends a watch, and the next one begins where it ended."""
_SPARE_TIME = 30.0
"""Seconds beyond that for the end to arrive: who hears nothing for so long is cut off."""
_GONE = 410


@frozen
class Resource:
    """A kind of custom object."""

    kind: str
    plural: str
    namespace: str = ""
    """Whose objects; "" for a kind whose objects belong to the cluster as a whole."""
    group: str = "virtlet.k8s"
    version: str = "v1"

    def __str__(self) -> str:
        where = f" in namespace {self.namespace}" if self.namespace else ""
        return f"{self.plural}.{self.group}{where}"


class Followed:
    """The objects as they are by the last word of the API server; used by one thread but for
    `stop`.

    Args:
        cluster: where they are.
        resource: which they are.
    """

    def __init__(self, cluster: Cluster, resource: Resource) -> None:
        self._cluster = cluster
        self._resource = resource
        self._at = ""
        """The version that the copy is of; "" before the first list."""
        self._answer: Any = None
        """That of the watch under way."""
        self._stopped = False
        self._objects: dict[str, Mapping[str, Any]] = {}

    @property
    def objects(self) -> Mapping[str, Mapping[str, Any]]:
        """Name to object."""
        return self._objects

    def step(self, changed: Callable[[], None]) -> None:
        """List the objects where need be, then follow them until the server ends that.

        Args:
            changed: called after every change of `objects`.

        Raises:
            NotFound: the server has no such kind.
            PermissionDenied, FailedPrecondition, Unavailable: see `Cluster.read`. The copy stays.
        """
        try:
            self._step(changed)
        except VirtletError:
            if not self._stopped:
                raise

    def _step(self, changed: Callable[[], None]) -> None:
        client = self._cluster.client()
        from kubernetes.client import ApiException, CustomObjectsApi

        api: Any = CustomObjectsApi(client)
        where = self._resource
        place: tuple[str, ...]
        if where.namespace:
            read = api.list_namespaced_custom_object
            place = (where.group, where.version, where.namespace, where.plural)
        else:
            read = api.list_cluster_custom_object
            place = (where.group, where.version, where.plural)
        with explained(str(where)):
            if not self._at:
                self._list(read(*place, _request_timeout=(CONNECT_TIME, ANSWER_TIME)))
                changed()
            try:
                self._follow(read, place, changed)
            except ApiException as error:
                if error.status != _GONE:
                    raise
                # What changed meanwhile is forgotten there: everything is read again.
                self._at = ""

    def _list(self, found: Mapping[str, Any]) -> None:
        objects = {}
        for item in found.get("items") or ():
            objects[item["metadata"]["name"]] = item
        self._objects = objects
        self._at = str(found["metadata"]["resourceVersion"])

    def _follow(self, read: Any, place: tuple[str, ...], changed: Callable[[], None]) -> None:
        from kubernetes import watch

        client: Any = watch

        def begin(*arguments: Any, **options: Any) -> Any:
            self._answer = read(*arguments, **options)
            if self._stopped:  # `stop` may have come before there was an answer
                _cut(self._answer)
            return self._answer

        events = client.Watch(return_type="object").stream(
            begin,
            *place,
            resource_version=self._at,
            timeout_seconds=WATCH_TIME,
            allow_watch_bookmarks=True,
            _request_timeout=(CONNECT_TIME, WATCH_TIME + _SPARE_TIME),
        )
        for event in events:
            if self._stopped:
                return
            kind, found = event["type"], event["object"]
            metadata = found.get("metadata") if isinstance(found, Mapping) else None
            if not isinstance(metadata, Mapping):
                raise Unavailable(f"{self._resource}: the API server tells of no object")
            self._at = str(metadata["resourceVersion"])
            if kind == "BOOKMARK":
                continue
            objects = dict(self._objects)
            objects.pop(metadata["name"], None)
            if kind != "DELETED":
                objects[metadata["name"]] = found
            self._objects = objects
            changed()

    def stop(self) -> None:
        """Have `step` return soon; from any thread."""
        self._stopped = True
        _cut(self._answer)


def _cut(answer: Any) -> None:
    """End the reading of an answer; the client's own way misses one that is about to begin."""
    connection = getattr(answer, "connection", None)
    if (used := getattr(connection, "sock", None)) is not None:
        with contextlib.suppress(OSError):  # it may have ended
            used.shutdown(socket.SHUT_RDWR)
