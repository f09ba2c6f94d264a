"""Nic counters inside a pod's namespace.

Source: /proc/net/dev of proc(5); sixteen counters behind each name.
"""

from pathlib import Path

from virtlet.core.metrics.sample import NicSample
from virtlet.errors import FailedPrecondition
from virtlet.host import netns
from virtlet.model.network import Network


def nic_samples(network: Network) -> tuple[NicSample, ...]:
    """Counters of a pod's interfaces; none when its namespace is gone."""
    if network.netns is None:
        return ()
    try:
        text = netns.inside(network.netns, _read)
    except (FailedPrecondition, OSError):
        return ()
    return parse(text, tuple(nic.name for nic in network.nics))


def parse(text: str, names: tuple[str, ...]) -> tuple[NicSample, ...]:
    """The named interfaces of a /proc/net/dev table, in the order of the names."""
    found = {}
    for line in text.splitlines():
        name, colon, counters = line.partition(":")
        values = counters.split()
        if colon and name.strip() in names and len(values) >= 12:
            rx_bytes, rx_packets, rx_errors, rx_dropped = map(int, values[:4])
            tx_bytes, tx_packets, tx_errors, tx_dropped = map(int, values[8:12])
            found[name.strip()] = NicSample(
                name=name.strip(),
                rx_bytes=rx_bytes,
                rx_errors=rx_errors,
                tx_bytes=tx_bytes,
                tx_errors=tx_errors,
                rx_packets=rx_packets,
                tx_packets=tx_packets,
                rx_dropped=rx_dropped,
                tx_dropped=tx_dropped,
            )
    return tuple(found[name] for name in names if name in found)


def _read() -> str:
    # The thread's own view: /proc/net would show the namespace of the process's first thread.
    return Path("/proc/thread-self/net/dev").read_text()
