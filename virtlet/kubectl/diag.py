"""`kubectl virtlet diag dump`: what a report of trouble needs of a cluster, without secrets."""

import contextlib
import io
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import click

import virtlet
from virtlet.cli import archive
from virtlet.cli.archive import Archive, kept_annotations
from virtlet.cli.ending import CommandFailed
from virtlet.kubectl.cluster import NO_KUBECTL, NODE_LABEL, Kubectl, Refused, with_cluster
from virtlet.kubectl.views import MANAGERS, vm_pods

SYSTEM = "kube-system"
_LINES = 5000
_LARGEST_NODE = 64 << 20
"""Bytes of a node's archive, packed and of each text in it."""
_PATIENCE = 300.0
"""Seconds for one kubectl."""
_NOTICE = re.compile(r"^\[virtlet: .*", re.M)
_OWN_KINDS = ("virtletflavors", "virtletimagemappings", "virtletconfigmappings")


@click.group()
def diag() -> None:
    """Collect what a report of trouble needs."""


@diag.command()
@click.argument("file", default="")
@click.option("-A", "--all-namespaces", "everywhere", is_flag=True, help="VMs of all namespaces.")
@click.option(
    "--consoles",
    is_flag=True,
    help="With what guests print, of which nobody knows whether it is secret.",
)
@with_cluster
def dump(kubectl: Kubectl, file: str, everywhere: bool, consoles: bool) -> None:
    """Write an archive (tar.gz) of VM pods, nodes and managers; - is standard output.

    What you may not read is not in it, and `problems.txt` says so. There is no user-data,
    environment, key or token in it: of pods the fields that hold none, annotations by their names,
    what looks like a secret not at all. Read it all the same before you give it away: names of
    pods, images, addresses and nodes are in it.
    """
    name = file or archive.default_name("cluster")
    with archive.create(name, sys.stdout.buffer) as output:
        made = Archive(output, "virtlet-diag-cluster")
        _cluster(made, kubectl)
        _vms(made, kubectl, everywhere, consoles)
        _managers(made, kubectl.elsewhere(SYSTEM))
        made.close()
    for problem in made.problems:
        click.echo(f"not in it: {problem}", err=True)
    if name != "-":
        click.echo(name)


def _cluster(made: Archive, kubectl: Kubectl) -> None:
    made.write("versions.json", {"client": virtlet.__version__})
    made.add("cluster.json", lambda: kubectl.get("version"))
    made.add(
        "nodes.json",
        lambda: [_node(one) for one in kubectl.get("api", "v1", "nodes")["items"]],
    )
    for plural in _OWN_KINDS:
        made.add(f"{plural}.json", partial(_own, kubectl, plural))


def _own(kubectl: Kubectl, plural: str) -> list[Any] | None:
    """Objects of a kind of ours; None in a cluster that does not know it."""
    try:
        found = kubectl.get("apis", "virtlet.k8s", "v1", plural)["items"]
    except Refused as error:
        if error.reason == "NotFound":
            return None
        raise
    return [{"name": one["metadata"]["name"], "spec": one.get("spec")} for one in found]


def _vms(made: Archive, kubectl: Kubectl, everywhere: bool, consoles: bool) -> None:
    pods: list[Mapping[str, Any]] = []
    made.add("vms.txt", lambda: pods.extend(vm_pods(kubectl, everywhere=everywhere)))
    for pod in pods:
        meta = pod["metadata"]
        place = f"vms/{meta['namespace']}/{meta['name']}"
        there = kubectl.elsewhere(meta["namespace"])
        made.write(f"{place}/pod.json", shown_pod(pod))
        uid = f"involvedObject.uid={meta['uid']}"
        made.add(f"{place}/events.json", partial(_events, there, uid))
        for container in pod["spec"]["containers"]:
            words = ("logs", meta["name"], f"--container={container['name']}", f"--tail={_LINES}")
            for which in ((), ("--previous",)):
                if which and not _restarted(pod):
                    continue
                say = _said(there, *words, *which)
                file = f"{place}/{container['name']}{'.previous' if which else ''}"
                if consoles:
                    made.add(f"{file}.console.log", say)
                else:
                    made.add(f"{file}.notices.log", partial(_notices, say))


def _events(kubectl: Kubectl, which: str) -> list[dict[str, Any]]:
    found = kubectl.in_namespace("events", fieldSelector=which)["items"]
    kept = ("type", "reason", "message", "count", "firstTimestamp", "lastTimestamp", "source")
    return [{key: one[key] for key in kept if key in one} for one in found]


def _notices(say: Callable[[], str]) -> str:
    """Lines of a log that the manager wrote, or a guest that pretends to."""
    return "\n".join(_NOTICE.findall(say()))


def _managers(made: Archive, kubectl: Kubectl) -> None:
    """Logs of the DaemonSet's pods, and what each says of its node, where exec is allowed."""
    pods: list[Mapping[str, Any]] = []

    def find() -> None:
        pods.extend(kubectl.in_namespace("pods", labelSelector=MANAGERS)["items"])

    made.add("managers.json", find)
    for pod in pods:
        name = pod["metadata"]["name"]
        place = f"nodes/{pod['spec'].get('nodeName', name)}"
        made.write(f"{place}/manager.json", shown_pod(pod))
        logs = ("logs", name, "--container=virtlet", f"--tail={_LINES}")
        made.add(f"{place}/manager.log", _said(kubectl, *logs))
        if _restarted(pod):
            made.add(f"{place}/manager.previous.log", _said(kubectl, *logs, "--previous"))
        made.add(f"{place}/node", partial(_of_node, made, kubectl, pod, place))


def _of_node(made: Archive, kubectl: Kubectl, pod: Mapping[str, Any], place: str) -> None:
    """Add what `virtlet diag dump` of a node says, by kubectl exec."""
    args = next((c.get("args") or [] for c in pod["spec"]["containers"]), [])
    config = args[args.index("--config") :][:2] if "--config" in args else []
    words = ("exec", pod["metadata"]["name"], "--container=virtlet", "--", "virtlet", "diag")
    packed = _run(kubectl, *words, "dump", *config, "-")
    if len(packed) > _LARGEST_NODE:
        raise CommandFailed("the node's archive is too large")
    try:
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r|gz") as tar:
            for entry in tar:
                file = tar.extractfile(entry) if entry.isfile() else None
                if file is not None and entry.size <= _LARGEST_NODE:
                    name = re.sub(r"[^\w.-]", "_", entry.name.partition("/")[2]).lstrip(".")
                    made.write(f"{place}/{name}", _read(name, file.read()))
    except tarfile.TarError as error:
        raise CommandFailed(f"the node's archive cannot be read: {error}") from None


def _read(name: str, data: bytes) -> Any:
    """A document where it is one, else a text."""
    if name.endswith(".json"):
        with contextlib.suppress(ValueError):
            return json.loads(data)
    return data.decode(errors="replace")


def _said(kubectl: Kubectl, *words: str) -> Callable[[], str]:
    """What gives what a kubectl prints as text."""
    return lambda: _run(kubectl, *words).decode(errors="replace")


def _run(kubectl: Kubectl, *words: str) -> bytes:
    """What a kubectl prints.

    Raises:
        CommandFailed: it fails, or does not end.
    """
    try:
        ended = subprocess.run(
            kubectl.argv(*words), stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE
        )
    except FileNotFoundError:
        raise CommandFailed(NO_KUBECTL) from None
    except subprocess.TimeoutExpired:
        raise CommandFailed(f"kubectl {words[0]} did not end in {_PATIENCE:.0f} s") from None
    if ended.returncode != 0:
        raise CommandFailed(ended.stderr.decode(errors="replace").strip()[:500])
    return ended.stdout


def _restarted(pod: Mapping[str, Any]) -> bool:
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    return any(one.get("restartCount") for one in statuses)


def _node(node: Mapping[str, Any]) -> dict[str, Any]:
    meta, status = node["metadata"], node.get("status") or {}
    return {
        "name": meta["name"],
        "vms": (meta.get("labels") or {}).get(NODE_LABEL) == "true",
        "labels": meta.get("labels"),
        "taints": (node.get("spec") or {}).get("taints"),
        **_only(status, "nodeInfo", "conditions", "capacity", "allocatable"),
    }


def shown_pod(pod: Mapping[str, Any]) -> dict[str, Any]:
    """A pod by the fields that hold no secret; a new field of Kubernetes is not among them."""
    meta, spec, status = pod["metadata"], pod["spec"], pod.get("status") or {}
    kept = ("name", "namespace", "uid", "labels", "creationTimestamp", "deletionTimestamp")
    return {
        "metadata": {
            **_only(meta, *kept),
            "annotations": kept_annotations(meta.get("annotations") or {}),
            "ownerReferences": [
                _only(one, "kind", "name") for one in meta.get("ownerReferences") or ()
            ],
        },
        "spec": {
            **_only(
                spec,
                *("nodeName", "runtimeClassName", "restartPolicy", "hostNetwork", "overhead"),
                *("terminationGracePeriodSeconds", "nodeSelector", "tolerations", "resources"),
            ),
            "volumes": [_volume(one) for one in spec.get("volumes") or ()],
            **{
                kind: [_container(one) for one in spec.get(kind) or ()]
                for kind in ("initContainers", "containers")
            },
        },
        "status": {
            **_only(status, "phase", "reason", "message", "podIP", "podIPs", "qosClass"),
            **_only(status, "conditions", "startTime"),
            **{
                kind: [_state(one, _tells_logs(spec)) for one in status.get(kind) or ()]
                for kind in ("initContainerStatuses", "containerStatuses")
            },
        },
    }


def _container(one: Mapping[str, Any]) -> dict[str, Any]:
    probes = {
        kind: {
            "by": next((by for by in ("exec", "httpGet", "tcpSocket", "grpc") if by in found), ""),
            **{key: number for key, number in found.items() if isinstance(number, int)},
        }
        for kind in ("startupProbe", "livenessProbe", "readinessProbe")
        if (found := one.get(kind))
    }
    return {
        **_only(one, "name", "image", "imagePullPolicy", "resources", "ports", "stdin", "tty"),
        **_only(one, "volumeMounts", "volumeDevices"),
        "env": [each.get("name") for each in one.get("env") or ()],
        "has": [key for key in ("command", "args", "envFrom", "lifecycle") if one.get(key)],
        **probes,
    }


def _volume(one: Mapping[str, Any]) -> dict[str, Any]:
    """A volume's kind and the object that it names; options of drivers may be secret."""
    kind = next((key for key in one if key != "name"), "")
    found = one.get(kind) or {}
    names = ("name", "secretName", "claimName", "driver", "path", "sizeLimit", "reference")
    return {"name": one.get("name"), "kind": kind, **_only(found, *names)}


def _state(one: Mapping[str, Any], tells_logs: bool) -> dict[str, Any]:
    """A container's status; its message may be the end of its log."""
    hidden = {"message"} if tells_logs else set()
    return {
        **_only(one, "name", "ready", "started", "restartCount", "image", "imageID", "containerID"),
        **{
            key: {
                kind: {k: v for k, v in (found or {}).items() if k not in hidden}
                for kind, found in (one.get(key) or {}).items()
            }
            for key in ("state", "lastState")
        },
    }


def _tells_logs(spec: Mapping[str, Any]) -> bool:
    containers = [*(spec.get("initContainers") or ()), *spec["containers"]]
    return any(c.get("terminationMessagePolicy") == "FallbackToLogsOnError" for c in containers)


def _only(found: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: found[name] for name in _named(found, names)}


def _named(found: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    return [name for name in names if name in found]
