"""A machine becomes a libvirt document."""

import re
import uuid
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import jinja2
from markupsafe import Markup

from virtlet.model.disk import Share
from virtlet.model.vm import Machine
from virtlet.plugins.domain_xml.cpu import cpu_element
from virtlet.plugins.domain_xml.disks import targets
from virtlet.plugins.domain_xml.firmware import Firmware, find_uefi
from virtlet.plugins.domain_xml.growth import growth_of, with_node

_LONGEST_NAME = 40
"""Characters of a pod's name in a domain's name: the driver makes file names of it."""


class Renderer:
    """Writes domain documents.

    Args:
        uid: user the emulator runs as.
        gid: its group.
        cpu_model: the node's CPU model, or "".
        uefi: finds UEFI firmware where a flavor asks for it.
    """

    def __init__(
        self, uid: int, gid: int, cpu_model: str, uefi: Callable[[], Firmware] = find_uefi
    ) -> None:
        self._uid = uid
        self._gid = gid
        self._cpu_model = cpu_model
        self._uefi = uefi

    @cached_property
    def _template(self) -> jinja2.Template:
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        return environment.get_template("domain.xml.j2")

    def render(self, machine: Machine) -> Element:
        """The document of a machine.

        Raises:
            InvalidArgument: too many disks, or an unusable CPU setting or cpuset.
            FailedPrecondition: the node has no UEFI firmware and the flavor asks for it.
        """
        flavor = machine.flavor
        pci_express = not is_plain_pci(flavor.machine)
        growth = growth_of(machine)
        cpu = with_node(cpu_element(machine, self._cpu_model), growth)
        shares = [v for v in machine.volumes if isinstance(v, Share)]
        text = self._template.render(
            m=machine,
            name=domain_name(machine),
            uuid=str(uuid.UUID(machine.vm.id)),
            growth=growth,
            cpu=None if cpu is None else Markup(ElementTree.tostring(cpu, encoding="unicode")),
            # libvirt's console of type `pipe` reads from PATH.in and writes to PATH.out.
            console=machine.console.output.with_suffix(""),
            firmware=self._uefi() if flavor.firmware == "uefi" else None,
            pci_express=pci_express,
            disks=targets(machine, "sata" if pci_express else "ide"),
            shares=shares,
            shared_memory=any(share.driver == "virtiofs" for share in shares),
            uid=self._uid,
            gid=self._gid,
        )
        return ElementTree.fromstring(text)


def is_plain_pci(machine_type: str) -> bool:
    """Whether a machine type is the old PC with PCI and IDE, not q35."""
    return machine_type == "pc" or machine_type.startswith("pc-i440fx")


def domain_name(machine: Machine) -> str:
    """A name that is unique, tells people which pod it is and is fit for file names."""
    pod = machine.vm.pod.config.metadata.name
    safe = re.sub(r"[^A-Za-z0-9-]+", "-", pod)[:_LONGEST_NAME].strip("-")
    return f"virtlet-{machine.vm.id[:12]}-{safe}".rstrip("-")
