"""The commands that look: vms, top, flavors, version."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import click

import virtlet
from virtlet.cli.output import print_document, print_table
from virtlet.kubectl.cluster import NODE_LABEL, Kubectl, Refused, with_cluster
from virtlet.model.quantity import parse_quantity

MANAGERS = "app.kubernetes.io/name=virtlet"
"""The label of the pods of the DaemonSet in deploy/cluster."""
_output = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "yaml"]),
    default="table",
    show_default=True,
    help="How it is shown; JSON and YAML are the API server's.",
)
_all = click.option("-A", "--all-namespaces", "everywhere", is_flag=True, help="Of all namespaces.")


@click.command()
@_all
@_output
@with_cluster
def vms(kubectl: Kubectl, everywhere: bool, output: str) -> None:
    """List VM pods."""
    found = vm_pods(kubectl, everywhere=everywhere)
    titles = ("NAMESPACE", "NAME", "PHASE", "READY", "RESTARTS", "IP", "NODE", "CLASS", "AGE")
    _show(output, found, titles, _vm_row)


def _vm_row(pod: Mapping[str, Any]) -> list[str]:
    meta, spec, status = pod["metadata"], pod["spec"], pod.get("status") or {}
    statuses = status.get("containerStatuses") or [{}]
    reasons = [s.get("reason") for s in (statuses[0].get("state") or {}).values() if s]
    return [
        meta["namespace"],
        meta["name"],
        next((reason for reason in reasons if reason), None) or status.get("phase", ""),
        "yes" if statuses[0].get("ready") else "no",
        str(statuses[0].get("restartCount", 0)),
        status.get("podIP", ""),
        spec.get("nodeName", ""),
        spec.get("runtimeClassName", ""),
        _age(meta.get("creationTimestamp", "")),
    ]


@click.command()
@_all
@_output
@with_cluster
def top(kubectl: Kubectl, everywhere: bool, output: str) -> None:
    """Show what VMs consume, as the cluster's metrics server knows it."""
    names = {_key(pod): pod for pod in vm_pods(kubectl, everywhere=everywhere)}
    place = () if everywhere else ("namespaces", kubectl.namespace)
    try:
        found = kubectl.get("apis", "metrics.k8s.io", "v1beta1", *place, "pods")["items"]
    except Refused as error:
        if error.reason in ("NotFound", "ServiceUnavailable"):
            raise Refused(
                "the cluster has no metrics server, which `kubectl top` needs as well: install "
                "one, or ask the node (`virtlet stats`)",
                error.reason,
            ) from None
        raise
    mine = [one for one in found if _key(one) in names]
    titles = ("NAMESPACE", "NAME", "CPU", "OF", "MEMORY", "OF", "NODE")
    _show(output, mine, titles, lambda one: _top_row(one, names[_key(one)]))


def _top_row(one: Mapping[str, Any], pod: Mapping[str, Any]) -> list[str]:
    def used(kind: str) -> float:
        usages = (container.get("usage") or {} for container in one.get("containers") or ())
        return float(sum(parse_quantity(str(usage.get(kind, 0))) for usage in usages))

    limits = (pod["spec"]["containers"][0].get("resources") or {}).get("limits") or {}
    return [
        one["metadata"]["namespace"],
        one["metadata"]["name"],
        f"{used('cpu') * 1000:.0f}m",
        str(limits.get("cpu", "")),
        f"{used('memory') / (1 << 20):.0f}Mi",
        str(limits.get("memory", "")),
        pod["spec"].get("nodeName", ""),
    ]


@click.command()
@_output
@with_cluster
def flavors(kubectl: Kubectl, output: str) -> None:
    """List VirtletFlavors, the machines with names."""
    try:
        found = kubectl.get("apis", "virtlet.k8s", "v1", "virtletflavors")["items"]
    except Refused as error:
        if error.reason == "NotFound":
            raise Refused(
                "the cluster does not know VirtletFlavors: apply deploy/cluster/virtletflavor.yaml",
                error.reason,
            ) from None
        raise
    titles = ("NAME", "VCPUS", "MEMORY", "FIRMWARE", "DISKS", "HANDLERS", "NAMESPACES", "ABOUT")
    _show(output, found, titles, _flavor_row)


def _flavor_row(one: Mapping[str, Any]) -> list[str]:
    spec = one.get("spec") or {}
    machine = spec.get("flavor") or {}
    most = f" to {machine['max_vcpus']}" if "max_vcpus" in machine else ""
    return [
        one["metadata"]["name"],
        f"{machine.get('vcpus', 1)}{most}",
        str(machine.get("memory", "")),
        str(machine.get("firmware", "")),
        str(machine.get("disk_bus", "")),
        ",".join(spec.get("handlers") or ()),
        ",".join(spec.get("allowedNamespaces") or ("all",)),
        spec.get("description", ""),
    ]


@click.command()
@click.option("--client", is_flag=True, help="This client's alone, without a cluster.")
@with_cluster
def version(kubectl: Kubectl, client: bool) -> None:
    """Show the versions of this client, the cluster and its nodes.

    A node's is that of the DaemonSet's image; one with the package says it itself
    (`virtlet --version`).
    """
    click.echo(f"client   {virtlet.__version__}")
    if client:
        return
    click.echo(f"cluster  {kubectl.get('version').get('gitVersion', 'unknown')}")
    try:
        found = kubectl.get("api", "v1", "nodes", labelSelector=f"{NODE_LABEL}=true")["items"]
    except Refused as error:
        if error.reason != "Forbidden":
            raise
        click.echo("nodes    not shown: you may not list nodes")
        return
    managers = _managers(kubectl)
    rows = []
    for node in found:
        name, told = node["metadata"]["name"], node["status"]["nodeInfo"]
        image = managers.get(name, "not told")
        rows.append((name, image, told["kubeletVersion"], told["containerRuntimeVersion"]))
    if rows:
        print_table(("NODE", "VIRTLET", "KUBELET", "RUNTIME"), rows)
    else:
        click.echo(f"nodes    none has the label {NODE_LABEL}=true")


def _managers(kubectl: Kubectl) -> dict[str, str]:
    """Node to the tag of its manager's image, as far as they may be read."""
    place = ("api", "v1", "namespaces", "kube-system", "pods")
    try:
        found = kubectl.get(*place, labelSelector=MANAGERS)["items"]
    except Refused:
        return {}
    return {
        pod["spec"].get("nodeName", ""): pod["spec"]["containers"][0]["image"].rpartition("/")[2]
        for pod in found
    }


def vm_pods(kubectl: Kubectl, *, everywhere: bool = False) -> list[Mapping[str, Any]]:
    """The pods that are VMs."""
    pods = kubectl.get("api", "v1", "pods") if everywhere else kubectl.in_namespace("pods")
    return [pod for pod in pods["items"] if kubectl.is_vm(pod)]


def _key(one: Mapping[str, Any]) -> tuple[str, str]:
    return one["metadata"]["namespace"], one["metadata"]["name"]


def _show(
    output: str,
    found: list[Mapping[str, Any]],
    titles: tuple[str, ...],
    row: Callable[[Mapping[str, Any]], list[str]],
) -> None:
    if output == "table":
        print_table(titles, map(row, found))
    else:
        print_document({"apiVersion": "v1", "kind": "List", "items": found}, output)


def _age(created: str) -> str:
    try:
        seconds = int((datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds())
    except ValueError:
        return ""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{max(seconds, 0)}s"
