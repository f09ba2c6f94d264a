"""The manager after the one that was killed: tells what it sees and hears, as JSON lines.

python -m tests.plugins.libvirt_qemu.successor DIRECTORY VM_TO_SHUT_DOWN
"""

import json
import sys
import time
from pathlib import Path

from tests.plugins.libvirt_qemu.rig import Rig, make_open_node
from virtlet.model.hypervisor import DomainState, Observation


def tell(what: str, seen: Observation) -> None:
    """Write one line."""
    ended = seen.exit.reason if seen.exit else None
    line = {"what": what, "vm": seen.vm_id, "state": seen.state.value, "reason": ended}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main(directory: Path, vm_id: str) -> None:
    """Look, shut one VM down, wait for its end, remove all."""
    rig = Rig(make_open_node(directory), "qemu:///embed")
    heard: list[Observation] = []
    rig.hypervisor.subscribe(heard.append)

    def wait_for_ends(number: int) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and number > sum(
            seen.state is DomainState.STOPPED for seen in heard
        ):
            time.sleep(0.05)

    rig.open()
    wait_for_ends(2)
    for seen in rig.hypervisor.list().values():
        tell("list", seen)
    rig.hypervisor.shutdown(vm_id)
    wait_for_ends(3)
    for seen in heard:
        tell("heard", seen)
    for known in list(rig.hypervisor.list()):
        rig.hypervisor.remove(known)
    for seen in rig.hypervisor.list().values():
        tell("left", seen)
    rig.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
