"""What the kubelet's directories say about a path.

Layout, below the root for pods: `UID/volumes/PLUGIN/NAME…`, `UID/volume-subpaths/NAME/…` for a
part of such a volume, `UID/etc-hosts`, and `UID/containers/CONTAINER/…` for the file a container
may leave its last words in. PLUGIN has `~` for `/`.
"""

import enum
from pathlib import Path, PurePosixPath

FLEXVOLUME_PLUGIN = "virtlet~flexvolume_driver"


class Origin(enum.Enum):
    """Where a mounted path comes from."""

    CONFIG = "configuration"
    """A ConfigMap or the downward API: files that are no secrets."""
    SECRET = "secret"
    """A Secret, or a projected volume, which may hold secrets."""
    VOLUME = "volume"
    """Any other volume of the pod."""
    FLEXVOLUME = "FlexVolume"
    """A volume of Virtlet's own FlexVolume driver."""
    HOSTS = "hosts file"
    TERMINATION_LOG = "termination log"
    NODE = "node"
    """Nothing of the kubelet's for this pod: a hostPath volume."""


_PLUGINS = {
    "kubernetes.io~configmap": Origin.CONFIG,
    "kubernetes.io~downward-api": Origin.CONFIG,
    "kubernetes.io~secret": Origin.SECRET,
    "kubernetes.io~projected": Origin.SECRET,
    FLEXVOLUME_PLUGIN: Origin.FLEXVOLUME,
}


def origin_of(path: str, root: Path, pod_uid: str) -> Origin:
    """Where a mounted path of a pod comes from.

    Args:
        path: the host path of the mount.
        root: the kubelet's directory of pods.
        pod_uid: whose mount it is; directories of other pods are the node's.
    """
    if pod_uid in ("", ".", "..") or "/" in pod_uid:
        return Origin.NODE
    try:
        inside = PurePosixPath(path).relative_to(root / pod_uid).parts
    except ValueError:
        return Origin.NODE
    if ".." in inside:
        return Origin.NODE
    match inside:
        case ("volumes", plugin, _, *_):
            return _PLUGINS.get(plugin, Origin.VOLUME)
        case ("volume-subpaths", name, *_):
            return _of_volume(root / pod_uid / "volumes", name)
        case ("etc-hosts",):
            return Origin.HOSTS
        case ("containers", _, _):
            return Origin.TERMINATION_LOG
        case _:
            return Origin.NODE


def _of_volume(volumes: Path, name: str) -> Origin:
    for plugin, origin in _PLUGINS.items():
        if (volumes / plugin / name).is_dir():
            return origin
    return Origin.VOLUME
