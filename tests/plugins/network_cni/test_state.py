"""What is kept of pods' networks on disk."""

import json
from pathlib import Path

from virtlet.host.links import KernelRoute
from virtlet.model.network import Route
from virtlet.plugins.network_cni.bridging import BridgedNic
from virtlet.plugins.network_cni.chain import Attachment
from virtlet.plugins.network_cni.configuration import NetworkList
from virtlet.plugins.network_cni.state import PodState, StateStore

ROUTES = (
    KernelRoute(destination="10.9.0.0/16", device="eth0", gateway="", metric=0, automatic=False),
    KernelRoute(
        destination="0.0.0.0/0", device="eth0", gateway="10.0.0.1", metric=5, automatic=False
    ),
)
STATE = PodState(
    Attachment(
        network=NetworkList(name="net", version="1.0.0", plugins=()),
        container_id="pod",
        netns=Path("/data/run/netns/pod"),
        arguments={},
        capabilities={},
    ),
    nics=(
        BridgedNic(
            index=0,
            veth="eth0",
            mac="02:00:00:00:00:01",
            mtu=1500,
            addresses=("10.0.0.5/24", "fd00::5/64"),
            routes=ROUTES,
            guest_addresses=("10.0.0.5", "fd00::5"),
            guest_routes6=(Route(destination="::/0", gateway="fd00::1"),),
            server="169.254.77.1",
        ),
    ),
)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    store.save("pod", STATE)
    assert store.load("pod") == STATE


def test_routes_that_were_written_as_arguments_of_ip_are_taken(tmp_path: Path) -> None:
    """So an earlier release wrote them; its pods are still taken down."""
    store = StateStore(tmp_path)
    store.save("pod", STATE)
    path = store.directory("pod") / "state.json"
    document = json.loads(path.read_bytes())
    document["nics"][0] |= {
        "routes": ["10.9.0.0/16 dev eth0", "0.0.0.0/0 via 10.0.0.1 dev eth0 metric 5"],
        "guest_routes6": ["::/0 via fd00::1"],
    }
    path.write_text(json.dumps(document))
    assert store.load("pod") == STATE
