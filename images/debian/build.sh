#!/bin/bash
# Builds the Debian guest: Debian 13 with cloud-init, systemd and the guest agent, as a qcow2
# that boots by BIOS and by UEFI. Mounts nothing and uses no loop device.
set -euo pipefail
export LC_ALL=C.UTF-8 PATH="$PATH:/usr/sbin:/sbin"

usage() {
	cat <<-'END'
	Usage: images/debian/build.sh [--force] OUTPUT.qcow2 [CACHE_DIR]

	Builds the Debian guest image from Debian's packages.

	  OUTPUT.qcow2  the image; left alone while its recipe, which stands beside it with its hash
	                (OUTPUT.qcow2.recipe), is the one in images/debian
	  CACHE_DIR     where downloaded packages are kept (default: debian-cache beside OUTPUT)
	  --force       build even when OUTPUT is up to date, so with the newest packages of the mirror
	  --help        this text

	Needs these Debian packages on the host: e2fsprogs fdisk libarchive13t64 mmdebstrap mtools
	qemu-utils syslinux syslinux-common. Packages of the guest come from the Debian 13 mirrors in
	apt's sources. Runs as root, or as a user with subordinate ids (/etc/subuid). With
	SOURCE_DATE_EPOCH in the environment no file is newer than that.
	END
}

say() { echo "debian guest: $*"; }
die() { echo "debian guest: error: $*" >&2; exit 1; }

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
force=
positional=()
for argument; do
	case $argument in
		--help | -h) usage; exit 0 ;;
		--force) force=yes ;;
		-*) usage >&2; die "unknown option $argument" ;;
		*) positional+=("$argument") ;;
	esac
done
if [ "${#positional[@]}" -lt 1 ] || [ "${#positional[@]}" -gt 2 ]; then
	usage >&2
	die "one or two file names are needed, ${#positional[@]} were given"
fi
output=$(realpath -m -- "${positional[0]}")
cache=$(realpath -m -- "${positional[1]:-$(dirname "$output")/debian-cache}")
suite=trixie
boot_code=/usr/lib/syslinux/mbr/gptmbr.bin

# One hash over names, modes and contents of all inputs; README.md is none.
recipe() {
	(cd "$here" && find . -type f ! -name README.md -printf '%m %p\n' | sort &&
		find . -type f ! -name README.md -print0 | sort -z | xargs -0 sha256sum) | sha256sum |
		cut -d ' ' -f 1
}

up_to_date() {
	[ -z "$force" ] && [ -e "$output" ] && [ "$(cat "$output.recipe" 2>/dev/null)" = "$recipe" ]
}

check_tools() {
	local pair missing=()
	for pair in apt-get:apt mke2fs:e2fsprogs sfdisk:fdisk mmdebstrap:mmdebstrap mcopy:mtools \
		qemu-img:qemu-utils syslinux:syslinux; do
		command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
	done
	[ -e "$boot_code" ] || missing+=(syslinux-common)
	[[ $(ldconfig -p) == *libarchive.so.13* ]] || missing+=(libarchive13t64)
	[ "${#missing[@]}" -eq 0 ] ||
		die "missing on this host, install with: apt-get install ${missing[*]}"
}

# The mirrors of Debian 13 that apt has, as lines of a sources.list.
mirrors() {
	apt-get indextargets --format '$(ORIGIN) $(SIGNED_BY) $(REPO_URI) $(CODENAME) $(RELEASE) $(COMPONENT)' \
		'Created-By: Packages' |
		awk -v suite="$suite" '$1 == "Debian" && $4 ~ "^" suite "($|-)" && $3 ~ /^https?:/ {
			print "deb [signed-by=" $2 "]", $3, $5, $6
		}' | sort -u
}

# Apt's lists are empty on a fresh system; only with them it knows which mirrors are Debian's.
find_mirrors() {
	mirrors >"$work/sources.list"
	[ ! -s "$work/sources.list" ] || return 0
	if [ "$(id -u)" = 0 ]; then
		say "updating apt's lists"
		apt-get update >"$work/apt.log" 2>&1 || true
		mirrors >"$work/sources.list"
	fi
	[ -s "$work/sources.list" ] ||
		die "apt's sources have no mirror of Debian 13 ($suite); try: apt-get update"
}

# Writes the guest's files to $work/root.tar, and what its boot loaders read to $work/boot.
make_root() {
	local options=() line
	# How this machine reaches its mirrors (proxies, dates) holds for the guest's packages too.
	while read -r line; do
		options+=(--aptopt="$line")
	done < <(apt-config dump --no-empty Acquire |
		grep -v '^Acquire::\(GzipIndexes\|CompressionTypes\|Languages\)')
	mkdir -p "$cache" "$work/boot"
	# mke2fs takes no names outside ASCII from a tar. Those are certificates, in a bundle as well.
	mmdebstrap --quiet --variant=minbase --format=tar \
		--include="$(sed '/^#/d; /^$/d' "$here/packages.list" | paste -sd,)" \
		"${options[@]}" \
		--dpkgopt=force-unsafe-io \
		--dpkgopt='path-exclude=/usr/share/doc/*' \
		--dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' \
		--skip=download/empty --skip=essential/unlink \
		--setup-hook='mkdir -p "$1"/var/cache/apt/archives' \
		--setup-hook="sync-in $cache /var/cache/apt/archives" \
		--essential-hook="sync-in $here/rootfs /" \
		--customize-hook="sync-out /var/cache/apt/archives $cache" \
		--customize-hook='cd "$1" && mv boot/vmlinuz-* boot/vmlinuz && mv boot/initrd.img-* boot/initrd.img' \
		--customize-hook='chroot "$1" systemctl --quiet disable apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service' \
		--customize-hook='cp "$1"/usr/lib/systemd/boot/efi/systemd-bootx64.efi "$1"/boot/' \
		--customize-hook="sync-out /boot $work/boot" \
		--customize-hook='find "$1"/usr/share/ca-certificates "$1"/etc/ssl/certs -name "*[^ -~]*" -delete' \
		--customize-hook='cd "$1" && rm -rf boot/* vmlinuz* initrd.img* etc/ssh/ssh_host_* && : >etc/machine-id &&
			touch etc/.updated var/.updated' \
		"$suite" "$work/root.tar" - <"$work/sources.list" >"$work/mmdebstrap.log" 2>&1 || {
		tail -n 20 "$work/mmdebstrap.log" >&2
		die "mmdebstrap failed"
	}
}

# One partition that both boot loaders read, then the root, which can grow.
pack_disk() {
	local disk=$work/disk.img options
	truncate -s "${size_mib}M" "$disk"
	sfdisk -q "$disk" <<-END
	label: gpt
	label-id: 56495254-4c45-5400-8000-000000000000
	unit: sectors
	start=2048, size=$(((root_mib - 1) * 2048)), type=uefi, name=boot, attrs="LegacyBIOSBootable", uuid=56495254-4c45-5400-8000-000000000001
	start=$((root_mib * 2048)), type=4f68bce3-e8cd-4db1-96e7-fbcaf984b709, name=root, uuid=56495254-4c45-5400-8000-000000000002
	END
	dd if="$boot_code" of="$disk" conv=notrunc bs=440 count=1 status=none
	options=$(cat "$here/boot/options")
	for file in syslinux.cfg debian.conf; do
		sed "s|@OPTIONS@|$options|" "$here/boot/$file" >"$work/$file"
	done
	mformat -i "$disk@@1M" -v BOOT -N 56495254 -T $(((root_mib - 1) * 2048)) -h 64 -s 32 -H 2048 ::
	mmd -i "$disk@@1M" ::/EFI ::/EFI/BOOT ::/loader ::/loader/entries
	mcopy -i "$disk@@1M" "$work/syslinux.cfg" "$work/boot/vmlinuz" "$work/boot/initrd.img" ::/
	mcopy -i "$disk@@1M" "$work/boot/systemd-bootx64.efi" ::/EFI/BOOT/BOOTX64.EFI
	mcopy -i "$disk@@1M" "$here/boot/loader.conf" ::/loader/
	mcopy -i "$disk@@1M" "$work/debian.conf" ::/loader/entries/
	syslinux -t 1048576 -i "$disk"
	# The last MiB is the table's copy.
	mke2fs -q -F -t ext4 -L root -m 1 -d "$work/root.tar" -U 56495254-4c45-5400-8000-000000000003 \
		-E "offset=$((root_mib << 20)),hash_seed=56495254-4c45-5400-8000-000000000004" \
		"$disk" "$((size_mib - root_mib - 1))M"
	rm "$work/root.tar"
	qemu-img convert -q -c -f raw -O qcow2 "$disk" "$work/debian.qcow2"
}

size_mib=2048
root_mib=64
recipe=$(recipe)
if up_to_date; then
	say "$output is up to date"
	exit 0
fi
check_tools
mkdir -p "$(dirname "$output")"
# Beside the output, so that the last step is a rename within one file system.
work=$(mktemp -d "$(dirname "$output")/.debian-build.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP

find_mirrors
say "installing Debian's packages, which takes two minutes"
make_root
say "writing the disk image"
pack_disk
rm -f "$output.recipe"
mv "$work/debian.qcow2" "$output"
echo "$recipe" >"$output.recipe"
say "$output: $(($(stat -c %s "$output") >> 20)) MB"
