"""The machine of a VM: how much memory it gets, and its document for the hypervisor.

A kubelet limits a pod's control group to the memory limits of its containers and the overhead that
its RuntimeClass declares. Guest and emulator both live there. Where the overhead is less than the
emulator needs, the guest gets the rest, so that the kernel does not kill the VM for it later.
"""

import secrets
from xml.etree import ElementTree
from xml.etree.ElementTree import Element
from xml.parsers import expat

from attrs import evolve

from virtlet.core.hooks.blame import returned
from virtlet.core.hooks.facade import Hooks
from virtlet.core.lifecycle.context import Context
from virtlet.core.lifecycle.notices import tell_owner
from virtlet.errors import InvalidArgument
from virtlet.model.disk import Disk, Volume
from virtlet.model.flavor import Flavor
from virtlet.model.hypervisor import Hypervisor
from virtlet.model.launch import ENV_SOCKET, ENV_TOKEN, ENV_VM
from virtlet.model.resources import Resources
from virtlet.model.vm import Console, Machine, Vm

_MIB = 1 << 20
LEAST = 128 * _MIB
"""Bytes of RAM below which hardly any Linux boots: a VM that would get less is refused."""


def machine_of(
    context: Context,
    vm: Vm,
    hypervisor: str,
    flavor: Flavor,
    root: Disk,
    volumes: tuple[Volume, ...],
    seed: Disk | None,
) -> Machine:
    """The machine of a VM that runs on the hypervisor of a plugin."""
    node = context.node
    console = context.consoles.files(vm)
    return Machine(
        vm=vm,
        flavor=flavor,
        root=root,
        volumes=volumes,
        seed=seed,
        console=Console(output=console.raw, input=console.keyboard),
        accelerator=context.hypervisors.named(hypervisor).info().accelerator,
        vmwrapper=node.vmwrapper,
        environment={
            ENV_SOCKET: str(
                context.launches.path if vm.uid is None else context.paths.launch_socket(vm.id)
            ),
            ENV_VM: vm.id,
            ENV_TOKEN: secrets.token_urlsafe(32),
        },
        agent_socket=context.paths.agent_socket(vm.id) if flavor.guest_agent else None,
    )


def fitted(machine: Machine, resources: Resources, hypervisor: Hypervisor) -> Machine:
    """The machine with as much RAM as fits into its pod beside the emulator.

    Nothing changes where nothing limits the pod: without a control group, or a memory limit.

    Args:
        machine: with the RAM that its flavor says for the memory limit.
        resources: the VM's, of which the memory limit counts.
        hypervisor: that is to run it.

    Raises:
        InvalidArgument: what is left is too little for a guest.
    """
    pod, limit, memory = machine.vm.pod, resources.memory_limit, machine.flavor.memory
    whole = evolve(machine, withheld=0)
    if limit <= 0 or not pod.config.cgroup_parent.strip("/"):
        return whole
    declared, need = pod.config.overhead.memory_limit, hypervisor.overhead(machine)
    if machine.flavor.page_size:
        # Huge pages are counted apart: the pod's memory is the emulator's alone.
        if limit + declared < need:
            raise InvalidArgument(
                f"VM {machine.vm.name}: its memory is on huge pages, and the pod's other memory "
                f"does not hold its emulator: the limit of {limit >> 20}Mi and the RuntimeClass's "
                f"overhead of {declared >> 20}Mi are less than {_up(need)}Mi: raise the limit to "
                f"{_up(need - declared)}Mi or more"
            )
        return whole
    left = (limit + declared - need) // _MIB * _MIB
    if left >= memory:
        return whole
    if left < LEAST:
        least_need = hypervisor.overhead(_with_memory(machine, LEAST))
        if limit + declared < LEAST + least_need:
            raise InvalidArgument(
                f"VM {machine.vm.name}: the pod's memory does not hold a guest and its emulator: "
                f"the limit of {limit >> 20}Mi and the RuntimeClass's overhead of "
                f"{declared >> 20}Mi are less than the {_up(least_need)}Mi that the emulator needs "
                f"and {LEAST >> 20}Mi for the guest: {_remedy(need)}, or raise the limit to "
                f"{_up(LEAST + least_need - declared)}Mi or more"
            )
        left = LEAST
    return evolve(_with_memory(machine, left), withheld=memory - left)


def tell_of_shortage(context: Context, machine: Machine) -> None:
    """Tell the owner of a VM that runs, if its guest has less RAM than its memory limit."""
    if not machine.withheld:
        return
    memory, declared = machine.flavor.memory, machine.vm.pod.config.overhead.memory_limit
    limit, need = memory + machine.withheld, machine.withheld + declared
    tell_owner(
        context,
        machine.vm,
        f"the guest has {memory >> 20}Mi of RAM, not the {limit >> 20}Mi of its memory "
        f"limit: the emulator needs up to {_up(need)}Mi in the pod, and the RuntimeClass "
        f"declares an overhead of {declared >> 20}Mi; for all of it {_remedy(need)}",
        "LessMemory",
    )


def _with_memory(machine: Machine, memory: int) -> Machine:
    return evolve(machine, flavor=evolve(machine.flavor, memory=memory))


def _remedy(need: int) -> str:
    return (
        f"use a RuntimeClass with overhead: {{podFixed: {{memory: {_up(need)}Mi}}}} "
        "(deploy/cluster/runtimeclass.yaml)"
    )


def _up(size: int) -> int:
    """MiB, rounded up."""
    return -(-size // _MIB)


def domain_document(hooks: Hooks, hypervisor: Hypervisor, machine: Machine) -> Element | None:
    """The one tree that the renderer makes, the editors change and the hypervisor defines.

    Returns:
        The document; None where the hypervisor reads none, and nobody is asked for one.

    Raises:
        PluginError: the renderer or an editor left a document that the hypervisor cannot use.
        FailedPrecondition: nobody renders.
    """
    if not hypervisor.reads_documents():
        return None

    def check(plugin: str, hook: str) -> None:
        flaw = _unwritable(domain) or hypervisor.review(machine, domain)
        if flaw:
            raise returned(plugin, hook, f"left a domain document {flaw}")

    renderer, domain = hooks.render_domain(machine)
    check(renderer, "virtlet_render_domain")
    for plugin in hooks.order("virtlet_customize_domain", machine.vm.pod.profile):
        hooks.customize_domain(plugin, machine, domain)
        check(plugin, "virtlet_customize_domain")
    return domain


def _unwritable(domain: Element) -> str:
    """Why a tree cannot be written as XML that a parser takes, as a clause; "" when it can.

    The text is thrown away. Errors are not quoted, because they may hold what is in the document.
    """
    try:
        _descend(domain)
        written = ElementTree.tostring(domain)
        expat.ParserCreate(namespace_separator=" ").Parse(written, True)
    except expat.ExpatError as error:
        return f"that cannot be written as XML (line {error.lineno}, column {error.offset})"
    except Exception:
        return "that cannot be written as XML"
    return ""


def _descend(element: Element) -> None:
    """Raise RecursionError for an element that holds itself, where the writer would not end."""
    for child in element:
        _descend(child)
