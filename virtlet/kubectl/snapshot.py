"""`kubectl virtlet snapshot`: a running VM is written to an archive on its node.

The kubelet has it written, which the API server reaches for those who may: POST
/api/v1/nodes/NODE/proxy/checkpoint/NAMESPACE/POD/CONTAINER (Kubernetes' kubelet checkpoint API).
"""

import click

from virtlet.cli.ending import CommandFailed
from virtlet.kubectl.cluster import Kubectl, Refused, with_cluster
from virtlet.kubectl.sessions import running


@click.command()
@click.option(
    "--timeout", type=click.IntRange(1), default=120, show_default=True, help="Seconds at most."
)
@click.argument("pod")
@with_cluster
def snapshot(kubectl: Kubectl, timeout: int, pod: str) -> None:
    """Write a running VM, memory and disk, to an archive on its node; it runs on.

    Prints the node and the archive's path there, which root alone can read: it holds all that the
    guest has in memory. It takes the right to `create` `nodes/proxy`.
    """
    found = kubectl.pod(pod)
    container, name = running(kubectl, found), found["metadata"]["name"]
    node = found["spec"]["nodeName"]
    path = ("checkpoint", kubectl.namespace, name, container)
    try:
        said = kubectl.post("api", "v1", "nodes", node, "proxy", *path, timeout=str(timeout))
        (archive,) = said["items"]
    except Refused as refused:
        why = {
            "Forbidden": "you may not: ask for the right to create nodes/proxy",
            "NotFound": "its kubelet has no checkpoints (feature gate ContainerCheckpoint), or "
            "does not know the pod",
        }.get(refused.reason, "")
        told = f"{why} ({refused})" if why else str(refused)
        raise CommandFailed(f"no snapshot of pod {kubectl.namespace}/{name}: {told}") from None
    except (KeyError, TypeError, ValueError):
        raise CommandFailed(
            f"node {node} names no archive of pod {kubectl.namespace}/{name}"
        ) from None
    click.echo(f"{node}:{archive}")
