#!/usr/bin/env bash
# Install what demo and tests need: Debian packages, the virtual environment, the tiny guest.
# Costs a second when nothing is missing, and says only what it changes.
set -euo pipefail
cd "$(dirname "$0")/.."

PACKAGES=(
  # the hypervisor
  qemu-system-x86 qemu-utils qemu-block-extra virtiofsd swtpm swtpm-tools libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients
  # unpacking images
  zstd squashfs-tools
  # building libvirt-python
  libvirt-dev pkgconf gcc libc6-dev python3-dev python3-venv
  # pods' networks
  containernetworking-plugins dnsmasq-base iproute2 iptables nftables
  # asking a guest by hand
  curl
  # building the tiny guest (its own packages are unpacked, not installed)
  mtools syslinux syslinux-common dosfstools busybox-static kmod xz-utils cpio
  # building the Debian guest, which tests do when they need it, and UEFI for it
  mmdebstrap fdisk libarchive13t64 ovmf
  # building the node's container image
  umoci
  # the tests' real counterparts
  containerd runc kubernetes-client openssh-client openssl socat novnc node-xterm chromium genisoimage e2fsprogs skopeo promtool
  # examining the units, applying them in tests; starts nothing where it is not the init system
  systemd libseccomp2
)

say() { printf '==> %s\n' "$*"; }

missing=()
for package in "${PACKAGES[@]}"; do
  case "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)" in
    installed) ;;
    *) missing+=("$package") ;;
  esac
done
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ]; then
    printf 'These Debian packages are missing, and installing them takes root: %s\n' "${missing[*]}" >&2
    exit 1
  fi
  say "installing ${#missing[@]} Debian packages: ${missing[*]}"
  log=$(mktemp)
  export DEBIAN_FRONTEND=noninteractive
  if ! { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    printf 'apt-get failed; its whole output is in %s\n' "$log" >&2
    exit 1
  fi
  rm -f "$log"
fi

PYTHON=${PYTHON:-python3}
stamp=.venv/.set-up
# A stamp that is not there is older than everything.
if [ setup.cfg -nt "$stamp" ] || [ pyproject.toml -nt "$stamp" ] || [ constraints.txt -nt "$stamp" ]; then
  say "virtual environment in .venv"
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    printf '%s is older than Python 3.11; name another with PYTHON=…\n' "$PYTHON" >&2
    exit 1
  }
  [ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check \
    -c constraints.txt -e '.[dev]'
  touch "$stamp"
fi

# Unpacked, not installed: these packages start services.
for package in docker-registry prometheus; do
  place=build/$package
  [ -x "$place/usr/bin/$package" ] && continue
  say "the tests' $package in $place"
  work=$(mktemp -d "build/.$package.XXXXXX")
  fetch() { (cd "$work" && apt-get download -q "$package") >"$work.log" 2>&1; }
  fetch || { apt-get update >"$work.log" 2>&1 && fetch; } || { cat "$work.log" >&2; exit 1; }
  dpkg-deb -x "$work/$package"_*.deb "$work/root"
  rm -rf "$place"
  mv "$work/root" "$place"
  rm -rf "$work" "$work.log"
done

# The tests' Ceph cluster: its programs, and the libraries that only they need.
if [ ! -x build/ceph/usr/bin/ceph-osd ]; then
  say "the tests' Ceph in build/ceph"
  work=$(mktemp -d build/.ceph.XXXXXX)
  (cd "$work" && apt-get download -q ceph-mon ceph-osd ceph-base libboost-context1.83.0 \
    libgoogle-perftools4t64 libtcmalloc-minimal4t64 liblua5.3-0 liboath0t64 librabbitmq4 \
    libsnappy1v5) >"$work.log" 2>&1 || { cat "$work.log" >&2; exit 1; }
  for package in "$work"/*.deb; do dpkg-deb -x "$package" "$work/root"; done
  rm -rf build/ceph
  mv "$work/root" build/ceph
  rm -rf "$work" "$work.log"
fi

images/tiny/build.sh build/tiny.qcow2
