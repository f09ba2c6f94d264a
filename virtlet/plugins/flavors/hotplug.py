"""What a guest is told so that it puts to use what a running VM is given.

Kernels leave hot-plugged CPUs offline until somebody in the guest says otherwise, and some leave
memory so. Distributions differ in whether their udev says it; ours says it for all of them.
Source: cpu_hotplug.rst and memory-hotplug.rst of the Linux documentation, udev(7).
"""

from virtlet.model.cloudinit import CloudInitPart
from virtlet.model.flavor import Flavor

_PATH = "/etc/udev/rules.d/80-virtlet-hotplug.rules"
_CPUS = 'SUBSYSTEM=="cpu", ACTION=="add", ATTR{online}=="0", ATTR{online}="1"\n'
_MEMORY = 'SUBSYSTEM=="memory", ACTION=="add", ATTR{state}=="offline", ATTR{state}="online"\n'


def hotplug_part(flavor: Flavor) -> CloudInitPart | None:
    """Rules for the guest's udev; None for a machine that cannot grow."""
    rules = ""
    if flavor.max_vcpus > 1:
        rules += _CPUS
    if flavor.max_memory > flavor.memory:
        rules += _MEMORY
    if not rules:
        return None
    file = {"path": _PATH, "permissions": "0644", "content": rules}
    return CloudInitPart(user_data={"write_files": [file]})
