"""`kubectl virtlet gen`: the manifest of a VM pod, to begin with, or those of the cluster."""

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
import yaml

_file = click.Path(path_type=Path, dir_okay=False, exists=True)
_NODE_IMAGE = re.compile(r"(\bimage: )localhost/virtlet-node:\S+")
_IMAGE_NAME = re.compile(r"[a-z0-9][-a-z0-9._:/]*[a-z0-9](:[\w.-]+)?(@sha256:[0-9a-f]{64})?", re.A)


@click.command()
@click.argument("name", required=False)
@click.option("--image", default="", help="As the pod names it: a disk image.")
@click.option("--cpu", default="1", show_default=True, help="CPU limit.")
@click.option("--memory", default="1Gi", show_default=True, help="Memory limit: the guest's RAM.")
@click.option("--class", "runtime", default="virtlet", show_default=True, help="RuntimeClass.")
@click.option("--flavor", default="", help="VirtletFlavor, a machine with a name.")
@click.option("--root-size", default="", help="Size of the root disk, 20Gi say.")
@click.option("--ssh-key", type=_file, default=None, help="File of public keys for the user.")
@click.option("--user-data", type=_file, default=None, help="File of a cloud-config document.")
@click.option("-n", "--namespace", default="", help="Of the pod.")
@click.option("--node-image", default="", help="Without NAME: the image of a node's parts.")
def gen(
    name: str | None,
    image: str,
    cpu: str,
    memory: str,
    runtime: str,
    flavor: str,
    root_size: str,
    ssh_key: Path | None,
    user_data: Path | None,
    namespace: str,
    node_image: str,
) -> None:
    """Write the manifest of the VM pod NAME to standard output, or without NAME the cluster's.

    The pod's console can be attached to. What is in it is not looked at: `kubectl virtlet validate
    -` does that.

    The cluster's manifests install Virtlet on the nodes with the label virtlet.cloud/node=true;
    they are what `kubectl apply -k deploy/cluster` of a checkout applies.
    """
    if name is None:
        if image:
            raise click.UsageError("--image is of a pod: give its NAME, or use --node-image")
        click.echo(cluster_manifests(node_image), nl=False)
        return
    if node_image:
        raise click.UsageError("--node-image is of the cluster's manifests, which have no NAME")
    if not image:
        raise click.UsageError("a pod has a disk image: give its name by --image")
    said = {
        "VirtletFlavor": flavor,
        "VirtletRootVolumeSize": root_size,
        "VirtletSSHKeys": _text(ssh_key),
        "VirtletCloudInitUserData": _text(user_data),
    }
    limits = {"cpu": cpu, "memory": memory}
    click.echo(manifest(name, image, limits, runtime, said, namespace), nl=False)


def cluster_manifests(node_image: str = "") -> str:
    """What installs Virtlet on the nodes of a cluster, in YAML.

    Args:
        node_image: name of the container image of a node's parts; "" for the one of `make image`.

    Raises:
        UsageError: it is no name of an image.
    """
    text = (files(__package__) / "manifests" / "cluster.yaml").read_text()
    if not node_image:
        return text
    if not _IMAGE_NAME.fullmatch(node_image):
        raise click.UsageError(f"--node-image {node_image!r}: is no name of a container image")
    return _NODE_IMAGE.sub(rf"\g<1>{node_image}", text)


def manifest(
    name: str,
    image: str,
    limits: Mapping[str, str],
    runtime: str,
    annotations: Mapping[str, str],
    namespace: str,
) -> str:
    """A VM pod in YAML.

    Args:
        name: of the pod.
        image: as the pod names it.
        limits: resource to quantity.
        runtime: RuntimeClass.
        annotations: those that say nothing ("") are left out.
        namespace: "" for none.
    """
    metadata: dict[str, Any] = {"name": name}
    if namespace:
        metadata["namespace"] = namespace
    if said := {key: value for key, value in annotations.items() if value}:
        metadata["annotations"] = said
    vm = {
        "name": "vm",
        "image": image,
        "stdin": True,
        "tty": True,
        "resources": {"limits": dict(limits)},
    }
    spec = {"runtimeClassName": runtime, "containers": [vm]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    return yaml.safe_dump(pod, sort_keys=False)


def _text(file: Path | None) -> str:
    if file is None:
        return ""
    try:
        return file.read_text()
    except UnicodeDecodeError:
        raise click.ClickException(f"{file}: is not UTF-8 text") from None
