"""The pods' DHCP servers are kept running, by one manager after the other."""

import contextlib
import os
import signal
import time
from pathlib import Path

from tests.plugins.network_cni.conftest import TestNode, eventually, set_up
from virtlet.model.pod import Pod


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


def test_killed_server_is_started_again(node: TestNode) -> None:
    """A server that dies comes back by itself, and answers as before."""
    node.configure(node.bridge())
    plugin = node.plugin()
    pod = node.pod()
    network = set_up(plugin, pod)
    killed = node.server_pid(pod)
    os.kill(killed, signal.SIGKILL)
    assert eventually(lambda: not runs(killed) and server_runs(node, pod))
    with node.guest(network) as guest:
        lease = guest.dhcp()
        assert lease is not None
        assert lease["ip"] == "10.99.0.2"
    plugin.virtlet_teardown_network(pod, network)
    assert node.leftovers() == []


def test_server_outlives_its_manager_and_is_adopted(node: TestNode) -> None:
    """It goes on without a manager; the next one neither doubles nor forgets it."""
    node.configure(node.bridge())
    first = node.plugin()
    pod = node.pod()
    network = set_up(first, pod)
    pid = node.server_pid(pod)
    node.end(first)
    assert runs(pid)
    second = node.plugin()
    time.sleep(0.3)
    assert node.server_pid(pod) == pid
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not runs(pid) and server_runs(node, pod))
    second.virtlet_teardown_network(pod, network)
    assert node.leftovers() == []


def test_server_that_died_without_a_manager(node: TestNode) -> None:
    """A manager starts what ended while none was there; a stale process id misleads nobody."""
    node.configure(node.bridge())
    first = node.plugin()
    pod = node.pod()
    network = set_up(first, pod)
    node.end(first)
    os.kill(node.server_pid(pod), signal.SIGKILL)
    pid_file = first.networks.store.directory(pod.id) / "dnsmasq.pid"
    pid_file.write_text(f"{os.getpid()}\n")
    second = node.plugin()
    assert eventually(lambda: server_runs(node, pod))
    second.virtlet_teardown_network(pod, network)
    assert node.leftovers() == []


def test_taken_down_server_stays_away(node: TestNode) -> None:
    """Nobody starts the server of a pod again that is taken down."""
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
    assert eventually(lambda: not runs(first))
    time.sleep(0.3)  # it is tried
    os.kill(second, signal.SIGKILL)
    assert eventually(lambda: not runs(second) and server_runs(node, pods[1]))
    in_the_way.rmdir()
    assert eventually(lambda: server_runs(node, pods[0]), 60)
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
    os.mkfifo(config)  # opened, but by nobody to write
    killed = node.server_pid(slow)
    os.kill(killed, signal.SIGKILL)
    assert eventually(lambda: not runs(killed) and bool(servers(config)))
    (starting,) = servers(config)
    plugin.virtlet_teardown_network(other, networks[1])
    assert servers(config) == [starting]
    config.unlink()
    config.write_text(text)
    os.kill(starting, signal.SIGKILL)
    plugin.virtlet_teardown_network(slow, networks[0])
    assert node.leftovers() == []
