#!/bin/bash
# Builds the tiny guest: Debian's kernel and a busybox initramfs on a bootable FAT
# partition, as a compressed qcow2. Needs neither root nor loop devices.
set -euo pipefail
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"

usage() {
	cat <<-'END'
	Usage: images/tiny/build.sh [--force] OUTPUT.qcow2 [CACHE_DIR]

	Builds the tiny guest image from Debian packages.

	  OUTPUT.qcow2  the image; left alone when it is newer than everything in images/tiny
	  CACHE_DIR     where downloaded packages are kept (default: tiny-cache beside OUTPUT)
	  --force       build even when OUTPUT is up to date, so with the newest packages apt knows
	  --help        this text

	Needs these Debian packages on the host: cpio kmod mtools qemu-utils syslinux
	syslinux-common xz-utils zstd. Fetches the packages named in packages.list with
	`apt-get download`, after one `apt-get update` where apt's lists lack them; that takes
	root. Nothing is installed.
	END
}

say() { echo "tiny guest: $*"; }
die() { echo "tiny guest: error: $*" >&2; exit 1; }

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
cache=$(realpath -m -- "${positional[1]:-$(dirname "$output")/tiny-cache}")

# README.md is in this directory too, but is no input.
up_to_date() {
	[ -z "$force" ] && [ -e "$output" ] &&
		[ -z "$(find "$here" ! -name README.md -newer "$output" -print -quit)" ]
}

if up_to_date; then
	say "$output is up to date"
	exit 0
fi

check_tools() {
	local pair missing=()
	for pair in apt-get:apt cpio:cpio depmod:kmod dpkg-deb:dpkg mcopy:mtools \
		qemu-img:qemu-utils syslinux:syslinux xz:xz-utils zstd:zstd; do
		command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
	done
	[ -e "$boot_code" ] || missing+=(syslinux-common)
	[ "${#missing[@]}" -eq 0 ] ||
		die "missing on this host, install with: apt-get install ${missing[*]}"
}

# Prints the packages to fetch, one a line; the kernel's metapackage becomes the real package.
package_names() {
	local name kernel
	while read -r name; do
		case $name in
			'' | '#'*) ;;
			linux-image-*)
				kernel=$(apt-cache depends "$name" 2>/dev/null |
					sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p' | head -n 1)
				echo "${kernel:-$name}"
				;;
			*) echo "$name" ;;
		esac
	done <"$here/packages.list"
}

# Fetches what the cache lacks; where it cannot, $problem says why.
fetch() {
	local names uris uri file size digest
	mapfile -t names < <(package_names)
	mkdir -p "$cache"
	uris=$(apt-get download --print-uris "${names[@]}" 2>"$work/apt.log") || {
		problem="apt does not know all packages ($(tail -n 1 "$work/apt.log"))"
		return 1
	}
	wanted=()
	while read -r uri file size digest; do
		wanted+=("$file")
		[ -e "$cache/$file" ] && continue
		say "fetching $file ($((size / 1024)) kB)"
		# apt checks the digest; the name appears in the cache only when the file is whole.
		(cd "$work/fetch" && apt-get download -q "$(apt_argument "$file")") >"$work/apt.log" 2>&1 || {
			problem="cannot fetch $file: $(grep '^E:' "$work/apt.log" | head -n 1)"
			return 1
		}
		mv "$work/fetch/$file" "$cache/$file"
	done <<<"$uris"
}

# Apt's lists are empty on a fresh system, and old ones name packages that are gone.
update_lists() {
	[ "$(id -u)" = 0 ] || return 1
	say "updating apt's lists: $problem"
	apt-get update >"$work/apt.log" 2>&1
}

fetch_and_unpack() {
	local file wanted problem
	fetch || { update_lists && fetch; } || die "$problem; try: apt-get update"
	for file in "${wanted[@]}"; do
		dpkg-deb -x "$cache/$file" "$work/packages" || {
			rm -f "$cache/$file"
			die "$file in $cache was damaged and is now removed; run this again"
		}
	done
}

# Turns NAME_VERSION_ARCH.deb, with %3a for the colon of an epoch, into NAME=VERSION.
apt_argument() {
	local name=${1%%_*} version=${1#*_}
	version=${version%_*}
	echo "$name=${version//%3a/:}"
}

# Copies the wanted kernel modules and what they depend on, unpacked: the kernel's own
# decompressor is far slower in an emulated guest than the one for the whole initramfs.
add_modules() {
	local tree=$work/packages/usr/lib/modules/$release root=$work/root/usr/lib/modules/$release
	local wanted module file
	mkdir -p "$root"
	cp "$tree"/modules.{builtin,builtin.modinfo,order} "$root/"
	depmod -b "$work/packages/usr" "$release" 2>"$work/depmod.log" ||
		die "depmod: $(tail -n 1 "$work/depmod.log")"
	mapfile -t wanted < <(sed '/^#/d; /^$/d; s/ .*//' "$here/modules.list")
	for module in "${wanted[@]}"; do
		grep -q "/$module\.ko" "$tree/modules.dep" ||
			die "kernel $release has no module $module (see modules.list)"
		sed -n "s|^\([^ ]*/$module\.ko[^ :]*\):|\1|p" "$tree/modules.dep"
	done | tr ' ' '\n' | sed '/^$/d' | sort -u >"$work/modules"
	while read -r file; do
		mkdir -p "$root/$(dirname "$file")"
		xz -dc "$tree/$file" >"$root/${file%.xz}"
		drop_signature "$root/${file%.xz}"
	done <"$work/modules"
	depmod -b "$work/root/usr" "$release"
	sed '/^#/d; /^$/d; / later$/d' "$here/modules.list" >"$work/root/etc/modules"
}

# Cuts a module's signature off, which an emulated guest checks for longer than it takes to load
# the module. It ends with its size in four bytes and 28 bytes of text.
drop_signature() {
	local size
	[ "$(tail -c 28 "$1" | tr -d '\0')" = '~Module signature appended~' ] || return 0
	size=$(tail -c 32 "$1" | od -An -N 4 -t u4 --endian=big)
	truncate -s "-$((size + 40))" "$1"
}

# Copies a dynamically linked program with the libraries it needs, found by its own loader.
add_program() {
	local from=$work/packages$1 libs=$work/packages/usr/lib/x86_64-linux-gnu name arrow path
	install -D -m 755 "$from" "$work/root$1"
	while read -r name arrow path _; do
		# The loader lists itself with a directory; make_root has put it there.
		[ "$arrow" = "=>" ] && [ "${name#/}" = "$name" ] || continue
		[ "$path" != not ] || die "$1 needs $name, which no package in packages.list holds"
		install -D -m 644 "$path" "$work/root/usr/lib/x86_64-linux-gnu/$name"
	done < <("$libs/ld-linux-x86-64.so.2" --inhibit-cache --library-path "$libs" --list "$from")
}

make_root() {
	local root=$work/root applet
	mkdir -p "$root"/{dev,etc,proc,sys,run,tmp,boot,root/.ssh,mnt,var/lib,var/log} \
		"$root"/usr/{bin,sbin,lib,lib64}
	ln -s usr/bin usr/sbin usr/lib usr/lib64 "$root/"
	ln -s ../run "$root/var/run"
	ln -s ../proc/self/mounts "$root/etc/mtab"
	cp -R "$here/rootfs/." "$root/"
	install -m 755 "$work/packages/usr/bin/busybox" "$root/usr/bin/busybox"
	for applet in $("$root/usr/bin/busybox" --list); do
		# Ours go first (shutdown in usr/sbin), and busybox lists itself too.
		[ -e "$root/usr/sbin/$applet" ] || [ -e "$root/usr/bin/$applet" ] ||
			ln -s busybox "$root/usr/bin/$applet"
	done
	# Where the kernel calls it, for modules that nobody has loaded yet.
	ln -s ../bin/busybox "$root/usr/sbin/modprobe"
	install -m 755 "$work/packages/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2" \
		"$root/usr/lib64/ld-linux-x86-64.so.2"
	add_program /usr/sbin/qemu-ga
	add_program /usr/sbin/dropbear
	add_program /usr/bin/dropbearkey
	add_modules
	echo "$release" >"$root/etc/kernel-release"
}

# A fixed owner, time and order give the same archive for the same inputs.
pack_initramfs() {
	find "$work/root" -exec touch -h -d @0 {} +
	(cd "$work/root" && find . -print0 | sort -z |
		cpio --null -o -H newc -R 0:0 --reproducible --quiet) >"$work/initrd.cpio"
	zstd -q -19 -T2 "$work/initrd.cpio" -o "$work/initrd.img"
}

# One FAT partition from the first MiB to the end, made bootable by the MBR of syslinux.
pack_disk() {
	local disk=$work/disk.img size_mib=96 first=2048 sectors
	sectors=$((size_mib * 2048 - first))
	truncate -s "${size_mib}M" "$disk"
	dd if="$boot_code" of="$disk" conv=notrunc status=none
	printf '%b' "\\x80\\xfe\\xff\\xff\\x0e\\xfe\\xff\\xff$(le32 $first)$(le32 $sectors)" |
		dd of="$disk" bs=1 seek=446 conv=notrunc status=none
	printf '\x55\xaa' | dd of="$disk" bs=1 seek=510 conv=notrunc status=none
	mformat -i "$disk@@1M" -v TINY -N 54494e59 -T $sectors -h 64 -s 32 -H $first -c 4 ::
	mcopy -i "$disk@@1M" "$here/syslinux.cfg" "::/syslinux.cfg"
	mcopy -i "$disk@@1M" "$work/packages/boot/vmlinuz-$release" ::/vmlinuz
	mcopy -i "$disk@@1M" "$work/initrd.img" ::/initrd.img
	syslinux -t $((first * 512)) -i "$disk"
	add_uefi "$disk@@1M"
	qemu-img convert -q -c -f raw -O qcow2 "$disk" "$work/tiny.qcow2"
}

# Microsoft has signed the shim, which starts grubx64.efi, whatever that is; Debian has signed that
# and the kernel.
add_uefi() {
	local efi=$work/packages/usr/lib
	mmd -i "$1" ::/EFI ::/EFI/BOOT ::/loader ::/loader/entries
	mcopy -i "$1" "$efi/shim/shimx64.efi.signed" ::/EFI/BOOT/BOOTX64.EFI
	mcopy -i "$1" "$efi/systemd/boot/efi/systemd-bootx64.efi.signed" ::/EFI/BOOT/grubx64.efi
	printf 'default tiny.conf\ntimeout 0\n' | mcopy -i "$1" - ::/loader/loader.conf
	printf 'title tiny\nlinux /vmlinuz\ninitrd /initrd.img\noptions %s\n' \
		"$(sed -n 's/^ *APPEND //p' "$here/syslinux.cfg")" |
		mcopy -i "$1" - ::/loader/entries/tiny.conf
}

# Prints a number as four escaped little-endian bytes.
le32() {
	printf '\\x%02x\\x%02x\\x%02x\\x%02x' \
		$(($1 & 255)) $(($1 >> 8 & 255)) $(($1 >> 16 & 255)) $(($1 >> 24 & 255))
}

boot_code=/usr/lib/syslinux/mbr/mbr.bin
check_tools
mkdir -p "$(dirname "$output")"
# Beside the output, so that the last step is a rename within one file system.
work=$(mktemp -d "$(dirname "$output")/.tiny-build.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP
mkdir "$work/fetch" "$work/packages"

fetch_and_unpack
release=$(basename "$work"/packages/usr/lib/modules/*)
say "packing kernel $release and initramfs"
make_root
pack_initramfs
say "writing the disk image"
pack_disk
mv "$work/tiny.qcow2" "$output"
say "$output: $(($(stat -c %s "$output") / 1024)) kB"
