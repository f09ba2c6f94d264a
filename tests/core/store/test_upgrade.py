"""A database that an earlier release wrote, with VMs running, is read as it was meant.

`written/version-N.sql` is such a database as text: a manager that was killed while it ran VMs, one
of them with shares, an attempt that had ended, one not started, a stopped pod, and a pod without a
VM. The directory of that node was replaced, and so were the launch tokens. Version 1 is from before
hook API 1. In version 5 a VM had copies of its pod; `made` and `data` were resized there.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
from cattrs import Converter
from cattrs.strategies import configure_tagged_union

from tests.fakes.manager import Manager, Node
from virtlet.core.cri.lifecycle_calls import ContainerCalls
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.registry import discover
from virtlet.core.lifecycle import recovery
from virtlet.core.lifecycle.effects import UNDO
from virtlet.core.store.migrations import VERSION
from virtlet.core.store.records import PodPhase, VmPhase, VmRecord
from virtlet.core.store.store import Store
from virtlet.cri import api_pb2 as cri
from virtlet.errors import FailedPrecondition
from virtlet.model.disk import Disk, Share, Volume
from virtlet.model.hypervisor import DomainState
from virtlet.model.vm import Mount

WRITTEN = sorted((Path(__file__).parent / "written").glob("*.sql"))


TRICKS = {"netns": "a", "interfaces": "b", "nics": "c", "tap": "d"}
"""Labels that a pod's author chose."""


@pytest.fixture(params=WRITTEN, ids=lambda path: path.stem)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The database of such a node."""
    path = tmp_path / "virtlet.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(cast(Path, request.param).read_text())
    connection.close()
    return path


@pytest.fixture
def version(file: Path) -> int:
    """What the database was written by."""
    return _version(file)


def _version(file: Path) -> int:
    with closing(sqlite3.connect(file)) as connection:
        found: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return found


@pytest.fixture
def store(file: Path) -> Iterator[Store]:
    opened = Store(file)
    yield opened
    opened.close()


def _vms(store: Store) -> dict[tuple[str, int], VmRecord]:
    return {
        (record.vm.pod.config.metadata.name, record.vm.config.metadata.attempt): record
        for record in store.vms.values()
    }


def test_every_pod_is_where_it_was(store: Store) -> None:
    assert {r.pod.config.metadata.name: r.phase for r in store.pods.values()} == {
        "web": PodPhase.READY,
        "data": PodPhase.READY,
        "ended": PodPhase.READY,
        "made": PodPhase.READY,
        "stopped": PodPhase.NOT_READY,
        "bare": PodPhase.READY,
    }


def test_every_vm_is_where_it_was(store: Store) -> None:
    assert {name: record.phase for name, record in _vms(store).items()} == {
        ("web", 0): VmPhase.RUNNING,
        ("data", 0): VmPhase.RUNNING,
        ("ended", 0): VmPhase.EXITED,
        ("ended", 1): VmPhase.RUNNING,
        ("made", 0): VmPhase.CREATED,
        ("stopped", 0): VmPhase.EXITED,
    }


def test_a_vm_keeps_what_was_asked_for_and_what_it_got(store: Store) -> None:
    record = _vms(store)["data", 0]
    machine = record.machine
    assert machine is not None
    assert record.vm.pod.profile.handler == "large"
    assert record.vm.image.names[0].removeprefix("virtlet.cloud/").split(":")[0] == "tiny"
    # A kubelet adds the addresses of services.
    envs = [env for env in record.vm.config.envs if not env[0].startswith("KUBERNETES_")]
    assert envs == [("GREETING", "hello"), ("COLOUR", "blue")]
    mounts = [mount for mount in record.vm.config.mounts if isinstance(mount, Mount)]
    assert [mount.guest_path for mount in mounts] == ["/etc/conf", "/share"]
    assert [type(volume) for volume in machine.volumes] == [Share, Share]
    assert isinstance(machine.root, Disk)
    assert (machine.root.path.name, machine.root.kind) == ("root.qcow2", "disk")
    assert machine.seed is not None
    assert machine.seed.kind == "cdrom"
    assert machine.vmwrapper.name == "vmwrapper"
    assert machine.agent_socket is not None
    assert machine.flavor.vcpus == 2
    assert machine.environment["VIRTLET_LAUNCH_VM"] == record.vm.id
    console = f"/var/lib/node/data/run/vm/{record.vm.id[:12]}/console"
    assert str(machine.console.output) == f"{console}.out"
    assert str(machine.console.input) == f"{console}.in"
    (nic,) = record.vm.network.nics
    assert (nic.name, nic.addresses) == ("eth0", ("10.123.0.3/16",))


def test_pods_can_have_images_recognised(store: Store) -> None:
    """Which the core did itself; the built-in plugin for it is asked last."""
    pods = [record.pod for record in store.pods.values()]
    machines = [record.machine for record in store.vms.values() if record.machine]
    pods += [record.vm.pod for record in store.vms.values()]
    pods += [machine.vm.pod for machine in machines]
    hooks = Hooks(discover())
    for pod in pods:
        assert hooks.order("virtlet_recognize_image", pod.profile)[-1:] == ("image_formats",)
        assert len(set(pod.profile.plugins)) == len(pod.profile.plugins)


def test_every_effect_is_known_so_that_it_can_be_undone(store: Store) -> None:
    rows = [row for owner in (*store.pods, *store.vms) for row in store.effects(owner)]
    assert len(rows) == 50
    assert {row.kind for row in rows} <= set(UNDO)
    seeds = [json.loads(row.record or "") for row in rows if row.role == "seed"]
    assert {seed["kind"] for seed in seeds} == {"cdrom"}


def test_what_a_pod_s_author_wrote_is_left_alone(file: Path) -> None:
    """Labels and annotations may have the names that our own fields have or had."""
    with sqlite3.connect(file) as connection:
        for table, path in (("pods", "$.pod.config"), ("vms", "$.vm.config")):
            connection.execute(
                f"UPDATE {table} SET record = json_set(record, '{path}.labels', json(?), "
                f"'{path}.annotations', json(?))",
                (json.dumps(TRICKS), json.dumps(TRICKS)),
            )
    connection.close()
    store = Store(file)
    for pod in store.pods.values():
        assert (pod.pod.config.labels, pod.pod.config.annotations) == (TRICKS, TRICKS)
    for vm in store.vms.values():
        assert (vm.vm.config.labels, vm.vm.config.annotations) == (TRICKS, TRICKS)
    store.close()


@pytest.mark.parametrize("file", [WRITTEN[0]], ids=["version-1"], indirect=True)
def test_a_cpu_element_is_with_the_extras_of_its_flavor(file: Path) -> None:
    """Whose other ones stay."""
    with sqlite3.connect(file) as connection:
        connection.execute(
            "UPDATE vms SET record = json_set(record, '$.machine.flavor.cpu_xml', '<cpu />', "
            "'$.machine.flavor.extras', json('{\"gpu\": \"a100\"}'))"
        )
    connection.close()
    store = Store(file)
    for record in store.vms.values():
        assert record.machine is not None
        assert record.machine.flavor.extras == {"gpu": "a100", "domain_cpu": "<cpu />"}
    store.close()


def test_a_database_that_was_opened_once_is_not_changed_again(file: Path) -> None:
    Store(file).close()
    before = [*sqlite3.connect(file).iterdump()]
    Store(file).close()
    assert [*sqlite3.connect(file).iterdump()] == before


def test_a_step_that_fails_leaves_the_database_as_it_was(file: Path, version: int) -> None:
    """The step and its number are written together, as a crash would have it too."""
    with sqlite3.connect(file) as connection:
        before = [*connection.iterdump()]
        connection.execute("UPDATE vms SET record = '{}' WHERE rowid = 2")
    connection.close()
    with pytest.raises(FailedPrecondition, match=f"from version {version} to {version + 1} "):
        Store(file)
    with sqlite3.connect(file) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (version,)
        pods = [line for line in connection.iterdump() if line.startswith('INSERT INTO "pods"')]
    connection.close()
    assert pods == [line for line in before if line.startswith('INSERT INTO "pods"')]


def test_every_document_has_todays_version_and_secrets_stand_once(file: Path) -> None:
    """User-data in its pod's row alone, and the variables of a VM once in its own."""
    Store(file).close()
    assert _version(file) == VERSION
    with closing(sqlite3.connect(file)) as connection:
        rows = {
            table: connection.execute(f"SELECT version, record FROM {table}").fetchall()
            for table in ("pods", "vms", "effects")
        }
    assert {version for table in rows.values() for version, _ in table} == {VERSION}
    assert ["VirtletCloudInitUserData" in text for _, text in rows["pods"]] == [True] * 6
    assert [text.count("GREETING") for _, text in rows["vms"]] == [1] * 6
    for _, text in (*rows["vms"], *rows["effects"]):
        assert "VirtletCloudInitUserData" not in text


@pytest.mark.parametrize("file", [WRITTEN[-1]], ids=["version-5"], indirect=True)
def test_records_are_field_by_field_what_was_written_with_copies(file: Path) -> None:
    """Read by a converter that knows nothing of references, as the release did that wrote it."""
    with closing(sqlite3.connect(file)) as connection:
        pods = dict(connection.execute("SELECT id, record FROM pods"))
        vms = dict(connection.execute("SELECT id, record FROM vms"))
    converter = Converter()
    converter.register_unstructure_hook(Path, str)
    configure_tagged_union(Volume, converter)
    with closing(Store(file)) as store:
        assert store.pods.keys() == pods.keys()
        for pod_id, pod in store.pods.items():
            _assert_holds(_plain(converter, pod), json.loads(pods[pod_id]))
        assert store.vms.keys() == vms.keys()
        for vm_id, vm in store.vms.items():
            _assert_holds(_plain(converter, vm), json.loads(vms[vm_id]))
        resized = _vms(store)["made", 0]
        assert resized.machine is not None
        assert resized.machine.vm.config.resources == resized.resources
        assert resized.vm.config.resources.cpu_quota == 2 * resized.resources.cpu_quota
        shared = {id(record.vm.pod) for record in store.vms.values()}
        assert shared <= {id(record.pod) for record in store.pods.values()}


def _assert_holds(now: Any, written: Any) -> None:
    """Every value is as it was written; fields that came later have their defaults."""
    if isinstance(written, dict):
        assert bool(now) == bool(written)
        for key, value in written.items():
            _assert_holds(now[key], value)
    elif isinstance(written, list):
        assert len(now) == len(written)
        for ours, theirs in zip(now, written, strict=True):
            _assert_holds(ours, theirs)
    else:
        assert now == written


def _plain(converter: Converter, record: Any) -> Any:
    """A record as JSON has it."""
    return json.loads(json.dumps(converter.unstructure(record)))


@pytest.mark.parametrize("file", WRITTEN[-1:], ids=["version-5"], indirect=True)
def test_a_manager_that_starts_on_it_goes_on_with_the_vms(file: Path, tmp_path: Path) -> None:
    """Whose domains run: it follows them, and tells of them as before."""
    root = tmp_path / "data"
    (root / "run" / "netns").mkdir(parents=True)
    with closing(sqlite3.connect(file)) as connection:
        text = "\n".join(connection.iterdump()) + f"\nPRAGMA user_version = {_version(file)};"
    for plugin in ("libvirt_qemu", "network_cni", "disk_qcow2", "cloudinit", "volumes"):
        text = text.replace(f"'{plugin}'", "'fake'")
    text = text.replace('"hypervisor":"libvirt_qemu"', '"hypervisor":"fake"')
    text = text.replace("/var/lib/node/data", str(root)).replace("/var/lib/node", str(tmp_path))
    with closing(sqlite3.connect(root / "db")) as connection:
        connection.executescript(text)
        for (pod_id,) in connection.execute("SELECT id FROM pods"):
            (root / "run" / "netns" / pod_id).symlink_to("/proc/self/ns/net")
    with closing(Store(root / "db")) as store:
        phases = {vm_id: record.phase for vm_id, record in store.vms.items()}
    states = {VmPhase.RUNNING: DomainState.RUNNING, VmPhase.CREATED: DomainState.DEFINED}
    node = Node(root)
    node.hypervisor.domains.update(
        {vm_id: states[phase] for vm_id, phase in phases.items() if phase in states}
    )
    with closing(Manager(node)) as manager:
        recovery.recover(manager.context)
        assert {vm_id: record.phase for vm_id, record in manager.store.vms.items()} == phases
        wanted = cri.ContainerFilter(label_selector={"io.kubernetes.container.name": "guest"})
        listed = ContainerCalls(manager.context).list(cri.ListContainersRequest(filter=wanted))
        assert isinstance(listed, cri.ListContainersResponse)
        assert Counter(item.state for item in listed.containers) == {
            cri.CONTAINER_RUNNING: 3,
            cri.CONTAINER_EXITED: 2,
            cri.CONTAINER_CREATED: 1,
        }
        for vm_id in phases:
            manager.stop(vm_id)
        assert not manager.store.vms.keys() - phases.keys()
        for pod_id in list(manager.store.pods):
            manager.remove_pod(pod_id)
        assert not manager.store.pods
        assert not node.hypervisor.domains
