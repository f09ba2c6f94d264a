"""The frames that pass in a pod's namespace: bridge filters, loaded by one run of nft(8).

A guest sends from its own MAC address and addresses, and from no others: what comes from its tap is
looked at before the pod's bridge does anything with it. To that bridge, which serves it alone, it
may speak from any link-local IPv6 address, as not every guest makes its own of the MAC address.
What leaves the pod comes from the one that is made of it (RFC 4291, appendix A): with others a
guest could pass for a router. A NIC that CNI gave no address is in a network whose guests choose
theirs: there only the MAC address counts.

The frames of a NIC that is redirected never come to the bridge's filters, but to those of its tap
and of its interface, which are held to the same rules and hand over what passes.
"""

import shutil
from collections.abc import Iterable, Sequence
from ipaddress import IPv6Address
from typing import TYPE_CHECKING

from virtlet.errors import FailedPrecondition
from virtlet.host.commands import CommandError, run
from virtlet.host.confinement import NOBODY, Confinement

if TYPE_CHECKING:
    from virtlet.plugins.network_cni.bridging import BridgedNic

_CONFINEMENT = Confinement(uid=NOBODY, gid=NOBODY, capabilities=("net_admin",))

_FIREWALL = """\
table bridge virtlet {{
{chains}    chain prerouting {{
        type filter hook prerouting priority 0
        {echoes}
        {guests}
    }}
    chain input {{
        type filter hook input priority 0
        iifname "vtap*" accept
        {neighbours_in}
        drop
    }}
    chain output {{
        type filter hook output priority 0
        oifname "vtap*" accept
        {neighbours_out}
        drop
    }}
    chain forward {{
        type filter hook forward priority 0
        udp sport 68 udp dport 67 drop
        udp sport 67 udp dport 68 drop
        udp sport 546 udp dport 547 drop
        udp sport 547 udp dport 546 drop
        icmpv6 type nd-router-solicit drop
        icmpv6 type nd-router-advert drop
        {leaving}
    }}
}}
"""
"""The bridge's own stack talks to taps only, and it alone answers DHCP and router discovery: the
guest's requests never leave the pod, and no answer or advertisement from outside (or from the
guest) passes. DHCP relays (port 67 to 67) may. With IPv6 the bridge also forwards what the guest
sends by the default route that it was advertised, and resolves the neighbours for it.

A node's bridge in hairpin mode sends the guest's broadcasts back. They are dropped here: else the
pod's bridge would look for the guest outside, and the guest would find its own address taken. A
frame from the guest to itself passes: it is a call of a Service whose endpoint the guest is, which
a node with bridge-nf-call-iptables sends back in its bridge, with the source address unchanged."""

_FROM_GUEST = """\
    chain {tap} {{
        ether saddr != {mac} counter drop
        ether type arp jump {tap}-arp
        ip saddr {ipv4} return
        ip saddr 0.0.0.0 udp sport 68 udp dport 67 return
        icmpv6 type nd-neighbor-advert icmpv6 taddr != {ipv6} counter drop
        ip6 saddr {ipv6} return
        ip6 saddr :: icmpv6 type nd-neighbor-solicit icmpv6 taddr {ipv6} return
        ip6 saddr :: icmpv6 type {{ nd-router-solicit, mld2-listener-report }} return
        counter drop
    }}
    chain {tap}-arp {{
        arp htype 1 arp ptype ip arp hlen 6 arp plen 4 arp saddr ether {mac} jump {tap}-arp-from
        counter drop
    }}
    chain {tap}-arp-from {{
        arp saddr ip {ipv4} accept
        arp saddr ip 0.0.0.0 arp operation request accept
    }}
    chain {tap}-leaving {{
        ip6 saddr fe80::/10 ip6 saddr != {own} counter drop
        icmpv6 type nd-neighbor-advert icmpv6 taddr fe80::/10 icmpv6 taddr != {own} counter drop
        ip6 saddr :: icmpv6 type nd-neighbor-solicit icmpv6 taddr fe80::/10 icmpv6 taddr != {own} \
counter drop
    }}
"""
"""An ARP probe is from 0.0.0.0 (RFC 5227), a guest without a lease asks for one from there, and
duplicate address detection is from :: (RFC 4862). What is neither ARP nor IP is dropped."""

_MAC_ALONE = """\
    chain {tap} {{
        ether saddr != {mac} counter drop
        ether type arp arp saddr ether != {mac} counter drop
    }}
    chain {tap}-leaving {{
    }}
"""


_REDIRECTION = """\
table netdev virtlet {{
{chains}}}
"""

_REDIRECTED = """\
    chain checked{index} {{
        type filter hook ingress device "{tap}" priority -1
        {held}
    }}
    chain sent{index} {{
        type filter hook ingress device "{tap}" priority 0
        ether daddr {bridge_mac} accept
        udp sport 68 udp dport 67 accept
        udp sport 546 udp dport 547 accept
        icmpv6 type nd-router-solicit accept
        arp daddr ip {server} accept
        icmpv6 type nd-neighbor-solicit icmpv6 taddr {{ {server6} }} accept
        udp sport 67 udp dport 68 drop
        udp sport 547 udp dport 546 drop
        icmpv6 type nd-router-advert drop
        {leaving}
        fwd to "{veth}"
    }}
    chain came{index} {{
        type filter hook ingress device "{veth}" priority 0
        ether saddr {mac} ether daddr != {mac} drop
        udp sport 68 udp dport 67 drop
        udp sport 67 udp dport 68 drop
        udp sport 546 udp dport 547 drop
        udp sport 547 udp dport 546 drop
        icmpv6 type {{ nd-router-solicit, nd-router-advert }} drop
        {advertisements}
        fwd to "{tap}"
    }}
"""
"""The frames of a guest first meet the chains that hold it. What is for the pod's bridge, which
serves it, goes up to that, and all else to the interface; what comes there goes to the tap. With
IPv6 the pod's own stack forwards what the guest sends by the default route that it was advertised:
it is told of neighbours that answer, as the guest is."""


def filter_frames(nics: "Sequence[BridgedNic]", *, spoofing: bool) -> None:
    """Load the filters, in the namespace of the calling thread.

    Args:
        nics: the guest's.
        spoofing: whether it may send from any address.

    Raises:
        FailedPrecondition: nft is missing on the node.
        CommandError: it refuses the rules.
    """
    _load(rules([nic for nic in nics if not nic.redirected], spoofing=spoofing))


def redirect_frames(nics: "Sequence[BridgedNic]", *, spoofing: bool) -> None:
    """Hand frames on between taps and interfaces, in the namespace of the calling thread.

    Args:
        nics: those of the guest that are redirected; their taps and interfaces are there.
        spoofing: whether it may send from any address.

    Raises:
        FailedPrecondition: nft is missing on the node, or the kernel cannot redirect.
    """
    chains = "".join(_redirected(nic, spoofing=spoofing) for nic in nics)
    try:
        _load(_REDIRECTION.format(chains=chains))
    except CommandError as error:
        names = ", ".join(nic.veth for nic in nics)
        raise FailedPrecondition(
            f"cannot redirect frames between {names} and the guest: {error}. It takes the kernel's "
            "nft_fwd_netdev and nft_dup_netdev (CONFIG_NFT_FWD_NETDEV, CONFIG_NFT_DUP_NETDEV)"
        ) from None


def _load(text: str) -> None:
    program = shutil.which("nft") or shutil.which("nft", path="/usr/sbin:/sbin")
    if program is None:
        raise FailedPrecondition("the program nft is missing on this node: install nftables")
    run((program, "-f", "-"), stdin=text.encode(), timeout=10, env={}, confinement=_CONFINEMENT)


def _redirected(nic: "BridgedNic", *, spoofing: bool) -> str:
    """The chains of one NIC that is redirected."""
    serving = [str(link_local(nic.bridge_mac)), *([nic.server6] if nic.guest_address6 else [])]
    advertisements = f'icmpv6 type nd-neighbor-advert dup to "{nic.tap}" accept'
    chains = _REDIRECTED.format(
        index=nic.index,
        tap=nic.tap,
        veth=nic.veth,
        mac=nic.guest_mac,
        bridge_mac=nic.bridge_mac,
        server=nic.server,
        server6=", ".join(serving),
        held="" if spoofing else f"jump {nic.tap}",
        leaving="" if spoofing else f"jump {nic.tap}-leaving",
        advertisements=advertisements if nic.guest_address6 else "",
    )
    return chains if spoofing else _chains(nic) + chains


def rules(nics: "Sequence[BridgedNic]", *, spoofing: bool) -> str:
    """What nft is given; see `filter_frames`."""
    neighbours_in = neighbours_out = ""
    guests = [nic.guest_address6 for nic in nics if nic.guest_address6]
    if guests:
        neighbours_in = "icmpv6 type nd-neighbor-advert accept"
        neighbours_out = (
            "icmpv6 type nd-neighbor-solicit accept\n"
            f"        ip6 saddr {{ {', '.join(guests)} }} accept"
        )
    held = () if spoofing else nics
    return _FIREWALL.format(
        chains="".join(_chains(nic) for nic in held),
        echoes=_lines(
            f'iifname "{nic.veth}" ether saddr {nic.guest_mac} ether daddr != {nic.guest_mac} drop'
            for nic in nics
        ),
        guests=_lines(f'iifname "{nic.tap}" jump {nic.tap}' for nic in held),
        leaving=_lines(f'iifname "{nic.tap}" jump {nic.tap}-leaving' for nic in held),
        neighbours_in=neighbours_in,
        neighbours_out=neighbours_out,
    )


def _chains(nic: "BridgedNic") -> str:
    """The chains of one NIC."""
    if not nic.guest_addresses:
        return _MAC_ALONE.format(tap=nic.tap, mac=nic.guest_mac)
    ipv4 = [a for a in nic.guest_addresses if ":" not in a]
    addresses = [IPv6Address(a) for a in nic.guest_addresses if ":" in a]
    ipv6 = [str(a) for a in addresses if not a.is_link_local]
    own = {link_local(nic.guest_mac), *(a for a in addresses if a.is_link_local)}
    return _FROM_GUEST.format(
        tap=nic.tap,
        mac=nic.guest_mac,
        # Without one of its own, it is left with an address that no host has.
        ipv4=f"{{ {', '.join(ipv4 or ['255.255.255.255'])} }}",
        ipv6=f"{{ {', '.join([*ipv6, 'fe80::/10'])} }}",
        own=f"{{ {', '.join(sorted(map(str, own)))} }}",
    )


def link_local(mac: str) -> IPv6Address:
    """The link-local address that is made of a MAC address (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes((octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]))
    return IPv6Address(b"\xfe\x80" + bytes(6) + identifier)


def _lines(rules: Iterable[str]) -> str:
    return "\n        ".join(rules)
