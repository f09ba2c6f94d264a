import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.model import make_pod
from virtlet.errors import InvalidArgument
from virtlet.plugins.cloudinit import annotations
from virtlet.plugins.cloudinit.plugin import Plugin

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGexample me@host"
SECRET = "hunter2"


def test_keys_are_one_a_line() -> None:
    text = f'\n{KEY}\r\n# old\n\n  no-pty,from="10.0.0.0/8" ssh-rsa AAAAB3Nza==\n'
    assert annotations.SSH_KEYS.of(make_pod({"VirtletSSHKeys": text})) == (
        KEY,
        'no-pty,from="10.0.0.0/8" ssh-rsa AAAAB3Nza==',
    )


@pytest.mark.parametrize("text", [SECRET, "ssh-rsa", "-----BEGIN OPENSSH PRIVATE KEY-----", "a b"])
def test_what_is_no_public_key_is_refused_by_its_number_alone(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        annotations.SSH_KEYS.of(make_pod({"VirtletSSHKeys": f"{KEY}\n{text}"}))
    assert str(caught.value).startswith("annotation VirtletSSHKeys: key 2 is no public key")
    assert text not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"), [("", "nocloud"), ("nocloud", "nocloud"), ("configdrive", "configdrive")]
)
def test_the_image_type_is_one_of_two(text: str, value: str) -> None:
    assert annotations.IMAGE_TYPE.of(make_pod({"VirtletCloudInitImageType": text})) == value


def test_another_image_type_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="'floppy' is neither 'nocloud' nor 'configdrive'"):
        annotations.IMAGE_TYPE.of(make_pod({"VirtletCloudInitImageType": "floppy"}))


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("VirtletSSHKeySource", "VirtletSSHKeys"),
        ("VirtletCloudInitUserDataSource", "VirtletCloudInitUserData"),
        ("VirtletCloudInitUserDataSourceKey", "VirtletCloudInitUserData"),
        ("VirtletCloudInitUserDataSourceEncoding", "VirtletCloudInitUserData"),
    ],
)
def test_objects_of_kubernetes_are_refused_with_what_to_write(name: str, instead: str) -> None:
    declared = {a.name: a for a in annotations.ALL}[name]
    assert declared.of(make_pod({name: ""})) == ""
    with pytest.raises(InvalidArgument) as caught:
        declared.of(make_pod({name: "secret/keys"}))
    assert str(caught.value) == (
        f"annotation {name}: reading objects of Kubernetes is not served yet: "
        f"write the content itself into {instead}"
    )


@pytest.mark.parametrize("name", ["VirtletCloudInitUserData", "VirtletCloudInitMetaData"])
@pytest.mark.parametrize("text", [f"- {SECRET}", SECRET, f"a: {SECRET}: b", f"!{SECRET} x"])
def test_a_wrong_document_is_refused_without_quoting_it(name: str, text: str) -> None:
    declared = {a.name: a for a in annotations.ALL}[name]
    with pytest.raises(InvalidArgument, match=f"^annotation {name}: ") as caught:
        declared.of(make_pod({name: text}))
    assert SECRET not in str(caught.value)


def test_everything_that_may_hold_a_secret_is_marked() -> None:
    assert {a.name for a in annotations.ALL if a.secret} == {
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


@given(st.fixed_dictionaries({}, optional={a.name: st.text(max_size=60) for a in annotations.ALL}))
def test_any_annotations_are_read_or_refused_by_name(marks: dict[str, str]) -> None:
    for declared in annotations.ALL:
        try:
            declared.of(make_pod(marks))
        except InvalidArgument as error:
            message = str(error)
        else:
            message = f"annotation {declared.name}: "
        assert message.startswith(f"annotation {declared.name}: ")
