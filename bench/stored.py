"""Lists and statuses with five hundred stored pods.

The pods are in the manager's database alone: copies of a real one's record, written while the
manager is down. Each has a VM that has ended, because one that ran would need an emulator.
"""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from attrs import evolve

from bench.asking import by_turns, questions, spread
from bench.bench import Bench
from bench.node import Node, new_node
from bench.row import Row
from virtlet.core.store.records import PodRecord, VmRecord
from virtlet.core.store.store import Store

PODS = 500
BOUND = 3.0
"""ms."""


def measure(bench: Bench) -> list[Row]:
    """All four calls."""
    with new_node() as node, _stored(bench, node):
        found: dict[str, Sequence[float]] = {}
        assert len(node.client.pods()) == len(node.client.containers()) == PODS
        for call, question in questions(node.client).items():
            bench.step(call)
            found[call] = by_turns({call: question}, bench.times(600, 50))[call]
    return [
        Row(
            name=f"{call} with {PODS} stored pods",
            value=median(figures),
            bound=BOUND,
            unit="ms",
            detail=f"{spread(figures)}, {len(figures)} calls",
            samples={"ms": figures},
        )
        for call, figures in found.items()
    ]


@contextmanager
def _stored(bench: Bench, node: Node) -> Iterator[None]:
    """Have PODS pods in the store, one of them real; only the real one stays in the end."""
    pod, _ = node.up("pattern")
    node.client.stop(pod.vm, 0)
    node.playground.stop()
    bench.step(f"writing {PODS} pods")
    database = node.playground.data_dir / "virtlet.db"
    copies = _write(database, PODS - 1)
    try:
        node.playground.start()
        yield
        node.playground.stop()
    finally:
        store = Store(database)
        for copy in copies:
            store.delete_vm(copy.vm.id)
            store.delete_pod(copy.vm.pod.id)
        store.close()
        node.playground.start()


def _write(database: Path, count: int) -> list[VmRecord]:
    """Store copies of the one pod and VM that are there; returns the VMs."""
    store = Store(database)
    (pod,), (vm,) = store.pods.values(), store.vms.values()
    copies = []
    for number in range(count):
        copy = _copy_of(pod, f"copy{number}")
        store.put_pod(copy)
        copies.append(evolve(vm, vm=evolve(vm.vm, id=uuid.uuid4().hex, pod=copy.pod)))
        store.put_vm(copies[-1])
    store.close()
    return copies


def _copy_of(record: PodRecord, name: str) -> PodRecord:
    config = record.pod.config
    metadata = evolve(config.metadata, name=name, uid=f"uid-{name}")
    # The log directory is the copy's own: the ended VM's console is looked after at start-up.
    directory = str(Path(config.log_directory).with_name(name))
    config = evolve(config, metadata=metadata, log_directory=directory)
    return evolve(record, pod=evolve(record.pod, id=uuid.uuid4().hex, config=config))
