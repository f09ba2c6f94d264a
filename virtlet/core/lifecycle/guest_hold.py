"""What a guest does to be frozen, and to become itself as a clone.

A guest with a program `virtlet-thaw` does both by that, when it has booted. An unmodified cloud
image is held before cloud-init's first stage instead: systemd takes credentials from SMBIOS, and
those of a template's VM add to its units that cloud-init waits, and that the guest agent does not.
Each clone then has cloud-init look for its seed, as a VM that boots has.

A guest that goes on from a checkpoint stays who it is and takes another network, by its
`virtlet-thaw`, or by cloud-init's own renderers, as cloud-init takes a network once for a machine.
One that becomes another machine does so by its `virtlet-thaw` alone.

Source: systemd.system-credentials(7), `systemd.unit-dropin.*` (systemd 256); cloud-init's services,
ds-identify and generator (25.1).
"""

import hashlib
from collections.abc import Mapping

_SERVICES = ("init-main", "init-local", "init-network", "init", "config", "final")
"""Of cloud-init; `init` is the network's stage of releases before 24.3."""
READY = "/usr/sbin/virtlet-thaw"
"""What a guest has that takes another identity when it has booted."""
_HELD, _RELEASED = "/run/virtlet/held", "/run/virtlet/released"

# A guest that starts another kernel by itself finds the credentials again, and its seed, too.
_WAIT = (
    f"mkdir -p /run/virtlet; [ -e {_RELEASED} ] || "
    'blkid -c /dev/null -o value -s LABEL | grep -qixE "cidata|config-2" || '
    f"{{ : >{_HELD}; until [ -e {_RELEASED} ]; do sleep 0.1; done; }}"
)

_AGENT = """\
[Unit]
DefaultDependencies=no
After=local-fs.target
Conflicts=shutdown.target
Before=shutdown.target
"""

_SCRIPT = f"""\
# Arguments: freeze; or thaw, the NICs, and the seconds since the epoch.
if [ -x {READY} ]; then
    [ $1 = freeze ] || set -- thaw "$2"
    exec {READY} "$@"
fi
refuse() {{
    echo "$1" >&2
    exit 3
}}

freeze() {{
    systemctl cat cloud-init-local.service 2>/dev/null | grep -q {_HELD} || refuse \\
        "it has no {READY}, and nothing holds its cloud-init (systemd 256 or later does)"
    for device in /sys/bus/acpi/drivers/vmgenid/*:* /sys/bus/platform/drivers/vmgenid/*:*; do
        [ ! -e "$device" ] || generation=yes
    done
    [ "$generation" ] || refuse \\
        "its kernel does not know the VM generation id (Linux 5.18 or later)"
    until [ -e {_HELD} ]; do sleep 0.2; done
    udevadm settle --timeout=30
    sync
}}

thaw() {{
    [ -e {_HELD} ] || refuse "it was not held"
    date -u -s "@$2" >/dev/null
    old=$(cat /etc/machine-id)
    new=$(tr -d - </proc/sys/kernel/random/uuid)
    echo "$new" >/etc/machine-id
    head -c 32 /dev/urandom >/var/lib/systemd/random-seed
    # What journald has open goes on where it is; its next start finds the new directory.
    for journal in /run/log/journal /var/log/journal; do
        [ ! -d "$journal/$old" ] || mv "$journal/$old" "$journal/$new"
    done
    for turn in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        [ "$(ls -d /sys/class/net/*/device 2>/dev/null | wc -l)" -lt "$1" ] || break
        sleep 0.5
    done
    udevadm trigger --action=change --subsystem-match=block --sysname-match='sr*'
    udevadm settle --timeout=10
    # Which sources of data there are was found out without a seed.
    rm -f /run/cloud-init/.ds-identify.result /run/cloud-init/cloud.cfg
    for generators in /usr/lib/systemd/system-generators /lib/systemd/system-generators; do
        [ ! -x $generators/cloud-init-generator ] || break
    done
    $generators/cloud-init-generator /run/virtlet/units /run/virtlet/units /run/virtlet/units
    [ -e /run/cloud-init/enabled ] || refuse "its cloud-init does not find the seed"
    systemctl --no-block restart systemd-journald.service
    : >{_RELEASED}
}}

"$@"
"""

_MOVE = f"""\
# Argument: the number of NICs.
[ ! -x {READY} ] || exec {READY} move "$1"
refuse() {{
    echo "$1" >&2
    exit 3
}}
command -v cloud-init >/dev/null || refuse "it has neither {READY} nor cloud-init"
place=/run/virtlet/move
rm -rf $place && mkdir -p $place/seed
# The kernel may have pages of the medium that was there before.
for drive in /dev/sr*; do
    blockdev --flushbufs $drive 2>/dev/null
done
udevadm trigger --action=change --subsystem-match=block --sysname-match='sr*'
udevadm settle --timeout=10
for label in cidata config-2; do
    device=$(blkid -c /dev/null -o device -t LABEL=$label) && break
done
[ "$device" ] && mount -o ro "$device" $place/seed || refuse "it does not find the seed"
set -- $place/seed/network-config yaml
[ -e "$1" ] || set -- $place/seed/openstack/latest/network_data.json network_data.json
# As cloud-init chooses where nothing else is said.
renderer=netplan
command -v netplan >/dev/null || renderer=networkd
cloud-init devel net-convert --network-data "$1" --kind "$2" --directory $place/made \\
    --distro "$(. /etc/os-release && echo "$ID")" --output-kind $renderer >$place/said 2>&1
code=$?
umount $place/seed
[ $code = 0 ] || refuse "$(tail -n 1 $place/said)"
cp -a $place/made/etc/. /etc/ && rm -rf $place/made
if [ $renderer = netplan ]; then
    netplan apply >$place/said 2>&1 || refuse "$(tail -n 1 $place/said)"
    exit
fi
networkctl reload
for device in /sys/class/net/*/device; do
    device=${{device%/device}}
    networkctl reconfigure "${{device##*/}}"
done
"""

CREDENTIALS: Mapping[str, str] = {
    **{
        f"systemd.unit-dropin.cloud-{name}.service": (
            f"[Unit]\nConditionPathExists=!{READY}\n"
            + (f"[Service]\nExecStartPre=/bin/sh -c '{_WAIT}'\n" if name == "init-local" else "")
        )
        for name in _SERVICES
    },
    # cloud-init is not to start where its generator finds no seed, as while a template boots.
    "systemd.unit-dropin.multi-user.target": "[Unit]\nWants=cloud-init.target\n",
    "systemd.unit-dropin.qemu-guest-agent.service": _AGENT,
}
"""That a template's VM has, by name."""

VERSION = hashlib.sha256(repr((CREDENTIALS, _SCRIPT)).encode()).hexdigest()[:16]
"""Belongs to the key of a template."""

FREEZE = ("/bin/sh", "-c", _SCRIPT, "sh", "freeze")
"""Ends when the guest can be frozen; with another code than 0 if it cannot."""


def thaw(nics: int, now: float) -> tuple[str, ...]:
    """The command by which a clone becomes itself.

    Args:
        nics: that it has.
        now: seconds since the epoch.
    """
    return ("/bin/sh", "-c", _SCRIPT, "sh", "thaw", str(nics), f"{now:.3f}")


COPYABLE = (
    "/bin/sh",
    "-c",
    f"[ -x {READY} ] && exec {READY} copyable; echo 'it has no {READY}' >&2; exit 3",
)
"""Ends with another code than 0 if the guest could not become another one from a checkpoint."""


def copy(macs: Mapping[str, str]) -> tuple[str, ...]:
    """The command by which a guest that goes on from a checkpoint becomes another one.

    Args:
        macs: the MAC addresses that its NICs have, to those that they are to have.
    """
    return (READY, "copy", *(f"{old}={new}" for old, new in macs.items()))


def move(nics: int) -> tuple[str, ...]:
    """The command by which a guest that stays who it is takes the addresses of its seed.

    Args:
        nics: that it has.
    """
    return ("/bin/sh", "-c", _MOVE, "sh", str(nics))
