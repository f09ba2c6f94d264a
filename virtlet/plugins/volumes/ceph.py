"""Images of a Ceph cluster (RBD) as disks, which qemu-storage-daemon opens outside of the jail.

A jailed emulator has no network, and is not to have the cluster's key. A back-end of the VM, a
process for each image, speaks to the cluster from the node's network and to the emulator by NBD.
The key reaches it in a file without a name.

Pods name the monitors, so the node's administrator says which may be named: what speaks Ceph's
protocol to us is trusted with our client's bugs.
"""

import base64
import binascii
import ipaddress
import json
import re
from collections.abc import Iterator, Mapping, Sequence

from attrs import field, frozen

from virtlet.errors import InvalidArgument
from virtlet.host.commands import find_program
from virtlet.model.disk import Disk
from virtlet.model.launch import Backend
from virtlet.model.option import Kind, Option
from virtlet.model.plain import quote
from virtlet.model.typed import typed
from virtlet.model.vm import Machine, Mount, Vm

OPTIONS = frozenset({"monitor", "user", "secret", "pool", "volume"})
SECRETS = "kubernetes.io/secret/"
"""Before the names of the values, in base64, of the Secret that a volume names, as a kubelet calls
them for a FlexVolume driver."""
_SUFFIX = ".rbd"
_PORTS = (3300, 6789)
"""Ports of monitors, of both versions of the protocol."""
_MOST_MONITORS = 16
_CONF = "ceph.conf"
_PATIENCE = 15
"""Seconds until a cluster whose monitors do not answer fails the VM's start."""
_HOST = re.compile(r"(?=.{1,253}$)(?:[a-z0-9-]{1,63}\.)*[a-z][a-z0-9-]{0,62}", re.ASCII | re.I)
_MONITOR = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:]+))(?::([0-9]{1,5}))?", re.ASCII | re.I)
_NAME = re.compile(r"[\w.+-]{1,128}", re.ASCII)
Monitors = Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network | str]
"""Networks of monitors, and names in lower case."""


def _allowed(text: str) -> Monitors:
    return tuple(_entry(word.strip()) for word in text.split(",") if word.strip())


def _entry(word: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | str:
    try:
        return ipaddress.ip_network(word)
    except ValueError:
        if _HOST.fullmatch(word):
            return word.lower()
    raise ValueError(f"{quote(word)} is no address, network (10.0.0.0/24) or name of a host")


CEPH_MONITORS: Option[Monitors] = Option(
    field="cephMonitors",
    flag="--ceph-monitors",
    env="VIRTLET_CEPH_MONITORS",
    kind=Kind(name="comma-separated addresses, networks and host names", parse=_allowed),
    default="",
    help="Monitors of Ceph clusters that pods may name in volumes of type ceph, as in "
    "`10.0.0.0/24,mon.example.com`; without any, such volumes are refused",
)


@frozen(kw_only=True, field_transformer=typed)
class RbdImage:
    """An image of a cluster, and who opens it."""

    monitors: tuple[tuple[str, int], ...]
    """Host and port of each."""
    user: str
    """Without `client.`."""
    key: str = field(repr=False)
    """In base64, as `ceph auth get-key` prints it."""
    pool: str
    name: str


def parse(options: Mapping[str, str]) -> RbdImage:
    """The image that a volume's options name.

    Raises:
        InvalidArgument: an option is missing or wrong; names it, and never shows a key.
    """
    for name in ("user", "pool", "volume"):
        if not _NAME.fullmatch(options.get(name, "")):
            raise InvalidArgument(
                f"volume: option {name} is {quote(options.get(name, ''))}, and has to be a name of "
                "1 to 128 letters, digits, `_`, `.`, `+` and `-`"
            )
    words = [word.strip() for word in options.get("monitor", "").split(",")]
    if len(words) > _MOST_MONITORS:
        raise InvalidArgument(
            f"volume: option monitor has {len(words)} monitors; {_MOST_MONITORS} are enough"
        )
    return RbdImage(
        monitors=tuple(address for word in words for address in _monitor(word)),
        user=options["user"],
        key=_key(options),
        pool=options["pool"],
        name=options["volume"],
    )


def _monitor(word: str) -> Iterator[tuple[str, int]]:
    match = _MONITOR.fullmatch(word)
    ports = (int(match[3]),) if match and match[3] else _PORTS
    host = _host(match[1], match[2]) if match else ""
    if not host or not all(0 < port < 1 << 16 for port in ports):
        raise InvalidArgument(
            f"volume: option monitor: {quote(word)} is no HOST or HOST:PORT: write addresses or "
            "names with commas in between, as in 10.0.0.1:6789,10.0.0.2:6789"
        )
    return ((host, port) for port in ports)


def _host(bracketed: str | None, bare: str | None) -> str:
    """An address or name as it is compared; "" if it is neither."""
    try:
        address = ipaddress.ip_address(bracketed or bare or "")
    except ValueError:
        return bare.lower() if bare and _HOST.fullmatch(bare) else ""
    return str(address) if (address.version == 6) == bool(bracketed) else ""


def _key(options: Mapping[str, str]) -> str:
    key = options.get("secret", "").strip()
    try:
        if not key:
            packed = options.get(f"{SECRETS}secret", "")
            key = base64.b64decode(packed, validate=True).decode("ascii").strip()
        # A key's head has 12 bytes.
        if len(base64.b64decode(key, validate=True)) > 12:
            return key
    except (binascii.Error, ValueError):
        pass
    raise InvalidArgument(
        "volume: no key of the Ceph user: put what `ceph auth get-key` prints into `secret` of the "
        "Secret that the volume names, or into the option secret"
    )


def check_monitors(image: RbdImage, allowed: Monitors) -> None:
    """Refuse monitors that the node's administrator has not named.

    Raises:
        InvalidArgument: names the first of them.
    """
    for host, _ in image.monitors:
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            fits = host in allowed
        else:
            fits = any(address in n for n in allowed if not isinstance(n, str))
        if not fits:
            raise InvalidArgument(
                f"volume: the node lets pods name no Ceph monitor {host}: add it to cephMonitors "
                "in the manager's configuration"
            )


def disk_of(vm: Vm, mount: Mount, role: str) -> Disk:
    """The disk that an image is.

    Raises:
        FailedPrecondition: what serves it is not installed.
    """
    _program()
    return Disk(
        path=vm.directory / f"{role}{_SUFFIX}",
        format="raw",
        readonly=mount.readonly,
        serial=role,
        guest_path=mount.guest_path,
        filesystem=True,
        served=True,
    )


def is_image(disk: Disk) -> bool:
    """Whether a disk is an image of a cluster."""
    return disk.served and disk.path.suffix == _SUFFIX


def backend(machine: Machine, disk: Disk, image: RbdImage) -> Backend:
    """The program that serves a disk.

    Raises:
        FailedPrecondition: it is not installed.
    """
    opened = {
        "driver": "rbd",
        "node-name": disk.serial,
        "server": [{"host": host, "port": str(port)} for host, port in image.monitors],
        "user": image.user,
        "pool": image.pool,
        "image": image.name,
        "conf": f"{{document:{_CONF}}}",
        "read-only": disk.readonly,
        "discard": "unmap",
        # librbd keeps writes until the guest flushes them, as a disk does.
        "cache": {"direct": machine.flavor.disk_cache in ("none", "directsync")},
    }
    export = {
        "type": "nbd",
        "id": "disk",
        "node-name": disk.serial,
        "name": disk.serial,
        "writable": not disk.readonly,
    }
    return Backend(
        name=f"rbd-{disk.serial}",
        argv=(
            _program(),
            *("--blockdev", json.dumps(opened)),
            *("--nbd-server", "addr.type=fd,addr.str={socket},max-connections=1"),
            *("--export", json.dumps(export)),
        ),
        socket=machine.disk_socket(disk),
        network=True,
        documents={_CONF: _conf(image)},
        loss=f"the guest's disk at {disk.guest_path} fails from now on, and what it had flushed is "
        "in the cluster: run the pod again",
    )


def _conf(image: RbdImage) -> bytes:
    """A configuration in which nothing of the node's is."""
    lines = ("[global]", f"key = {image.key}", "keyring =", f"client_mount_timeout = {_PATIENCE}")
    return "".join(f"{line}\n" for line in lines).encode()


def _program() -> str:
    return find_program("qemu-storage-daemon", "qemu-utils and qemu-block-extra")
