"""QEMU virtual machines by libvirt."""

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import libvirt
from attrs import evolve

from virtlet.errors import AlreadyExists, FailedPrecondition, NotFound, VirtletError
from virtlet.host.files import remove_file
from virtlet.host.processes import (
    HELPER_OOM_SCORE,
    children,
    end_process,
    ended,
    jail_of,
    kill_all_in,
    open_process,
    set_oom_score_adj,
)
from virtlet.model.flavor import Flavor
from virtlet.model.hypervisor import (
    Checkpoint,
    DomainCallback,
    Hypervisor,
    HypervisorHealth,
    HypervisorInfo,
    Observation,
    Resize,
)
from virtlet.model.launch import LaunchPart
from virtlet.model.node import Node
from virtlet.model.stats import DomainStats
from virtlet.model.vm import Machine, SavedMemory
from virtlet.plugins.libvirt_qemu import (
    capabilities,
    checkpoints,
    consumption,
    domain_logs,
    failures,
    libvirt_process,
    nics,
    templates,
)
from virtlet.plugins.libvirt_qemu.connections import Connections
from virtlet.plugins.libvirt_qemu.consumption import overhead
from virtlet.plugins.libvirt_qemu.disk_growth import DiskGrowth
from virtlet.plugins.libvirt_qemu.domain_endings import RunRecords, forced
from virtlet.plugins.libvirt_qemu.domain_events import DomainChanges, DomainWatch
from virtlet.plugins.libvirt_qemu.domain_resize import Resizer
from virtlet.plugins.libvirt_qemu.domains import (
    Domains,
    DomainStates,
    canonical,
    flaw,
    mark,
    missing_is_fine,
    written,
    wrong_state_is_fine,
)
from virtlet.plugins.libvirt_qemu.kept_state import KeptStates
from virtlet.plugins.libvirt_qemu.monitor_watch import MonitorWatch, end_flooding
from virtlet.plugins.libvirt_qemu.opened_shares import opened_shares
from virtlet.plugins.libvirt_qemu.qemu_conf import Place, prepare_root, take_back, tell_of_owner
from virtlet.plugins.libvirt_qemu.tpm import backends, state_directory
from virtlet.plugins.libvirt_qemu.visible import visible
from virtlet.plugins.libvirt_qemu.vm_user import make_nvram, set_user, with_kvm
from virtlet.threads import Worker

_FORGET_ALL = (
    libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
    | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
)

_SEEN, _POLL = 5.0, 0.01
"""Seconds for libvirt to notice that an emulator is gone, and between two looks."""
_GRACE = 10.0
"""Seconds that an emulator gets to write its caches, before SIGKILL; as with libvirt."""
_LEARNING = 10.0
"""Seconds to wait at most for the driver's probe of the emulator."""


def _go_on(domain: Any, saved: SavedMemory) -> None:
    """Have a domain that was started paused go on where a checkpoint's stood."""
    checkpoints.load(partial(templates.ask, domain), saved.path, saved.offset)
    domain.resume()


def _has_ended(domain: Any) -> bool:
    """Whether the emulator of a domain for which a call failed is gone, or is so in a moment."""
    deadline = time.monotonic() + _SEEN
    with missing_is_fine():
        while domain.isActive():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL)
    return True


class LibvirtHypervisor(Hypervisor):
    """Domains of libvirt.

    Args:
        place: the libvirt to use.
        node: the directories of the manager.
        info: what this hypervisor is.
        jailed: whether emulators are jailed.
    """

    def __init__(
        self, place: Place, node: Node, info: HypervisorInfo, *, jailed: bool = True
    ) -> None:
        self._jailed = jailed
        self._place = place
        self._node = node
        self._info = info
        self._connections = Connections(
            place.uri,
            lambda connection: self._watch.register(connection),
            lambda: self._watch.connected(),
            shared=place.embedded,
        )
        self._domains = Domains(self._connections, node.instance)
        self._runs = RunRecords(node.state_dir("libvirt_qemu") / "runs")
        self._kept = KeptStates(node.state_dir("libvirt_qemu") / "kept")
        self._states = DomainStates(self._domains, self._runs, self._by_signal)
        self._changes = DomainChanges(self._runs, self._states, self.process, self._by_signal)
        self._watch = DomainWatch(self._changes.on_event, self._changes.look)
        self._logs = Worker("libvirt-logs", self.cut_logs)
        self._growth = DiskGrowth(self._domains, self._notice)
        self._monitors = MonitorWatch(
            lambda thread: end_flooding(thread, self._domains, self._runs, self._pid)
        )
        self._measurement = consumption.Measurement(self._measure)
        self._capabilities = capabilities.KnownCapabilities()
        self._learning: threading.Thread | None = None
        self._loads: dict[str, tuple[str, Callable[[Any], None]]] = {}
        """By id of the VM that does not boot, from `launch` until `start`: what it starts from, and
        what has its domain, which was started paused, go on."""

    def open(self) -> None:
        """Connect; the first time, the embedded driver is started."""
        root = self._place.root
        if root is not None:
            prepare_root(root, self._node, self._info.accelerator)
            libvirt_process.adopt_orphans()
        else:
            libvirt_process.tell_of_slow_look_ups()
        libvirt_process.prepare()
        if root is not None:
            self._monitors.start()
        self._connections.open()
        if root is not None:
            take_back(root)
        else:
            tell_of_owner(self._place.state, self._node)
        self._watch.start()
        self._watch.connected()
        self._logs.start(domain_logs.INTERVAL)
        self._growth.start()
        self._kept.start()
        self._learning = threading.Thread(
            target=self._learn_emulator, name="libvirt-warm-up", daemon=True
        )
        self._learning.start()

    def close(self) -> None:
        """Disconnect; VMs go on running."""
        if self._learning is not None:
            # Else a probe under way would go on without an end.
            self._learning.join(_LEARNING)
        self._logs.stop()
        self._growth.stop()
        self._kept.stop()
        self._monitors.stop()
        self._connections.close()
        self._watch.stop()

    def info(self) -> HypervisorInfo:
        """What this hypervisor is."""
        return self._info

    def health(self) -> HypervisorHealth:
        """Whether libvirt answers now."""
        return self._connections.health()

    def subscribe(self, callback: DomainCallback) -> None:
        """Tell `callback` of every change of our domains."""
        self._watch.subscribe(callback)

    def overhead(self, machine: Machine) -> int:
        """What QEMU takes beside the guest's RAM."""
        return overhead(machine)

    def lacks(self, flavor: Flavor) -> str:
        """What QEMU and the CPU cannot be, by libvirt's word."""
        emulator, kind = str(self._node.vmwrapper), self._info.accelerator
        with self._domains.call("look at what machines this node can have") as connection:

            def ask() -> Element:
                machine = flavor.machine
                text = connection.getDomainCapabilities(emulator, "x86_64", machine, kind)
                return ElementTree.fromstring(text)

            def expand(cpu: str) -> str:
                flags = libvirt.VIR_CONNECT_BASELINE_CPU_EXPAND_FEATURES
                words = (emulator, "x86_64", flavor.machine, kind, [cpu], flags)
                return str(connection.baselineHypervisorCPU(*words))

            try:
                unlockable = self._place.embedded and capabilities.locking_flaw(flavor)
                return unlockable or self._capabilities.flaw(flavor, ask, expand)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_INVALID_ARG:
                    raise
                return (
                    f"this node's QEMU has no machine {flavor.machine!r}: choose another `machine` "
                    "in the flavor, as q35"
                )

    def runs_as_vm(self) -> bool:
        """Yes: the document says who it is."""
        return True

    def launch(self, machine: Machine) -> LaunchPart:
        """The jail, and what libvirt would open in its own namespace or as somebody else: NICs,
        KVM, the firmware's variables. And the TPM."""
        vm, template = machine.vm, machine.template
        document = self._document(vm.id)
        own = vm.uid is not None
        user = self._node.user_of(vm)
        variables = make_nvram(document, *user)
        self._loads.pop(vm.id, None)
        memory = LaunchPart()
        if template is not None:
            memory = templates.launch_part(machine, template, user)
        elif machine.saved is not None:
            memory = LaunchPart(arguments=("-incoming", "defer"))
        programs = backends(machine, *user)
        self._kept.begin(
            vm.id,
            machine.root,
            tpm=state_directory(machine) if programs else None,
            # Whoever has the volume could else take the keys out of them.
            variables=variables if machine.flavor.firmware == "uefi" else None,
            user=user,
        )
        part = nics.launch_part(machine)
        if template is not None and template.frozen:
            load = partial(templates.load, what=templates.load_of(machine, template))
            self._loads[vm.id] = f"template {template.directory}", load
        elif machine.saved is not None:
            self._loads[vm.id] = "its saved memory", partial(_go_on, saved=machine.saved)
        if own and document.get("type") == "kvm":
            part = with_kvm(part)
        shown = visible(document, kvm=not own) if self._jailed else ()
        return evolve(
            part,
            jail=self._jailed,
            arguments=(*part.arguments, *memory.arguments),
            visible=(*shown, *memory.visible),
            required=True,
            backends=programs,
            io_uring=machine.flavor.disk_io == "io_uring",
            alone=True,
        )

    def _document(self, vm_id: str) -> Element:
        with self._domains.call(f"start VM {vm_id}") as connection:
            domain = self._domains.find(connection, vm_id)
            if domain is None:
                raise NotFound(f"cannot start VM {vm_id}: libvirt has no domain of it")
            return ElementTree.fromstring(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))

    def reads_documents(self) -> bool:
        """Yes, for libvirt."""
        return True

    def review(self, machine: Machine, domain: Element) -> str:
        """Say why a document cannot be the machine's."""
        return flaw(machine, domain)

    def define(self, machine: Machine, domain: Element | None) -> None:
        """Define the domain, with our mark in its metadata."""
        assert domain is not None, "it reads documents"
        vm_id = machine.vm.id
        mark(domain, vm_id, self._node.instance)
        set_user(domain, *self._node.user_of(machine.vm))
        templates.give_generation(domain)
        with self._domains.call(f"define VM {vm_id}") as connection:
            known = self._domains.look_up(connection, vm_id)
            if known is not None and not self._domains.is_ours(known, vm_id):
                raise AlreadyExists(
                    f"cannot define VM {vm_id}: libvirt has a domain with this uuid that is not "
                    "ours; it was left alone"
                )
            name = domain.findtext("name")
            if known is not None and known.name() != name and not known.isActive():
                # libvirt refuses a uuid that it knows by another name.
                known.undefineFlags(_FORGET_ALL)
            connection.defineXML(written(domain))
            self._runs.forget(vm_id)

    def remove(self, vm_id: str) -> None:
        """End and undefine the domain, and delete its log."""
        with self._domains.call(f"remove VM {vm_id}") as connection:
            domain = self._domains.find(connection, vm_id)
            if domain is not None:
                name = domain.name()
                if domain.isActive():
                    self._end_emulator(vm_id, name)
                    self._destroy(domain)
                with missing_is_fine():
                    domain.undefineFlags(_FORGET_ALL)
                self._clean(name)
        self._kept.end(vm_id)
        self._domains.forget(vm_id)
        self._runs.forget(vm_id)
        self._loads.pop(vm_id, None)

    def start(self, vm_id: str) -> None:
        """Start the domain; libvirt returns when its CPUs run."""
        with self._domains.call(f"start VM {vm_id}") as connection:
            domain = self._domains.find(connection, vm_id)
            if domain is None:
                raise NotFound(f"cannot start VM {vm_id}: libvirt has no domain of it")
            if domain.isActive():
                if self._runs.ended(vm_id) is None:
                    return
                # Its emulator was ended a moment ago, which libvirt has not noticed yet. A destroy
                # now would have it take that for the end of the next emulator.
                deadline = time.monotonic() + _SEEN
                while domain.isActive() and time.monotonic() < deadline:
                    time.sleep(_POLL)
                self._destroy(domain)
            self._runs.begin(vm_id)
            load = self._loads.pop(vm_id, None)
            create = domain.create if load is None else partial(templates.create_paused, domain)
            try:
                if self._place.embedded:
                    libvirt_process.without_look_up(create)
                else:
                    create()
            except libvirt.libvirtError as error:
                if failures.is_lost(error) or failures.is_missing(error):
                    raise
                self._runs.forget(vm_id)
                path = self._log(domain.name())
                raise FailedPrecondition(
                    f"the emulator of VM {vm_id} did not start: "
                    f"{failures.why(error.get_error_message() or '', path)} (log: {path})"
                ) from None
            self._set_scores_of_helpers(domain.ID())
            self._close_directory(domain.ID())
            if load is not None:
                self._load(vm_id, domain, *load)

    def _load(self, vm_id: str, domain: Any, source: str, load: Callable[[Any], None]) -> None:
        """Have a domain that was started paused go on where another stood."""
        try:
            load(domain)
        except (FailedPrecondition, libvirt.libvirtError) as error:
            if not self._end_emulator(vm_id, domain.name()):
                self._destroy(domain)
            path = self._log(domain.name())
            raise FailedPrecondition(
                f"VM {vm_id} did not start from {source}: "
                f"{failures.why(str(error), path)} (log: {path})"
            ) from None

    def unfit_for_template(self, machine: Machine) -> str:
        """Why a machine can have no part in a template."""
        return templates.unfit(machine, jailed=self._jailed)

    def template_basis(self) -> Mapping[str, str]:
        """Versions, accelerator and CPU, and what templates have beside their document."""
        return {
            "libvirt": str(libvirt.getVersion()),
            "qemu": self._info.version,
            "accelerator": self._info.accelerator,
            **templates.basis(self._node.emulator),
        }

    def freeze(self, machine: Machine) -> None:
        """Write the state of a running domain, and end it."""
        vm_id, template = machine.vm.id, machine.template
        if template is None or template.frozen:
            raise FailedPrecondition(f"cannot freeze VM {vm_id}: it was not started as a template")
        with self._domains.call(f"freeze VM {vm_id}") as connection:
            domain = self._domains.find(connection, vm_id)
            if domain is None:
                raise NotFound(f"cannot freeze VM {vm_id}: libvirt has no domain of it")
            try:
                templates.freeze(domain, template.directory)
            finally:
                self.stop(vm_id)
            templates.seal(template.directory)

    def checkpoint(
        self, machine: Machine, file: int, start: int, broken_off: Callable[[], str]
    ) -> Checkpoint:
        """Have the emulator write its guest's memory and root disk to a descriptor."""
        with self._fit(machine.vm.id, "checkpoint") as (domain, document):
            ask = partial(templates.ask, domain)
            alias = checkpoints.root_alias(document)
            return checkpoints.take(ask, alias, file, start, broken_off)

    def hibernate(self, machine: Machine, file: int, broken_off: Callable[[], str]) -> None:
        """Have the emulator write its guest's memory to a descriptor."""
        with self._fit(machine.vm.id, "hibernate") as (domain, document):
            defined = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
            if why := checkpoints.resized(document, ElementTree.fromstring(defined)):
                raise FailedPrecondition(why)
            checkpoints.write_memory(partial(templates.ask, domain), file, 0, broken_off)

    @contextlib.contextmanager
    def _fit(self, vm_id: str, aim: str) -> Iterator[tuple[Any, Element]]:
        """A running domain whose memory can be written, and its live document."""
        with self._domains.call(f"{aim} VM {vm_id}") as connection:
            domain = self._domains.find(connection, vm_id)
            if domain is None:
                raise NotFound(f"cannot {aim} VM {vm_id}: libvirt has no domain of it")
            if not domain.isActive():
                raise FailedPrecondition("it does not run")
            document = ElementTree.fromstring(domain.XMLDesc())
            if why := checkpoints.unfit(document):
                raise FailedPrecondition(why)
            try:
                yield domain, document
            except libvirt.libvirtError:
                if _has_ended(domain):
                    raise FailedPrecondition("it has ended meanwhile") from None
                raise

    def settle(self, vm_id: str) -> None:
        """Undo in the emulator what a checkpoint did."""
        with self._domains.call(f"settle VM {vm_id}") as connection:
            domain = self._domains.find(connection, vm_id)
            if domain is not None and domain.isActive():
                checkpoints.settle(partial(templates.ask, domain))

    def shutdown(self, vm_id: str) -> None:
        """Press the power button.

        ACPI is asked for explicitly: libvirt's default tries the guest agent first and can hang.
        """
        with self._domains.call(f"shut down VM {vm_id}") as connection:
            domain = self._domains.find(connection, vm_id)
            if domain is not None:
                with missing_is_fine(), wrong_state_is_fine():
                    domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)

    def stop(self, vm_id: str) -> None:
        """End the emulator: SIGTERM, and SIGKILL if it does not end.

        libvirt may take the domain for a running one for another moment.
        """
        with self._domains.call(f"stop VM {vm_id}") as connection:
            domain = self._domains.find(connection, vm_id)
            if (
                domain is not None
                and domain.isActive()
                and not self._end_emulator(vm_id, domain.name())
            ):
                self._destroy(domain)
        self._kept.end(vm_id)

    def resize(self, vm_id: str, change: Resize) -> Resize:
        """Change the running domain."""
        with self._domains.call(f"resize VM {vm_id}") as connection:
            domain = self._domains.find(connection, vm_id)
            if domain is None:
                raise NotFound(f"cannot resize VM {vm_id}: libvirt has no domain of it")
            pid = self._pid(domain.name()) if domain.isActive() else None
            if pid is None:
                raise FailedPrecondition(f"cannot resize VM {vm_id}: it does not run")
            emulated = self._info.accelerator != "kvm"
            return Resizer(vm_id, domain, pid, emulated=emulated).resize(change)

    def _notice(self, vm_id: str, topic: str, text: str) -> None:
        self._watch.tell(lambda tell: self._changes.notice(vm_id, topic, text, tell))

    def observe(self, vm_id: str) -> Observation | None:
        """The domain now."""
        return self._states.one(vm_id)

    def list(self) -> Mapping[str, Observation]:
        """All domains that carry our mark."""
        return self._states.all()

    def stats(self) -> Mapping[str, DomainStats]:
        """Consumption of all our running domains, by one call as a rule."""
        return self._measurement.take()

    def _measure(self) -> Mapping[str, DomainStats]:
        found: dict[str, DomainStats] = {}
        with self._domains.call("measure VMs") as connection:
            for domain, values in connection.getAllDomainStats(
                consumption.WANTED, consumption.FLAGS
            ):
                vm_id = canonical(domain.UUIDString())
                if self._domains.is_ours(domain, vm_id):
                    pid = self._pid(domain.name())
                    consumed = consumption.stats_of(vm_id, pid, values)
                    if consumed is not None:
                        found[vm_id] = consumed
        return found

    @staticmethod
    def _destroy(domain: Any) -> None:
        """End the domain by libvirt; return when libvirt has cleaned up after it."""
        with missing_is_fine(), wrong_state_is_fine():
            domain.destroy()

    def _end_emulator(self, vm_id: str, name: str) -> bool:
        """End the emulator's process; False leaves that to libvirt.

        libvirt looks only five times a second whether a process that it ended is gone. It cleans
        up after one that ended without it, too, and no call waits for that.
        """
        pid = self._pid(name)
        pidfd = open_process(pid, str(uuid.UUID(vm_id))) if pid else None
        if pidfd is None:
            return False
        try:
            jail = jail_of(pid) if pid and self._jailed else None
            self._runs.end(vm_id, forced())
            with contextlib.suppress(OSError):
                end_process(pidfd, grace=_GRACE)
                if jail:  # one that was taken over may have started more
                    kill_all_in(jail, within=_SEEN)
            return ended(pidfd)
        finally:
            os.close(pidfd)

    def opened_shares(self, vm_id: str) -> Mapping[str, bool]:
        """The shares over 9p, by what QEMU has answered to the guest."""
        with self._domains.call(f"look at shares of VM {vm_id}") as connection:
            domain = self._domains.find(connection, vm_id)
            if domain is None or not domain.isActive():
                return {}
            return opened_shares(domain)

    def open_screen(self, vm_id: str) -> socket.socket:
        """A viewer's connection, which the emulator gets by its monitor: it listens nowhere."""
        with self._domains.call(f"open the screen of VM {vm_id}") as connection:
            domain = self._domains.find(connection, vm_id)
            if domain is None:
                raise NotFound(f"cannot open the screen of VM {vm_id}: libvirt has no domain of it")
            if not domain.isActive():
                raise FailedPrecondition(f"VM {vm_id} does not run: it shows no screen")
            if ElementTree.fromstring(domain.XMLDesc()).find("devices/graphics") is None:
                raise FailedPrecondition(
                    f"VM {vm_id} has no screen: give its flavor `video`, and run the pod again"
                )
            viewer = domain.openGraphicsFD(0, libvirt.VIR_DOMAIN_OPEN_GRAPHICS_SKIPAUTH)
            return socket.socket(fileno=viewer)

    def process(self, vm_id: str) -> int | None:
        """The process of a running domain, which need not answer."""
        with self._domains.call(f"look at VM {vm_id}") as connection:
            domain = self._domains.find(connection, vm_id)
            if domain is None or not domain.isActive():
                return None
            return self._pid(domain.name())

    def _pid(self, name: str) -> int | None:
        """The process of a running domain, from the driver's pid file."""
        with contextlib.suppress(OSError, ValueError):
            return int((self._place.state / f"{name}.pid").read_text())
        return None

    def _set_scores_of_helpers(self, number: int) -> None:
        """Keep the kernel from sparing what libvirt started beside the emulator: virtiofsd, and
        the child in which it serves."""
        for file in self._place.state.glob(f"{number}-*-fs.pid"):
            with contextlib.suppress(OSError, ValueError):
                server = int(file.read_text())
                for pid in (server, *children(server)):
                    set_oom_score_adj(pid, HELPER_OOM_SCORE)

    def _close_directory(self, number: int) -> None:
        """Take a domain's directory from its emulator, which has opened what it needs there: root
        connects to its monitor again at every start of the driver."""
        for directory in self._place.library.glob(f"domain-{number}-*"):
            with contextlib.suppress(OSError):
                os.chown(directory, 0, -1, follow_symlinks=False)

    def _by_signal(self, name: str) -> bool:
        return failures.ended_by_signal(self._log(name))

    def _log(self, name: str) -> Path:
        return self._place.logs / f"{name}.log"

    def cut_logs(self) -> float:
        """Keep our domains' logs small; returns the seconds until the next look."""
        with contextlib.suppress(VirtletError), self._domains.call("look at logs") as connection:
            for _, domain in self._domains.all(connection):
                with contextlib.suppress(OSError):
                    domain_logs.cut(self._log(domain.name()))
        return domain_logs.INTERVAL

    def _clean(self, name: str) -> None:
        """Delete what libvirt leaves of a domain that is undefined."""
        remove_file(self._log(name))
        for rotated in self._place.logs.glob(f"{name}.log.[0-9]*"):
            remove_file(rotated)

    def _learn_emulator(self) -> None:
        """Have libvirt probe the emulator before the first VM has to wait for that.

        After an upgrade of QEMU or the kernel that takes half a second, else 20 ms.
        """
        with (
            contextlib.suppress(VirtletError),
            self._domains.call("probe the emulator") as connection,
        ):
            emulator, kind = str(self._node.vmwrapper), self._info.accelerator
            connection.getDomainCapabilities(emulator, "x86_64", "q35", kind)
