"""Pods that no network can be made for, refused before anything is done.

What is checked here reaches the configuration of a DHCP server and the environment of CNI's
plugins, where a line break or a separator would mean something else.
"""

import re
from ipaddress import ip_address

from virtlet.errors import InvalidArgument
from virtlet.model.pod import Pod

HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")
DOMAIN = re.compile(r"\.|[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})")
_WORD = re.compile(r"[A-Za-z0-9_.:@-]*")


def check(pod: Pod) -> None:
    """Look at the names, addresses and ports of a pod.

    Raises:
        InvalidArgument: one is wrong; the message names it.
    """
    config = pod.config
    metadata = config.metadata
    for what, text in (
        ("name", metadata.name),
        ("namespace", metadata.namespace),
        ("uid", metadata.uid),
    ):
        if not _WORD.fullmatch(text):
            raise InvalidArgument(f"pod metadata: {what} {text!r} has characters no {what} has")
    hostname = config.hostname or metadata.name
    if not HOST.fullmatch(hostname):
        raise InvalidArgument(f"hostname {hostname!r} is no host name")
    for server in config.dns.servers:
        try:
            ip_address(server)
        except ValueError:
            raise InvalidArgument(f"DNS server {server!r} is no address") from None
    for domain in config.dns.searches:
        if not DOMAIN.fullmatch(domain):
            raise InvalidArgument(f"DNS search domain {domain!r} is no domain")
    for mapping in config.port_mappings:
        if not (0 < mapping.container_port < 65536 and 0 <= mapping.host_port < 65536):
            raise InvalidArgument(
                f"port mapping {mapping.host_port} to {mapping.container_port}: no such port"
            )
