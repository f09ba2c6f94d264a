from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtlet.plugins.volumes.pod_volumes import MountOrigin, origin_of

ROOT = Path("/var/lib/kubelet/pods")
UID = "6c4b4fd3-6d3b-4a0f-8d5a-0d2f2f0e2c11"


@pytest.mark.parametrize(
    ("path", "origin"),
    [
        ("volumes/kubernetes.io~configmap/settings", MountOrigin.CONFIG),
        ("volumes/kubernetes.io~downward-api/podinfo", MountOrigin.CONFIG),
        ("volumes/kubernetes.io~secret/token", MountOrigin.SECRET),
        ("volumes/kubernetes.io~projected/kube-api-access-x7k2p", MountOrigin.SECRET),
        ("volumes/kubernetes.io~empty-dir/cache", MountOrigin.VOLUME),
        ("volumes/kubernetes.io~csi/pvc-1/mount", MountOrigin.VOLUME),
        ("volumes/kubernetes.io~nfs/share", MountOrigin.VOLUME),
        ("volumes/virtlet~flexvolume_driver/disk", MountOrigin.FLEXVOLUME),
        ("volume-subpaths/host-path/vm/0", MountOrigin.NODE),
        ("etc-hosts", MountOrigin.HOSTS),
        ("containers/vm/1a2b3c4d", MountOrigin.TERMINATION_LOG),
        ("containers/vm", MountOrigin.NODE),
        ("volumes", MountOrigin.NODE),
        ("volumes/kubernetes.io~secret", MountOrigin.NODE),
        ("plugins/kubernetes.io~secret/x", MountOrigin.NODE),
        ("volumes/kubernetes.io~secret/../../etc-hosts", MountOrigin.NODE),
        ("", MountOrigin.NODE),
    ],
)
def test_the_kubelet_s_layout_says_where_a_mount_is_from(path: str, origin: MountOrigin) -> None:
    assert origin_of(f"{ROOT}/{UID}/{path}", ROOT, UID) is origin


@pytest.mark.parametrize(
    "path",
    [
        "/srv/data",
        f"{ROOT}/another-pod/volumes/kubernetes.io~secret/token",
        f"/elsewhere{ROOT}/{UID}/volumes/kubernetes.io~secret/token",
        f"{UID}/etc-hosts",
        "",
    ],
)
def test_what_is_not_this_pod_s_is_the_node_s(path: str) -> None:
    assert origin_of(path, ROOT, UID) is MountOrigin.NODE


@pytest.mark.parametrize("uid", ["", "..", "a/b"])
def test_a_uid_that_is_no_name_has_no_directory(uid: str) -> None:
    assert origin_of(f"{ROOT}/{uid}/etc-hosts", ROOT, uid) is MountOrigin.NODE


@pytest.mark.parametrize(
    ("plugin", "origin"),
    [
        ("kubernetes.io~configmap", MountOrigin.CONFIG),
        ("kubernetes.io~secret", MountOrigin.SECRET),
        ("virtlet~flexvolume_driver", MountOrigin.FLEXVOLUME),
        ("kubernetes.io~empty-dir", MountOrigin.VOLUME),
        ("kubernetes.io~csi", MountOrigin.VOLUME),
    ],
)
def test_a_part_of_a_volume_is_what_the_volume_is(
    tmp_path: Path, plugin: str, origin: MountOrigin
) -> None:
    (tmp_path / UID / "volumes" / plugin / "settings").mkdir(parents=True)
    path = f"{tmp_path}/{UID}/volume-subpaths/settings/vm/2"
    assert origin_of(path, tmp_path, UID) is origin


def test_a_part_of_a_host_path_is_the_node_s(tmp_path: Path) -> None:
    """A kubelet keeps no directory for such a volume beside those of the pod's others."""
    (tmp_path / UID / "volumes/kubernetes.io~empty-dir/cache").mkdir(parents=True)
    path = tmp_path / UID / "volume-subpaths/host-path/vm/2"
    path.mkdir(parents=True)
    assert origin_of(str(path), tmp_path, UID) is MountOrigin.NODE


@given(st.text(max_size=40))
def test_any_path_has_an_origin(path: str) -> None:
    assert origin_of(f"{ROOT}/{UID}/{path}", ROOT, UID) in MountOrigin
