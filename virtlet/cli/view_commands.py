"""The commands that look: ps, logs, inspect, stats, events, info."""

import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import grpc

from virtlet.cli.attended import AttendedClient
from virtlet.cli.client import CallFailed, Client, follow_log
from virtlet.cli.output import (
    document_option,
    output_option,
    plain,
    print_document,
    print_list,
    print_table,
    unfolded,
)
from virtlet.cli.targets import newest_vm, pod_argument, pod_id, socket_option
from virtlet.cri import api_pb2 as cri

_SECOND = 1_000_000_000
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@click.command()
@click.option("-n", "--namespace", default="", help="Pods of this namespace alone.")
@click.option(
    "--state",
    type=click.Choice(["ready", "notready"]),
    default=None,
    help="Pods in this state alone.",
)
@click.option("-q", "--quiet", is_flag=True, help="Show the pods' ids alone.")
@output_option
@socket_option
def ps(namespace: str, state: str | None, quiet: bool, output: str, socket: str) -> None:
    """List pods and their VMs."""
    with AttendedClient(socket) as client:
        pods = [
            pod
            for pod in client.pods()
            if namespace in ("", pod.metadata.namespace) and state in (None, _state(pod).lower())
        ]
        if quiet:
            for pod in pods:
                click.echo(pod.id)
            return

        def table() -> None:
            titles = (
                "POD",
                "NAMESPACE/NAME",
                "STATE",
                "VM",
                "ATTEMPT",
                "STATE",
                "REASON",
                "IP",
                "AGE",
            )
            containers = client.containers()
            rows: list[list[str]] = []
            for pod in pods:
                ip = client.pod_status(pod.id).network.ip
                mine: list[cri.Container | None] = [
                    c for c in containers if c.pod_sandbox_id == pod.id
                ]
                rows += [_row(client, pod, container, ip) for container in mine or [None]]
            print_table(titles, rows)

        print_list(pods, output, "items", table)


def _row(
    client: Client, pod: cri.PodSandbox, container: cri.Container | None, ip: str
) -> list[str]:
    age = f"{max(0, time.time_ns() - pod.created_at) // _SECOND} s"
    name = f"{pod.metadata.namespace}/{pod.metadata.name}"
    if container is None:
        return [pod.id[:12], name, _state(pod), "", "", "", "", ip, age]
    vm_state = cri.ContainerState.Name(container.state).removeprefix("CONTAINER_")
    attempt = str(container.metadata.attempt)
    vm = [container.metadata.name, attempt, vm_state, _reason(client, container)]
    return [pod.id[:12], name, _state(pod), *vm, ip, age]


def _reason(client: Client, container: cri.Container) -> str:
    """Why a VM is in its state, in a word, and its exit code; `inspect` has the message."""
    try:
        status = client.status(container.id)
    except CallFailed as error:
        if error.code is grpc.StatusCode.NOT_FOUND:  # removed since it was listed
            return ""
        raise
    ended = status.state == cri.CONTAINER_EXITED
    return f"{status.reason} ({status.exit_code})" if ended else str(status.reason)


def _state(pod: cri.PodSandbox) -> str:
    return cri.PodSandboxState.Name(pod.state).removeprefix("SANDBOX_")


@click.command()
@pod_argument("pod")
@click.option("-f", "--follow", is_flag=True, help="Go on until the VM ends.")
@click.option("--tail", type=click.IntRange(min=0), default=None, help="The last lines alone.")
@click.option(
    "--since", default="", help="Not older than 90s, 10m, 3h or 2d, or than a time of RFC 3339."
)
@socket_option
def logs(pod: str, follow: bool, tail: int | None, since: str, socket: str) -> None:
    """Show the console of a pod's VM (its newest attempt)."""
    begin = _moment(since)
    with AttendedClient(socket) as client:
        container = newest_vm(client, pod_id(client, pod))
        path = client.status(container.id).log_path
        if not path:
            raise click.ClickException("this pod asked for no log")

        def ended() -> bool:
            try:
                return client.status(container.id).state == cri.CONTAINER_EXITED
            except CallFailed:
                return True

        lines = follow_log(Path(path), follow=follow, ended=ended, tail=tail, since=begin)
        for payload in lines:
            sys.stdout.buffer.write(payload)
            sys.stdout.buffer.flush()


def _moment(text: str) -> str:
    """A moment as lines of a log begin with it, for comparison; "" is before all.

    Raises:
        click.BadParameter: it is neither a span nor a time.
    """
    if not text:
        return ""
    try:
        if text[-1] in _UNITS:
            moment = datetime.now(UTC) - timedelta(seconds=float(text[:-1]) * _UNITS[text[-1]])
        else:
            moment = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is neither a span such as 10m nor a time such as 2026-01-31T12:00:00Z",
            param_hint="--since",
        ) from None
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f")


@click.command()
@pod_argument("pod")
@document_option
@socket_option
def inspect(pod: str, output: str, socket: str) -> None:
    """Show all that the manager tells of a pod and its VMs."""
    with AttendedClient(socket) as client:
        chosen = pod_id(client, pod)
        request = cri.PodSandboxStatusRequest(pod_sandbox_id=chosen, verbose=True)
        status = client.call("PodSandboxStatus", request)
        vms = [
            client.call(
                "ContainerStatus", cri.ContainerStatusRequest(container_id=vm.id, verbose=True)
            )
            for vm in client.containers(chosen)
        ]
    document = {
        "status": plain(status.status),
        "info": unfolded(status.info),
        "containers": [{"status": plain(v.status), "info": unfolded(v.info)} for v in vms],
    }
    print_document(document, output)


@click.command()
@click.option("-w", "--watch", is_flag=True, help="Show them again every five seconds.")
@output_option
@socket_option
def stats(watch: bool, output: str, socket: str) -> None:
    """Show what each VM consumes: CPU, memory and disk."""
    with AttendedClient(socket) as client:
        while True:
            request = cri.ListContainerStatsRequest(filter=cri.ContainerStatsFilter())
            found = list(client.call("ListContainerStats", request).stats)
            pods = {pod.id: pod for pod in client.pods()} if output == "table" else {}
            owners = {c.id: pods.get(c.pod_sandbox_id) for c in client.containers()}
            print_list(found, output, "stats", lambda: _consumption(found, owners))  # noqa: B023
            if not watch:
                return
            time.sleep(5)
            click.echo()


def _consumption(found: list[cri.ContainerStats], owners: dict[str, cri.PodSandbox | None]) -> None:
    rows = []
    for one in found:
        pod = owners.get(one.attributes.id)
        owner = f"{pod.metadata.namespace}/{pod.metadata.name}" if pod else ""
        cores = one.cpu.usage_nano_cores.value / _SECOND
        memory = one.memory.working_set_bytes.value / (1 << 20)
        disk = one.writable_layer.used_bytes.value / (1 << 20)
        name = one.attributes.metadata.name
        rows.append((owner, name, f"{cores:.2f}", f"{memory:.1f} MiB", f"{disk:.1f} MiB"))
    print_table(("NAMESPACE/NAME", "VM", "CORES", "MEMORY", "DISK"), rows)


@click.command()
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table")
@socket_option
def events(output: str, socket: str) -> None:
    """Show what happens to pods and VMs from now on, until Ctrl-C."""
    with AttendedClient(socket) as client:
        for event in _events(client):
            if output == "json":
                click.echo(json.dumps(plain(event)))
                continue
            at = datetime.fromtimestamp(event.created_at / _SECOND, UTC)
            kind = cri.ContainerEventType.Name(event.container_event_type)
            meta = event.pod_sandbox_status.metadata
            vm = next(
                (s.metadata.name for s in event.containers_statuses if s.id == event.container_id),
                "",
            )
            subject = f"{meta.namespace}/{meta.name}" if meta.name else event.container_id[:12]
            kind = kind.removeprefix("CONTAINER_").removesuffix("_EVENT").lower()
            click.echo(f"{at:%H:%M:%S}  {kind:<8} {subject} {vm}".rstrip())


def _events(client: Client) -> Iterator[cri.ContainerEventResponse]:
    try:
        yield from client.runtime.GetContainerEvents(cri.GetEventsRequest())
    except grpc.RpcError as error:
        raise CallFailed("GetContainerEvents", error) from None


@click.command()
@document_option
@socket_option
def info(output: str, socket: str) -> None:
    """Show versions, conditions, handlers, and what the images take."""
    with AttendedClient(socket) as client:
        version = client.call("Version", cri.VersionRequest())
        status = client.call("Status", cri.StatusRequest(verbose=True))
        images = client.call("ImageFsInfo", cri.ImageFsInfoRequest())
    document: dict[str, Any] = {
        "version": plain(version),
        **plain(status),
        "info": unfolded(status.info),
        "images": plain(images),
    }
    print_document(document, output)
