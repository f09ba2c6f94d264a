#!/bin/bash
# Builds the node's container image: the manager and all it runs, as an OCI archive. Takes no
# container runtime, mounts nothing by hand.
set -euo pipefail
export LC_ALL=C.UTF-8 PATH="$PATH:/usr/sbin:/sbin"

usage() {
	cat <<-'END'
	Usage: images/node/build.sh [--force] OUTPUT.tar [CACHE_DIR]

	Builds the container image of a node's parts, an OCI archive, from Debian's packages and this tree.

	  OUTPUT.tar  the image; left alone while its recipe, which stands beside it with its hash
	              (OUTPUT.tar.recipe), is that of images/node and of the tree's code
	  CACHE_DIR   where downloaded packages and the layers below the code are kept (default:
	              node-cache beside OUTPUT)
	  --force     build all layers even when they are up to date, so with the mirror's newest packages
	  --help      this text

	Needs these Debian packages on the host: libvirt-dev gcc mmdebstrap pkgconf python3-dev
	python3-venv umoci. Runs on Debian 13, whose Python is the image's too; as root, or as a user
	with subordinate ids (/etc/subuid).
	END
}

say() { echo "node image: $*"; }
die() { echo "node image: error: $*" >&2; exit 1; }

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tree=$(cd "$here/../.." && pwd)
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
cache=$(realpath -m -- "${positional[1]:-$(dirname "$output")/node-cache}")
suite=trixie
python=3.13
prefix=usr/lib/virtlet
version=$(sed -n 's/^version = //p' "$tree/setup.cfg" | tr + -)
name=localhost/virtlet-node:$version

# One hash over names, modes and contents of files.
hash_of() {
	(cd "$tree" && find "$@" -type f ! -name '*.pyc' -printf '%m %p\n' | sort &&
		find "$@" -type f ! -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum) |
		sha256sum | cut -d ' ' -f 1
}

is() { [ -e "$1" ] && [ "$(cat "$1.recipe" 2>/dev/null)" = "$2" ]; }

check_tools() {
	local pair missing=()
	for pair in apt-get:apt dpkg-deb:dpkg gcc:gcc mmdebstrap:mmdebstrap pkgconf:pkgconf umoci:umoci; do
		command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
	done
	[ -e "/usr/include/python$python/Python.h" ] || missing+=(python3-dev)
	[ -e "/usr/lib/python$python/ensurepip" ] || missing+=(python3-venv)
	[ -e /usr/include/libvirt/libvirt.h ] || missing+=(libvirt-dev)
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

# Debian's packages, to $work/debian.tar.
make_debian() {
	local options=() line
	mirrors >"$work/sources.list"
	# Apt's lists are empty on a fresh system; only with them it knows which mirrors are Debian's.
	if [ ! -s "$work/sources.list" ] && [ "$(id -u)" = 0 ]; then
		apt-get update >"$work/apt.log" 2>&1 || true
		mirrors >"$work/sources.list"
	fi
	[ -s "$work/sources.list" ] ||
		die "apt's sources have no mirror of Debian 13 ($suite); try: apt-get update"
	# How this machine reaches its mirrors (proxies, dates) holds for the image's packages too.
	while read -r line; do
		options+=(--aptopt="$line")
	done < <(apt-config dump --no-empty Acquire |
		grep -v '^Acquire::\(GzipIndexes\|CompressionTypes\|Languages\)')
	mkdir -p "$cache/packages"
	mmdebstrap --quiet --variant=minbase --format=tar \
		--include="$(sed '/^#/d; /^$/d' "$here/packages.list" | paste -sd,)" \
		"${options[@]}" \
		--dpkgopt=force-unsafe-io \
		--dpkgopt='path-exclude=/usr/share/doc/*' \
		--dpkgopt='path-include=/usr/share/doc/*/copyright' \
		--dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' \
		--skip=download/empty --skip=essential/unlink \
		--setup-hook='mkdir -p "$1"/var/cache/apt/archives' \
		--setup-hook="sync-in $cache/packages /var/cache/apt/archives" \
		--customize-hook="sync-out /var/cache/apt/archives $cache/packages" \
		--customize-hook='cd "$1" && rm -rf var/cache/apt/* var/lib/apt/lists/* var/log/* && mkdir -p opt mnt srv &&
			rm -f etc/hostname etc/resolv.conf && : >etc/machine-id' \
		"$suite" "$work/debian.tar" - <"$work/sources.list" >"$work/mmdebstrap.log" 2>&1 || {
		tail -n 20 "$work/mmdebstrap.log" >&2
		die "mmdebstrap failed"
	}
}

pack() { tar -C "$work/$1" --sort=name --owner=0 --group=0 --numeric-owner -cf "$work/$1.tar" .; }

# A pip of Debian's Python, which builds libvirt's binding.
make_pip() {
	"/usr/bin/python$python" -m venv "$work/pip"
	"$work/pip/bin/python" -m pip install --quiet --require-hashes -r "$tree/requirements-build.txt"
}

# Installs what pip is told below the image's prefix; shebangs of scripts are this machine's.
install_python() {
	local into=$work/$1
	shift
	"$work/pip/bin/python" -m pip install --quiet --no-warn-script-location --no-build-isolation \
		--no-compile --root "$into" --prefix "/$prefix" "$@"
	rm -rf "${into:?}/$prefix/bin"
}

# What browsers get of the web console, without the programs that its packages come with, to $work/python.
make_assets() {
	local package
	mkdir "$work/debs"
	(cd "$work/debs" && apt-get download novnc node-xterm) >"$work/apt.log" 2>&1 || {
		tail -n 5 "$work/apt.log" >&2
		die "the web console's packages cannot be downloaded; try: apt-get update"
	}
	for package in "$work/debs"/*.deb; do
		dpkg-deb -x "$package" "$work/assets"
	done
	mkdir -p "$work/python/usr/share/doc" "$work/python/usr/share/nodejs"
	cp -a "$work/assets/usr/share/novnc" "$work/python/usr/share/"
	cp -aL "$work/assets/usr/share/nodejs/xterm" "$work/python/usr/share/nodejs/"
	for package in novnc node-xterm; do
		install -D -m 0644 -t "$work/python/usr/share/doc/$package" "$work/assets/usr/share/doc/$package/copyright"
	done
}

# The layers that the code lies on, to $cache/base.
make_base() {
	say "installing Debian's packages, which takes two minutes"
	make_debian
	say "installing Python's packages"
	mkdir -p "$work/python"
	install_python python --require-hashes -r "$here/requirements.txt"
	mkdir -p "$work/python/$prefix/bin"
	ln -s "/usr/bin/python$python" "$work/python/$prefix/bin/python3"
	printf 'home = /usr/bin\ninclude-system-site-packages = false\n' >"$work/python/$prefix/pyvenv.cfg"
	cp -a "$here/rootfs/." "$work/python/"
	make_assets
	pack python
	rm -rf "$cache/base" "$cache/base.recipe"
	umoci init --layout "$work/base"
	umoci new --image "$work/base:node"
	umoci raw add-layer --image "$work/base:node" "$work/debian.tar"
	umoci raw add-layer --image "$work/base:node" "$work/python.tar"
	umoci config --image "$work/base:node" --config.entrypoint /usr/bin/virtlet-node \
		--config.env PATH=/usr/sbin:/usr/bin:/sbin:/bin --config.env LC_ALL=C.UTF-8
	umoci gc --layout "$work/base"
	mv "$work/base" "$cache/base"
	echo "$base_recipe" >"$cache/base.recipe"
}

# The tree's code on top, to $work/image.tar.
make_image() {
	mkdir -p "$work/source" "$work/code"
	# A build writes beside the code.
	(cd "$tree" && find "${code[@]}" -type f ! -name '*.pyc' -print0 | xargs -0 cp --parents -t "$work/source")
	install_python code --no-deps "$work/source"
	pack code
	cp -al "$cache/base" "$work/image"
	# Not the file that the cache has too.
	cp --remove-destination "$cache/base/index.json" "$work/image/index.json"
	umoci raw add-layer --image "$work/image:node" "$work/code.tar"
	umoci config --image "$work/image:node" --config.label "org.opencontainers.image.version=$version"
	umoci gc --layout "$work/image"
	# containerd takes the name from the one annotation, other programs from the other.
	"/usr/bin/python$python" - "$work/image/index.json" "$name" <<-'END'
	import json, sys
	with open(sys.argv[1], "r+") as file:
	    index = json.load(file)
	    (manifest,) = index["manifests"]
	    for key in ("io.containerd.image.name", "org.opencontainers.image.ref.name"):
	        manifest.setdefault("annotations", {})[key] = sys.argv[2]
	    file.seek(0)
	    file.truncate()
	    json.dump(index, file)
	END
	tar -C "$work/image" --owner=0 --group=0 --numeric-owner -cf "$work/image.tar" \
		oci-layout index.json blobs
}

code=(virtlet vmwrapper criproxy setup.cfg pyproject.toml README.md LICENSE)
base_recipe=$(hash_of images/node/build.sh images/node/packages.list images/node/requirements.txt \
	images/node/rootfs requirements-build.txt)
recipe=$(echo "$base_recipe $(hash_of "${code[@]}")" | sha256sum | cut -d ' ' -f 1)
mkdir -p "$(dirname "$output")" "$cache"
# Of several builds the later ones find what the first has made.
exec 9>"$cache/lock"
flock 9
if [ -z "$force" ] && is "$output" "$recipe"; then
	say "$output is up to date"
	exit 0
fi
check_tools
# Beside the cache, so that the last steps are renames and links within one file system.
work=$(mktemp -d "$cache/.build.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP

make_pip
if [ -n "$force" ] || ! is "$cache/base" "$base_recipe"; then
	make_base
fi
say "adding the code"
make_image
rm -f "$output.recipe"
mv "$work/image.tar" "$output"
echo "$recipe" >"$output.recipe"
say "$output: $(($(stat -c %s "$output") >> 20)) MB, as $name"
