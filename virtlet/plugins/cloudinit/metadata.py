"""meta-data: who the guest is."""

from typing import Any

from virtlet.model.pod import Pod
from virtlet.plugins.cloudinit.annotations import META_DATA, SSH_KEYS

_MAX_HOSTNAME = 63
"""Bytes of a host name on Linux."""


def meta_data(pod: Pod) -> dict[str, Any]:
    """The meta-data of a pod's VM.

    The instance is the pod by name, not the attempt: a restarted container has a fresh disk and
    so runs everything anyway, while a disk that outlives its pod must not be set up again.
    """
    meta = pod.config.metadata
    generated: dict[str, Any] = {
        "instance-id": f"{meta.name}.{meta.namespace}",
        "local-hostname": _hostname(pod),
    }
    keys = SSH_KEYS.of(pod)
    if keys:
        generated["public-keys"] = list(keys)
    return generated | META_DATA.of(pod)


def _hostname(pod: Pod) -> str:
    # A name that is too long is cut as the kubelet cuts it for containers.
    return pod.config.hostname or pod.config.metadata.name[:_MAX_HOSTNAME].rstrip("-.")
