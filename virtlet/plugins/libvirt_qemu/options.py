"""Settings of the libvirt/QEMU hypervisor."""

from virtlet.model.option import BOOLEAN, TEXT, Option, choice

LIBVIRT_URI: Option[str] = Option(
    field="libvirtURI",
    flag="--libvirt-uri",
    env="VIRTLET_LIBVIRT_URI",
    kind=TEXT,
    default="qemu:///system",
    help="libvirt connection; `qemu:///embed` runs libvirt's QEMU driver inside the manager, "
    "with everything it keeps below the data directory (`?root=DIR` chooses another place)",
)

DISABLE_KVM: Option[bool] = Option(
    field="disableKVM",
    flag="--disable-kvm",
    env="VIRTLET_DISABLE_KVM",
    kind=BOOLEAN,
    default="false",
    help="emulate the CPU, whatever the KVM probe says",
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
)

OPTIONS = (LIBVIRT_URI, DISABLE_KVM, KVM)
