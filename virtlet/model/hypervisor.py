"""What the core asks of a hypervisor; a plugin's `virtlet_hypervisor` returns one."""

import enum
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from xml.etree.ElementTree import Element

from attrs import frozen

from virtlet.errors import Unimplemented
from virtlet.model.flavor import Flavor
from virtlet.model.launch import LaunchPart
from virtlet.model.stats import DomainStats
from virtlet.model.typed import typed
from virtlet.model.vm import Machine, VmExit


class DomainState(enum.Enum):
    """State of a domain, as the hypervisor sees it."""

    DEFINED = "defined"
    """Known, never started since it was defined."""
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    """It ran and ended; `Observation.exit` says how."""


@frozen(kw_only=True, field_transformer=typed)
class Observation:
    """What the hypervisor knows of one of our domains."""

    vm_id: str
    state: DomainState
    exit: VmExit | None = None
    rebooted: bool = False
    """Told to the subscriber once when a guest resets itself and its domain runs on."""
    notice: str = ""
    """One sentence for the pod's owner, told to the subscriber once: what it is, and what to do."""
    topic: str = "Notice"
    """What the notice is about, in CamelCase."""


@frozen(kw_only=True, field_transformer=typed)
class HypervisorHealth:
    """Whether the hypervisor answers; never blocks to find out."""

    ready: bool
    reason: str = ""
    """CamelCase word."""
    message: str = ""


@frozen(kw_only=True, field_transformer=typed)
class HypervisorInfo:
    """What a hypervisor is and how it runs guests."""

    name: str
    version: str
    accelerator: str
    """`kvm`, `qemu` for emulation without KVM, or the hypervisor's own word."""
    isolation: str = ""
    """What keeps emulators from the node and from each other, in a few words for people."""


@frozen(kw_only=True, field_transformer=typed)
class Resize:
    """What to change of a running VM; None leaves as it is."""

    vcpus: int | None = None
    """How many vCPUs the guest has."""
    memory: int | None = None
    """Bytes of RAM the guest has, above or below what it started with."""
    cpus: frozenset[int] | None = None
    """CPUs of the node that the emulator and all vCPUs may run on."""


@frozen(kw_only=True, field_transformer=typed)
class FilePart:
    """A part of a file, in bytes."""

    offset: int
    size: int


@frozen(kw_only=True, field_transformer=typed)
class Checkpoint:
    """Where in its file the parts of a checkpoint are."""

    memory: FilePart
    """Memory, vCPUs and devices, in the hypervisor's own form."""
    disk: FilePart
    """A qcow2 of what the root disk has beside its image; at least 512 bytes before it are free."""
    stood_still: float
    """Seconds that the guest's CPUs stood still."""


DomainCallback = Callable[[Observation], None]
"""Called on a thread of the hypervisor's whenever a domain of ours changes; must return soon."""


class Hypervisor(ABC):
    """Runs VMs. Every method is called on a worker thread, several at a time.

    Methods raise Unavailable while the hypervisor is away. Those that are not abstract have a
    default, as every method that a later version adds.
    """

    def open(self) -> None:  # noqa: B027
        """Connect (and start what has to run in this process). Returns once ready."""

    def close(self) -> None:  # noqa: B027
        """Disconnect; VMs go on running."""

    @abstractmethod
    def info(self) -> HypervisorInfo:
        """What this hypervisor is. Known after `open`; does not block."""

    def health(self) -> HypervisorHealth:
        """Whether it answers now. Does not block. Default: it does."""
        return HypervisorHealth(ready=True)

    def overhead(self, machine: Machine) -> int:
        """Bytes that the machine's emulator may come to need beside the guest's RAM.

        Counts for the pod's memory, by what the machine is. Does not block. Default: nothing.
        """
        return 0

    def lacks(self, flavor: Flavor) -> str:
        """Why this node cannot have a machine, as "this node's QEMU knows no CPU model 'x'"; "" if
        it can, as far as that is known.

        Called before anything of a VM is made. Default: it can have any.
        """
        return ""

    def runs_as_vm(self) -> bool:
        """Whether emulators run as their VM's own user, `Vm.uid` and `Vm.gid`.

        Where they do not, VMs have none, and all run as the node's. Does not block. Default: no.
        """
        return False

    def reads_documents(self) -> bool:
        """Whether `define` takes a domain document; where not, no plugin is asked to write one.

        Does not block. Default: it takes none.
        """
        return False

    def review(self, machine: Machine, domain: Element) -> str:
        """Say what makes a domain document unfit for the machine, as "whose <uuid> is not …".

        Called after the document was rendered and after each plugin's edit; that plugin is named
        in the error then. Changes nothing, does not block. Default: "", any document is fit.
        """
        return ""

    @abstractmethod
    def define(self, machine: Machine, domain: Element | None) -> None:
        """Make the domain known, not running. Defining the same VM again replaces it.

        Args:
            machine: what the domain is to be.
            domain: its document, the hypervisor's own from now on; None where it reads none.

        Raises:
            InvalidArgument: the hypervisor refuses the document.
        """

    @abstractmethod
    def remove(self, vm_id: str) -> None:
        """Forget the domain and all the hypervisor keeps of it. Stops it if it runs. Idempotent."""

    def launch(self, machine: Machine) -> LaunchPart:
        """Contribute to the emulator's start what this hypervisor gives it: the NICs, say.

        Called before every `start`. The descriptors are the core's from then on. Default: nothing.

        Raises:
            FailedPrecondition: it has no way to connect one of the NICs.
        """
        return LaunchPart()

    @abstractmethod
    def start(self, vm_id: str) -> None:
        """Start a defined domain; returns when the guest's CPUs run.

        With `Machine.saved` the guest goes on from a checkpoint that a machine like it had, or that
        was written of it when it was hibernated. The disk is that of the memory. The VM generation
        id is the one of the last `define`.

        Raises:
            NotFound: no such domain.
            FailedPrecondition: the emulator did not start; the message says why.
        """

    @abstractmethod
    def shutdown(self, vm_id: str) -> None:
        """Press the guest's power button (ACPI) and return at once. Idempotent."""

    @abstractmethod
    def stop(self, vm_id: str) -> None:
        """End the domain by force; returns when its process is gone. Idempotent."""

    def resize(self, vm_id: str, change: Resize) -> Resize:
        """Change a running VM; nothing happens to what is as wanted already.

        What an earlier call that was cut short had begun is no obstacle, and does not go on.

        Memory is as wanted on return, to the granularity of the machine. vCPUs are added on
        return; taking some away needs the guest's consent, and one that a guest does not give
        back is no error: what the VM may consume is limited elsewhere.

        Returns:
            What was before, of what `change` names: give it to `resize` to undo the change.

        Raises:
            NotFound: no such domain.
            FailedPrecondition: it does not run, it cannot have that much without a restart, or
                the guest did not do its part; all is as before.
            VirtletError: any other says nothing of how much was done.
            Unimplemented: the default.
        """
        raise Unimplemented(f"{self.info().name} cannot change a running VM: restart it instead")

    def unfit_for_template(self, machine: Machine) -> str:
        """Why a machine can have no part in a template, as "it has a shared directory"; "" if fit.

        Does not block. Default: there are no templates.
        """
        return f"{self.info().name} has no templates"

    def template_basis(self) -> Mapping[str, str]:
        """What a template fits beside its document: versions, the node's CPU. Default: nothing."""
        return {}

    def freeze(self, machine: Machine) -> None:
        """Make a running VM the template that its machine names, and end it; it is still defined.

        A machine of the same devices, flavor and hypervisor starts from it, with its `template` set
        and `frozen`. It has another id, name, address, seed, and another VM generation id, by which
        a guest's kernel knows that it needs new random numbers. Nobody compares the two.

        Raises:
            NotFound: no such domain.
            FailedPrecondition: it does not run, or cannot be frozen; it has ended all the same.
            Unimplemented: the default.
        """
        raise Unimplemented(f"{self.info().name} has no templates")

    def checkpoint(
        self, machine: Machine, file: int, start: int, broken_off: Callable[[], str]
    ) -> Checkpoint:
        """Write a running VM's memory and root disk, both of one moment, to a file.

        The guest runs on, but for a moment. Call `settle` afterwards, whatever comes of it.

        Args:
            machine: the VM's.
            file: descriptor of a file for reading and writing.
            start: where the memory begins; what is before stays.
            broken_off: asked now and then: why not to go on, as a clause; "" to go on.

        Raises:
            NotFound: no such domain.
            FailedPrecondition: it does not run, it has what no checkpoint can hold, the file cannot
                be written, or it was broken off.
            Unimplemented: the default.
        """
        raise Unimplemented(f"{self.info().name} has no checkpoints")

    def hibernate(self, machine: Machine, file: int, broken_off: Callable[[], str]) -> None:
        """Write a running VM's memory, vCPUs and devices to an empty file. On return the guest
        stands still, and its disks are as the memory has them.

        `start` with `Machine.saved` goes on from it, once the emulator was stopped. Call `settle`
        instead to have the guest go on in the emulator, also where this fails.

        Args:
            machine: the VM's.
            file: descriptor of the file for reading and writing.
            broken_off: as for `checkpoint`.

        Raises:
            NotFound: no such domain.
            FailedPrecondition: as for `checkpoint`, or the machine is not as it was defined.
            Unimplemented: the default.
        """
        raise Unimplemented(f"{self.info().name} cannot hibernate a VM")

    def settle(self, vm_id: str) -> None:  # noqa: B027
        """Take away what a checkpoint or `hibernate`, finished or cut short anywhere, has in the
        emulator of a VM, and have its guest go on. Idempotent; nothing to do for one that has
        ended."""

    def observe(self, vm_id: str) -> Observation | None:
        """The domain now, or None when there is none. Default: looked up in `list`."""
        return self.list().get(vm_id)

    @abstractmethod
    def list(self) -> Mapping[str, Observation]:
        """All domains that are ours (this manager's), by VM id. Foreign ones never appear."""

    @abstractmethod
    def subscribe(self, callback: DomainCallback) -> None:
        """Tell `callback` of every later change of our domains; one subscriber, set before open."""

    def opened_shares(self, vm_id: str) -> Mapping[str, bool]:
        """Of shares that a running VM's emulator serves: tag to whether the guest has opened it.

        What the guest did before its last reset does not count. Default: nothing is known.
        """
        return {}

    def open_screen(self, vm_id: str) -> socket.socket:
        """Let one more viewer at the screen of a running VM whose flavor has `video`.

        Nobody who is looking already notices. An emulator that does not answer may hold this up.

        Returns:
            A connected stream socket that speaks RFB (RFC 6143), without authentication; the
            caller's to close, which ends the viewer alone.

        Raises:
            NotFound: no such domain.
            FailedPrecondition: it does not run, or has no screen.
            Unimplemented: the default.
        """
        raise Unimplemented(f"{self.info().name} shows no screens")

    def process(self, vm_id: str) -> int | None:
        """Process id of a running VM's emulator, or None. Default: looked up in `stats`."""
        consumed = self.stats().get(vm_id)
        return None if consumed is None else consumed.pid

    def stats(self) -> Mapping[str, DomainStats]:
        """Consumption of all running domains of ours, by VM id, with one bulk call.

        Default: nothing is known.
        """
        return {}
