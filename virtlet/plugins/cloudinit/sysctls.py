"""The pod's sysctls, which the guest itself sets: they are its kernel's, not the node's."""

import re

from virtlet.errors import InvalidArgument
from virtlet.model.pod import Pod
from virtlet.plugins.cloudinit.seed_annotations import USER_DATA_SCRIPT

SYSCTL_FILE = "/etc/sysctl.d/90-pod.conf"
SYSCTL_COMMAND = f"sysctl -p {SYSCTL_FILE}"
# The form that Kubernetes allows (sysctl names of its pod security context).
_SYSCTL = re.compile(r"[a-z0-9](?:[-_a-z0-9]*[a-z0-9])?(?:[./][a-z0-9](?:[-_a-z0-9]*[a-z0-9])?)*")


def check_sysctls(pod: Pod) -> None:
    """Refuse sysctls that would not reach the guest.

    Raises:
        InvalidArgument: a name or value is malformed, or the user-data is a script.
    """
    for name, value in pod.config.sysctls.items():
        if not _SYSCTL.fullmatch(name):
            raise InvalidArgument(f"sysctl {name!r} is not the name of a sysctl")
        if not value.isprintable():
            raise InvalidArgument(f"sysctl {name}: the value has control characters")
    if pod.config.sysctls and USER_DATA_SCRIPT.of(pod):
        raise InvalidArgument(
            f"pod {pod.name}: sysctls are set by cloud-init in the guest, and annotation "
            f"{USER_DATA_SCRIPT.name} is the whole user-data: set them in the script, or take one "
            "of the two out"
        )


def sysctl_conf(pod: Pod) -> str:
    """The pod's sysctls in the form of sysctl.conf(5); "" if it has none."""
    return "".join(f"{name} = {value}\n" for name, value in sorted(pod.config.sysctls.items()))
