#!/usr/bin/env bash
# Build the Debian package, with the Python packages of requirements.txt in an environment of its own.
# Mounts nothing, and needs root for nothing.
set -euo pipefail
export LC_ALL=C.UTF-8 PIP_DISABLE_PIP_VERSION_CHECK=1

usage() {
	cat <<-'END'
	Usage: debian/build.sh [DIRECTORY]

	Builds DIRECTORY/virtlet.deb (default: build/deb), for the Debian that it runs on. The package is left
	alone while everything that goes into it is the same (DIRECTORY/virtlet.deb.inputs has a hash), and
	so are the Python packages below it (DIRECTORY/environment).

	Needs these Debian packages: python3-venv python3-dev libvirt-dev pkgconf gcc libc6-dev dpkg, and the
	project's .venv for the man pages.
	END
}

cd "$(dirname "$0")/.."
case ${1-} in
-*) usage; [ "$1" = --help ] || [ "$1" = -h ]; exit ;;
esac
out=$(realpath -m -- "${1:-build/deb}")
mkdir -p "$out"
exec 9>"$out/lock"
flock 9

PREFIX=/usr/lib/virtlet
PYTHON=/usr/bin/python3
SOURCES=(virtlet vmwrapper criproxy deploy debian docs README.md LICENSE setup.cfg pyproject.toml
	requirements.txt requirements-build.txt)
[ ! -e CHANGELOG.md ] || SOURCES+=(CHANGELOG.md)

say() { printf '==> %s\n' "$*"; }

# One hash over names, modes and contents.
hash_of() {
	(find "$@" -type f ! -path '*/__pycache__/*' -printf '%m %p\n' | sort
	find "$@" -type f ! -path '*/__pycache__/*' -print0 | sort -z | xargs -0 sha256sum
	"$PYTHON" --version
	dpkg-query -W -f '${Version}\n' libvirt-dev) | sha256sum | cut -d ' ' -f 1
}

inputs=$(hash_of "${SOURCES[@]}")
if [ -e "$out/virtlet.deb" ] && [ "$(cat "$out/virtlet.deb.inputs" 2>/dev/null)" = "$inputs" ]; then
	say "$out/virtlet.deb is up to date"
	exit
fi

pinned=$(hash_of requirements.txt requirements-build.txt debian/build.sh)
environment=$out/environment
if [ "$(cat "$environment/inputs" 2>/dev/null)" != "$pinned" ]; then
	say "Python packages, as requirements.txt pins them"
	rm -rf "$environment"
	"$PYTHON" -m venv "$environment"
	"$environment/bin/pip" install --quiet --require-hashes -r requirements-build.txt
	"$environment/bin/pip" install --quiet --require-hashes --no-build-isolation -r requirements.txt
	echo "$pinned" >"$environment/inputs"
fi

say "package"
work=$(mktemp -d "$out/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
root=$work/root
umask 022
mkdir -p "$root/DEBIAN" "$root$PREFIX" "$root"/usr/{bin,lib/systemd/system} "$root"/etc/{virtlet/images,criproxy} \
	"$root"/usr/share/{man/man1,man/man8,bash-completion/completions,doc/virtlet,virtlet}

# The wheel is built from a copy: setuptools writes beside its sources.
mkdir "$work/source"
cp -a virtlet vmwrapper criproxy README.md LICENSE setup.cfg pyproject.toml "$work/source"
"$environment/bin/pip" wheel --quiet --no-build-isolation --no-deps --wheel-dir "$work" "$work/source"
cp -a "$environment/." "$root$PREFIX"
rm -rf "$root$PREFIX"/{inputs,.gitignore,include,share,lib64}
"$root$PREFIX/bin/python3" -m pip --python "$root$PREFIX/bin/python3" install --quiet --no-deps \
	--no-index "$work"/virtlet-*.whl
"$root$PREFIX/bin/python3" -m pip uninstall --quiet --yes setuptools pip

# What is run knows no other place than the one it is installed to.
rm -f "$root$PREFIX"/bin/{activate*,Activate*,pip*}
find "$root$PREFIX/bin" -type f ! -name 'virtlet' ! -name 'criproxy*' -delete
for command in virtlet criproxy criproxy-setup; do
	sed -i "1s|.*|#!$PREFIX/bin/python3|" "$root$PREFIX/bin/$command"
	ln -s "../lib/virtlet/bin/$command" "$root/usr/bin/$command"
done
sed -i '/^command = /d' "$root$PREFIX/pyvenv.cfg"
find "$root$PREFIX" -name __pycache__ -prune -exec rm -rf {} +
site=$(echo "$root$PREFIX"/lib/python3.*/site-packages)
rm -f "$site"/virtlet-*.dist-info/direct_url.json
# Nobody writes below /usr at run time, and compiling takes longer than a start.
"$PYTHON" -m compileall -q -j 0 --invalidation-mode unchecked-hash -s "$root" -p / "$root$PREFIX/lib" || true

for unit in deploy/virtlet.service deploy/criproxy/criproxy.service; do
	sed "s|/opt/virtlet/bin/|/usr/bin/|" "$unit" >"$root/usr/lib/systemd/system/${unit##*/}"
done
# What postinst makes the node's configuration of.
cp deploy/virtlet.yaml deploy/criproxy/criproxy.yaml "$root/usr/share/virtlet"

.venv/bin/python debian/pages.py "$root/usr/share/man/man1" "$root/usr/share/bash-completion/completions"
cp debian/vmwrapper.8 "$root/usr/share/man/man8"
gzip -9n "$root"/usr/share/man/man?/*
doc=$root/usr/share/doc/virtlet
cp -a README.md docs deploy "$doc"
[ ! -e CHANGELOG.md ] || gzip -9nc CHANGELOG.md >"$doc/changelog.gz"
{ echo "Virtlet. Licence of all its files, but for the Python packages below $PREFIX/lib:"; echo; cat LICENSE; } \
	>"$doc/copyright"

version=$(sed -n 's/^version = //p' setup.cfg)
sed -e "s/@VERSION@/${version//+dev/\~dev}/" -e "s/@ARCHITECTURE@/$(dpkg --print-architecture)/" \
	-e "s/@SIZE@/$(du -sk "$root" | cut -f 1)/" \
	-e "s/@PYTHON@/$("$PYTHON" -c 'import sys; print("3.%d" % sys.version_info[1])')/" \
	-e "s/@NEXT_PYTHON@/$("$PYTHON" -c 'import sys; print("3.%d" % (sys.version_info[1] + 1))')/" \
	-e "s/@LIBVIRT@/$(dpkg-query -W -f '${source:Upstream-Version}' libvirt-dev)/" \
	debian/control >"$root/DEBIAN/control"
cp debian/{postinst,prerm,postrm} "$root/DEBIAN"
chmod 755 "$root"/DEBIAN/{postinst,prerm,postrm}
chmod -R u=rwX,go=rX "$root"
(cd "$root" && find . -type f ! -path './DEBIAN/*' -printf '%P\0' | sort -z | xargs -0 md5sum >DEBIAN/md5sums)
find "$root" -newermt "@${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}" \
	-exec touch -h -d "@${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}" {} +
dpkg-deb --root-owner-group -Zzstd -z6 --build "$root" "$work/virtlet.deb" >/dev/null
mv "$work/virtlet.deb" "$out/virtlet.deb"
echo "$inputs" >"$out/virtlet.deb.inputs"
say "$out/virtlet.deb, $(du -h "$out/virtlet.deb" | cut -f 1)"
