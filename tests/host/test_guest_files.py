import os
from pathlib import Path

import pytest

from virtlet.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from virtlet.host.guest_files import (
    MAX_FILE,
    MAX_FILES,
    MAX_TOTAL,
    GuestFile,
    read_all,
)
from virtlet.model.disk import GuestFiles


def kubelet_volume(root: Path, **files: bytes) -> Path:
    """A ConfigMap as the kubelet lays it out; `a__b` is the file b in directory a."""
    version = root / "..2026_01_02_03_04_05.123"
    for name, content in files.items():
        path = version / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    version.mkdir(parents=True, exist_ok=True)
    (root / "..data").symlink_to(version.name)
    for entry in version.iterdir():
        (root / entry.name).symlink_to(f"..data/{entry.name}")
    return root


def test_a_configmap_is_read_as_the_pod_sees_it(tmp_path: Path) -> None:
    volume = kubelet_volume(tmp_path / "v", b=b"2", a=b"\xff\x00", sub__deep__c=b"3")
    assert read_all([GuestFiles(host_path=volume, guest_path="/etc/app", mode=0o600)]) == [
        GuestFile("/etc/app/a", b"\xff\x00", 0o600),
        GuestFile("/etc/app/b", b"2", 0o600),
        GuestFile("/etc/app/sub/deep/c", b"3", 0o600),
    ]


def test_files_may_keep_the_mode_and_owner_that_they_have_on_the_node(tmp_path: Path) -> None:
    """What a kubelet makes of defaultMode, items' modes and fsGroup; never set-user-id."""
    volume = kubelet_volume(tmp_path / "v", key=b"1", tool=b"2")
    (volume / "key").chmod(0o440)
    os.chown(volume / "key", 0, 2000)
    (volume / "tool").chmod(0o4755)
    assert read_all([GuestFiles(host_path=volume, guest_path="/etc/app", mode=None)]) == [
        GuestFile("/etc/app/key", b"1", 0o440, 0, 2000),
        GuestFile("/etc/app/tool", b"2", 0o755),
    ]


def test_an_empty_volume_has_no_files(tmp_path: Path) -> None:
    assert (
        read_all([GuestFiles(host_path=kubelet_volume(tmp_path / "v"), guest_path="/etc/app")])
        == []
    )


def test_one_file_is_read_where_the_mount_is_one(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n")
    assert read_all([GuestFiles(host_path=tmp_path / "hosts", guest_path="/etc/hosts")]) == [
        GuestFile("/etc/hosts", b"127.0.0.1 localhost\n", 0o644)
    ]


def test_a_mount_that_is_a_link_is_the_file_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "Berlin").write_bytes(b"TZif")
    (tmp_path / "localtime").symlink_to("Berlin")
    assert read_all(
        [GuestFiles(host_path=tmp_path / "localtime", guest_path="/etc/localtime")]
    ) == [GuestFile("/etc/localtime", b"TZif", 0o644)]


def test_contents_stay_out_of_what_is_printed(tmp_path: Path) -> None:
    volume = kubelet_volume(tmp_path / "v", password=b"hunter2")
    assert "hunter2" not in repr(read_all([GuestFiles(host_path=volume, guest_path="/s")]))


def test_a_file_of_a_mebibyte_is_the_largest(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(MAX_FILE))
    assert (
        len(read_all([GuestFiles(host_path=tmp_path / "file", guest_path="/file")])[0].content)
        == MAX_FILE
    )
    (tmp_path / "file").write_bytes(bytes(MAX_FILE + 1))
    with pytest.raises(ResourceExhausted, match="mount /file: .* has more than 1 MiB"):
        read_all([GuestFiles(host_path=tmp_path / "file", guest_path="/file")])


def test_a_file_without_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="/zero: /dev/zero on the node is not a regular"):
        read_all([GuestFiles(host_path=Path("/dev/zero"), guest_path="/zero")])


def test_all_files_of_a_vm_have_a_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(MAX_FILE))
    files = [
        GuestFiles(host_path=tmp_path / "file", guest_path=f"/f{n}")
        for n in range(MAX_TOTAL // MAX_FILE + 1)
    ]
    assert len(read_all(files[:-1])) == len(files) - 1
    with pytest.raises(ResourceExhausted, match="more than 1000 files or 8 MiB"):
        read_all(files)


def test_the_number_of_files_has_a_limit(tmp_path: Path) -> None:
    volume = tmp_path / "v"
    volume.mkdir()
    for n in range(MAX_FILES + 1):
        (volume / str(n)).touch()
    with pytest.raises(ResourceExhausted, match="mount /v: "):
        read_all([GuestFiles(host_path=volume, guest_path="/v")])


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="mount /v: .* on the node: No such file"):
        read_all([GuestFiles(host_path=tmp_path / "missing", guest_path="/v")])


def test_a_link_is_not_followed_out_of_the_volume(tmp_path: Path) -> None:
    (tmp_path / "shadow").write_text("hunter2")
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "file").symlink_to(tmp_path / "shadow")
    with pytest.raises(FailedPrecondition, match="mount /v/file: "):
        read_all([GuestFiles(host_path=tmp_path / "v", guest_path="/v")])


def test_a_pipe_in_a_volume_neither_hangs_nor_passes(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    os.mkfifo(tmp_path / "v" / "pipe")
    with pytest.raises(InvalidArgument, match="is not a regular file"):
        read_all([GuestFiles(host_path=tmp_path / "v", guest_path="/v")])


def test_a_name_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path / "v") + b"/\xff")).touch()
    with pytest.raises(InvalidArgument, match="mount /v: a file's name is not UTF-8"):
        read_all([GuestFiles(host_path=tmp_path / "v", guest_path="/v")])
