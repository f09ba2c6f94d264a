import base64
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.model import make_pod, make_vm, make_vm_config
from virtlet.errors import InvalidArgument
from virtlet.model.disk import Disk, GuestFiles, Share, Unneeded, Volume
from virtlet.model.vm import Device
from virtlet.plugins.cloudinit import guest_scripts
from virtlet.plugins.cloudinit.object_sources import Sources
from virtlet.plugins.cloudinit.userdata import UserData, environment, merge_over, user_data

CACHE = Share(host_path=Path("/srv/cache"), guest_path="/var/cache", tag="volume-0")
NESTED = Share(
    host_path=Path("/srv/deep"), guest_path="/var/cache/deep", tag="volume-1", readonly=True
)
RAW = Disk(
    path=Path("/dev/sdx"), format="raw", block=True, serial="volume-2", guest_path="/dev/data"
)
FORMATTED = Disk(
    path=Path("/x.qcow2"),
    serial="volume-3",
    guest_path="/it's mine",
    filesystem=True,
    readonly=True,
)


def told(
    volumes: Sequence[Volume] = (),
    annotations: dict[str, str] | None = None,
    envs: Sequence[tuple[str, str]] = (),
) -> UserData:
    config = make_vm_config(envs=envs)
    return user_data(
        make_vm(Path("/nonexistent"), make_pod(annotations), config=config), volumes, Sources()
    )


def files(document: Any) -> dict[str, Any]:
    return {entry["path"]: entry for entry in document["write_files"]}


def test_a_pod_that_says_nothing_has_an_empty_document() -> None:
    assert told() == UserData({})
    assert told([Unneeded(guest_path="/dev/termination-log", reason="…")]) == UserData({})


def test_a_root_disk_that_outlives_its_pod_is_told_its_network_at_every_boot() -> None:
    """It has the MAC and the address of the pod before."""
    device = Device(guest_path="/", host_path="/dev/sdx")
    vm = make_vm(Path("/nonexistent"), config=evolve(make_vm_config(), devices=(device,)))
    document = user_data(vm, [Unneeded(guest_path="/", reason="…")], Sources()).document
    assert document == {"updates": {"network": {"when": ["boot-new-instance", "boot"]}}}


def test_the_environment_is_a_file() -> None:
    document = told(envs=[("A", "1"), ("PATHS", "a b=c")]).document
    assert document == {
        "write_files": [
            {
                "path": "/etc/cloud/environment",
                "permissions": "0600",
                "content": "A=1\nPATHS=a b=c\n",
            }
        ]
    }


@given(st.lists(st.tuples(st.from_regex(r"X_[A-Z]{1,5}", fullmatch=True), st.text()), max_size=3))
def test_every_value_of_several_lines_is_read_back_by_a_shell(
    envs: list[tuple[str, str]],
) -> None:
    lines = [(name, value + "\n'$(x)`y`\"\\") for name, value in envs if "\0" not in value]
    lines = [(name, value.encode(errors="ignore").decode()) for name, value in lines]
    for name, value in lines:
        shell = f'{environment([(name, value)])}\nprintf %s "${name}"'
        read = subprocess.run(["dash", "-c", shell], capture_output=True, check=True).stdout
        assert read == value.encode()


def test_files_of_the_node_are_written_with_their_mode(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("größe\r\n")
    (tmp_path / "bytes").write_bytes(b"\xff\x00")
    document = told([GuestFiles(host_path=tmp_path, guest_path="/etc/app", mode=0o600)]).document
    assert files(document) == {
        "/etc/app/bytes": {
            "path": "/etc/app/bytes",
            "permissions": "0600",
            "encoding": "b64",
            "content": base64.b64encode(b"\xff\x00").decode(),
        },
        "/etc/app/text": {
            "path": "/etc/app/text",
            "permissions": "0600",
            "content": "größe\r\n",
        },
    }


@given(st.binary(max_size=60))
def test_any_content_is_read_back_from_the_document(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    source = tmp_path_factory.mktemp("files") / "source"
    source.write_bytes(content)
    (entry,) = told([GuestFiles(host_path=source, guest_path="/file")]).document["write_files"]
    if entry.get("encoding") == "b64":
        assert base64.b64decode(entry["content"]) == content
    else:
        assert entry["content"].encode() == content
        assert "\0" not in entry["content"]


def test_a_file_below_a_mounted_volume_is_written_after_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for where, deferred in (("/var/cache/conf", True), ("/var/cache-conf", False)):
        document = told([CACHE, GuestFiles(host_path=tmp_path, guest_path=where)]).document
        assert files(document)[f"{where}/file"].get("defer", False) is deferred


def test_shares_are_mounted_parents_first_by_fstab_and_by_script() -> None:
    document = told([NESTED, CACHE]).document
    options = "trans=virtio,version=9p2000.L,msize=262144,cache=mmap,nofail"
    assert document["mounts"] == [
        ["volume-0", "/var/cache", "9p", f"rw,{options}", "0", "0"],
        ["volume-1", "/var/cache/deep", "9p", f"ro,{options}", "0", "0"],
    ]
    assert document["runcmd"] == ["/etc/cloud/mount-volumes.sh"]
    script = files(document)["/etc/cloud/mount-volumes.sh"]
    assert script["permissions"] == "0755"
    assert script["content"].index("/var/cache -t 9p") < script["content"].index("/var/cache/deep")


def test_a_virtiofs_share_has_no_options_of_9p() -> None:
    share = Share(host_path=Path("/srv"), guest_path="/srv", tag="volume-0", driver="virtiofs")
    assert told([share]).document["mounts"] == [
        ["volume-0", "/srv", "virtiofs", "rw,nofail", "0", "0"]
    ]


def test_resolver_options_take_the_place_of_a_link_and_are_written_once(tmp_path: Path) -> None:
    """What systemd-resolved writes stays as it is; the guest's programs read the copy."""
    managed, resolver = tmp_path / "stub-resolv.conf", tmp_path / "resolv.conf"
    managed.write_text("nameserver 127.0.0.53\n")
    resolver.symlink_to(managed)
    body = guest_scripts.resolver_body(("ndots:5", "timeout:2"), str(resolver))
    for _ in range(2):
        subprocess.run(["sh", "-e"], input=body.encode(), check=True)
        assert resolver.read_text() == "nameserver 127.0.0.53\noptions ndots:5 timeout:2\n"
    assert not resolver.is_symlink()
    assert managed.read_text() == "nameserver 127.0.0.53\n"
    assert guest_scripts.resolver_body(()) == ""


def test_disks_are_found_by_serial_number_at_every_boot() -> None:
    document = told([RAW, FORMATTED]).document
    assert "mounts" not in document
    mount = files(document)["/etc/cloud/mount-volumes.sh"]["content"]
    link = files(document)["/etc/cloud/symlink-devs.sh"]["content"]
    assert """find_disk volume-3) && mount_at '/it'"'"'s mine' -o ro "$device\"""" in mount
    assert "link_disk volume-2 /dev/data" in link
    assert document["runcmd"] == [
        "/etc/cloud/mount-volumes.sh",
        "mkdir -p /var/lib/cloud/scripts/per-boot && "
        "ln -sf /etc/cloud/symlink-devs.sh /var/lib/cloud/scripts/per-boot/ && "
        "/etc/cloud/symlink-devs.sh",
    ]


def test_root_and_seed_disks_are_nothing_to_mount() -> None:
    assert told([Disk(path=Path("/root.qcow2"))]) == UserData({})


def test_the_annotation_is_merged_after_what_is_generated() -> None:
    marks = {
        "VirtletCloudInitUserData": (
            "#cloud-config\nruncmd: [mine]\nwrite_files: [{path: /mine}]\napt: {proxy: x}\n"
        )
    }
    told_now = told([CACHE], marks, [("A", "1")])
    assert told_now.overrides == frozenset()
    mount, mark, mine = told_now.document["runcmd"]
    assert (mount, mine) == ("/etc/cloud/mount-volumes.sh", "mine")
    # A hook must not wait for the owner's commands, which may wait for the hook.
    assert mark.endswith(">/run/virtlet/configured")
    assert list(files(told_now.document)) == [
        "/etc/cloud/environment",
        "/etc/cloud/mount-volumes.sh",
        "/mine",
    ]
    assert told_now.document["apt"] == {"proxy": "x"}


def test_the_annotation_replaces_whole_keys_where_it_is_told_to() -> None:
    marks = {
        "VirtletCloudInitUserData": "runcmd: [mine]\napt: {proxy: x}",
        "VirtletCloudInitUserDataOverwrite": "true",
    }
    told_now = told([CACHE], marks)
    assert told_now.overrides == {"runcmd", "apt"}
    assert told_now.document["runcmd"] == ["mine"]
    assert list(files(told_now.document)) == ["/etc/cloud/mount-volumes.sh"]


OVERWRITE = "VirtletCloudInitUserDataOverwrite"


def test_files_of_the_pod_s_own_stand_beside_those_that_it_mounts(tmp_path: Path) -> None:
    """Where one is at the same path, the pod's own is meant."""
    for name in ("key", "other"):
        (tmp_path / name).write_text("mounted")
    own = "write_files: [{path: /etc/app/key, content: mine}, {path: /mine, content: mine}]"
    volumes: list[Volume] = [GuestFiles(host_path=tmp_path, guest_path="/etc/app"), CACHE]
    document = told(volumes, {"VirtletCloudInitUserData": own, OVERWRITE: "true"}).document
    written = [(entry["path"], entry["content"]) for entry in document["write_files"]]
    assert written[0] == ("/etc/app/other", "mounted")
    assert written[1][0] == "/etc/cloud/mount-volumes.sh"
    assert written[2:] == [("/etc/app/key", "mine"), ("/mine", "mine")]
    assert document["runcmd"] == ["/etc/cloud/mount-volumes.sh"]


def test_files_of_the_pod_s_own_that_are_no_list_are_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("mounted")
    marks = {"VirtletCloudInitUserData": "write_files: {}", OVERWRITE: "true"}
    with pytest.raises(InvalidArgument, match="UserData: write_files is not a list"):
        told([GuestFiles(host_path=tmp_path, guest_path="/etc/app")], marks)


@pytest.mark.parametrize(
    "path", ["/etc//app/key", "//etc/app/key", "/etc/./app/x/../key", "etc/app/key"]
)
def test_a_file_of_the_pod_s_own_replaces_a_mounted_one_however_its_path_is_written(
    tmp_path: Path, path: str
) -> None:
    (tmp_path / "key").write_text("mounted")
    marks = {
        "VirtletCloudInitUserData": f"write_files: [{{path: {path}, content: mine}}]",
        OVERWRITE: "true",
    }
    document = told([GuestFiles(host_path=tmp_path, guest_path="/etc/app")], marks).document
    assert document["write_files"] == [{"path": path, "content": "mine"}]


@pytest.mark.parametrize("entry", ["{path: [x]}", "{path: {a: b}}", "{path: 7}", "{}", "x"])
def test_a_file_of_the_pod_s_own_whose_path_is_not_a_text_is_refused(
    tmp_path: Path, entry: str
) -> None:
    (tmp_path / "key").write_text("mounted")
    own = f"write_files: [{{path: /mine}}, {entry}]"
    marks = {"VirtletCloudInitUserData": own, OVERWRITE: "true"}
    with pytest.raises(InvalidArgument, match="UserData: write_files: entry 2 has no path"):
        told([GuestFiles(host_path=tmp_path, guest_path="/etc/app")], marks)


def test_a_file_of_another_s_is_given_to_him_by_number(tmp_path: Path) -> None:
    """cloud-init knows owners by names only; the guest has none for a pod's fsGroup."""
    (tmp_path / "key").write_text("x")
    (tmp_path / "key").chmod(0o440)
    os.chown(tmp_path / "key", 0, 2000)
    document = told([GuestFiles(host_path=tmp_path, guest_path="/etc/my app", mode=None)]).document
    key, script = document["write_files"]
    assert (key["path"], key["permissions"]) == ("/etc/my app/key", "0440")
    assert "owner" not in key
    assert script["path"] == "/etc/cloud/own-files.sh"
    assert script["content"].endswith("chown 0:2000 '/etc/my app/key'\n")
    assert document["runcmd"] == ["/etc/cloud/own-files.sh"]


@pytest.mark.parametrize(
    ("base", "addition", "merged"),
    [
        ({"a": [1]}, {"a": [2]}, {"a": [1, 2]}),
        ({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}}, {"a": {"x": 1, "y": 3}}),
        ({"a": [1]}, {"a": "x"}, {"a": "x"}),
        ({"a": 1}, {"a": None}, {"a": None}),
        ({}, {"a": 1}, {"a": 1}),
    ],
)
def test_merging_follows_cloud_init(base: object, addition: object, merged: object) -> None:
    assert merge_over(base, addition) == merged


SCRIPT = "VirtletCloudInitUserDataScript"


def test_a_script_is_the_whole_user_data() -> None:
    assert told([CACHE], {SCRIPT: "#!/bin/sh\necho hi\n"}, [("A", "1")]) == UserData(
        {}, script="#!/bin/sh\necho hi\n"
    )


def test_a_script_that_would_leave_files_out_is_refused(tmp_path: Path) -> None:
    """But for those that the kubelet mounts unasked."""
    account = "/var/run/secrets/kubernetes.io/serviceaccount"
    unasked: list[Volume] = [
        GuestFiles(host_path=tmp_path, guest_path="/etc/hosts"),
        GuestFiles(host_path=tmp_path, guest_path=account),
    ]
    marks = {SCRIPT: "#!/bin/sh\necho hi\n"}
    assert told([*unasked, CACHE, RAW, FORMATTED], marks).script == marks[SCRIPT]
    asked = GuestFiles(host_path=tmp_path, guest_path="/etc/app/")
    with pytest.raises(InvalidArgument) as caught:
        told([*unasked, asked, GuestFiles(host_path=tmp_path, guest_path="/etc/key")], marks)
    assert str(caught.value) == (
        f"pod shop/web-1: annotation {SCRIPT} is the whole user-data, so nothing writes the files "
        "mounted at /etc/app, /etc/key: put @virtlet-mount-script@ on a line of the script, or "
        "take the mounts out"
    )
    assert told([asked], {SCRIPT: "#!/bin/sh\n@virtlet-mount-script@\n"}).script


def whole_script(volumes: Sequence[Volume], envs: Sequence[tuple[str, str]] = ()) -> str:
    text = "#!/bin/sh\nset -eu\nx=1\n@virtlet-mount-script@\necho done $x\n"
    script = told(volumes, {SCRIPT: text}, envs).script
    assert script is not None
    assert "@virtlet-mount-script@" not in script
    return script


def test_the_placeholder_becomes_code_that_a_shell_accepts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    volumes: list[Volume] = [
        CACHE,
        NESTED,
        RAW,
        FORMATTED,
        GuestFiles(host_path=tmp_path, guest_path="/etc/app"),
    ]
    for shell in (["dash"], ["bash"], ["busybox", "sh"]):
        script = whole_script(volumes, [("A", "1")])
        subprocess.run([*shell, "-n"], input=script, text=True, check=True)


def test_the_placeholder_is_nothing_where_there_is_nothing_to_do() -> None:
    done = subprocess.run(
        ["dash"], input=whole_script([]), text=True, check=True, capture_output=True
    )
    assert (done.stdout, done.stderr) == ("done 1\n", "")


@given(content=st.binary(max_size=200), name=st.text(min_size=1, max_size=20))
def test_the_script_writes_any_file_exactly(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    safe = "".join(c for c in name if c not in "/\0").encode(errors="ignore").decode() or "x"
    directory = tmp_path_factory.mktemp("files")
    source = directory / "source"
    source.write_bytes(content)
    target = directory / "new dir" / f"f{safe}"[:60]
    script = whole_script([GuestFiles(host_path=source, guest_path=str(target), mode=0o640)])
    subprocess.run(["dash"], input=script.encode(), check=True, capture_output=True)
    assert target.read_bytes() == content
    assert target.stat().st_mode & 0o777 == 0o640
