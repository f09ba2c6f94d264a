"""A manager's life for the tests: starts a VM, says so and waits to be killed.

python -m tests.plugins.libvirt_qemu.survivor DIRECTORY
"""

import sys
import time
from pathlib import Path

from tests.plugins.libvirt_qemu.rig import Rig, make_open_node


def main(directory: Path) -> None:
    """Run until killed."""
    rig = Rig(make_open_node(directory), "qemu:///embed")
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


if __name__ == "__main__":
    main(Path(sys.argv[1]))
