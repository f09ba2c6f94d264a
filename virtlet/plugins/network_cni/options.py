"""Settings and pod annotations of the network plugin."""

from pathlib import Path

from virtlet.model.option import BOOLEAN, PATH, Annotation, Kind, Option, integer
from virtlet.model.quantity import parse_quantity

CNI_BIN_DIR: Option[Path] = Option(
    "cniPluginDir",
    "--cni-bin-dir",
    "VIRTLET_CNI_PLUGIN_DIR",
    PATH,
    "/opt/cni/bin",
    "Directory of the CNI plugins.",
)

CNI_CONF_DIR: Option[Path] = Option(
    "cniConfigDir",
    "--cni-conf-dir",
    "VIRTLET_CNI_CONFIG_DIR",
    PATH,
    "/etc/cni/net.d",
    "Directory of the CNI configuration; the first file by name is used.",
)

ENABLE_SRIOV: Option[bool] = Option(
    "enableSriov",
    "--enable-sriov",
    "VIRTLET_SRIOV_SUPPORT",
    BOOLEAN,
    "false",
    "Pass SR-IOV virtual functions to guests; not supported yet, so that true is refused.",
)

CALICO_SUBNET_SIZE: Option[int] = Option(
    "calicoSubnetSize",
    "--calico-subnet-size",
    "VIRTLET_CALICO_SUBNET",
    integer(1, 32),
    "24",
    "Prefix length a guest is told instead of Calico's /32; 32 leaves it as it is.",
)


def _bits_per_second(text: str) -> int:
    # The bounds are the kubelet's (pkg/util/bandwidth).
    rate = parse_quantity(text)
    if not 10**3 <= rate <= 10**15:
        raise ValueError(f"{text!r} is not between 1k and 1P bits per second")
    return int(rate)


_RATE: Kind[int] = Kind("bits per second", _bits_per_second)

INGRESS: Annotation[int] = Annotation(
    "kubernetes.io/ingress-bandwidth",
    _RATE,
    0,
    "Traffic to the pod is kept below this, where the CNI configuration has a bandwidth plugin.",
)

EGRESS: Annotation[int] = Annotation(
    "kubernetes.io/egress-bandwidth",
    _RATE,
    0,
    "Traffic from the pod is kept below this, where the CNI configuration has a bandwidth plugin.",
)
