"""Settings of the domain document."""

from virtlet.model.option import TEXT, Option

CPU_MODEL: Option[str] = Option(
    field="cpuModel",
    flag="--cpu-model",
    env="VIRTLET_CPU_MODEL",
    kind=TEXT,
    default="",
    help="CPU of guests whose pod and handler name none: `host-model`, `host-passthrough` or a "
    "model libvirt knows; empty is host-model with KVM, and QEMU's smallest model without",
)

OPTIONS = (CPU_MODEL,)
