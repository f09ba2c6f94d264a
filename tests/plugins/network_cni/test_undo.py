"""Taking the network of a pod down, and what is kept on disk for it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.network_cni.conftest import TestNode, set_up
from tests.polling import until
from virtlet.errors import DeadlineExceeded, FailedPrecondition, VirtletError
from virtlet.host import netns
from virtlet.host.links import KernelRoute
from virtlet.host.processes import ended
from virtlet.model.network import Route
from virtlet.model.pod import Pod, PortMapping
from virtlet.plugins.network_cni.bridging import BridgedNic
from virtlet.plugins.network_cni.cni_config import NetworkList
from virtlet.plugins.network_cni.cni_plugins import CniAttachment, invoke
from virtlet.plugins.network_cni.network_state import PodState, StateStore

_SET_UP = """
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tests.plugins.network_cni.conftest import TestNode, set_up
node = TestNode(Path(sys.argv[1]))
plugin = node.plugin()
with ThreadPoolExecutor() as pool:
    list(pool.map(partial(set_up, plugin), [node.pod(id=id) for id in sys.argv[2:]]))
print("done", flush=True)
sys.stdin.read()
"""


def set_up_elsewhere(node: TestNode, *pods: Pod) -> "subprocess.Popen[str]":
    """A manager of its own that sets the pods' networks up, and then waits."""
    return subprocess.Popen(
        [sys.executable, "-c", _SET_UP, str(node.root), *(pod.id for pod in pods)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )


def kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


def test_take_down_without_a_set_up(node: TestNode) -> None:
    """Taking down what never was succeeds, even without a configuration."""
    node.plugin().virtlet_teardown_network(node.pod(), None)
    assert node.leftovers() == []


def test_take_down_twice(node: TestNode) -> None:
    """The second call, with or without the record, finds nothing to do."""
    node.configure(node.bridge(), node.fake())
    plugin, pod, network = node.up()
    for record in (network, network, None):
        plugin.virtlet_teardown_network(pod, record)
    assert [call["command"] for call in node.calls()] == ["ADD", "DEL"]
    assert node.leftovers() == []


def test_a_plugin_that_is_missing_is_found_before_anything_is_made(node: TestNode) -> None:
    node.configure(node.bridge(), {"type": "bridges"})
    plugin, pod = node.plugin(), node.pod()
    with pytest.raises(FailedPrecondition, match="CNI plugin bridges is missing"):
        set_up(plugin, pod)
    assert node.leftovers() == []
    plugin.virtlet_teardown_network(pod, None)


def test_a_pod_goes_when_the_configuration_that_stopped_it_is_corrected(node: TestNode) -> None:
    """Its plugins cannot read the wrong one for DEL either."""
    wrong = {"type": "host-local", "ranges": [[{"subnet": "10.300.0.0/16"}]]}
    node.configure({**node.bridge(), "ipam": wrong})
    plugin, pod = node.plugin(), node.pod()
    with pytest.raises(VirtletError, match="failed to ADD.*10.300"):
        set_up(plugin, pod)
    with pytest.raises(VirtletError, match="failed to DEL.*10.300"):
        plugin.virtlet_teardown_network(pod, None)
    node.configure(node.bridge())
    plugin.virtlet_teardown_network(pod, None)
    # The kernel takes the namespace's interfaces away some time later.
    until(lambda: node.links() == {"cni0"})
    assert node.leftovers() == []


def _renamed(node: TestNode, *plugins: dict[str, Any]) -> None:
    document = {"cniVersion": "1.0.0", "name": "other", "plugins": plugins}
    (node.configuration / "10-test.conflist").write_text(json.dumps(document))


def test_a_pod_goes_when_its_network_is_corrected_under_another_name(node: TestNode) -> None:
    """What it holds it holds in the network of the old name."""
    reserved = {"run": f"touch {node.root / 'address'}", "exit": 1}
    node.configure(node.fake(ADD=reserved, DEL={"exit": 1}), node.bridge())
    plugin, pod = node.plugin(), node.pod()
    with pytest.raises(VirtletError, match="failed to ADD"):
        set_up(plugin, pod)
    with pytest.raises(VirtletError, match="failed to DEL"):
        plugin.virtlet_teardown_network(pod, None)
    old = node.calls()[-1]["config"]["name"]
    _renamed(node, node.fake(DEL={"run": f"rm {node.root / 'address'}"}), node.bridge())
    plugin.virtlet_teardown_network(pod, None)
    assert node.calls()[-1]["config"]["name"] == old != "other"
    assert not (node.root / "address").exists()
    until(lambda: node.links() <= {"cni0"})
    assert node.leftovers() == []


def test_a_network_of_other_plugins_takes_no_pod_of_the_first_one_down(node: TestNode) -> None:
    wrong = {"type": "host-local", "ranges": [[{"subnet": "10.300.0.0/16"}]]}
    node.configure({**node.bridge(), "ipam": wrong})
    plugin, pod = node.plugin(), node.pod()
    with pytest.raises(VirtletError, match="failed to ADD"):
        set_up(plugin, pod)
    _renamed(node, node.fake())
    with pytest.raises(VirtletError, match="failed to DEL.*10.300"):
        plugin.virtlet_teardown_network(pod, None)
    _renamed(node, node.bridge())
    plugin.virtlet_teardown_network(pod, None)


@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_manager_killed_while_it_sets_up(node: TestNode, when: str) -> None:
    """What a killed manager had made, the next one takes down without a record."""
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    fake = node.fake(ADD={"sleep": 0 if when == "after" else 30})
    chain = [node.bridge(ipMasq=True), portmap]
    chain.insert({"before": 0, "between": 1, "after": 2}[when], fake)
    node.configure(*chain)
    pod = node.pod(port_mappings=(PortMapping(container_port=80, host_port=8080),))
    manager = set_up_elsewhere(node, pod)
    if when == "after":
        assert manager.stdout is not None
        assert manager.stdout.readline() == "done\n"
    else:
        until(lambda: (node.root / "calls.log").exists())
    kill(manager)
    assert node.leftovers() != []
    node.plugin().virtlet_teardown_network(pod, None)
    assert node.leftovers() == []


def test_a_plugin_that_outlived_its_manager_does_nothing_after_the_next_one_has_begun(
    node: TestNode,
) -> None:
    """It could take an address, for one, that is never given back; all else goes on.

    Such as the pods' DHCP servers, daemons that plugins left, and another runtime's plugins.
    """
    late, daemon = node.root / "late", node.root / "daemon"
    node.configure(node.bridge())
    first = node.plugin()
    running = node.pod()
    set_up(first, running)
    server = os.pidfd_open(node.server_pid(running))
    node.end(first)
    leave = f"setsid sh -c 'echo $$ >>{daemon}; exec sleep 600' >/dev/null 2>&1 &"
    node.configure(node.fake(ADD={"run": f"{leave} sleep 600; touch {late}"}), node.bridge())
    pods = [node.pod(), node.pod()]
    manager = set_up_elsewhere(node, *pods)
    daemon.touch()
    until(
        lambda: (
            len(daemon.read_text().splitlines()) == 2
            and len(node.fakes_running()) == 2 * len(("plugin", "shell", "sleep", "daemon"))
        ),
        timeout=60,
    )
    kill(manager)
    environment = {"CNI_PATH": str(node.plugin_directory), "CNI_CONTAINERID": "b" * 64}
    theirs = subprocess.Popen(["sleep", "600"], env=environment, start_new_session=True)
    daemons = [int(line) for line in daemon.read_text().splitlines()]
    try:
        plugin = node.plugin()
        assert sorted(node.fakes_running()) == sorted([theirs.pid, *daemons])
        assert not ended(server)
    finally:
        for pid in (theirs.pid, *daemons):
            os.kill(pid, signal.SIGKILL)
        theirs.wait()
        os.close(server)
    for pod in (*pods, running):
        plugin.virtlet_teardown_network(pod, None)
    assert not late.exists()
    assert node.leftovers() == []


def test_set_up_after_a_crash_starts_over(node: TestNode) -> None:
    """A set-up that finds the rest of an earlier one takes it down first."""
    node.configure(node.bridge())
    pod = node.pod()
    manager = set_up_elsewhere(node, pod)
    assert manager.stdout is not None
    assert manager.stdout.readline() == "done\n"
    kill(manager)
    plugin = node.plugin()
    network = set_up(plugin, pod)
    assert network.ips == ("10.99.0.3",)
    node.down(plugin, pod, network)


def test_delete_uses_what_add_used(node: TestNode) -> None:
    """DEL gets the configuration and result of ADD, in reverse order, after the files changed."""
    node.configure(
        node.bridge(), node.fake(mark="one"), node.fake(mark="two", capabilities={"dns": True})
    )
    plugin, pod, network = node.up()
    node.configure(node.fake(mark="other"), name="05-earlier.conflist")
    plugin.virtlet_teardown_network(pod, network)
    calls = node.calls()
    assert [(c["command"], c["config"]["mark"]) for c in calls] == [
        ("ADD", "one"),
        ("ADD", "two"),
        ("DEL", "two"),
        ("DEL", "one"),
    ]
    assert calls[2]["config"]["prevResult"] == calls[1]["config"]["prevResult"]
    assert all("capabilities" not in call["config"] for call in calls)
    assert all(call["config"]["name"] == "test" for call in calls)
    assert calls[0]["env"]["CNI_CONTAINERID"] == pod.id
    assert calls[0]["env"]["CNI_ARGS"] == (
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;"
        f"K8S_POD_INFRA_CONTAINER_ID={pod.id};K8S_POD_UID={pod.config.metadata.uid}"
    )
    assert node.leftovers() == []


def test_namespace_is_gone(node: TestNode) -> None:
    """DEL still runs when the namespace has vanished, and the addresses are free again."""
    node.configure(node.bridge(), node.fake())
    plugin, pod, network = node.up()
    assert network.netns is not None
    netns.delete(network.netns)
    plugin.virtlet_teardown_network(pod, network)
    assert node.calls()[-1]["env"]["CNI_NETNS"] == ""
    # The kernel takes the namespace's interfaces away some time later.
    until(lambda: node.links() == {"cni0"})
    assert node.leftovers() == []


def test_notes_are_lost(node: TestNode) -> None:
    """Without our notes the namespace that is left is taken down by today's configuration."""
    node.configure(node.bridge())
    plugin, pod, network = node.up()
    os.kill(node.server_pid(pod), signal.SIGKILL)
    plugin.networks.store.remove(pod.id)
    node.down(plugin, pod, network)


@pytest.mark.parametrize("configured", [True, False])
def test_notes_are_damaged(node: TestNode, configured: bool) -> None:
    """The same with notes that cannot be read; without a configuration the rest still goes."""
    node.configure(node.bridge())
    plugin, pod, network = node.up()
    (plugin.networks.store.directory(pod.id) / "state.json").write_text("{")
    if not configured:
        shutil.rmtree(node.configuration)
    plugin.virtlet_teardown_network(pod, network)
    # The kernel takes the namespace's interfaces away some time later.
    until(lambda: node.links() == {"cni0"})
    assert [left.split()[0] for left in node.leftovers()] == ([] if configured else ["address"])


@pytest.mark.parametrize("notes", ["whole", "damaged", "lost"])
def test_orphan(node: TestNode, notes: str) -> None:
    """The network of a pod that the store does not have is taken down by a new manager."""
    # Without a state CNI's plugins cannot know which addresses to stop masquerading.
    node.configure(node.bridge(ipMasq=notes == "whole"))
    first = node.plugin()
    pods = [node.pod(), node.pod()]
    for pod in pods:
        set_up(first, pod)
    node.end(first)
    shutil.rmtree(pods[0].directory)
    if notes == "damaged":
        (first.networks.store.directory(pods[0].id) / "state.json").write_text("{")
    if notes == "lost":
        os.kill(node.server_pid(pods[0]), signal.SIGKILL)
        first.networks.store.remove(pods[0].id)
    (first.networks.namespaces / ("f" * 32)).touch()  # what a reboot leaves of a namespace
    second = node.plugin()
    until(lambda: [path.name for path in second.networks.namespaces.iterdir()] == [pods[1].id])
    until(lambda: not second.networks.store.known(pods[0].id))
    assert second.networks.store.known(pods[1].id)
    second.virtlet_teardown_network(pods[1], None)
    assert node.leftovers() == []


def test_a_namespace_of_a_pod_that_is_stored_stays_though_its_notes_are_lost(
    node: TestNode,
) -> None:
    """The core takes such a pod down when it is asked to."""
    node.configure(node.bridge())
    first, pod, network = node.up()
    node.end(first)
    os.kill(node.server_pid(pod), signal.SIGKILL)
    first.networks.store.remove(pod.id)
    second = node.plugin()
    assert network.netns is not None
    assert netns.exists(network.netns)
    node.down(second, pod, network)


def test_failed_add_is_told_and_undone(node: TestNode) -> None:
    """The error names plugin, code and message; taking down runs DEL of every plugin."""
    failure = {"print": {"cniVersion": "1.0.0", "code": 11, "msg": "busy", "details": "no lease"}}
    never = node.fake(mark="never reached")
    node.configure(node.bridge(), node.fake(ADD={**failure, "exit": 1}), never)
    plugin = node.plugin()
    pod = node.pod()
    with pytest.raises(VirtletError) as caught:
        set_up(plugin, pod)
    assert str(caught.value) == (
        "CNI plugin cni_plugin failed to ADD: code 11 (try again later): busy: no lease"
    )
    assert caught.value.status == "UNAVAILABLE"
    plugin.virtlet_teardown_network(pod, None)
    assert [c["command"] for c in node.calls()] == ["ADD", "DEL", "DEL"]
    assert node.calls()[1]["config"]["mark"] == "never reached"
    assert node.leftovers() == []


@pytest.mark.parametrize(
    ("printed", "message"),
    [
        ({"text": "hello"}, "it printed no valid JSON"),
        ({"text": "[" * 100_000}, "it printed no valid JSON"),
        ({"text": "", "print": None}, "the result must be an object"),
        ({"print": {"cniVersion": "9.9"}}, "cniVersion '9.9': supported are"),
        ({"print": {"ips": [{"address": "10.0.0.300/24"}]}}, "ips[0].address '10.0.0.300/24'"),
        ({"stderr": "it burns", "text": "", "exit": 3}, "status 3: it burns"),
    ],
)
def test_bad_result(node: TestNode, printed: dict[str, object], message: str) -> None:
    """A malformed result is an error that says what is wrong, and is undone."""
    node.configure(node.bridge(), node.fake(ADD=printed))
    plugin = node.plugin()
    pod = node.pod()
    with pytest.raises(VirtletError) as caught:
        set_up(plugin, pod)
    assert message in str(caught.value)
    node.down(plugin, pod, None)


def test_delete_carries_on_and_is_retried(node: TestNode) -> None:
    """A plugin that fails to DEL does not keep the others from it, and can be retried later."""
    stubborn = node.root / "stubborn"
    delete = {"run": f"test ! -e {stubborn}"}
    node.configure(node.bridge(), node.fake(DEL=delete))
    plugin, pod, network = node.up()
    stubborn.touch()
    with pytest.raises(VirtletError, match="CNI plugin cni_plugin failed to DEL"):
        plugin.virtlet_teardown_network(pod, network)
    assert not any(
        left.startswith(("address", "process", "interface")) for left in node.leftovers()
    )
    stubborn.unlink()
    node.down(plugin, pod, network)


def test_plugin_that_never_ends(node: TestNode) -> None:
    """A plugin that takes too long is killed with all it started."""
    todo = {"log": str(node.root / "calls.log"), "ADD": {"sleep": 60}}
    with pytest.raises(DeadlineExceeded, match="did not finish ADD within 0.5 s"):
        invoke(node.plugin_directory, "cni_plugin", "ADD", {}, todo, timeout=0.5)
    assert node.fakes_running() == []


def test_interfaces_that_cannot_be_attached(node: TestNode) -> None:
    """An interface of another kind is refused with a message that says what to use."""
    subprocess.run(["ip", "link", "add", "uplink", "type", "veth", "peer", "far"], check=True)
    make = (
        f"nsenter --net=/proc/{node.holder()}/ns/net "
        "ip link add link uplink name eth0 netns $CNI_NETNS type macvtap mode bridge; "
        "ip address add 10.99.0.2/24 dev eth0"
    )
    node.configure(node.fake(ADD={"run": make}))
    plugin = node.plugin()
    pod = node.pod()
    with pytest.raises(FailedPrecondition, match="eth0 of kind macvtap: a VM can have veth and"):
        set_up(plugin, pod)
    plugin.virtlet_teardown_network(pod, None)
    subprocess.run(["ip", "link", "delete", "uplink"], check=True)
    assert node.leftovers() == []


def test_state_is_private(node: TestNode) -> None:
    """The configuration kept for DEL may hold secrets: only root can read it."""
    node.configure(node.bridge())
    plugin, pod, _ = node.up()
    path = plugin.networks.store.directory(pod.id) / "state.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_text())["attachment"]["container_id"] == pod.id
    plugin.virtlet_teardown_network(pod, None)


ROUTES = (
    KernelRoute(destination="10.9.0.0/16", device="eth0", gateway="", metric=0, automatic=False),
    KernelRoute(
        destination="0.0.0.0/0", device="eth0", gateway="10.0.0.1", metric=5, automatic=False
    ),
)
STATE = PodState(
    CniAttachment(
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
