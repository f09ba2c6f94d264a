"""A manifest that is to be started: looked at as a node would, before the cluster is asked."""

import re
from collections.abc import Mapping
from typing import Any

from virtlet.cli.findings import FAULT
from virtlet.errors import VirtletError
from virtlet.kubectl.validate import pods_of
from virtlet.model.bounded_yaml import load_documents
from virtlet.model.plain import UnquotedError

_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class NotStarted(Exception):
    """The manifest is not sent to the cluster; says why."""


def checked(text: bytes, namespace: str) -> tuple[str, Mapping[str, Any]]:
    """The pod of a manifest, and its namespace.

    Args:
        text: YAML of one pod.
        namespace: of a pod that says none; "" for the default one.

    Raises:
        NotStarted: it is no manifest of one pod, or a node would refuse it.
    """
    # The manager's modules take a second.
    from virtlet.kubectl.judge import offline_judge

    try:
        documents = [one for one in load_documents(text.decode()) if one is not None]
    except (UnicodeDecodeError, UnquotedError) as error:
        what = str(error) if isinstance(error, UnquotedError) else "is not UTF-8 text"
        raise NotStarted(f"the manifest {what}") from None
    pods = [found for document in documents for found in pods_of(document)]
    if len(documents) != 1 or len(pods) != 1 or documents[0].get("kind") != "Pod":
        raise NotStarted("the console starts one object of kind Pod; kubectl apply takes others")
    [(name, pod)] = pods
    where = str(pod["metadata"].get("namespace") or namespace or "default")
    if not _NAMESPACE.fullmatch(where):
        raise NotStarted(f"{where!r} is no name of a namespace")
    try:
        with offline_judge(None, None) as judge:
            faults = [one for one in judge.look_at(name, pod) if one.level == FAULT]
    except VirtletError as error:
        raise NotStarted(str(error)) from None
    if faults:
        raise NotStarted("a node would refuse it: " + "; ".join(one.found for one in faults))
    return where, documents[0]
