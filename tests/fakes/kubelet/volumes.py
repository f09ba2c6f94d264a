"""A pod's volumes as a kubelet makes them, from the objects that stand beside the pod."""

import base64
import json
import os
import stat
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import yaml
from attrs import frozen

from virtlet.cli.csi import serving
from virtlet.cli.manifest import PodManifest, pod_manifest
from virtlet.cri import api_pb2 as cri
from virtlet.cri.csi import csi_pb2 as csi

Document = dict[str, Any]
FLEXVOLUME_DRIVER = Path(__file__).parents[3] / "deploy" / "flexvolume" / "flexvolume_driver"
DEVICE_SIZE = 1 << 28
"""Bytes of a block device."""
VERSION = "..2026_11_27_10_00_00.1"
"""A directory of one version of all files of a volume."""
GROUP_MAY_WRITE = {"empty-dir": True} | dict.fromkeys(
    ("configmap", "secret", "downward-api", "projected"), False
)
"""Volumes that a kubelet gives to the group of `fsGroup`, and whether that may write there."""


@frozen
class Example:
    """A manifest of examples/pods: a pod, and the objects that it refers to."""

    pod: Document
    objects: Mapping[tuple[str, str], Document]
    """By kind and name."""

    @classmethod
    def read(cls, path: Path, name: str) -> "Example":
        """Read a manifest; the pod gets another name, and an id that tells it from others."""
        documents = list(yaml.safe_load_all(path.read_text()))
        (pod,) = (one for one in documents if one["kind"] == "Pod")
        pod["metadata"] |= {"name": name, "uid": f"uid-{name}"}
        others = {(one["kind"], one["metadata"]["name"]): one for one in documents if one != pod}
        return cls(pod, others)

    def manifest(self, log_root: Path) -> PodManifest:
        """The pod without its volumes, as `virtlet run` reads it."""
        spec = dict(self.pod["spec"])
        spec.pop("volumes", None)
        (container,) = spec["containers"]
        bare = {k: v for k, v in container.items() if k not in ("volumeMounts", "volumeDevices")}
        return pod_manifest(self.pod | {"spec": spec | {"containers": [bare]}}, log_root)


@contextmanager
def made(example: Example, manifest: PodManifest, pods: Path) -> Iterator[None]:
    """Make a pod's volumes, and have its container mount them; takes away mounts and devices.

    Args:
        example: has the volumes.
        manifest: gets mounts and devices.
        pods: the kubelet's directory of pods.
    """
    directory = pods / manifest.pod.metadata.uid
    volumes = {volume["name"]: volume for volume in example.pod["spec"].get("volumes", [])}
    (container,) = example.pod["spec"]["containers"]
    with ExitStack() as cleanup:
        for mount in container.get("volumeMounts", []):
            if image := volumes[mount["name"]].get("image"):
                manifest.container.mounts.add(
                    container_path=mount["mountPath"],
                    readonly=True,
                    image=cri.ImageSpec(
                        image=image["reference"], user_specified_image=image["reference"]
                    ),
                    image_sub_path=mount.get("subPath", ""),
                )
                continue
            path = _directory(example, volumes[mount["name"]], directory, cleanup)
            manifest.container.mounts.add(
                container_path=mount["mountPath"],
                host_path=str(path),
                readonly=bool(mount.get("readOnly")),
            )
        for device in container.get("volumeDevices", []):
            manifest.container.devices.add(
                container_path=device["devicePath"],
                host_path=str(_device(directory / device["name"], cleanup)),
                permissions="mrw",
            )
        group = (example.pod["spec"].get("securityContext") or {}).get("fsGroup")
        if group is not None:
            _give_to_group(directory, group)
        yield


def _directory(example: Example, volume: Document, pod: Path, cleanup: ExitStack) -> Path:
    name = volume["name"]
    match volume:
        case {"hostPath": {"path": path}}:
            return Path(path)
        case {"emptyDir": {"medium": "Memory", "sizeLimit": size}}:
            made = _made(pod, "empty-dir", name, 0o777)
            options = f"size={size.removesuffix('i')},mode=0777"
            _run("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(made))
            cleanup.callback(_run, "umount", str(made))
            return made
        case {"emptyDir": _}:
            return _made(pod, "empty-dir", name, 0o777)
        case {"flexVolume": {"driver": driver, "options": options} as flex}:
            made = pod.joinpath("volumes", driver.replace("/", "~"), name)
            given = json.dumps(
                options | _secrets(example, flex) | {"kubernetes.io/readwrite": "rw"}
            )
            _run("sh", str(FLEXVOLUME_DRIVER), "mount", str(made), given)
            cleanup.callback(_run, "sh", str(FLEXVOLUME_DRIVER), "unmount", str(made))
            return made
        case {"csi": {"driver": driver, "volumeAttributes": attributes}}:
            return _inline(_made(pod, "csi", name), driver, attributes, cleanup)
        case {"persistentVolumeClaim": _} | {"ephemeral": _}:
            return _made(pod, "csi", name, 0o755)
        case {"projected": {"sources": sources}}:
            merged = {k: v for source in sources for k, v in _files(example, source).items()}
            return _atomic(_made(pod, "projected", name), merged)
        case {"configMap": _}:
            return _atomic(_made(pod, "configmap", name), _files(example, volume))
        case {"secret": source}:
            files = _files(example, volume)
            return _atomic(_made(pod, "secret", name), files, source.get("defaultMode", 0o644))
        case {"downwardAPI": _}:
            return _atomic(_made(pod, "downward-api", name), _files(example, volume))
    raise AssertionError(f"this kubelet makes no volume such as {volume}")


def _secrets(example: Example, flex: Document) -> dict[str, str]:
    """The Secret that a FlexVolume names, as options of its driver."""
    if "secretRef" not in flex:
        return {}
    data = example.objects["Secret", flex["secretRef"]["name"]]["stringData"]
    return {
        f"kubernetes.io/secret/{key}": base64.b64encode(text.encode()).decode()
        for key, text in data.items()
    }


def _made(pod: Path, plugin: str, name: str, mode: int = 0o755) -> Path:
    path = pod / "volumes" / f"kubernetes.io~{plugin}" / name
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(mode)
    return path


def _inline(above: Path, driver: str, attributes: Mapping[str, str], cleanup: ExitStack) -> Path:
    """An inline volume of Virtlet's CSI driver, which serves in this process."""
    (above / "vol_data.json").write_text(json.dumps({"driverName": driver}))
    socket = Path(cleanup.enter_context(TemporaryDirectory())) / "csi.sock"
    cleanup.enter_context(serving(socket, socket.with_name("registration.sock"), "node"))
    channel = cleanup.enter_context(grpc.insecure_channel(f"unix:{socket}"))

    def call(name: str, request: Any) -> None:
        method = channel.unary_unary(
            f"/csi.v1.Node/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=bytes,
        )
        method(request, timeout=20, wait_for_ready=True)

    target = str(above / "mount")
    publish = csi.NodePublishVolumeRequest(
        volume_id=f"csi-{above.name}",
        target_path=target,
        volume_capability=csi.VolumeCapability(
            mount=csi.VolumeCapability.MountVolume(),
            access_mode=csi.VolumeCapability.AccessMode(mode=1),
        ),
        volume_context={"csi.storage.k8s.io/ephemeral": "true", **attributes},
    )
    call("NodePublishVolume", publish)
    unpublish = csi.NodeUnpublishVolumeRequest(volume_id=publish.volume_id, target_path=target)
    cleanup.callback(call, "NodeUnpublishVolume", unpublish)
    return Path(target)


def _files(example: Example, source: Document) -> dict[str, str]:
    match source:
        case {"configMap": {"name": name}}:
            return dict(example.objects["ConfigMap", name]["data"])
        case {"secret": {"secretName": name} | {"name": name}}:
            return dict(example.objects["Secret", name]["stringData"])
        case {"downwardAPI": {"items": items}}:
            labels = example.pod["metadata"].get("labels", {})
            text = "".join(f'{key}="{value}"\n' for key, value in labels.items())
            return {item["path"]: text for item in items}
    raise AssertionError(f"this kubelet makes no files of {source}")


def _atomic(volume: Path, files: Mapping[str, str], mode: int = 0o644) -> Path:
    """Files as a kubelet writes them: links to a version of all of them."""
    version = volume / VERSION
    version.mkdir()
    for name, content in files.items():
        (version / name).write_text(content)
        (version / name).chmod(mode)
        (volume / name).symlink_to(f"..data/{name}")
    (volume / "..data").symlink_to(VERSION)
    return volume


def _give_to_group(pod: Path, group: int) -> None:
    """Apply `fsGroup`: modes gain what the group may do, and new files belong to it."""
    for kind, may_write in GROUP_MAY_WRITE.items():
        for volume in pod.glob(f"volumes/kubernetes.io~{kind}/*"):
            for path in (volume, *volume.rglob("*")):
                os.chown(path, -1, group, follow_symlinks=False)
                if path.is_symlink():
                    continue
                gained = 0o660 if may_write else 0o440
                if path.is_dir():
                    gained |= 0o2110
                path.chmod(stat.S_IMODE(path.stat().st_mode) | gained)


def _device(file: Path, cleanup: ExitStack) -> Path:
    """A block device of the node's, as a local volume is one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as disk:
        os.truncate(disk.fileno(), DEVICE_SIZE)
    device = Path(_run("losetup", "--find", "--show", str(file)).strip())
    cleanup.callback(_run, "losetup", "--detach", str(device))
    return device


def _run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout
