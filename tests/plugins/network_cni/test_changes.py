"""Networks that change under a running guest, that have one family, or that are closed."""

import json
import subprocess
from typing import Any

import pytest

from tests.plugins.network_cni.conftest import TestNode, gets_ipv6, set_up
from tests.plugins.network_cni.shapes import SHAPES
from virtlet.errors import PodBroken
from virtlet.host import netns
from virtlet.host.links import Links
from virtlet.model.pod import PortMapping

ATTACHMENTS = ("bridge", "redirect")


def attached(attachment: str) -> dict[str, str]:
    return {"VirtletNicAttachment": attachment}


def shell(commands: str) -> None:
    subprocess.run(["sh", "-ec", commands], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("attachment", ATTACHMENTS)
def test_a_link_that_goes_down_and_comes_carries_the_guest_again(
    node: TestNode, attachment: str
) -> None:
    node.configure(node.bridge())
    plugin, pod, network = node.up(annotations=attached(attachment))
    (far,) = node.links() - {"cni0"}
    with node.guest(network) as guest:
        assert guest.dhcp()
        assert guest.reaches("10.99.0.1")
        with Links() as net:
            net.set(far, up=False)
            assert not guest.reaches("10.99.0.1")
            net.set(far, up=True)
        assert any(guest.reaches("10.99.0.1") for _ in range(10))
        assert guest.dhcp()
    node.down(plugin, pod, network)


def only_ipv6(node: TestNode) -> dict[str, Any]:
    bridge = node.bridge()
    bridge["ipam"]["ranges"] = [[{"subnet": "fd99::/64"}]]
    bridge["ipam"]["routes"] = [{"dst": "::/0"}]
    return bridge


@pytest.mark.parametrize("attachment", ATTACHMENTS)
def test_a_network_of_ipv6_alone(node: TestNode, attachment: str) -> None:
    """The guest is given no IPv4 address, and reaches its gateway, another guest and the node."""
    node.configure(only_ipv6(node))
    shell("ip address add fd77::1/128 dev lo")
    plugin = node.plugin()
    pods = [node.pod(annotations=attached(attachment)) for _ in range(2)]
    networks = [set_up(plugin, pod) for pod in pods]
    assert networks[0].nics[0].addresses == ("fd99::2/64",)
    with node.guest(networks[0]) as one, node.guest(networks[1]) as two:
        assert one.dhcp() is None
        assert gets_ipv6(one)
        assert gets_ipv6(two)
        wanted = ("fd99::1", "fd99::3", "fd77::1")
        assert [address for address in wanted if not one.reaches(address)] == []
    for pod, network in zip(pods, networks, strict=True):
        for _ in range(2):
            plugin.networks.check(pod, network)
        plugin.virtlet_teardown_network(pod, network)
    assert node.leftovers() == []


def test_an_address_that_changed_while_a_vm_ran_ends_the_pod_at_the_next_vms_start(
    node: TestNode,
) -> None:
    """By the bridge plugin's own CHECK; the guest goes on with what it has until then."""
    node.configure(node.bridge())
    plugin, pod, network = node.up(annotations=attached("redirect"))
    plugin.networks.check(pod, network)
    assert network.netns is not None
    change = "ip address add 10.99.0.77/24 dev eth0; ip address del 10.99.0.2/24 dev eth0"
    with node.guest(network) as guest:
        assert guest.dhcp()
        netns.inside(network.netns, lambda: shell(change))
        assert guest.reaches("10.99.0.1")
    with pytest.raises(PodBroken, match="CNI plugin bridge failed to CHECK.*run it again"):
        plugin.networks.check(pod, network)
    node.down(plugin, pod, network)


@pytest.mark.parametrize("attachment", ATTACHMENTS)
def test_rules_on_the_nodes_end_of_the_veth_hold_for_the_guest(
    node: TestNode, attachment: str
) -> None:
    """As Calico's policies are made: by the name of that end, in both directions."""
    plugin, made = node.plugin(), []
    for number in (2, 3):
        node.configure(SHAPES["calico"].plugin(node, number))
        pod = node.pod(annotations=attached(attachment))
        made.append((pod, set_up(plugin, pod)))
    shell("sysctl -qw net.ipv4.ip_forward=1; ip address add 192.0.2.1/32 dev lo")
    shell("ip route add default dev lo")  # proxy ARP answers for what the node has a route to
    (_, one), (_, other) = made
    with node.guest(one) as guest, node.guest(other) as neighbour:
        assert guest.dhcp()
        assert neighbour.dhcp()
        assert guest.reaches("10.99.0.3")
        for rule in ("FORWARD -i host2", "FORWARD -o host2"):
            shell(f"iptables -A {rule} -j DROP")
            assert not guest.reaches("10.99.0.3")
            assert guest.reaches("192.0.2.1")
            shell(f"iptables -D {rule} -j DROP")
        shell("iptables -A INPUT -i host2 -j DROP")
        assert not guest.reaches("192.0.2.1")
        shell("iptables -D INPUT -i host2 -j DROP")
        assert guest.reaches("10.99.0.3")
    for pod, network in made:
        plugin.virtlet_teardown_network(pod, network)
    assert node.leftovers() == []


@pytest.mark.parametrize("attachment", ATTACHMENTS)
def test_host_ports_and_limits_hold_for_the_guest(node: TestNode, attachment: str) -> None:
    """Also where the guest asks for its own host port, which comes back to it (hairpin)."""
    node.configure(
        node.bridge(ipMasq=True, hairpinMode=True),
        {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
    )
    page = node.root / "index.html"
    page.write_text("hello from the guest" * 10_000)
    limits = {f"kubernetes.io/{way}-bandwidth": "50M" for way in ("ingress", "egress")}
    plugin, pod, network = node.up(
        annotations=attached(attachment) | limits,
        port_mappings=(PortMapping(container_port=80, host_port=8080),),
    )
    with node.guest(network) as guest:
        assert guest.dhcp()
        before = passed_limits()
        fetch = ("busybox", "wget", "-T", "10", "-qO-", "http://10.99.0.1:8080/")
        with guest.running("busybox", "httpd", "-f", "-p", "80", "-h", str(node.root)):
            fetched = subprocess.run(fetch, capture_output=True, text=True, timeout=30)
            assert fetched.stdout == page.read_text()
            inward, outward = (
                now - then for now, then in zip(passed_limits(), before, strict=True)
            )
            assert 0 < inward < outward
            assert outward > len(page.read_text())
            assert guest.run(*fetch).stdout == page.read_text()
    node.down(plugin, pod, network)


def passed_limits() -> tuple[int, int]:
    """Bytes that the bandwidth plugin's two limits let through, the fewer first."""
    command = ("tc", "-j", "-s", "qdisc", "show")
    shown = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    few, many = sorted(int(each["bytes"]) for each in shown if each["kind"] == "tbf")
    return few, many


@pytest.mark.parametrize("attachment", ATTACHMENTS)
def test_a_service_that_leads_to_its_own_client_reaches_it(node: TestNode, attachment: str) -> None:
    """By rules as kube-proxy's on the node: the frame goes back by the port that it came from."""
    node.configure(node.bridge(ipMasq=False, hairpinMode=True))
    plugin, pod, network = node.up(annotations=attached(attachment))
    shell(
        "iptables -t nat -A PREROUTING -d 10.96.0.1 -p tcp --dport 80 -j DNAT --to 10.99.0.2:80;"
        "iptables -t nat -A POSTROUTING -s 10.99.0.2 -d 10.99.0.2 -j MASQUERADE"
    )
    (node.root / "index.html").write_text("myself")
    with node.guest(network) as guest:
        assert guest.dhcp()
        with guest.running("busybox", "httpd", "-f", "-p", "80", "-h", str(node.root)):
            fetch = ("busybox", "wget", "-T", "10", "-qO-", "http://10.96.0.1/")
            assert guest.run(*fetch).stdout == "myself"
    shell("iptables -t nat -F")
    node.down(plugin, pod, network)
