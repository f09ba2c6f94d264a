"""`kubectl virtlet gen`: the manifest of a VM pod, to begin with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import yaml

_file = click.Path(path_type=Path, dir_okay=False, exists=True)


@click.command()
@click.argument("name")
@click.option("--image", required=True, help="As the pod names it: a disk image.")
@click.option("--cpu", default="1", show_default=True, help="CPU limit.")
@click.option("--memory", default="1Gi", show_default=True, help="Memory limit: the guest's RAM.")
@click.option("--class", "runtime", default="virtlet", show_default=True, help="RuntimeClass.")
@click.option("--flavor", default="", help="VirtletFlavor, a machine with a name.")
@click.option("--root-size", default="", help="Size of the root disk, 20Gi say.")
@click.option("--ssh-key", type=_file, default=None, help="File of public keys for the user.")
@click.option("--user-data", type=_file, default=None, help="File of a cloud-config document.")
@click.option("-n", "--namespace", default="", help="Of the pod.")
def gen(
    name: str,
    image: str,
    cpu: str,
    memory: str,
    runtime: str,
    flavor: str,
    root_size: str,
    ssh_key: Path | None,
    user_data: Path | None,
    namespace: str,
) -> None:
    """Write the manifest of a VM pod to standard output.

    Its console can be attached to. What is in it is not looked at: `kubectl virtlet validate -`
    does that.
    """
    said = {
        "VirtletFlavor": flavor,
        "VirtletRootVolumeSize": root_size,
        "VirtletSSHKeys": _text(ssh_key),
        "VirtletCloudInitUserData": _text(user_data),
    }
    limits = {"cpu": cpu, "memory": memory}
    click.echo(manifest(name, image, limits, runtime, said, namespace), nl=False)


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
