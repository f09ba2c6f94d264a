"""Pod networks by real CNI plugins, with a guest behind the tap."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from attrs import evolve

from tests.plugins.network_cni.conftest import TestNode, set_up
from virtlet.errors import FailedPrecondition
from virtlet.host.links import Links, set_sysctl
from virtlet.model.network import Route
from virtlet.model.pod import DnsConfig, PortMapping


def test_guest_gets_what_cni_gave_the_pod(node: TestNode) -> None:
    """The guest takes the veth's MAC, address, route, MTU and the pod's DNS, and has a network."""
    node.configure(node.bridge(ipMasq=True, mtu=1400))
    plugin = node.plugin()
    dns = DnsConfig(
        servers=("10.96.0.10",), searches=("default.svc.cluster.local", "cluster.local")
    )
    pod = node.pod(hostname="12", dns=dns)
    network = set_up(plugin, pod)
    (interface,) = network.nics
    assert (interface.name, interface.mtu) == ("eth0", 1400)
    assert interface.addresses == ("10.99.0.2/24",)
    assert interface.routes == (Route(destination="0.0.0.0/0", gateway="10.99.0.1"),)
    with node.guest(network) as guest:
        lease = guest.dhcp()
        assert lease is not None
        assert (lease["ip"], lease["mask"]) == ("10.99.0.2", "24")
        assert (lease["router"], lease["staticroutes"]) == ("10.99.0.1", "0.0.0.0/0 10.99.0.1")
        assert (lease["mtu"], lease["hostname"]) == ("1400", "12")
        assert lease["dns"] == "10.96.0.10"
        assert lease["search"] == "default.svc.cluster.local cluster.local"
        assert guest.reaches("10.99.0.1")
        (link,) = guest.show("address", "show", "dev", "eth0")
        assert link["address"] == interface.mac
        ping = ("busybox", "ping", "-c", "1", "-W", "2", "10.99.0.2")
        assert subprocess.run(ping, capture_output=True).returncode == 0
    node.down(plugin, pod, network)


def test_guest_has_what_others_made_of_its_nic(node: TestNode) -> None:
    """Another MAC and MTU: DHCP answers that MAC alone, and the node finds the guest by it."""
    node.configure(node.bridge(hairpinMode=True))
    plugin = node.plugin()
    pod = node.pod()
    network = set_up(plugin, pod, mac="02:76:00:00:00:07", mtu=1300)
    with node.guest(network) as guest:
        lease = guest.dhcp()
        assert lease is not None
        assert (lease["ip"], lease["mtu"]) == ("10.99.0.2", "1300")
        assert guest.reaches("10.99.0.1")
        (link,) = guest.show("address", "show", "dev", "eth0")
        assert link["address"] == "02:76:00:00:00:07"
        neighbours = subprocess.run(["ip", "neighbour"], capture_output=True, text=True).stdout
        assert "10.99.0.2 dev cni0 lladdr 02:76:00:00:00:07" in neighbours
    node.down(plugin, pod, network)


def test_a_mac_that_the_pods_bridge_has_is_refused(node: TestNode) -> None:
    """The guest's frames would end there."""
    node.configure(node.bridge())
    plugin = node.plugin()
    pod = node.pod()
    network = plugin.virtlet_setup_network(pod)
    mac = network.nics[0].mac
    taken = f"{int(mac[:2], 16) ^ 0x20 | 2:02x}{mac[2:]}"
    nic = evolve(network.nics[0], mac=taken)
    with pytest.raises(FailedPrecondition, match=f"NIC eth0 cannot have the MAC address {taken}"):
        plugin.virtlet_serve_network(pod, evolve(network, nics=(nic,)))
    node.down(plugin, pod, network)


def test_a_set_up_that_is_never_served_is_undone(node: TestNode) -> None:
    """As when a plugin that adjusts it fails; a manager that comes back starts no server for it."""
    node.configure(node.bridge(ipMasq=True))
    first = node.plugin()
    pod = node.pod()
    network = first.virtlet_setup_network(pod)
    assert [nic.device for nic in network.nics] == ["vtap0"]
    node.end(first)
    second = node.plugin()
    node.down(second, pod, network)


def test_dhcp_stays_between_guest_and_pod(node: TestNode) -> None:
    """Neither does a server outside answer the guest, nor the pod's server anybody outside."""
    node.configure(node.bridge())
    plugin, pod, network = node.up()
    log = node.root / "rogue.log"
    rogue = subprocess.Popen(
        [
            *("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0"),
            *("--bind-interfaces", "--interface=cni0", "--dhcp-range=10.99.0.100,10.99.0.200"),
            *("--dhcp-authoritative", "--leasefile-ro", "--no-ping", "--log-dhcp"),
            *(f"--log-facility={log}", f"--pid-file={node.root / 'rogue.pid'}"),
        ]
    )
    try:
        with node.guest(network) as guest:
            lease = guest.dhcp()
            assert lease is not None
            assert (lease["ip"], lease["serverid"]) == ("10.99.0.2", "169.254.77.1")
            assert "DHCPDISCOVER" not in log.read_text()
    finally:
        rogue.terminate()
        rogue.wait()
    # A client on the pod's network that claims the guest's MAC gets no answer either.
    with Links() as net:
        net.add_veth("outside", "port")
        net.set("outside", mac=network.nics[0].mac, up=True)
        net.set("port", master="cni0", up=True)
    ask = ("busybox", "udhcpc", "-i", "outside", "-n", "-q", "-f", "-s", "/bin/true")
    asked = subprocess.run((*ask, "-t", "2", "-T", "1"), capture_output=True, text=True)
    assert "no lease" in asked.stderr
    with Links() as net:
        net.add_address("outside", "169.254.77.9/24")
    arping = ("busybox", "arping", "-c", "1", "-w", "1", "-I", "outside", "169.254.77.1")
    assert subprocess.run(arping, capture_output=True).returncode != 0
    with Links() as net:
        net.delete("outside")
    node.down(plugin, pod, network)


def test_node_bridge_in_hairpin_mode(node: TestNode) -> None:
    """The guest's own broadcasts, sent back by the node's bridge, do not cut it off."""
    node.configure(node.bridge(hairpinMode=True))
    plugin, pod, network = node.up()
    with node.guest(network) as guest:
        assert guest.dhcp()
        assert guest.reaches("10.99.0.1")
        guest.run("busybox", "arping", "-U", "-c", "1", "-I", "eth0", "10.99.0.2")
        ping = ("busybox", "ping", "-c", "1", "-W", "2", "10.99.0.2")
        assert subprocess.run(ping, capture_output=True).returncode == 0
    node.down(plugin, pod, network)


def test_guest_calls_the_service_whose_only_endpoint_it_is(node: TestNode) -> None:
    """Its call comes back to it, as a container's does, where the node masquerades as kube-proxy
    does, with its bridge in hairpin mode and under bridge-nf-call-iptables."""
    node.configure(node.bridge(hairpinMode=True))
    plugin, pod, network = node.up()
    set_sysctl("ipv4/ip_forward", "1")
    assert set_sysctl("bridge/bridge-nf-call-iptables", "1"), "br_netfilter is not loaded"
    _serve("10.96.0.5", endpoint="10.99.0.2")
    with node.guest(network) as guest:
        assert guest.dhcp()
        (node.root / "index.html").write_text("hello from myself")
        with guest.running("busybox", "httpd", "-f", "-p", "80", "-h", str(node.root)):
            fetched = guest.run("busybox", "wget", "-T", "5", "-qO-", "http://10.96.0.5/")
            assert fetched.stdout == "hello from myself"
    plugin.virtlet_teardown_network(pod, network)


def _serve(service: str, *, endpoint: str) -> None:
    """What kube-proxy's iptables mode makes of a service with one endpoint."""
    for rule in (
        f"PREROUTING -d {service}/32 -p tcp --dport 80 -j DNAT --to-destination {endpoint}:80",
        f"POSTROUTING -s {endpoint}/32 -d {endpoint}/32 -j MASQUERADE",
    ):
        subprocess.run(["iptables", "-t", "nat", "-A", *rule.split()], check=True)


def test_port_mapping_and_bandwidth(node: TestNode) -> None:
    """Plugins that declare a capability get its values: a host port leads to the guest."""
    node.configure(
        node.bridge(ipMasq=True),
        {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
        {"type": "firewall"},
    )
    plugin = node.plugin()
    pod = node.pod(
        port_mappings=(
            PortMapping(container_port=80, host_port=8080),
            PortMapping(container_port=90, host_port=0),
        ),
        annotations={"kubernetes.io/ingress-bandwidth": "10M"},
    )
    network = set_up(plugin, pod)
    shaped = subprocess.run(["tc", "qdisc", "show"], capture_output=True, text=True).stdout
    assert shaped.count("rate 10Mbit") == 1
    with node.guest(network) as guest:
        assert guest.dhcp()
        (node.root / "index.html").write_text("hello from the guest")
        with guest.running("busybox", "httpd", "-f", "-p", "80", "-h", str(node.root)):
            fetch = ("busybox", "wget", "-qO-", "http://10.99.0.1:8080/")
            fetched = subprocess.run(fetch, capture_output=True, text=True, timeout=10)
            assert fetched.stdout == "hello from the guest"
    node.down(plugin, pod, network)


def test_dns_of_the_pod_reaches_the_plugins_that_ask_for_it(node: TestNode) -> None:
    """By CNI's convention `dns`; the kubelet's servers, searches and options, for ADD and DEL."""
    node.configure(node.bridge(), node.fake(capabilities={"dns": True}), node.fake())
    plugin = node.plugin()
    dns = DnsConfig(
        servers=("10.96.0.10", "fd96::10"),
        searches=("svc.cluster.local",),
        options=("ndots:5", "edns0"),
    )
    pod = node.pod(dns=dns)
    plugin.virtlet_teardown_network(pod, set_up(plugin, pod))
    told = {
        "servers": ["10.96.0.10", "fd96::10"],
        "searches": ["svc.cluster.local"],
        "options": ["ndots:5", "edns0"],
    }
    calls = [(call["command"], call["config"].get("runtimeConfig")) for call in node.calls()]
    assert calls == [
        ("ADD", {"dns": told}),
        ("ADD", None),
        ("DEL", None),
        ("DEL", {"dns": told}),
    ]
    assert node.leftovers() == []


def test_many_at_a_time(node: TestNode) -> None:
    """Eight pods at a time get eight addresses, and leave nothing."""
    node.configure(
        node.bridge(ipMasq=True), {"type": "portmap", "capabilities": {"portMappings": True}}
    )
    plugin = node.plugin()
    first, *pods = [
        node.pod(port_mappings=(PortMapping(container_port=80, host_port=8000 + n),))
        for n in range(9)
    ]
    # The first host port of a node makes chains for all. Two runs of portmap that find them missing
    # both make them, and iptables tells one "File exists". A kubelet tries such a pod again.
    plugin.virtlet_teardown_network(first, set_up(plugin, first))
    with ThreadPoolExecutor(8) as pool:
        networks = list(pool.map(partial(set_up, plugin), pods))
        assert len({network.ips for network in networks}) == 8
        list(pool.map(plugin.virtlet_teardown_network, pods, networks))
    assert node.leftovers() == []


def test_host_port_without_a_plugin_that_publishes_it(
    node: TestNode, caplog: pytest.LogCaptureFixture
) -> None:
    """A pod's host port is told of in the log when no plugin of the network is for it."""
    node.configure(node.bridge())
    plugin = node.plugin()
    pod = node.pod(port_mappings=(PortMapping(container_port=80, host_port=8080),))
    network = set_up(plugin, pod)
    assert "pod default/web asks for portMappings: test has no such plugin" in caplog.text
    plugin.virtlet_teardown_network(pod, network)
