"""VirtletConfigMappings: settings of nodes as objects of the cluster."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes.api_server import CONFIGS, ROOT, ApiServer, Served, serving
from tests.polling import until
from virtlet.cluster.api import KUBECONFIG, Cluster
from virtlet.core.config import load
from virtlet.core.config.mapped import SPEC, AppliedSettings, ConfigMappings
from virtlet.core.config.options import CORE_OPTIONS, HOOK_PATIENCE, LOG_LEVEL, PINNED_IMAGES
from virtlet.core.daemon import declared
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.registry import discover
from virtlet.model.option import Option

LIMIT = 60.0
WHERE = "VirtletConfigMapping kube-system"
OPTIONS: tuple[Option[Any], ...] = (*CORE_OPTIONS, KUBECONFIG)
Said = Mapping[str, tuple[str, str]]


@pytest.fixture
def api() -> ApiServer:
    made = ApiServer()
    made.put("nodes", "", "node-1", labels={"pool": "vms", "zone": "a"})
    return made


@pytest.fixture
def served(api: ApiServer, tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path, api) as server:
        yield server


def put(api: ApiServer, name: str, config: object = None, **spec: Any) -> None:
    api.put(CONFIGS, "kube-system", name, spec={"config": config, **spec})


@contextmanager
def following(tmp_path: Path, kubeconfig: object, node: str = "node-1") -> Iterator[ConfigMappings]:
    directory = tmp_path / "mapped"
    made = ConfigMappings(Cluster(str(kubeconfig)), "kube-system", node, OPTIONS, directory)
    made.start(LIMIT)
    try:
        yield made
    finally:
        made.stop()


def test_a_start_has_what_the_cluster_says_of_its_node(
    api: ApiServer, served: Served, tmp_path: Path
) -> None:
    """By name, by labels, for all; the highest priority counts."""
    put(api, "all", {"hookPatience": 90, "logLevel": "debug", "pinnedImages": ["a", "b:*"]})
    put(api, "by-label", {"hookPatience": 100}, nodeSelector={"pool": "vms"}, priority=1)
    put(api, "by-name", {"logFormat": "text"}, nodeName="node-1")
    put(api, "others", {"hookPatience": 5}, nodeName="node-2", priority=9)
    put(api, "other-zone", {"hookPatience": 6}, nodeSelector={"pool": "vms", "zone": "b"})
    with following(tmp_path, served.kubeconfig) as mappings:
        assert mappings.values() == {
            "hookPatience": ("100", f"{WHERE}/by-label"),
            "logLevel": ("debug", f"{WHERE}/all"),
            "pinnedImages": ("a,b:*", f"{WHERE}/all"),
            "logFormat": ("text", f"{WHERE}/by-name"),
        }


def test_what_the_node_says_wins_over_the_cluster_and_the_cluster_over_defaults(
    tmp_path: Path,
) -> None:
    file = tmp_path / "virtlet.yaml"
    file.write_text("hookPatience: 30\n")
    mapped = dict.fromkeys(("hookPatience", "streamPort", "imageSizeLimit"), ("7", WHERE))
    layers: dict[str, Any] = {"file": file, "environment": {}, "flags": {"streamPort": "8"}}
    found = load.load(OPTIONS, **layers, mapped=mapped)
    assert found[HOOK_PATIENCE] == 30
    by_field = {option.field: option for option in OPTIONS}
    assert found[by_field["streamPort"]] == 8
    assert found[by_field["imageSizeLimit"]] == 7
    layers["environment"] = {"VIRTLET_LOGLEVEL": "debug"}
    assert load.said(OPTIONS, **layers) == {"hookPatience", "streamPort", "logLevel"}


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"hookPatience": 0}, "config: hookPatience: 0 is not between 1 and 86400"),
        ({"hookpatience": 9}, "no option of this node is called 'hookpatience'"),
        ({"pinnedImages": {"a": 1}}, "pinnedImages: is a mapping"),
        (5, "nodeSelector and config must be mappings"),
        *(
            ({name: "/tmp"}, f"config: {name} is for the node's file, environment or flags alone")
            for name in ("dataDir", "emulator", "emulatorUser", "vmUsers", "kubeconfig")
        ),
    ],
)
def test_an_object_that_is_wrong_is_named_and_disturbs_no_other(
    api: ApiServer,
    served: Served,
    tmp_path: Path,
    config: object,
    problem: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    put(api, "wrong", config, priority=5)
    put(api, "good", {"logFormat": "text"})
    with following(tmp_path, served.kubeconfig) as mappings:
        assert mappings.values() == {"logFormat": ("text", f"{WHERE}/good")}
    (told,) = [getattr(r, "problem", "") for r in caplog.records if "not used" in r.message]
    assert told.startswith(f"{WHERE}/wrong: ")
    assert problem in told


def test_objects_that_contradict_each_other_are_both_named(
    api: ApiServer, served: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(api, "a", {"hookPatience": 7, "logFormat": "text"})
    put(api, "b", {"hookPatience": 8, "logFormat": "text"})
    with following(tmp_path, served.kubeconfig) as mappings:
        assert mappings.values()["hookPatience"] == ("7", f"{WHERE}/a")
        mappings.values()
    (told,) = [getattr(r, "problem", "") for r in caplog.records if "contradict" in r.message]
    assert told.startswith(f"{WHERE}/b: {WHERE}/a says otherwise of hookPatience with the same")


def test_a_server_that_is_away_leaves_what_it_last_said(api: ApiServer, tmp_path: Path) -> None:
    """With the labels of the node, also over a restart."""
    put(api, "a", {"hookPatience": 7}, nodeSelector={"pool": "vms"})
    with serving(tmp_path, api) as served, following(tmp_path, served.kubeconfig) as mappings:
        before = mappings.values()
    with following(tmp_path, served.kubeconfig) as mappings:
        assert mappings.values() == before == {"hookPatience": ("7", f"{WHERE}/a")}


@pytest.mark.parametrize("lack", ["access", "kubeconfig", "right", "server"])
def test_without_the_cluster_there_are_no_objects_and_the_start_goes_on(
    api: ApiServer, served: Served, tmp_path: Path, lack: str
) -> None:
    put(api, "a", {"hookPatience": 7})
    api.denied = {CONFIGS} if lack == "right" else set()
    api.broken = 503 if lack == "server" else 0
    kubeconfig = {"access": "", "kubeconfig": tmp_path / "none"}.get(lack, served.kubeconfig)
    with following(tmp_path, kubeconfig) as mappings:
        assert mappings.values() == {}


def test_what_can_change_changes_at_once_and_the_rest_waits_for_a_restart(
    api: ApiServer, served: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What the node says itself does not change; what goes away is the default again."""
    caplog.set_level(logging.INFO)
    seen: dict[str, Any] = {}
    live = {o.field: _into(seen, o.field) for o in (HOOK_PATIENCE, PINNED_IMAGES, LOG_LEVEL)}
    put(api, "a", {"hookPatience": 7})
    with following(tmp_path, served.kubeconfig) as mappings:
        own = frozenset({LOG_LEVEL.field})
        in_force = AppliedSettings(mappings, OPTIONS, own, mappings.values(), live)
        mappings.tell(in_force.look)
        assert (seen, in_force.needs_restart) == ({}, {})
        config = {"pinnedImages": ["a"], "logLevel": "debug", "logFormat": "text"}
        put(api, "a", config)
        until(lambda: bool(in_force.needs_restart), "a setting that waits", LIMIT)
        assert in_force.needs_restart == {"logFormat": f"{WHERE}/a"}
        assert seen == {"hookPatience": 60, "pinnedImages": ("a",)}
        api.delete(CONFIGS, "kube-system", "a")
        until(lambda: not in_force.needs_restart, "nothing that waits", LIMIT)
        assert seen == {"hookPatience": 60, "pinnedImages": ()}
    told = [r.message for r in caplog.records]
    assert told.count("setting changes with the next start of the manager") == 1
    assert told.count("setting changed") == 3


def _into(seen: dict[str, Any], name: str) -> Any:
    def take(value: Any) -> None:
        seen[name] = value

    return take


KEPT_FROM_THE_CLUSTER = {
    *("dataDir", "criSocketPath", "fdServerSocketPath", "databasePath", "imageDir"),
    *("emulatorUser", "vmUsers", "emulator", "vmCgroup", "emulatorJail", "cgroupDriver"),
    *("streamAddress", "streamPort", "streamHost", "streamTLSCert", "streamTLSKey"),
    *("showPluginErrors", "forgottenPlugins", "kubeconfig", "nodeName", "configMappingNamespace"),
    *("imageAllowedNetworks", "imageTranslationConfigsDir", "downloadProtocol"),
    *("imageMappingNamespace", "imageRegistryConfigsDir", "libvirtURI", "flavorsDir"),
    *("cniPluginDir", "cniConfigDir", "enableSriov", "kubeletRootDir", "rawDevices"),
    *("hostPaths", "metricsAddress", "cephMonitors"),
}


def test_what_keeps_the_cluster_from_the_node_cannot_be_set_by_it() -> None:
    """Every option stands here or may be set: a new one has to be decided."""
    registry = discover()
    builtin = [o for plugin, o in Hooks(registry).options() if plugin in registry.builtin]
    settable = {o.field for o in (*CORE_OPTIONS, *builtin) if o.mappable}
    everything = {o.field for o in (*CORE_OPTIONS, *builtin)}
    assert everything - settable == KEPT_FROM_THE_CLUSTER
    definition = yaml.safe_load(
        (ROOT / "deploy" / "cluster" / "virtletconfigmapping.yaml").read_text()
    )
    (version,) = definition["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    assert set(spec) == set(SPEC)
    assert set(spec["config"]["properties"]) == settable
    assert {o.field for o in declared(registry)} >= everything
