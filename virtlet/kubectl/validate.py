"""`kubectl virtlet validate`: what a node would refuse, said before anybody asks one."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from virtlet.cli.findings import FAULT, NOTE, Finding, show
from virtlet.errors import VirtletError
from virtlet.model.bounded_yaml import load_documents
from virtlet.model.plain import UnquotedError

_TEMPLATES = {
    "CronJob": ("jobTemplate", "spec", "template"),
    **dict.fromkeys(
        ("DaemonSet", "Deployment", "Job", "ReplicaSet", "ReplicationController", "StatefulSet"),
        ("template",),
    ),
}
"""Kind to the way from its `spec` to a pod."""


@click.command()
@click.argument("manifests", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    default=None,
    help="A node's configuration, for its handlers; without it each is taken as known.",
)
@click.option(
    "--flavors",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=None,
    help="A directory of VirtletFlavors, one in each file.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def validate(
    manifests: tuple[str, ...], config: Path | None, flavors: Path | None, as_json: bool
) -> None:
    """Say what a node would refuse of the pods in YAML files; - is standard input.

    Pods of Deployments, Jobs and the like are looked at, too. No cluster is asked. Exit code 1
    says that there is a fault.
    """
    sys.exit(0 if show(_findings(manifests, config, flavors), as_json=as_json) else 1)


def _findings(
    manifests: tuple[str, ...], config: Path | None, flavors: Path | None
) -> Iterator[Finding]:
    # The manager's modules take a second.
    from virtlet.kubectl.judge import offline_judge

    try:
        with offline_judge(config, flavors) as judge:
            for file in manifests:
                for name, pod in _pods(file):
                    if isinstance(pod, Finding):
                        yield pod
                    else:
                        yield from judge.look_at(name, pod)
    except VirtletError as error:
        yield Finding("configuration", FAULT, str(error))


def _pods(file: str) -> Iterator[tuple[str, Mapping[str, Any] | Finding]]:
    """(name, pod) of every pod in a file, or what is wrong with it."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
        documents = [one for one in load_documents(text) if one is not None]
    except OSError as error:
        yield "", Finding(file, FAULT, str(error.strerror))
        return
    except (UnicodeDecodeError, UnquotedError) as error:
        what = str(error) if isinstance(error, UnquotedError) else "is not UTF-8 text"
        yield "", Finding(file, FAULT, what)
        return
    found = [pod for document in documents for pod in pods_of(document)]
    if not found:
        yield "", Finding(file, NOTE, "holds no pods")
    for name, pod in found:
        yield f"{file}: {name}", pod


def pods_of(document: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(name, pod) of every pod that an object is, holds or makes."""
    if not isinstance(document, Mapping):
        return
    kind, meta, spec = (document.get(key) for key in ("kind", "metadata", "spec"))
    meta = meta if isinstance(meta, Mapping) else {}
    named = str(meta.get("name") or meta.get("generateName") or "")
    if kind == "Pod":
        yield named or "no name", {**document, "metadata": {"name": named, **meta}}
    elif kind == "List":
        for item in document.get("items") or ():
            yield from pods_of(item)
    elif kind in _TEMPLATES:
        template: Any = spec
        for key in _TEMPLATES[kind]:
            template = template.get(key) if isinstance(template, Mapping) else None
        if isinstance(template, Mapping):
            own = template.get("metadata")
            head = {"name": named, "namespace": meta.get("namespace") or "default"}
            whole = {**head, **(own if isinstance(own, Mapping) else {})}
            yield f"{kind} {named or 'no name'}", {"kind": "Pod", **template, "metadata": whole}
