"""Settings and pod annotations of the network plugin."""

from pathlib import Path

from virtlet.model.option import BOOLEAN, PATH, Annotation, Kind, Option, integer
from virtlet.model.quantity import parse_quantity

CNI_BIN_DIR: Option[Path] = Option(
    field="cniPluginDir",
    flag="--cni-bin-dir",
    env="VIRTLET_CNI_PLUGIN_DIR",
    kind=PATH,
    default="/opt/cni/bin",
    help="Directory of the CNI plugins.",
)

CNI_CONF_DIR: Option[Path] = Option(
    field="cniConfigDir",
    flag="--cni-conf-dir",
    env="VIRTLET_CNI_CONFIG_DIR",
    kind=PATH,
    default="/etc/cni/net.d",
    help="Directory of the CNI configuration; the first file by name is used.",
)

ENABLE_SRIOV: Option[bool] = Option(
    field="enableSriov",
    flag="--enable-sriov",
    env="VIRTLET_SRIOV_SUPPORT",
    kind=BOOLEAN,
    default="false",
    help="Pass SR-IOV virtual functions to guests; not supported yet, so that true is refused.",
)

CALICO_SUBNET_SIZE: Option[int] = Option(
    field="calicoSubnetSize",
    flag="--calico-subnet-size",
    env="VIRTLET_CALICO_SUBNET",
    kind=integer(1, 32),
    default="24",
    help="Prefix length a guest is told instead of Calico's /32; 32 leaves it as it is.",
)


def _bits_per_second(text: str) -> int:
    # The bounds are the kubelet's (pkg/util/bandwidth).
    rate = parse_quantity(text)
    if not 10**3 <= rate <= 10**15:
        raise ValueError(f"{text!r} is not between 1k and 1P bits per second")
    return int(rate)


_RATE: Kind[int] = Kind(name="bits per second", parse=_bits_per_second)

INGRESS: Annotation[int] = Annotation(
    name="kubernetes.io/ingress-bandwidth",
    kind=_RATE,
    default=0,
    help="Traffic to the pod is kept below this, where the CNI configuration has a bandwidth "
    "plugin.",
)

EGRESS: Annotation[int] = Annotation(
    name="kubernetes.io/egress-bandwidth",
    kind=_RATE,
    default=0,
    help="Traffic from the pod is kept below this, where the CNI configuration has a bandwidth "
    "plugin.",
)
