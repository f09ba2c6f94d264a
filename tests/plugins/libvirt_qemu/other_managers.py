"""Managers in processes of their own, which are killed, follow a killed one, or have an odd node.

python -m tests.plugins.libvirt_qemu.other_managers FUNCTION DIRECTORY [ARGUMENTS]
"""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.plugins.libvirt_qemu.planting import listing, planting, wait_for_rounds
from tests.plugins.libvirt_qemu.rig import Rig, make_open_node
from tests.polling import until
from virtlet.host.processes import jail_of
from virtlet.model.hypervisor import DomainState, Observation
from virtlet.plugins.libvirt_qemu.libvirt_process import tell_of_slow_look_ups

ROOT = Path(__file__).parents[3]
NAME = "nobody-knows-me"
_FILES = {
    "hosts": "127.0.0.1 localhost\n",
    "resolv.conf": "nameserver 127.0.0.1\noptions timeout:2 attempts:1\n",
    "nsswitch.conf": "hosts: files dns\n",
}


def command(name: str, directory: Path, *arguments: str) -> list[str]:
    """How one is started, with `cwd=ROOT`."""
    module = "tests.plugins.libvirt_qemu.other_managers"
    return [sys.executable, "-m", module, name, str(directory), *arguments]


def survive(rig: Rig) -> None:
    """Start VMs, print them, and wait to be killed."""
    rig.open()
    machines = [rig.define() for _ in range(4)]
    for machine in machines[:3]:
        rig.start(machine)
        rig.wait_for_console(machine, b"ready")
    pids = {vm_id: consumed.pid for vm_id, consumed in rig.hypervisor.stats().items()}
    lines = [
        f"{m.vm.id} {m.console.output} {m.console.input} {pids.get(m.vm.id)}" for m in machines
    ]
    sys.stdout.write("\n".join(lines) + "\n\n")
    sys.stdout.flush()
    time.sleep(600)


def succeed(rig: Rig, vm_id: str) -> None:
    """Look at the VMs of the one before, shut one down, remove all; print what is seen, as JSON."""
    heard: list[Observation] = []
    rig.hypervisor.subscribe(heard.append)

    def wait_for_ends(number: int) -> None:
        until(
            lambda: number <= sum(seen.state is DomainState.STOPPED for seen in heard),
            f"{number} ends",
        )

    rig.open()
    wait_for_ends(2)
    for seen in rig.hypervisor.list().values():
        _print("list", seen)
    rig.hypervisor.shutdown(vm_id)
    wait_for_ends(3)
    for seen in heard:
        _print("heard", seen)
    for known in list(rig.hypervisor.list()):
        rig.hypervisor.remove(known)
    for seen in rig.hypervisor.list().values():
        _print("left", seen)
    rig.close()


def _print(what: str, seen: Observation) -> None:
    ended = seen.exit.reason if seen.exit else None
    line = {"what": what, "vm": seen.vm_id, "state": seen.state.value, "reason": ended}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def attacked(rig: Rig) -> None:
    """Start a VM whose emulator plants files, print what there was, and wait to be killed."""
    rig.open()
    machine = rig.define()
    own = (machine.vm.directory, machine.runtime_directory)
    part, before = planting(rig, machine), listing(*own)
    rig.start(machine, part, alone=False)
    wait_for_rounds(machine.console.output)
    told = {
        "vm": machine.vm.id,
        "console": str(machine.console.output),
        "own": list(map(str, own)),
        "before": before,
        "jail": jail_of(rig.pid(machine)),
    }
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()
    time.sleep(600)


def survived(rig: Rig, vm_id: str, console: str) -> None:
    """Look at that VM of the one before once more, and remove it; print what is seen."""
    rig.open()
    try:
        wait_for_rounds(Path(console))
        seen, pid = rig.hypervisor.observe(vm_id), rig.hypervisor.process(vm_id)
        told = {"state": seen and seen.state.value, "jail": pid and jail_of(pid)}
    finally:
        rig.hypervisor.remove(vm_id)
    sys.stdout.write(json.dumps({**told, "left": list(rig.hypervisor.list())}))
    sys.stdout.flush()
    rig.close()


def probes(directory: Path) -> list[int]:
    """Emulators that libvirt asks for their capabilities, for one data directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = process.joinpath("cmdline").read_text().split("\0")
        except OSError:
            continue
        asks = "none" in words or "none,accel=kvm:tcg" in words
        if asks and any(str(directory) in word for word in words):
            found.append(int(process.name))
    return found


def die(rig: Rig) -> None:
    """Die in the middle of libvirt's first look at the emulator."""
    rig.open()
    until(lambda: probes(rig.node.data_dir))
    os.kill(os.getpid(), signal.SIGKILL)


def unresolved(rig: Rig) -> None:
    """Start a VM where the node's name is unknown and the resolver never answers.

    Started in mount, network and UTS namespaces of its own. Then the name is looked up as a daemon
    would. Prints, as JSON, how many questions the resolver was asked at each step.
    """
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    socket.sethostname(NAME)
    for name, text in _FILES.items():
        file = rig.node.data_dir / name
        file.write_text(text)
        subprocess.run(["mount", "--bind", str(file), f"/etc/{name}"], check=True)
    asked: list[bytes] = []
    resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    resolver.bind(("127.0.0.1", 53))

    def take() -> None:
        while True:
            asked.append(resolver.recv(4096))

    threading.Thread(target=take, daemon=True).start()
    logged: list[str] = []
    catcher = logging.Handler()
    catcher.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(catcher)

    rig.open()
    with rig.running():
        pass
    rig.close()
    by_vm = len(asked)
    tell_of_slow_look_ups().join()
    by_name = len(asked) - by_vm
    said = [line for line in logged if "/etc/hosts" in line]
    report = {"vm": by_vm, "name": by_name, "said": said, "host": socket.gethostname()}
    sys.stdout.write(json.dumps(report))
    sys.stdout.flush()


if __name__ == "__main__":
    _named = {
        function.__name__: function
        for function in (survive, succeed, die, unresolved, attacked, survived)
    }
    _named[sys.argv[1]](Rig(make_open_node(Path(sys.argv[2])), "qemu:///embed"), *sys.argv[3:])
