"""The hooks of the renderer of domain documents, and its setting."""

from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element

from virtlet import hookimpl
from virtlet.model.node import Node
from virtlet.model.option import TEXT, Option, Settings
from virtlet.model.vm import Machine
from virtlet.plugins.domain_xml.render import Renderer

CPU_MODEL: Option[str] = Option(
    field="cpuModel",
    flag="--cpu-model",
    env="VIRTLET_CPU_MODEL",
    kind=TEXT,
    default="",
    help="CPU of guests whose pod and handler name none: `host-model`, `host-passthrough` or a "
    "model libvirt knows; empty is host-model with KVM, and QEMU's smallest model without",
    mappable=True,
)

OPTIONS = (CPU_MODEL,)


class Plugin:
    """The hooks of this plugin."""

    VIRTLET_HOOK_API = 1

    def __init__(self) -> None:
        self._renderer: Renderer | None = None

    @hookimpl
    def virtlet_options(self) -> Sequence[Option[Any]]:
        """The node's CPU model."""
        return OPTIONS

    @hookimpl
    def virtlet_configure(self, settings: Settings, node: Node) -> None:
        """Keep what every document needs of the node."""
        self._renderer = Renderer(node.emulator_uid, node.emulator_gid, settings[CPU_MODEL])

    @hookimpl
    def virtlet_render_domain(self, machine: Machine) -> Element | None:
        """Render any machine."""
        return self._renderer.render(machine) if self._renderer else None
