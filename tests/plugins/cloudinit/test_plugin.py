"""The annotations of the seed, and the seed that the plugin writes."""

import email
import json
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.model import NO_NETWORK, make_pod, make_vm, make_vm_config
from tests.plugins.cloudinit.conftest import EMULATOR, KEY
from virtlet.errors import InvalidArgument
from virtlet.model.cloudinit import CloudInit, CloudInitPart
from virtlet.model.disk import Disk, GuestFiles, Volume
from virtlet.model.network import Network, Nic, Route
from virtlet.model.vm import Vm
from virtlet.plugins.cloudinit.plugin import Plugin
from virtlet.plugins.cloudinit.seed_annotations import ALL, IMAGE_TYPE, SSH_KEYS

NETWORK = Network(
    netns=None,
    nics=(
        Nic(
            name="eth0",
            mac="52:54:00:12:34:56",
            mtu=1500,
            addresses=("10.1.2.3/24",),
            routes=(Route(destination="::/0", gateway="fd::1"),),
        ),
    ),
)


def make(
    directory: Path,
    annotations: dict[str, str] | None = None,
    network: Network = NETWORK,
    envs: Sequence[tuple[str, str]] = (),
) -> Vm:
    config = make_vm_config(envs=envs)
    return make_vm(directory, make_pod(annotations), network=network, config=config)


def contribute(plugin: Plugin, vm: Vm, volumes: Sequence[Volume] = ()) -> CloudInit:
    """What the core makes of this plugin's part when no other contributes."""
    part = plugin.virtlet_cloud_init(vm, volumes)
    assert part is not None
    return CloudInit(
        meta_data=part.meta_data,
        user_data=part.user_data,
        script=part.script,
        network_config=part.network_config,
    )


def write(plugin: Plugin, vm: Vm, volumes: Sequence[Volume] = ()) -> Disk:
    disk = plugin.virtlet_seed(vm, contribute(plugin, vm, volumes))
    assert disk is not None
    return disk


def read_seed(path: Path) -> dict[str, bytes]:
    """Every file of an ISO image by its Rock Ridge name, read by another program."""
    listing = subprocess.run(
        ["isoinfo", "-R", "-f", "-i", str(path)], capture_output=True, text=True, check=True
    ).stdout.split()
    found = {}
    for name in listing:
        content = subprocess.run(
            ["isoinfo", "-R", "-x", name, "-i", str(path)], capture_output=True, check=True
        ).stdout
        if content:
            found[name] = content
    return found


def test_the_seed_of_nocloud_has_three_documents(plugin: Plugin, tmp_path: Path) -> None:
    marks = {"VirtletSSHKeys": KEY, "VirtletCloudInitUserData": "runcmd: [[echo, hi]]"}
    disk = write(plugin, make(tmp_path, marks, envs=[("A", "1")]))
    files = read_seed(disk.path)
    assert set(files) == {"/meta-data", "/user-data", "/network-config"}
    assert json.loads(files["/meta-data"]) == {
        "instance-id": "web-1.shop",
        "local-hostname": "web-1",
        "public-keys": [KEY],
    }
    first, document = files["/user-data"].decode().split("\n", 1)
    assert first == "#cloud-config"
    assert json.loads(document) == yaml.safe_load(document)
    assert json.loads(document)["runcmd"][-1] == ["echo", "hi"]
    assert json.loads(files["/network-config"])["version"] == 2


def test_the_seed_is_a_read_only_cd_rom_of_the_emulator_s_user(
    plugin: Plugin, tmp_path: Path
) -> None:
    disk = write(plugin, make(tmp_path))
    assert disk == Disk(path=tmp_path / "seed.iso", format="raw", readonly=True, kind="cdrom")
    found = disk.path.stat()
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert (found.st_uid, found.st_gid) == (EMULATOR, EMULATOR)
    assert found.st_size % 2048 == 0


@pytest.mark.parametrize(("image", "label"), [("nocloud", "cidata"), ("configdrive", "config-2")])
def test_the_label_is_what_cloud_init_looks_for(
    plugin: Plugin, tmp_path: Path, image: str, label: str
) -> None:
    """blkid shows Joliet's label, a guest without Joliet reads the primary one."""
    disk = write(plugin, make(tmp_path, {"VirtletCloudInitImageType": image}))
    argv = ["blkid", "-p", "-s", "LABEL", "-o", "value", str(disk.path)]
    assert subprocess.run(argv, capture_output=True, text=True).stdout.strip() == label
    assert disk.path.read_bytes()[16 * 2048 + 40 :][:32].decode().strip() == label


def test_every_reader_finds_the_names(plugin: Plugin, tmp_path: Path) -> None:
    disk = write(plugin, make(tmp_path, {"VirtletCloudInitImageType": "configdrive"}))
    for names in ("-R", "-J"):
        listing = subprocess.run(
            ["isoinfo", names, "-f", "-i", str(disk.path)], capture_output=True, text=True
        ).stdout
        for name in ("meta_data.json", "user_data", "network_data.json"):
            assert f"/openstack/latest/{name}\n" in listing


def test_a_config_drive_holds_openstack_s_documents(plugin: Plugin, tmp_path: Path) -> None:
    files = read_seed(
        write(plugin, make(tmp_path, {"VirtletCloudInitImageType": "configdrive"})).path
    )
    latest = "/openstack/latest"
    assert json.loads(files[f"{latest}/meta_data.json"])["uuid"] == "web-1.shop"
    assert files[f"{latest}/user_data"].startswith(b"#cloud-config\n")
    assert json.loads(files[f"{latest}/network_data.json"])["links"][0]["id"] == "eth0"


@pytest.mark.parametrize(
    ("annotations", "network"),
    [({"VirtletForceDHCPNetworkConfig": "true"}, NETWORK), ({}, NO_NETWORK)],
)
@pytest.mark.parametrize("image", ["nocloud", "configdrive"])
def test_the_network_is_left_out_where_dhcp_is_to_be_used(
    plugin: Plugin, tmp_path: Path, annotations: dict[str, str], network: Network, image: str
) -> None:
    marks = annotations | {"VirtletCloudInitImageType": image}
    files = read_seed(write(plugin, make(tmp_path, marks, network)).path)
    assert len(files) == 2
    assert not any("network" in name for name in files)


def test_a_network_configuration_of_another_plugin_fits_nocloud_alone(
    plugin: Plugin, tmp_path: Path
) -> None:
    foreign = CloudInit(network_config={"version": 1, "config": []})
    disk = plugin.virtlet_seed(make(tmp_path), foreign)
    assert disk is not None
    assert json.loads(read_seed(disk.path)["/network-config"]) == {"version": 1, "config": []}
    vm = make(tmp_path, {"VirtletCloudInitImageType": "configdrive"})
    with pytest.raises(InvalidArgument, match="VirtletCloudInitImageType: .* use nocloud"):
        plugin.virtlet_seed(vm, foreign)


def test_a_script_is_written_as_it_is(plugin: Plugin, tmp_path: Path) -> None:
    script = "#!/bin/sh\necho grüße\n"
    vm = make(tmp_path, {"VirtletCloudInitUserDataScript": script})
    assert read_seed(write(plugin, vm).path)["/user-data"].decode() == script


def test_a_script_beside_another_plugin_s_document_becomes_a_mime_message(
    plugin: Plugin, tmp_path: Path
) -> None:
    told = CloudInit(user_data={"packages": ["ü"]}, script="#!/bin/sh\necho grüße\n")
    disk = plugin.virtlet_seed(make(tmp_path), told)
    assert disk is not None
    message = email.message_from_bytes(read_seed(disk.path)["/user-data"])
    assert message.get_content_type() == "multipart/mixed"
    parts = {part.get_content_type(): part.get_payload(decode=True) for part in message.walk()}
    assert parts["text/x-shellscript"] == "#!/bin/sh\necho grüße\n".encode()
    assert parts["text/cloud-config"] == '#cloud-config\n{"packages": ["ü"]}\n'.encode()


def test_a_megabyte_of_files_fits(plugin: Plugin, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 4096)
    disk = write(plugin, make(tmp_path), [GuestFiles(host_path=source, guest_path="/etc/big")])
    document = json.loads(read_seed(disk.path)["/user-data"].split(b"\n", 1)[1])
    assert len(document["write_files"][0]["content"]) > 1 << 20


def test_what_goes_into_the_seed_is_never_printed(plugin: Plugin, tmp_path: Path) -> None:
    marks = {"VirtletCloudInitUserData": "password: hunter2", "VirtletSSHKeys": KEY}
    part = plugin.virtlet_cloud_init(make(tmp_path, marks), [])
    assert isinstance(part, CloudInitPart)
    assert part.user_data == {"password": "hunter2"}
    assert "hunter2" not in repr(part)


def test_writing_it_again_replaces_it(plugin: Plugin, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("keep")
    (tmp_path / "seed.iso").symlink_to("precious")
    write(plugin, make(tmp_path))
    write(plugin, make(tmp_path, {"VirtletForceDHCPNetworkConfig": "true"}))
    assert "/network-config" not in read_seed(tmp_path / "seed.iso")
    assert (tmp_path / "precious").read_text() == "keep"


def test_release_removes_it_once_and_again(plugin: Plugin, tmp_path: Path) -> None:
    vm = make(tmp_path)
    disk = write(plugin, vm)
    plugin.virtlet_release_seed(vm, disk)
    assert list(tmp_path.iterdir()) == []
    plugin.virtlet_release_seed(vm, None)


def test_release_without_a_record_removes_what_a_crash_left(plugin: Plugin, tmp_path: Path) -> None:
    (tmp_path / "seed.iso").write_bytes(b"half")
    plugin.virtlet_release_seed(make(tmp_path), None)
    assert list(tmp_path.iterdir()) == []


SECRET = "hunter2"


def test_keys_are_one_a_line() -> None:
    text = f'\n{KEY}\r\n# old\n\n  no-pty,from="10.0.0.0/8" ssh-rsa AAAAB3Nza==\n'
    assert SSH_KEYS.of(make_pod({"VirtletSSHKeys": text})) == (
        KEY,
        'no-pty,from="10.0.0.0/8" ssh-rsa AAAAB3Nza==',
    )


@pytest.mark.parametrize("text", [SECRET, "ssh-rsa", "-----BEGIN OPENSSH PRIVATE KEY-----", "a b"])
def test_what_is_not_a_public_key_is_refused_by_its_number_alone(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        SSH_KEYS.of(make_pod({"VirtletSSHKeys": f"{KEY}\n{text}"}))
    assert str(caught.value).startswith("annotation VirtletSSHKeys: key 2 is not a public key")
    assert text not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"), [("", "nocloud"), ("nocloud", "nocloud"), ("configdrive", "configdrive")]
)
def test_the_image_type_is_one_of_two(text: str, value: str) -> None:
    assert IMAGE_TYPE.of(make_pod({"VirtletCloudInitImageType": text})) == value


def test_another_image_type_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="'floppy' is neither 'nocloud' nor 'configdrive'"):
        IMAGE_TYPE.of(make_pod({"VirtletCloudInitImageType": "floppy"}))


@pytest.mark.parametrize("name", ["VirtletCloudInitUserData", "VirtletCloudInitMetaData"])
@pytest.mark.parametrize("text", [f"- {SECRET}", SECRET, f"a: {SECRET}: b", f"!{SECRET} x"])
def test_a_wrong_document_is_refused_without_quoting_it(name: str, text: str) -> None:
    declared = {a.name: a for a in ALL}[name]
    with pytest.raises(InvalidArgument, match=f"^annotation {name}: ") as caught:
        declared.of(make_pod({name: text}))
    assert SECRET not in str(caught.value)


def test_everything_that_may_hold_a_secret_is_marked() -> None:
    assert {a.name for a in ALL if a.secret} == {
        "VirtletSSHKeys",
        "VirtletCloudInitMetaData",
        "VirtletCloudInitUserData",
        "VirtletCloudInitUserDataScript",
    }


def test_a_document_beside_a_script_is_refused_before_anything_is_made() -> None:
    marks = {"VirtletCloudInitUserDataScript": "#!/bin/sh", "VirtletCloudInitUserData": "a: 1"}
    with pytest.raises(InvalidArgument, match="the script is the whole user-data, so choose one"):
        Plugin().virtlet_admit_pod(make_pod(marks))
    for name, text in marks.items():
        Plugin().virtlet_admit_pod(make_pod({name: text}))


@given(st.fixed_dictionaries({}, optional={a.name: st.text(max_size=60) for a in ALL}))
def test_any_annotations_are_read_or_refused_by_name(marks: dict[str, str]) -> None:
    for declared in ALL:
        try:
            declared.of(make_pod(marks))
        except InvalidArgument as error:
            message = str(error)
        else:
            message = f"annotation {declared.name}: "
        assert message.startswith(f"annotation {declared.name}: ")
