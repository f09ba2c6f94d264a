"""The DHCP server of a pod: its configuration, and the process of dnsmasq(8)."""

import functools
import logging
import os
import pwd
import signal
import time
from collections.abc import Iterator, Sequence
from ipaddress import ip_address, ip_interface
from pathlib import Path

from attrs import evolve, frozen

from virtlet.errors import InvalidArgument, VirtletError
from virtlet.host import netns
from virtlet.host.commands import find_program, run
from virtlet.host.confinement import NOBODY, Confinement
from virtlet.host.files import write_atomically
from virtlet.host.processes import (
    end_process,
    ended,
    open_process,
)
from virtlet.host.seccomp import server_filter
from virtlet.model.network import Network, Nic, Route
from virtlet.model.pod import DnsConfig
from virtlet.plugins.network_cni.bridging import BridgedNic

_log = logging.getLogger(__name__)

_OPTION_BYTES = 255
"""Length of a DHCPv4 option (RFC 2132)."""
_RA_INTERVAL = 600
_RA_LIFETIME = 1800
"""Seconds between router advertisements, and that one is good for."""
_CONFINEMENT = Confinement(
    uid=0, gid=0, capabilities=("setuid", "setgid", "net_admin", "net_raw", "net_bind_service")
)
"""It opens its sockets with these and becomes another user by itself. Then its filter leaves it
none; without a filter it keeps net_admin and net_raw. It does not start without net_admin, which it
does not use: replies are broadcast, so none needs an entry in the kernel's table of neighbours."""
_USER = "dnsmasq"
"""Whom it becomes: the user that its package makes. Where there is none it becomes nobody."""
_GRACE = 2.0
"""Seconds it gets to end by itself; it takes milliseconds."""
_PATIENCE = 10.0
"""Seconds it gets to start; it takes milliseconds."""


def configuration(hostname: str, network: Network, bridged_nics: Sequence[BridgedNic]) -> str:
    """The whole configuration file.

    Leases are fixed and endless, so that the server has no state to lose by a restart.
    """
    lines = [
        "port=0",
        "no-hosts",
        "no-resolv",
        "no-ping",
        "leasefile-ro",
        "dhcp-authoritative",
        "bind-interfaces",
        "except-interface=lo",
        "quiet-dhcp",
        "quiet-dhcp6",
        "quiet-ra",
        "dhcp-ignore=tag:!known",
    ]
    for bridged in bridged_nics:
        nic = network.nics[bridged.index]
        lines.append(f"interface={bridged.bridge}")
        lines.extend(_ipv4(hostname, nic, bridged, network.dns))
        lines.extend(_ipv6(nic, bridged, network.dns))
    if not all(line.isascii() and line.isprintable() for line in lines):
        raise InvalidArgument("the pod's network has a text that no DHCP server can be told")
    return "\n".join((*lines, ""))


def _ipv4(hostname: str, nic: Nic, bridged: BridgedNic, dns: DnsConfig) -> Iterator[str]:
    address = next((ip_interface(a) for a in nic.addresses if ":" not in a), None)
    if address is None:
        return
    tag = f"nic{bridged.index}"
    # The bridge has no address in the guest's subnet: shared-network makes the range usable.
    yield f"shared-network={bridged.bridge},{address.ip}"
    yield f"dhcp-range={address.ip},static,{address.netmask},infinite"
    yield f"dhcp-host={nic.mac},set:{tag},{address.ip},infinite"
    # Not in dhcp-host, where a name like `12` or `infinite` would be a lease time.
    yield f'dhcp-option=tag:{tag},12,"{hostname}"'
    routes = [route for route in nic.routes if ":" not in route.destination]
    default = next((r.gateway for r in routes if r.destination == "0.0.0.0/0"), "")
    # An option without a value is not sent; by default dnsmasq would send its own address.
    yield f"dhcp-option=tag:{tag},option:router{',' if default else ''}{default}"
    if routes:
        yield f"dhcp-option=tag:{tag},option:classless-static-route,{_classless(routes)}"
    yield f"dhcp-option=tag:{tag},option:mtu,{nic.mtu}"
    servers = [s for s in dns.servers if ip_address(s).version == 4]
    if servers:
        yield f"dhcp-option=tag:{tag},option:dns-server,{','.join(servers)}"
    searches = _fitting(dns.searches)
    if searches:
        yield f"dhcp-option=tag:{tag},option:domain-name,{searches[0]}"
        yield f"dhcp-option=tag:{tag},option:domain-search,{','.join(searches)}"


def _ipv6(nic: Nic, bridged: BridgedNic, dns: DnsConfig) -> Iterator[str]:
    address = next((ip_interface(a) for a in nic.addresses if ":" in a), None)
    if address is None:
        return
    tag = f"nic{bridged.index}"
    # Neighbours are on the link only where the pod's prefix says so; dnsmasq knows no longer
    # prefix than /64, so the guest asks the router for those.
    on_link = "" if address.network.prefixlen == 64 else ",off-link"
    yield f"dhcp-range={address.ip},static{on_link},64,infinite"
    yield f"dhcp-host={nic.mac},set:{tag},[{address.ip}],infinite"
    yield "enable-ra"
    default = any(r.destination == "::/0" for r in nic.routes)
    yield f"ra-param={bridged.bridge},mtu:{nic.mtu},{_RA_INTERVAL},{_RA_LIFETIME * default}"
    servers = [s for s in dns.servers if ip_address(s).version == 6]
    if servers:
        yield f"dhcp-option=tag:{tag},option6:dns-server,{','.join(f'[{s}]' for s in servers)}"
    searches = _fitting(dns.searches)
    if searches:
        yield f"dhcp-option=tag:{tag},option6:domain-search,{','.join(searches)}"


def _classless(routes: Sequence[Route]) -> str:
    """RFC 3442; clients that know it ignore the router option, so that it has the default, too."""
    return ",".join(f"{r.destination},{r.gateway or '0.0.0.0'}" for r in routes)


def _fitting(searches: Sequence[str]) -> list[str]:
    """The first search domains, as many as one option can hold."""
    fitting: list[str] = []
    size = 0
    for domain in filter(None, (search.rstrip(".") for search in searches)):
        size += len(domain) + 2
        if size > _OPTION_BYTES:
            break
        fitting.append(domain)
    return fitting


def _user() -> str:
    try:
        return pwd.getpwnam(_USER).pw_name
    except KeyError:
        return pwd.getpwuid(NOBODY).pw_name


@functools.cache
def _filter() -> bytes | None:
    """The program that confines a server; None where nothing can load it, which is logged."""
    calls = server_filter()
    if calls is not None and b"--seccomp-filter" in run(["setpriv", "--help"], timeout=_PATIENCE):
        return calls
    _log.warning(
        "DHCP servers of pods keep net_admin and net_raw, and have no filter of system calls: that "
        "takes setpriv of util-linux 2.41, on x86_64 or aarch64"
    )
    return None


def program() -> str:
    """The path of dnsmasq.

    Raises:
        FailedPrecondition: it is not installed.
    """
    return find_program("dnsmasq", "dnsmasq-base")


@frozen
class DhcpServer:
    """Where a pod's DHCP server runs and keeps its files."""

    netns: Path
    directory: Path

    @property
    def _config(self) -> Path:
        return self.directory / "dnsmasq.conf"

    @property
    def _mark(self) -> str:
        """The argument by which a process is known to be this server."""
        return f"--conf-file={self._config}"

    @property
    def configured(self) -> bool:
        """Whether it has a configuration."""
        return self._config.exists()

    def configure(self, configuration: str) -> None:
        """Write the configuration that the next start reads."""
        write_atomically(self._config, configuration.encode())

    def start(self) -> int:
        """Start it, and return once it answers.

        It is a child in a session of its own. So it outlives the manager, which reaps it: the
        init process of a container often does not.

        Returns:
            Its pidfd, which the caller owns.

        Raises:
            VirtletError: it did not start; the message has the end of its log.
        """
        # These are not in the configuration, which may be that of an earlier manager.
        ours = ("--keep-in-foreground", "--dhcp-broadcast", f"--user={_user()}")
        argv = (program(), self._mark, f"--pid-file={self._pid_file}", *ours)
        confinement = _CONFINEMENT
        if (calls := _filter()) is not None:
            write_atomically(self._filter_file, calls)
            confinement = evolve(confinement, filter=self._filter_file)
        confined = ("unshare", "--ipc", "--", *confinement.wrap(argv))
        self._pid_file.unlink(missing_ok=True)
        pid = netns.inside(self.netns, lambda: self._spawn(confined))
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            # A child keeps its process id until it is waited for.
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        end = time.monotonic() + _PATIENCE
        # It writes its process id once its sockets are open.
        while self._written() != pid:
            if ended(pidfd, within=0.001) or time.monotonic() > end:
                end_process(pidfd, grace=0)
                os.close(pidfd)
                words = self._log.read_text(errors="replace").strip()[-500:]
                raise VirtletError(f"dnsmasq does not start: {words or 'it said nothing'}")
        return pidfd

    def _spawn(self, argv: tuple[str, ...]) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        return os.posix_spawnp(
            argv[0],
            argv,
            {"PATH": os.defpath},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, str(self._log), flags, 0o600),
            ],
            setsid=True,
            setsigdef=[signal.SIGPIPE],  # Python ignores it
        )

    def find(self) -> int | None:
        """The pidfd of the running server, which the caller owns, or None."""
        pid = self._written()
        return None if pid is None else open_process(pid, self._mark)

    def end(self, pidfd: int) -> None:
        """End it and return when it is gone.

        Args:
            pidfd: its own, which is closed.
        """
        try:
            end_process(pidfd, grace=_GRACE)
        finally:
            os.close(pidfd)
        self._pid_file.unlink(missing_ok=True)

    def _written(self) -> int | None:
        """The process id in its file, or None until the line is complete."""
        try:
            text = self._pid_file.read_text()
            return int(text) if text.endswith("\n") else None
        except (OSError, ValueError):
            return None

    @property
    def _pid_file(self) -> Path:
        return self.directory / "dnsmasq.pid"

    @property
    def _filter_file(self) -> Path:
        return self.directory / "dnsmasq.bpf"

    @property
    def _log(self) -> Path:
        return self.directory / "dnsmasq.log"
