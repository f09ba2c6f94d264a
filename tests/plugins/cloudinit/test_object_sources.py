"""Annotations that name ConfigMaps and Secrets, read from an API server over TLS."""

import base64
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from tests.fakes.api_server import ApiServer, Served, serving, write_kubeconfig
from tests.fakes.model import make_config, make_node, make_pod, make_vm, make_vm_config
from tests.plugins.cloudinit.conftest import EMULATOR, KEY
from virtlet.cluster.api import KUBECONFIG
from virtlet.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unavailable,
    VirtletError,
)
from virtlet.model.cloudinit import CloudInitPart
from virtlet.model.disk import GuestFiles, Volume
from virtlet.plugins.cloudinit.plugin import Plugin

SECRET = "hunter2"
OTHER = KEY.replace("me@host", "you@host")
SOURCE, SOURCE_KEY = "VirtletCloudInitUserDataSource", "VirtletCloudInitUserDataSourceKey"
ENCODING, DATA = "VirtletCloudInitUserDataSourceEncoding", "VirtletCloudInitUserData"
FILES, KEYS = "VirtletFilesFromDataSource", "VirtletSSHKeySource"
OVER = {"VirtletCloudInitUserDataOverwrite": "true"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("cluster"), ApiServer(namespaces={"shop"})) as server:
        yield server


@pytest.fixture
def api(served: Served) -> ApiServer:
    served.api.requests.clear()
    return served.api


def connected(root: Path, kubeconfig: object) -> Plugin:
    plugin = Plugin()
    settings = make_config([KUBECONFIG], kubeconfig=str(kubeconfig))
    plugin.virtlet_configure(settings, make_node(root, EMULATOR, EMULATOR))
    return plugin


@pytest.fixture
def plugin(served: Served, api: ApiServer, tmp_path: Path) -> Iterator[Plugin]:
    made = connected(tmp_path, served.kubeconfig)
    yield made
    made.virtlet_shutdown()


def b64(content: str | bytes) -> str:
    data = content.encode() if isinstance(content, str) else content
    return base64.b64encode(data).decode()


def config_map(api: ApiServer, **data: str) -> str:
    api.put("configmaps", "shop", "made", data=data)
    return "configmap/made"


def secret(api: ApiServer, **data: str) -> str:
    api.put("secrets", "shop", "made", type="Opaque", data={k: b64(v) for k, v in data.items()})
    return "secret/made"


def told(
    plugin: Plugin, marks: dict[str, str], volumes: list[Volume] | None = None
) -> CloudInitPart:
    """As the core does: admission, then the contribution."""
    pod = make_pod(marks)
    plugin.virtlet_admit_pod(pod)
    plugin.virtlet_admit_vm(pod)
    vm = make_vm(Path("/nowhere"), pod, config=make_vm_config())
    part = plugin.virtlet_cloud_init(vm, volumes or [])
    assert part is not None
    return part


def refused(plugin: Plugin, kind: type[VirtletError], marks: dict[str, str]) -> str:
    """Why a pod is not made; nothing of it is secret."""
    with pytest.raises(kind) as caught:
        told(plugin, marks)
    assert type(caught.value) is kind
    assert SECRET not in str(caught.value)
    return str(caught.value)


def test_keys_come_from_an_object_before_those_of_the_annotation(
    plugin: Plugin, api: ApiServer
) -> None:
    marks = {KEYS: secret(api, authorized_keys=f"{OTHER}\n"), "VirtletSSHKeys": KEY}
    assert told(plugin, marks).meta_data["public-keys"] == [OTHER, KEY]
    assert told(plugin, marks | OVER).meta_data["public-keys"] == [KEY]
    named = {KEYS: f"{config_map(api, admins=OTHER)}/admins"}
    assert told(plugin, named | OVER).meta_data["public-keys"] == [OTHER]


def test_each_key_of_an_object_is_a_key_of_user_data(plugin: Plugin, api: ApiServer) -> None:
    """Merged after the annotation: lists append, mappings recurse, anything else replaces."""
    source = config_map(api, runcmd="[second]", power_state="{mode: halt}", locale="de_DE")
    own = "{runcmd: [first], power_state: {delay: now}, locale: C}"
    assert told(plugin, {SOURCE: source, DATA: own}).user_data == {
        "runcmd": ["mkdir -p /run/virtlet && : >/run/virtlet/configured", "first", "second"],
        "power_state": {"delay": "now", "mode": "halt"},
        "locale": "de_DE",
    }


def test_the_annotation_has_the_last_word_where_it_overwrites(
    plugin: Plugin, api: ApiServer
) -> None:
    marks = {SOURCE: config_map(api, locale="de_DE", runcmd="[a]"), DATA: "{runcmd: [b]}"} | OVER
    part = told(plugin, marks)
    assert part.user_data == {"runcmd": ["b"], "locale": "de_DE"}
    assert part.overrides == {"runcmd", "locale"}


@pytest.mark.parametrize("encoding", ["plain", "base64"])
def test_a_key_may_hold_a_whole_cloud_config(
    plugin: Plugin, api: ApiServer, tmp_path: Path, encoding: str
) -> None:
    """It is merged, so that the files that the pod mounts stay."""
    text = "#cloud-config\nruncmd: [own]\n"
    content = b64(text) if encoding == "base64" else text
    marks = {SOURCE: secret(api, all=content), SOURCE_KEY: "all", ENCODING: encoding}
    (tmp_path / "file").write_text("x")
    mounted = GuestFiles(host_path=tmp_path / "file", guest_path="/etc/app")
    part = told(plugin, marks, [mounted])
    assert part.script is None
    assert part.user_data["write_files"][0]["path"] == "/etc/app"
    assert part.user_data["runcmd"][-1] == "own"


def test_a_key_may_hold_a_whole_script(plugin: Plugin, api: ApiServer) -> None:
    script = "#!/bin/sh\n@virtlet-mount-script@\n"
    files = {"x": b64("content"), "x_path": "/etc/x"}
    marks = {SOURCE: config_map(api, all=script, **files), SOURCE_KEY: "all", KEYS: "configmap/k"}
    api.put("configmaps", "shop", "k", data={"authorized_keys": KEY})
    part = told(plugin, marks)
    assert part.user_data == {}
    assert part.script is not None
    assert part.script.startswith("#!/bin/sh\n(\n")
    assert part.meta_data["public-keys"] == [KEY]


def test_files_of_an_object_are_written(plugin: Plugin, api: ApiServer) -> None:
    data = {
        "a": b64(b"\x00\xff"),
        "a_path": "/etc/a",
        "b": "plain text",
        "b_path": "//srv//b\n",
        "b_encoding": "plain",
    }
    written = [
        {"path": "/etc/a", "permissions": "0644", "encoding": "b64", "content": b64(b"\x00\xff")},
        {"path": "/srv/b", "permissions": "0644", "content": "plain text"},
    ]
    assert told(plugin, {FILES: config_map(api, **data)}).user_data["write_files"] == written
    part = told(plugin, {FILES: secret(api, **data)})
    assert {entry["permissions"] for entry in part.user_data["write_files"]} == {"0600"}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({"x": "aGk="}, "key x: there is no key x_path that says where the file goes"),
        ({"x_path": "/x"}, "key x_path: there is no key x that it is about"),
        ({"x": "%", "x_path": "/x"}, "key x: it is no base64"),
        ({"x": "", "x_path": "etc/x"}, "key x: what is under x_path is no absolute path of a file"),
        ({"x": "", "x_path": "/etc/../x"}, "is no absolute path of a file"),
        ({"x": "", "x_path": "/etc/x\ny"}, "is no absolute path of a file"),
        ({"x": "", "x_path": "/etc/"}, "is no absolute path of a file"),
        (
            {"x": "", "x_path": "/x", "x_encoding": "gzip"},
            "what is under x_encoding is neither plain nor base64",
        ),
        (
            {"x": "", "x_path": "/a", "y": "", "y_path": "//a"},
            "key y: another key has the same path",
        ),
    ],
)
def test_files_that_cannot_be_written_are_refused_by_their_key(
    plugin: Plugin, api: ApiServer, data: dict[str, str], why: str
) -> None:
    message = refused(plugin, InvalidArgument, {FILES: config_map(api, **data)})
    assert message.startswith(f"annotation {FILES}: configmap/made, key")
    assert message.endswith(why)


@pytest.mark.parametrize(
    ("annotations", "data", "why"),
    [
        ({KEYS: "secret/made"}, {"authorized_keys": SECRET}, "key 1 is not a public key"),
        ({SOURCE: "secret/made"}, {"users": f"[{SECRET}"}, "secret/made, key users: no valid YAML"),
        ({SOURCE: "secret/made"}, {"users": f"!{SECRET} x"}, "secret/made, key users: "),
        ({SOURCE: "secret/made", SOURCE_KEY: "k"}, {"k": " "}, "secret/made, key k: it is empty"),
        (
            {SOURCE: "secret/made", SOURCE_KEY: "k"},
            {"k": f"#cloud-config\n- {SECRET}"},
            "secret/made, key k: must be a mapping, not a list",
        ),
        (
            {SOURCE: "secret/made", SOURCE_KEY: "k", ENCODING: "base64"},
            {"k": f"{SECRET}!"},
            "secret/made, key k: it is no base64",
        ),
        (
            {SOURCE: "secret/made", SOURCE_KEY: "k", DATA: "{a: 1}"},
            {"k": SECRET},
            "it is the whole user-data, as a script is: take the annotation",
        ),
    ],
)
def test_content_that_is_wrong_is_refused_without_quoting_it(
    plugin: Plugin, api: ApiServer, annotations: dict[str, str], data: dict[str, str], why: str
) -> None:
    secret(api, **data)
    message = refused(plugin, InvalidArgument, annotations)
    assert message.startswith("annotation Virtlet")
    assert why in message


def test_what_is_no_text_is_refused(plugin: Plugin, api: ApiServer) -> None:
    api.put("configmaps", "shop", "made", binaryData={"users": b64(b"\xff")})
    message = refused(plugin, InvalidArgument, {SOURCE: "configmap/made"})
    assert message.endswith("configmap/made, key users: it is no UTF-8 text")


@pytest.mark.parametrize(
    ("annotations", "why"),
    [
        ({SOURCE: "pod/x"}, "'pod/x' is not configmap/NAME or secret/NAME"),
        ({SOURCE: "secret/x/key"}, "is not configmap/NAME or secret/NAME"),
        ({FILES: "secret/../../nodes"}, "is not configmap/NAME or secret/NAME"),
        ({KEYS: "secret/x/"}, None),
        ({KEYS: "secret/x/a/b"}, "'a/b' cannot be a key of a ConfigMap or Secret"),
        ({KEYS: "secret/X"}, "is not configmap/NAME or secret/NAME, with /KEY after it"),
        ({SOURCE: "secret/x", ENCODING: "gzip"}, "'gzip' is neither 'plain' nor 'base64'"),
        ({SOURCE: "secret/x", ENCODING: "base64"}, f"{SOURCE_KEY}, which is not given"),
        ({SOURCE_KEY: "x"}, f"{SOURCE} does not say which object has this key"),
        ({SOURCE: "secret/x", "VirtletCloudInitUserDataScript": "#!/bin/sh"}, "so choose one"),
        (
            {FILES: "secret/f", "VirtletCloudInitUserDataScript": "#!/bin/sh"},
            f"nothing writes the files of {FILES}: put @virtlet-mount-script@ on a line",
        ),
    ],
)
def test_annotations_that_make_no_sense_are_refused(
    plugin: Plugin, api: ApiServer, annotations: dict[str, str], why: str | None
) -> None:
    api.put("secrets", "shop", "x", data={"authorized_keys": b64(KEY)})
    api.put("secrets", "shop", "f", data={"x": "", "x_path": b64("/x")})
    if why is None:
        assert told(plugin, annotations).meta_data["public-keys"] == [KEY]
    else:
        assert why in refused(plugin, InvalidArgument, annotations)


def test_an_object_or_key_that_is_missing_is_named(plugin: Plugin, api: ApiServer) -> None:
    message = refused(plugin, NotFound, {SOURCE: "secret/absent"})
    assert message == f"annotation {SOURCE}: Secret shop/absent does not exist"
    marks = {KEYS: f"{config_map(api, other=SECRET)}/admins"}
    message = refused(plugin, NotFound, marks)
    assert message == f"annotation {KEYS}: ConfigMap shop/made has no key 'admins'"


def test_a_pod_reads_objects_of_its_own_namespace_alone(plugin: Plugin, api: ApiServer) -> None:
    """What the role of the manifest does not allow is said with the way to allow it."""
    api.put("secrets", "elsewhere", "x", data={})
    pod = make_pod({SOURCE: "secret/x"})
    metadata = evolve(pod.config.metadata, namespace="elsewhere")
    pod = evolve(pod, config=evolve(pod.config, metadata=metadata))
    refused = r"Secret elsewhere/x: .* \(403\): .*deploy/cluster/rbac"
    with pytest.raises(PermissionDenied, match=refused):
        plugin.virtlet_admit_vm(pod)
    assert api.requests == ["/api/v1/namespaces/elsewhere/secrets/x"]


def test_several_annotations_of_one_object_take_one_request(plugin: Plugin, api: ApiServer) -> None:
    source = secret(api, all="#cloud-config\n{}", admins=KEY)
    told(plugin, {KEYS: f"{source}/admins", SOURCE: source, SOURCE_KEY: "all"})
    assert api.requests == ["/api/v1/namespaces/shop/secrets/made"]


def test_a_server_that_is_away_or_broken_is_said(
    plugin: Plugin, api: ApiServer, served: Served, tmp_path: Path
) -> None:
    api.broken = 500
    assert "answers 500" in refused(plugin, Unavailable, {SOURCE: "secret/x"})
    api.broken = 0
    away = tmp_path / "away"
    away.write_text(served.kubeconfig.read_text())
    write_kubeconfig(away, None, 1)
    message = refused(connected(tmp_path, away), Unavailable, {SOURCE: "secret/x"})
    assert "Secret shop/x: the cluster's API server cannot be reached: " in message
    assert "localhost" in message


def test_a_token_that_is_not_valid_is_said(served: Served, api: ApiServer, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text(served.kubeconfig.read_text())
    write_kubeconfig(wrong, None, served.port, SECRET)
    message = refused(connected(tmp_path, wrong), PermissionDenied, {SOURCE: "secret/x"})
    assert "does not know the manager's account (401)" in message


def test_a_server_whose_certificate_is_not_known_gets_no_token(
    served: Served, api: ApiServer, tmp_path: Path
) -> None:
    with serving(tmp_path, ApiServer()) as other:
        write_kubeconfig(other.kubeconfig, None, served.port)
        plugin = connected(tmp_path, other.kubeconfig)
        assert "certificate verify failed" in refused(plugin, Unavailable, {SOURCE: "secret/x"})
    assert api.requests == []


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "set kubeconfig (--kubeconfig) to a file of an account"),
        ("", "file is empty"),
        (f"token: [{SECRET}", "Error"),
        ("absent", "Invalid kube-config file. No configuration found"),
    ],
)
def test_a_manager_without_access_says_how_to_get_it(
    tmp_path: Path, content: str | None, why: str
) -> None:
    path: Any = "" if content is None else tmp_path / "kubeconfig"
    if content is not None and content != "absent":
        path.write_text(content)
    message = refused(connected(tmp_path, path), FailedPrecondition, {SOURCE: "secret/x"})
    assert "the manager has no access to the cluster's API server" in message
    assert why in message


def test_nothing_that_is_read_is_logged_or_printed(
    plugin: Plugin, api: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    marks = {SOURCE: secret(api, password=SECRET), FILES: "secret/f"}
    api.put("secrets", "shop", "f", data={"x": b64(b64(SECRET)), "x_path": b64("/x")})
    part = told(plugin, marks)
    assert part.user_data["password"] == SECRET
    shown = repr(part) + caplog.text
    assert SECRET not in shown
    assert b64(SECRET) not in shown
