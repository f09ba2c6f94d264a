"""Interface counters out of the kernel's table."""

from pathlib import Path

from virtlet.core.metrics.sample import NicSample, nic_samples, parse
from virtlet.model.network import Network, Nic

TABLE = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0
  eth0:    1001      12    3    4    0     0          0         0     5006      17    8    9    0
  net1:1002002      22    0    0    0     0          0         0        7       1    0    0    0
  tap0:       9       9    9    9    9     9          9         9        9       9    9    9    9
"""


def test_each_interface_of_the_pod_has_its_own_counters_in_the_order_asked_for() -> None:
    assert parse(TABLE, ("net1", "gone", "eth0")) == (
        NicSample("net1", 1002002, 0, 7, 0, rx_packets=22, tx_packets=1),
        NicSample(
            "eth0",
            rx_bytes=1001,
            rx_packets=12,
            rx_errors=3,
            rx_dropped=4,
            tx_bytes=5006,
            tx_packets=17,
            tx_errors=8,
            tx_dropped=9,
        ),
    )


def test_a_pod_whose_namespace_is_gone_has_no_figures(tmp_path: Path) -> None:
    nic = Nic(name="eth0", mac="02:00:00:00:00:01", mtu=1500)
    assert nic_samples(Network(netns=tmp_path / "gone", nics=(nic,))) == ()
