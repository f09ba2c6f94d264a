"""Shell scripts that mount volumes, link disks and set resolver options in the guest.

They need a POSIX shell and mount only: device nodes are looked up in sysfs, so that guests without
udev are served. Running them again changes nothing.
"""

import base64
from collections.abc import Iterable, Sequence
from posixpath import dirname
from shlex import quote

from virtlet.host.guest_files import GuestFile
from virtlet.model.disk import Disk, Share, Volume

MOUNT_SCRIPT = "/etc/cloud/mount-volumes.sh"
SYMLINK_SCRIPT = "/etc/cloud/symlink-devs.sh"
OWNER_SCRIPT = "/etc/cloud/own-files.sh"
RESOLVER_SCRIPT = "/etc/cloud/resolver-options.sh"
MARK_CONFIGURED = "mkdir -p /run/virtlet && : >/run/virtlet/configured"
"""Records in the guest, for commands that are run there, that the pod's seed is applied."""
PER_BOOT = "/var/lib/cloud/scripts/per-boot"

_FIND_DISK = """\
# The block device with serial number $1. virtio-blk shows it in serial, NVMe in its controller's,
# with blanks, SCSI in page 0x80, behind a header of four bytes.
find_disk() {
	for disk in /sys/block/*; do
		serial=$(cat "$disk/serial" 2>/dev/null || cat "$disk/device/serial" 2>/dev/null)
		serial=${serial%% *}
		page=$disk/device/vpd_pg80
		[ -n "$serial" ] || serial=$(tail -c +5 "$page" 2>/dev/null | tr -d '\\000 ')
		[ "$serial" = "$1" ] || continue
		echo "/dev/${disk##*/}"
		return
	done
	echo "no disk has serial number $1" >&2
	return 1
}
"""
_MOUNT_AT = """\
# Whether something is mounted at $1; /proc/mounts writes odd characters as octal numbers.
is_mounted() {
	while read -r _ at _; do
		[ "$(printf %b "$at")" != "$1" ] || return 0
	done </proc/mounts
	return 1
}
# mount_at POINT ARGUMENTS…
mount_at() {
	mkdir -p "$1"
	point=$(readlink -f "$1")
	shift
	is_mounted "$point" || mount "$@" "$point"
}
"""
_MOUNT_PART = """\
# mount_part DIRECTORY POINT ARGUMENTS…; the directory's path goes through no link.
mount_part() {
	part=$1
	place=$2
	shift 2
	! is_mounted "$(readlink -f "$place")" || return 0
	whole=$(mktemp -d /run/virtlet-volume.XXXXXX)
	mount "$@" "$whole" || { rmdir "$whole"; return 1; }
	if [ "$(readlink -f "$whole/$part")" = "$whole/$part" ]; then
		mount_at "$place" --bind "$whole/$part"
	else
		echo "$part is no directory of the volume for $place" >&2
	fi
	umount "$whole" && rmdir "$whole"
}
"""
_LINK = """\
# link_disk SERIAL PATH; anything but a link at PATH stays.
link_disk() {
	device=$(find_disk "$1") || return
	if [ -e "$2" ] && [ ! -L "$2" ]; then
		echo "$2 exists and is not a link" >&2
		return 1
	fi
	mkdir -p "$(dirname "$2")"
	ln -sfn "$device" "$2"
}
"""
_RESOLVER = """\
# resolver_options FILE WORD…: neither DHCP nor network-config can carry them. A link is to a file
# that another program (systemd-resolved) writes again: a copy takes its place.
resolver_options() {
	file=$1
	shift
	[ ! -L "$file" ] || { cat "$file" >"$file.pod" && mv "$file.pod" "$file"; }
	grep -qxF "options $*" "$file" 2>/dev/null || echo "options $*" >>"$file"
}
"""
_WRITE = """\
# write_file MODE OWNER PATH; standard input is its content in base64.
write_file() {
	mkdir -p "$(dirname "$3")"
	(umask 077 && base64 -d >"$3") && chown "$2" "$3" && chmod "$1" "$3"
}
"""
_HEAD = "#!/bin/sh\n# Written by Virtlet for this pod.\n"


def share_options(share: Share) -> str:
    """Mount options of a shared directory."""
    access = "ro" if share.readonly else "rw"
    if share.driver == "virtiofs":
        return access
    # cache=mmap lets programs map files; msize is what virtio-9p can carry at a time.
    return f"{access},trans=virtio,version=9p2000.L,msize=262144,cache=mmap"


def mount_body(volumes: Iterable[Volume]) -> str:
    """Shell code that mounts shared directories and file systems; "" if there are none."""
    shares, disks = [], []
    for volume in outer_first(volumes):
        point = quote(volume.guest_path)
        if isinstance(volume, Share):
            options = f"-t {volume.driver} -o {share_options(volume)} {quote(volume.tag)}"
            shares.append(f"mount_at {point} {options}\n")
        elif volume.filesystem:
            words = ("ro",) * volume.readonly + volume.mount_options
            options = f"-t {quote(volume.filesystem_type)} " if volume.filesystem_type else ""
            options += f"-o {quote(','.join(words))} " if words else ""
            found = f"device=$(find_disk {quote(volume.serial)}) && "
            if volume.sub_path:
                part = quote(volume.sub_path)
                disks.append(f'{found}mount_part {part} {point} {options}"$device"\n')
            else:
                disks.append(f'{found}mount_at {point} {options}"$device"\n')
    if not shares and not disks:
        return ""
    parts = _MOUNT_PART if any(v.sub_path for v in volumes if isinstance(v, Disk)) else ""
    return (_FIND_DISK if disks else "") + _MOUNT_AT + parts + "".join(shares + disks)


def symlink_body(volumes: Iterable[Volume]) -> str:
    """Shell code that makes device paths of raw disks; "" if there are none."""
    links = [
        f"link_disk {quote(v.serial)} {quote(v.guest_path)}\n"
        for v in volumes
        if isinstance(v, Disk) and v.guest_path and not v.filesystem
    ]
    return _FIND_DISK + _LINK + "".join(links) if links else ""


def resolver_body(options: Sequence[str], file: str = "/etc/resolv.conf") -> str:
    """Shell code that gives the guest the pod's resolver options; "" if it has none."""
    if not options:
        return ""
    words = " ".join(map(quote, (file, *options)))
    return f"{_RESOLVER}resolver_options {words}\n"


def owner_body(files: Iterable[GuestFile]) -> str:
    """Shell code that gives files to their users and groups; "" if all are root's.

    cloud-init knows owners by names only, and a pod's (fsGroup) have none.
    """
    return "".join(
        f"chown {file.uid}:{file.gid} {quote(file.path)}\n"
        for file in files
        if file.uid or file.gid
    )


def whole_body(
    volumes: Iterable[Volume], files: Iterable[GuestFile], options: Sequence[str]
) -> str:
    """Shell code for a user-data script: mounts, device paths, resolver options and files, in a
    subshell."""
    volumes = list(volumes)
    body = mount_body(volumes) + symlink_body(volumes) + resolver_body(options)
    written = [
        f"write_file {file.mode:04o} {file.uid}:{file.gid} {quote(file.path)} <<'EOF'\n"
        f"{base64.encodebytes(file.content).decode()}EOF\n"
        for file in files
    ]
    if written:
        body += _WRITE + "".join(written)
    return f"(\n{body}:\n)"


def script_file(body: str) -> bytes:
    """The content of a script's file."""
    return (_HEAD + body).encode()


def outer_first(volumes: Iterable[Volume]) -> list[Share | Disk]:
    """What is mounted, outer mounts before those inside them."""
    mounted = [v for v in volumes if isinstance(v, Share) or (isinstance(v, Disk) and v.guest_path)]
    return sorted(mounted, key=lambda v: len([p for p in v.guest_path.split("/") if p]))


def parent_directories(path: str) -> list[str]:
    """All directories above a path, without the root."""
    found = []
    while (path := dirname(path)) not in ("/", ""):
        found.append(path)
    return found
