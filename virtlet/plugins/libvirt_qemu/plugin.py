"""libvirt_qemu: virtual machines by libvirt and QEMU, with its settings."""

import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virtlet import hookimpl
from virtlet.errors import FailedPrecondition
from virtlet.host.confinement import landlock
from virtlet.model.hypervisor import Hypervisor, HypervisorInfo
from virtlet.model.node import Node
from virtlet.model.option import BOOLEAN, TEXT, Option, Settings, choice
from virtlet.plugins.libvirt_qemu.accelerator import examine
from virtlet.plugins.libvirt_qemu.qemu_conf import locate

if TYPE_CHECKING:
    from virtlet.plugins.libvirt_qemu.libvirt_hypervisor import LibvirtHypervisor

log = logging.getLogger(__name__)


LIBVIRT_URI: Option[str] = Option(
    field="libvirtURI",
    flag="--libvirt-uri",
    env="VIRTLET_LIBVIRT_URI",
    kind=TEXT,
    default="qemu:///embed",
    help="libvirt connection; `qemu:///embed` runs libvirt's QEMU driver inside the manager, "
    "with everything it keeps below the data directory (`?root=DIR` chooses another place); "
    "`qemu:///system` is the node's daemon",
)

DISABLE_KVM: Option[bool] = Option(
    field="disableKVM",
    flag="--disable-kvm",
    env="VIRTLET_DISABLE_KVM",
    kind=BOOLEAN,
    default="false",
    help="emulate the CPU, whatever the KVM probe says",
    mappable=True,
)

KVM: Option[str] = Option(
    field="kvm",
    flag="--kvm",
    env="VIRTLET_KVM",
    kind=choice("probe", "force"),
    default="probe",
    help="`probe` boots a small test under KVM to find out whether it works and remembers the "
    "answer until the next boot, or until the device or who may open it changes; "
    "`force` uses KVM without asking",
    mappable=True,
)

JAIL: Option[str] = Option(
    field="emulatorJail",
    flag="--emulator-jail",
    env="VIRTLET_EMULATOR_JAIL",
    kind=choice("required", "off"),
    default="required",
    help="`required` starts emulators in a jail, where they see nothing of the node but the VM's "
    "own files and have no network; `off` is for kernels that do not let users without privileges "
    "make namespaces",
)

OPTIONS = (LIBVIRT_URI, DISABLE_KVM, KVM, JAIL)

_NO_LANDLOCK = "no Landlock (the kernel lacks it, or its list of LSMs does)"
_LONGEST_LOG = 1 << 20
_LOG_SETTING = "LIBVIRT_LOG_OUTPUTS"


def make_hypervisor(config: Settings, node: Node) -> "LibvirtHypervisor":
    """The hypervisor that the settings describe, not connected yet.

    Raises:
        InvalidArgument: the libvirt URI is not usable.
        FailedPrecondition: the emulator is not installed, or its user may not run it.
        VirtletError: it does not work.
    """
    place = locate(config[LIBVIRT_URI], node.data_dir)
    if node.emulator_problem:
        raise FailedPrecondition(node.emulator_problem)
    forced = config[KVM] == "force"
    asked = not config[DISABLE_KVM] and not forced
    host = examine(node, ask_kvm=asked)
    kvm = not config[DISABLE_KVM] and (forced or (host.kvm is not None and host.kvm.usable))
    if asked and not kvm and host.kvm is not None:
        log.warning("guests are emulated, which is slow", extra={"problem": host.kvm.reason})
    jailed = config[JAIL] == "required"
    info = HypervisorInfo(
        name="QEMU",
        version=host.qemu_version,
        accelerator="kvm" if kvm else "qemu",
        isolation=isolation(landlock()) if jailed else "none: emulatorJail is off",
    )
    if jailed and not landlock():
        log.warning("emulators are jailed without Landlock", extra={"problem": _NO_LANDLOCK})
    with _quietly(place.root / "log/libvirt.log" if place.root else None):
        from virtlet.plugins.libvirt_qemu.libvirt_hypervisor import LibvirtHypervisor
    return LibvirtHypervisor(place, node, info, jailed=jailed)


def isolation(version: int) -> str:
    """What jailed emulators are held by, with a version of Landlock, or 0 for none."""
    return f"jail, Landlock {version}" if version else f"jail, {_NO_LANDLOCK}"


@contextlib.contextmanager
def _quietly(log: Path | None) -> Iterator[None]:
    """Load libvirt inside this context, so that it does not write to our stderr.

    libvirt reads its settings as its module is imported, and never again.

    Args:
        log: file for the embedded driver's own messages, errors only (the default is stderr, with
            several lines for every VM); None leaves them alone. An operator's
            LIBVIRT_LOG_OUTPUTS wins.
    """
    if log is None or _LOG_SETTING in os.environ:
        yield
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > _LONGEST_LOG:
        log.unlink()
    os.environ[_LOG_SETTING] = f"4:file:{log}"
    try:
        yield
    finally:
        del os.environ[_LOG_SETTING]


class Plugin:
    """The hooks of this plugin."""

    VIRTLET_HOOK_API = 1

    def __init__(self) -> None:
        self._settings: tuple[Settings, Node] | None = None
        self._hypervisor: LibvirtHypervisor | None = None
        self._making = threading.Lock()

    @hookimpl
    def virtlet_options(self) -> Sequence[Option[Any]]:
        """Which libvirt, and whether to use KVM."""
        return OPTIONS

    @hookimpl
    def virtlet_configure(self, settings: Settings, node: Node) -> None:
        """Keep the settings until a hypervisor is asked for."""
        self._settings = (settings, node)

    @hookimpl
    def virtlet_hypervisor(self) -> Hypervisor | None:
        """One for all handlers."""
        if self._settings is None:
            return None
        with self._making:
            if self._hypervisor is None:
                self._hypervisor = make_hypervisor(*self._settings)
            return self._hypervisor

    @hookimpl
    def virtlet_shutdown(self) -> None:
        """Disconnect."""
        if self._hypervisor is not None:
            self._hypervisor.close()
