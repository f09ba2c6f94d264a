from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtlet.plugins.volumes.mounts import Origin, origin_of

ROOT = Path("/var/lib/kubelet/pods")
UID = "6c4b4fd3-6d3b-4a0f-8d5a-0d2f2f0e2c11"


@pytest.mark.parametrize(
    ("path", "origin"),
    [
        ("volumes/kubernetes.io~configmap/settings", Origin.CONFIG),
        ("volumes/kubernetes.io~downward-api/podinfo", Origin.CONFIG),
        ("volumes/kubernetes.io~secret/token", Origin.SECRET),
        ("volumes/kubernetes.io~projected/kube-api-access-x7k2p", Origin.SECRET),
        ("volumes/kubernetes.io~empty-dir/cache", Origin.VOLUME),
        ("volumes/kubernetes.io~csi/pvc-1/mount", Origin.VOLUME),
        ("volumes/kubernetes.io~nfs/share", Origin.VOLUME),
        ("volumes/virtlet~flexvolume_driver/disk", Origin.FLEXVOLUME),
        ("volume-subpaths/cache/vm/0", Origin.VOLUME),
        ("etc-hosts", Origin.HOSTS),
        ("containers/vm/1a2b3c4d", Origin.TERMINATION_LOG),
        ("containers/vm", Origin.NODE),
        ("volumes", Origin.NODE),
        ("volumes/kubernetes.io~secret", Origin.NODE),
        ("plugins/kubernetes.io~secret/x", Origin.NODE),
        ("volumes/kubernetes.io~secret/../../etc-hosts", Origin.NODE),
        ("", Origin.NODE),
    ],
)
def test_the_kubelet_s_layout_tells_where_a_mount_comes_from(path: str, origin: Origin) -> None:
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
    assert origin_of(path, ROOT, UID) is Origin.NODE


@pytest.mark.parametrize("uid", ["", "..", "a/b"])
def test_a_uid_that_is_no_name_has_no_directory(uid: str) -> None:
    assert origin_of(f"{ROOT}/{uid}/etc-hosts", ROOT, uid) is Origin.NODE


@pytest.mark.parametrize(
    ("plugin", "origin"),
    [
        ("kubernetes.io~configmap", Origin.CONFIG),
        ("kubernetes.io~secret", Origin.SECRET),
        ("virtlet~flexvolume_driver", Origin.FLEXVOLUME),
        ("kubernetes.io~empty-dir", Origin.VOLUME),
    ],
)
def test_a_part_of_a_volume_is_what_the_volume_is(
    tmp_path: Path, plugin: str, origin: Origin
) -> None:
    (tmp_path / UID / "volumes" / plugin / "settings").mkdir(parents=True)
    path = f"{tmp_path}/{UID}/volume-subpaths/settings/vm/2"
    assert origin_of(path, tmp_path, UID) is origin


@given(st.text(max_size=40))
def test_any_path_has_an_origin(path: str) -> None:
    assert origin_of(f"{ROOT}/{UID}/{path}", ROOT, UID) in Origin
