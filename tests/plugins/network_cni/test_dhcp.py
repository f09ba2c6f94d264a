"""The DHCP servers of pods: what they are told, and that they are kept running."""

import contextlib
import os
import pwd
import signal
import time
from pathlib import Path

import pytest

from tests.plugins.network_cni.conftest import TestNode, set_up
from tests.polling import until
from virtlet.errors import InvalidArgument
from virtlet.model.network import Network, Nic, Route
from virtlet.model.pod import DnsConfig, Pod
from virtlet.plugins.network_cni.bridging import BridgedNic
from virtlet.plugins.network_cni.dhcp import DhcpServer, configuration


def told(interface: Nic, searches: tuple[str, ...] = ()) -> list[str]:
    """The lines for a pod with one NIC."""
    addresses = tuple(a.split("/")[0] for a in interface.addresses)
    nic = BridgedNic(0, "eth0", interface.mac, 1500, (), (), addresses, (), "169.254.77.1")
    return configuration(
        "box",
        Network(netns=None, nics=(interface,), dns=DnsConfig(servers=(), searches=searches)),
        [nic],
    ).splitlines()


def test_search_domains_that_fit() -> None:
    """An option holds 255 bytes: the first domains that fit are offered, the rest is not."""
    domains = tuple(f"{'x' * 40}{number}.test" for number in range(10))
    lines = told(
        Nic(name="eth0", mac="02:00:00:00:00:01", mtu=1500, addresses=("10.0.0.2/8",)),
        domains,
    )
    (line,) = (line for line in lines if "domain-search" in line)
    assert line == f"dhcp-option=tag:nic0,option:domain-search,{','.join(domains[:5])}"


def test_no_default_route() -> None:
    """Without a default route the guest gets no router; the server does not name itself."""
    route = Route(destination="10.5.0.0/16", gateway="10.0.0.1")
    lines = told(
        Nic(
            name="eth0",
            mac="02:00:00:00:00:01",
            mtu=1500,
            addresses=("10.0.0.2/8",),
            routes=(route,),
        )
    )
    assert "dhcp-option=tag:nic0,option:router" in lines
    assert "dhcp-option=tag:nic0,option:classless-static-route,10.5.0.0/16,10.0.0.1" in lines


def test_no_text_ends_a_line_of_the_configuration() -> None:
    """What is checked where it comes in is looked at once more where it is written."""
    with pytest.raises(InvalidArgument, match="no DHCP server can be told"):
        told(
            Nic(name="eth0", mac="02:00:00:00:00:01", mtu=1500, addresses=("10.0.0.2/8",)),
            ("x\ndhcp-script=/tmp/x",),
        )


def test_ipv6_neighbours_off_the_link() -> None:
    """A single IPv6 address comes without neighbours, and without a router if it has none."""
    lines = told(Nic(name="eth0", mac="02:00:00:00:00:01", mtu=1400, addresses=("fd00::5/128",)))
    assert "dhcp-range=fd00::5,static,off-link,64,infinite" in lines
    assert "ra-param=vbr0,mtu:1400,600,0" in lines
    assert not any("shared-network" in line for line in lines)


def runs(pid: int) -> bool:
    try:
        return b"dnsmasq" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def servers(config: Path) -> list[int]:
    """Process ids of the servers with this configuration."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if f"--conf-file={config}\0".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def server_runs(node: TestNode, pod: Pod) -> bool:
    try:
        return runs(node.server_pid(pod))
    except (FileNotFoundError, ValueError):
        return False  # between its end and the next start


def test_a_server_is_not_spared_by_the_kernel_as_the_manager_is(node: TestNode) -> None:
    own = Path("/proc/self/oom_score_adj")
    before = own.read_text()
    own.write_text("300")
    try:
        node.configure(node.bridge())
        plugin = node.plugin()
        pod = node.pod()
        network = set_up(plugin, pod)
        server = Path(f"/proc/{node.server_pid(pod)}/oom_score_adj")
        assert server.read_text() == "0\n"
    finally:
        own.write_text(before)
    plugin.virtlet_teardown_network(pod, network)


def test_a_server_has_no_more_than_it_needs(
    node: TestNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    node.configure(node.bridge())
    plugin = node.plugin()
    pod = node.pod()
    network = set_up(plugin, pod)
    process = Path(f"/proc/{node.server_pid(pod)}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    assert set(status["Uid"].split()) == {str(pwd.getpwnam("dnsmasq").pw_uid)}
    for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(status[kind], 16) == 0, kind
    assert status["NoNewPrivs"].strip() == "1"
    assert status["Seccomp"].strip() == "2", "a filter"
    assert (process / "ns/ipc").readlink() != Path("/proc/self/ns/ipc").readlink()
    assert b"hunter2" not in (process / "environ").read_bytes()
    with node.guest(network) as guest:
        assert guest.dhcp()
    plugin.virtlet_teardown_network(pod, network)


def test_a_server_has_nothing_to_complain_of_and_its_files_stay_roots(
    node: TestNode, tmp_path: Path
) -> None:
    """It would like its process id's file to be its user's, and says so in the node's log."""
    node.configure(node.bridge())
    plugin = node.plugin()
    pod = node.pod()
    network = set_up(plugin, pod)
    assert network.netns is not None
    server = DhcpServer(netns=network.netns, directory=tmp_path)
    log = tmp_path / "said"
    server.configure(f"port=0\nno-resolv\nno-hosts\nlog-facility={log}\n")
    pidfd = server.start()
    server.end(pidfd)
    assert "started, version" in log.read_text()
    assert "fail" not in log.read_text()
    assert log.stat().st_uid == 0
    plugin.virtlet_teardown_network(pod, network)


def test_killed_server_is_started_again(node: TestNode) -> None:
    """A server that dies comes back by itself, and answers as before."""
    node.configure(node.bridge())
    plugin, pod, network = node.up()
    killed = node.server_pid(pod)
    os.kill(killed, signal.SIGKILL)
    until(lambda: not runs(killed) and server_runs(node, pod))
    with node.guest(network) as guest:
        lease = guest.dhcp()
        assert lease is not None
        assert lease["ip"] == "10.99.0.2"
    node.down(plugin, pod, network)


def test_server_outlives_its_manager_and_is_adopted(node: TestNode) -> None:
    """It goes on without a manager; the next one neither doubles nor forgets it."""
    node.configure(node.bridge())
    first, pod, network = node.up()
    pid = node.server_pid(pod)
    node.end(first)
    assert runs(pid)
    second = node.plugin()
    time.sleep(0.3)
    assert node.server_pid(pod) == pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: not runs(pid) and server_runs(node, pod))
    node.down(second, pod, network)


def test_server_that_died_without_a_manager(node: TestNode) -> None:
    """A manager starts what ended while none was there; a stale process id does not mislead it."""
    node.configure(node.bridge())
    first, pod, network = node.up()
    node.end(first)
    os.kill(node.server_pid(pod), signal.SIGKILL)
    pid_file = first.networks.store.directory(pod.id) / "dnsmasq.pid"
    pid_file.write_text(f"{os.getpid()}\n")
    second = node.plugin()
    until(lambda: server_runs(node, pod))
    node.down(second, pod, network)


def test_taken_down_server_stays_away(node: TestNode) -> None:
    """The server of a pod that is taken down is not started again."""
    node.configure(node.bridge())
    plugin = node.plugin()
    pods = [node.pod() for _ in range(3)]
    networks = [set_up(plugin, pod) for pod in pods]
    for pod, network in zip(pods, networks, strict=True):
        plugin.virtlet_teardown_network(pod, network)
    time.sleep(0.5)
    assert node.leftovers() == []


def test_a_server_that_cannot_be_started_leaves_the_others_looked_after(node: TestNode) -> None:
    """An error of the operating system is the pod's own, and passes with its cause."""
    node.configure(node.bridge())
    plugin = node.plugin()
    pods = [node.pod() for _ in range(2)]
    networks = [set_up(plugin, pod) for pod in pods]
    first, second = (node.server_pid(pod) for pod in pods)
    in_the_way = plugin.networks.store.directory(pods[0].id) / "dnsmasq.pid"
    in_the_way.unlink()
    in_the_way.mkdir()
    os.kill(first, signal.SIGKILL)
    until(lambda: not runs(first))
    time.sleep(0.3)  # it is tried
    os.kill(second, signal.SIGKILL)
    until(lambda: not runs(second) and server_runs(node, pods[1]))
    in_the_way.rmdir()
    until(lambda: server_runs(node, pods[0]), timeout=60)
    for pod, network in zip(pods, networks, strict=True):
        plugin.virtlet_teardown_network(pod, network)
    assert node.leftovers() == []


def test_a_server_that_is_long_in_starting_keeps_no_other_pod_waiting(node: TestNode) -> None:
    """Its own pod's end waits for it, and it is ended with the pod."""
    node.configure(node.bridge())
    plugin = node.plugin()
    slow, other = pods = [node.pod() for _ in range(2)]
    networks = [set_up(plugin, pod) for pod in pods]
    config = plugin.networks.store.directory(slow.id) / "dnsmasq.conf"
    text = config.read_text()
    config.unlink()
    os.mkfifo(config)  # opened, but never for writing
    killed = node.server_pid(slow)
    os.kill(killed, signal.SIGKILL)
    until(lambda: not runs(killed) and bool(servers(config)))
    (starting,) = servers(config)
    plugin.virtlet_teardown_network(other, networks[1])
    assert servers(config) == [starting]
    config.unlink()
    config.write_text(text)
    os.kill(starting, signal.SIGKILL)
    plugin.virtlet_teardown_network(slow, networks[0])
    assert node.leftovers() == []
