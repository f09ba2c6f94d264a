"""The pod's labels inside the guest, as firmware data: no network, no disk, no agent needed."""

import json
import os
from collections.abc import Iterator

from virtlet.api import LaunchFd, LaunchPart, Machine, Pod, hookimpl

FW_CFG_NAME = "opt/example.virtlet/pod"
"""Where the guest finds the pod's description; QEMU leaves names that start with opt/ to us."""


class Plugin:
    """Adds to the emulator's command line, and hands it an open file."""

    VIRTLET_HOOK_API = 1

    @hookimpl
    def virtlet_launch(self, machine: Machine) -> LaunchPart:
        """Labels as SMBIOS OEM strings, and all of them in one document behind a descriptor."""
        pod = machine.vm.pod
        arguments = [word for text in oem_strings(pod) for word in ("-smbios", smbios(text))]
        arguments += ["-fw_cfg", f"name={FW_CFG_NAME},file=/proc/self/fd/{{fd:example_pod}}"]
        descriptor = os.memfd_create("example_pod")
        os.write(descriptor, json.dumps(description(pod)).encode())
        return LaunchPart(
            arguments=tuple(arguments),
            # Given away: the core closes it, whether the emulator starts or not.
            fds=(LaunchFd(name="example_pod", fd=descriptor),),
        )


def oem_strings(pod: Pod) -> Iterator[str]:
    """The pod's name and its labels."""
    yield f"pod={pod.name}"
    for name, value in sorted(pod.config.labels.items()):
        yield f"label:{name}={value}"


def smbios(text: str) -> str:
    """One OEM string as QEMU's option; a comma in a value is written twice."""
    return "type=11,value=" + text.replace(",", ",,")


def description(pod: Pod) -> dict[str, object]:
    """What the document in the guest says."""
    meta = pod.config.metadata
    return {
        "name": meta.name,
        "namespace": meta.namespace,
        "uid": meta.uid,
        "labels": dict(pod.config.labels),
    }
