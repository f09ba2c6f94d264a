"""The rule of each method. Methods that are not in the table follow `unknown`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from criproxy.methods import BY_NAME, BY_PATH, Method
from criproxy.routes.merged_events import MergedEvents
from criproxy.routes.merged_list import Filtered, MergedList, MergedMetrics, filesystems, united
from criproxy.routes.merged_stream import UNARY, MergedStream
from criproxy.routes.new_pod import Chooser, NewPod
from criproxy.routes.node_calls import MergedStatus, ToEveryone, ToPrimary
from criproxy.routes.one_image import ImageRouter, OneImage
from criproxy.routes.one_runtime import ID_FIELDS, ById, Unknown
from criproxy.rpc.incoming import ServerCall
from criproxy.runtimes.availability import refuse_own
from criproxy.runtimes.owners import Owners
from criproxy.runtimes.runtime import Runtime
from criproxy.streaming_urls import StreamUrls

Rule = Callable[[ServerCall, Method], None]


class Table:
    """Routes calls.

    Args:
        runtimes: the primary first.
        urls: makes relative streaming URLs reachable.
        identity: of this proxy; a call that carries it came through a loop.
    """

    def __init__(self, runtimes: Sequence[Runtime], urls: StreamUrls, identity: bytes) -> None:
        owners = Owners(runtimes)
        self._identity = identity
        self._unknown = Unknown(owners)
        self.rules: Mapping[str, Rule] = _rules(owners, urls)

    def route(self, call: ServerCall) -> None:
        """Start answering a call.

        Raises:
            RpcError: when it cannot be routed.
        """
        refuse_own(call.headers, self._identity)
        method = BY_PATH.get(call.path)
        if method is None or method.name not in self.rules:
            self._unknown(call)
        else:
            self.rules[method.name](call, method)


def _rules(owners: Owners, urls: StreamUrls) -> Mapping[str, Rule]:
    chooser = Chooser(owners)
    images = ImageRouter(owners, chooser)
    filtered = Filtered(owners, images)

    by_id = ById(owners, urls)
    new_pod = NewPod(chooser)
    one_image = OneImage(images)
    merged = MergedList(filtered)
    descriptors = MergedList(filtered, united("descriptors", "name"))
    stream = MergedStream(filtered)
    primary = ToPrimary(owners)

    rules: dict[str, Rule] = {
        "Version": primary,
        "RuntimeConfig": primary,
        "UpdateRuntimeConfig": ToEveryone(owners),
        "Status": MergedStatus(owners),
        "RunPodSandbox": new_pod,
        "RestorePod": new_pod,
        "ListPodSandbox": merged,
        "ListContainers": merged,
        "ListContainerStats": merged,
        "ListPodSandboxStats": merged,
        "ListPodSandboxMetrics": MergedMetrics(owners),
        "ListMetricDescriptors": descriptors,
        "ListImages": merged,
        "ImageFsInfo": MergedList(filtered, filesystems),
        "GetContainerEvents": MergedEvents(owners),
        "PullImage": one_image,
        "ImageStatus": one_image,
        "RemoveImage": one_image,
        **dict.fromkeys(ID_FIELDS, by_id),
        **dict.fromkeys(UNARY, stream),
    }
    return {name: rule for name, rule in rules.items() if name in BY_NAME}
