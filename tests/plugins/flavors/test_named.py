"""VirtletFlavors: machines with names, of the cluster and of the node's files."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from attrs import evolve

from tests.fakes.api_server import FLAVORS, ROOT, ApiServer, Served, serving
from tests.polling import until
from virtlet.cluster.api import KUBECONFIG
from virtlet.errors import FailedPrecondition, InvalidArgument, Unavailable
from virtlet.model.flavor import Flavor
from virtlet.model.option import Settings
from virtlet.model.pod import Pod
from virtlet.plugins.flavors.flavor_keys import KEYS
from virtlet.plugins.flavors.named import SPEC, read_spec
from virtlet.plugins.flavors.plugin import FLAVORS_DIR, Plugin
from virtlet.testing.models import make_image, make_node, make_pod, make_vm_config

LIMIT = 60.0
LIST = f"/apis/virtlet.k8s/v1/{FLAVORS}"
Write = Callable[..., Path]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Of the flavor files."""
    path = tmp_path / "flavors"
    path.mkdir()
    return path


@pytest.fixture
def write(directory: Path) -> Write:
    """Writes a file with a flavor."""

    def write_it(file: str, name: str, **spec: Any) -> Path:
        path = directory / file
        document = {"apiVersion": "virtlet.k8s/v1", "kind": "VirtletFlavor"}
        document |= {"metadata": {"name": name}, "spec": spec}  # type: ignore[dict-item]
        path.write_text(yaml.safe_dump(document))
        return path

    return write_it


@contextmanager
def serves(directory: Path, kubeconfig: object = "", *handlers: str) -> Iterator[Plugin]:
    """The plugin on a node with these handlers."""
    plugin = Plugin()
    values = {FLAVORS_DIR.field: directory, KUBECONFIG.field: str(kubeconfig)}
    sections = {"handlers": dict.fromkeys(handlers)}
    node = make_node(directory.parent)
    plugin.virtlet_configure(Settings(values=values, sections=sections), node)
    try:
        yield plugin
    finally:
        plugin.virtlet_shutdown()


@pytest.fixture
def plugin(directory: Path) -> Iterator[Plugin]:
    with serves(directory, "", "virtlet", "large") as made:
        yield made


def wanting(flavor: str = "", handler: str = "virtlet", **marks: str) -> Pod:
    """A pod of namespace `shop`."""
    marks |= {"VirtletFlavor": flavor} if flavor else {}
    return make_pod(marks, handler=handler)


def machine(plugin: Plugin, pod: Pod) -> Flavor:
    """The machine of a pod, by the hooks in the core's order."""
    section = plugin.virtlet_pod_flavor(pod)
    if section is not None:
        pod = evolve(pod, profile=evolve(pod.profile, flavor=section))
    plugin.virtlet_admit_pod(pod)
    chosen = plugin.virtlet_flavor(pod, make_vm_config(), make_image(Path("/nonexistent")))
    assert chosen is not None
    return chosen


def test_a_pod_has_the_flavor_that_it_names_and_what_it_asks_beyond(
    plugin: Plugin, write: Write
) -> None:
    write("a.yaml", "small", flavor={"vcpus": 2, "memory": "256Mi", "extras": {"slots": 2}})
    found = machine(plugin, wanting("small"))
    assert (found.vcpus, found.memory, found.extras) == (2, 256 << 20, {"slots": "2"})
    assert machine(plugin, wanting("small", VirtletVCPUCount="3")).vcpus == 3
    assert machine(plugin, wanting()) == Flavor()


def test_what_a_flavor_does_not_say_is_its_handlers(plugin: Plugin, write: Write) -> None:
    write("a.yaml", "small", flavor={"vcpus": 2, "extras": {"gpu": "a"}})
    mine = {"vcpus": 8, "disk_bus": "virtio", "extras": {"spoofing": "allow", "gpu": "b"}}
    pod = make_pod({"VirtletFlavor": "small"}, handler="large", flavor=mine)
    found = machine(plugin, pod)
    assert (found.vcpus, found.disk_bus) == (2, "virtio")
    assert found.extras == {"spoofing": "allow", "gpu": "a"}


def test_pods_of_a_handler_have_the_flavor_that_claims_it(plugin: Plugin, write: Write) -> None:
    write("a.yaml", "big", handlers=["large"], flavor={"vcpus": 4})
    write("b.yaml", "other", flavor={"vcpus": 3})
    assert machine(plugin, wanting(handler="large")).vcpus == 4
    assert machine(plugin, wanting("other", handler="large")).vcpus == 3
    assert machine(plugin, wanting()).vcpus == 1


def test_a_flavor_that_is_not_there_is_refused_with_those_that_are(
    plugin: Plugin, write: Write
) -> None:
    refusal = "no flavor 'medium'; namespace shop may use none"
    with pytest.raises(InvalidArgument, match=refusal):
        machine(plugin, wanting("medium"))
    write("a.yaml", "small", flavor={})
    write("b.yaml", "shops", flavor={}, allowedNamespaces=["sh*"])
    write("c.yaml", "theirs", flavor={}, allowedNamespaces=["team-*"])
    with pytest.raises(
        InvalidArgument, match="no flavor 'medium'; namespace shop may use shops, s"
    ):
        machine(plugin, wanting("medium"))
    with pytest.raises(InvalidArgument, match="'../etc' cannot be the name of a flavor"):
        machine(plugin, wanting("../etc"))


def test_a_namespace_has_only_what_it_is_allowed(plugin: Plugin, write: Write) -> None:
    write("a.yaml", "shops", flavor={"vcpus": 2}, allowedNamespaces=["elsewhere", "s?op"])
    write("b.yaml", "theirs", flavor={}, allowedNamespaces=["team-*"], handlers=["large"])
    write("c.yaml", "nobodys", flavor={}, allowedNamespaces=[])
    assert machine(plugin, wanting("shops")).vcpus == 2
    refusal = "namespace may not have flavor '{}'{}; namespace shop may use shops"
    for name in ("theirs", "nobodys"):
        with pytest.raises(InvalidArgument, match=refusal.format(name, "")):
            machine(plugin, wanting(name))
    with pytest.raises(InvalidArgument, match=refusal.format("theirs", ", that of its handler")):
        machine(plugin, wanting(handler="large"))


def test_a_fixed_flavor_is_had_as_it_is(plugin: Plugin, write: Write) -> None:
    write("a.yaml", "as-it-is", flavor={"vcpus": 2}, fixed=True)
    uuid = "7e57ab1e-0000-4000-8000-00000badcafe"
    assert machine(plugin, wanting("as-it-is", VirtletSystemUUID=uuid)).vcpus == 2
    with pytest.raises(InvalidArgument, match="fixed: take out VirtletVCPUCount, VirtletMaxMemory"):
        machine(plugin, wanting("as-it-is", VirtletMaxMemory="2Gi", VirtletVCPUCount="2"))


def test_a_topology_makes_whole_sockets(plugin: Plugin, write: Write) -> None:
    write("a.yaml", "cores", flavor={"vcpus": 4, "topology": {"cores": 2, "threads": 2}})
    found = machine(plugin, wanting("cores"))
    assert (found.cores, found.threads) == (2, 2)
    with pytest.raises(InvalidArgument, match="can have 6 vCPUs, which fill no whole sockets"):
        machine(plugin, wanting("cores", VirtletVCPUCount="6"))


WRONG: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "no-flavor": ({}, "spec: flavor must be a mapping"),
    "key": ({"flavor": {"vcpu": 2}}, r"unknown key 'vcpu' \(did you mean 'vcpus'"),
    "value": ({"flavor": {"vcpus": 0}}, "flavor: vcpus: 0 is not between 1 and 255"),
    "of-spec": ({"flavor": {}, "handler": "x"}, r"spec has the unknown key 'handler' \(did you"),
    "handlers": ({"flavor": {}, "handlers": "large"}, "handlers must be a list of words"),
    "glob": ({"flavor": {}, "allowedNamespaces": ["A b"]}, "'A b' is neither a namespace nor"),
    "fixed": ({"flavor": {}, "fixed": "yes"}, "fixed must be true or false"),
    "burst": ({"flavor": {"disk_iops_burst": 5}}, "disk_iops_burst needs disk_iops"),
    "topology": ({"flavor": {"topology": {"dies": 2}}}, "topology: must be a mapping with cores"),
    "spoofing": (
        {"flavor": {"extras": {"spoofing": "allow"}}},
        "extras: spoofing lets guests send from addresses of others: only `handlers` of a node's",
    ),
    "document": (
        {"flavor": {"extras": {"domain_cpu": "<cpu/>"}}},
        "extras: domain_cpu is a part of the domain document: only `handlers`",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_with_its_name_and_disturbs_no_other(
    plugin: Plugin, write: Write, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    spec, problem = WRONG[name]
    path = write("a.yaml", name, **spec)
    write("b.yaml", "good", flavor={"vcpus": 2})
    assert machine(plugin, wanting("good")).vcpus == 2
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    (told,) = [getattr(record, "problem", "")]
    with pytest.raises(FailedPrecondition, match=problem):
        raise FailedPrecondition(told)
    assert str(path) in told
    with pytest.raises(InvalidArgument, match=f"no flavor '{name}'"):
        machine(plugin, wanting(name))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\xff", "is no UTF-8 text"),
        (b"a: [", "a.yaml: "),
        (b"kind: Pod", "must be one document with apiVersion virtlet.k8s/v1, kind VirtletFlavor"),
        (b"{apiVersion: virtlet.k8s/v1, kind: VirtletFlavor, metadata: 5}", "metadata.name must"),
        (b"#" * ((1 << 20) + 1), "is over 1048576 bytes"),
    ],
)
def test_a_file_that_is_none_is_told_of(
    plugin: Plugin, directory: Path, content: bytes, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    (directory / "a.yaml").write_bytes(content)
    assert machine(plugin, wanting()) == Flavor()
    (record,) = [r for r in caplog.records if r.message == "flavor file not used"]
    assert problem in getattr(record, "problem", "")


def test_a_file_that_becomes_wrong_keeps_its_last_meaning(plugin: Plugin, write: Write) -> None:
    write("a.yaml", "small", flavor={"vcpus": 2})
    assert machine(plugin, wanting("small")).vcpus == 2
    write("a.yaml", "small", flavor={"vcpus": "a great many"})
    assert machine(plugin, wanting("small")).vcpus == 2
    write("a.yaml", "small", flavor={"vcpus": 3, "memory": "512Mi"})
    assert machine(plugin, wanting("small")).vcpus == 3


def test_contradictions_are_told_once_and_the_first_counts(
    plugin: Plugin, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    write("a.yaml", "one", handlers=["large"], flavor={"vcpus": 2})
    write("b.yaml", "two", handlers=["large", "elsewhere"], flavor={"vcpus": 3})
    write("c.yaml", "one", flavor={"vcpus": 4})
    for _ in range(2):
        assert machine(plugin, wanting(handler="large")).vcpus == 2
    told = [getattr(r, "problem", "") for r in caplog.records if "as it says" in r.message]
    assert sorted(problem.partition("flavors/")[2] for problem in told) == [
        "b.yaml: handler 'large' has the flavor 'one' "
        f"({plugin._flavors._files._directory}/a.yaml) already, which counts; take the handler out "
        "of one",
        "b.yaml: this node serves no handler 'elsewhere'",
        f"c.yaml is not used: {plugin._flavors._files._directory}/a.yaml has the name 'one' too",
    ]


def test_a_flavor_that_does_not_fit_its_handler_is_refused_with_both(
    plugin: Plugin, write: Write
) -> None:
    write("a.yaml", "nvme", flavor={"disk_bus": "nvme"})
    pod = make_pod({"VirtletFlavor": "nvme"}, handler="large", flavor={"disk_iops": 100})
    refusal = "a.yaml, over the flavor of handler 'large': disks with I/O limits are on scsi"
    with pytest.raises(FailedPrecondition, match=refusal):
        machine(plugin, pod)


# The cluster's


@pytest.fixture
def api() -> ApiServer:
    return ApiServer()


@pytest.fixture
def served(api: ApiServer, tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path, api) as server:
        yield server


def has(plugin: Plugin, pod: Pod, vcpus: int) -> None:
    """Wait until a pod gets so many vCPUs."""

    def there() -> bool:
        try:
            return machine(plugin, pod).vcpus == vcpus
        except (InvalidArgument, Unavailable):
            return False

    until(there, f"{vcpus} vCPUs", LIMIT)


def test_objects_come_change_and_go(api: ApiServer, served: Served, directory: Path) -> None:
    api.put(FLAVORS, "", "small", spec={"flavor": {"vcpus": 2}})
    with serves(directory, served.kubeconfig) as plugin:
        has(plugin, wanting("small"), 2)
        api.put(FLAVORS, "", "small", spec={"flavor": {"vcpus": 3}, "handlers": [""]})
        has(plugin, wanting(handler=""), 3)
        api.delete(FLAVORS, "", "small")
        has(plugin, wanting(handler=""), 1)
        with pytest.raises(InvalidArgument, match="no flavor 'small'"):
            machine(plugin, wanting("small"))
    assert api.requests.count(LIST) == 1


def test_the_nodes_file_counts_over_an_object_and_the_older_object_over_another(
    api: ApiServer, served: Served, directory: Path, write: Write
) -> None:
    claim = {"handlers": ["virtlet"]}
    api.put(FLAVORS, "", "b", spec={"flavor": {"vcpus": 2}, **claim})
    api.put(FLAVORS, "", "a", spec={"flavor": {"vcpus": 3}, **claim})
    with serves(directory, served.kubeconfig, "virtlet") as plugin:
        has(plugin, wanting(), 2)
        write("z.yaml", "a", flavor={"vcpus": 5}, handlers=["virtlet"])
        assert machine(plugin, wanting("a")).vcpus == 5
        assert machine(plugin, wanting()).vcpus == 5
        assert machine(plugin, wanting("b")).vcpus == 2


def test_an_object_that_becomes_wrong_is_named_and_keeps_its_last_meaning(
    api: ApiServer, served: Served, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    api.put(FLAVORS, "", "small", spec={"flavor": {"vcpus": 2}})
    with serves(directory, served.kubeconfig) as plugin:
        has(plugin, wanting("small"), 2)
        api.put(FLAVORS, "", "small", spec={"flavor": {"vcpus": -1}})
        api.put(FLAVORS, "", "never", spec={"flavor": 5})
        api.put(FLAVORS, "", "other", spec={"flavor": {"vcpus": 4}})
        has(plugin, wanting("other"), 4)
        assert machine(plugin, wanting("small")).vcpus == 2
        never = r"no flavor 'never' that can be used \(VirtletFlavor never: spec: flavor must be"
        with pytest.raises(InvalidArgument, match=never):
            machine(plugin, wanting("never"))
    told = [getattr(r, "problem", "") for r in caplog.records if r.message == "flavor not used"]
    assert [problem.partition(":")[0] for problem in told] == [
        "VirtletFlavor small",
        "VirtletFlavor never",
    ]


def test_a_server_that_goes_away_takes_no_flavor_with_it(
    api: ApiServer, tmp_path: Path, directory: Path
) -> None:
    """Nor does a restart of the manager meanwhile."""
    with serving(tmp_path, api) as served:
        api.put(FLAVORS, "", "small", spec={"flavor": {"vcpus": 2}, "handlers": ["virtlet"]})
        with serves(directory, served.kubeconfig) as plugin:
            has(plugin, wanting("small"), 2)
    with serves(directory, served.kubeconfig) as plugin:
        assert machine(plugin, wanting("small")).vcpus == 2
        assert machine(plugin, wanting()).vcpus == 2


def test_until_the_objects_are_known_pods_wait_but_for_the_nodes_own_flavors(
    api: ApiServer, served: Served, directory: Path, write: Write
) -> None:
    """A kubelet tries again; a machine that is not the handler's would stay."""
    api.broken = 503
    write("a.yaml", "mine", flavor={"vcpus": 2}, handlers=["large"])
    with serves(directory, served.kubeconfig, "large") as plugin:
        for pod in (wanting("small"), wanting()):
            with pytest.raises(Unavailable, match="the VirtletFlavors are not known yet"):
                machine(plugin, pod)
        assert machine(plugin, wanting("mine")).vcpus == 2
        assert machine(plugin, wanting(handler="large")).vcpus == 2


@pytest.mark.parametrize("lack", ["kind", "right", "kubeconfig"])
def test_a_cluster_without_flavors_holds_nobody_up(
    api: ApiServer, served: Served, directory: Path, lack: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No definition, no right to read them, or no way to the server: said once."""
    caplog.set_level(logging.INFO)
    api.has_flavors = lack != "kind"
    api.denied = {FLAVORS} if lack == "right" else set()
    kubeconfig = directory / "none" if lack == "kubeconfig" else served.kubeconfig
    with serves(directory, kubeconfig) as plugin:
        has(plugin, wanting(), 1)
        until(lambda: "flavors not followed" in caplog.text, "a line of the log", LIMIT)


# What is shipped


def _schema() -> Mapping[str, Any]:
    definition = yaml.safe_load((ROOT / "deploy" / "cluster" / "virtletflavor.yaml").read_text())
    (version,) = definition["spec"]["versions"]
    found: Mapping[str, Any] = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return found


def test_the_definition_is_the_table_of_the_code() -> None:
    properties = _schema()["properties"]
    assert set(properties) == set(SPEC)
    assert properties["flavor"]["properties"] == {name: key.schema for name, key in KEYS.items()}
    model = {one.name for one in Flavor.__attrs_attrs__}
    assert model - set(KEYS) == {"cores", "threads", "system_uuid", "page_size"}


UNSAID = {"burst", "spoofing", "document", "key", "of-spec", "topology"}
"""Rules of CEL, and unknown keys."""


@pytest.mark.parametrize("name", sorted(set(WRONG) - UNSAID))
def test_a_server_refuses_what_a_node_would(name: str) -> None:
    spec, _ = WRONG[name]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(spec, _schema())


@pytest.mark.parametrize("key", ["kernel", "initrd"])
def test_an_object_names_kernels_of_images_and_no_files_of_nodes(key: str) -> None:
    flavor = {"kernel": "image:/kernel", "initrd": "image:/initrd"}
    assert read_spec("direct", {"spec": {"flavor": flavor}}).section == flavor
    with pytest.raises(FailedPrecondition, match=f"{key} names a file of nodes|both of the node"):
        read_spec("direct", {"spec": {"flavor": flavor | {key: "/etc/passwd"}}})
    with pytest.raises(FailedPrecondition, match="kernel names a file of nodes"):
        read_spec("direct", {"spec": {"flavor": {"kernel": "/etc/passwd"}}})
