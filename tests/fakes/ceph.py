"""A Ceph cluster of one monitor and one OSD, in memory, at an address of the caller's network.

Debian's programs, which hack/setup.sh unpacks; commands go by librados, which comes with QEMU's rbd
driver. As a program (`python -m tests.fakes.ceph DIRECTORY MONITOR`) it runs until its stdin ends.
"""

import base64
import ctypes
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen

from tests.polling import until

ROOT = Path(__file__).parents[2]
_UNPACKED = ROOT / "build" / "ceph" / "usr"
_LIBRARIES = _UNPACKED / "lib" / "x86_64-linux-gnu"
_ENV = {"PATH": os.defpath, "LD_LIBRARY_PATH": f"{_LIBRARIES}:{_LIBRARIES}/ceph"}
_PATIENCE = 60.0
_FSID, _OSD = "a7f64266-0894-4f1e-a635-d0aeaca0e993", "b7f64266-0894-4f1e-a635-d0aeaca0e994"
MONITOR = "127.0.0.1:16789"
USER, POOL = "vms", "rbd"


@frozen
class Cluster:
    """A cluster that runs."""

    key: str
    """Of USER, who may do all in POOL's images."""
    conf: Path
    """A configuration with which a client is that user."""

    def image(self, name: str) -> str:
        """An image, as qemu-img calls it."""
        return f"rbd:{POOL}/{name}:id={USER}:conf={self.conf}"

    def make_image(self, name: str) -> None:
        """Make one of 32 MiB, with a file system that everybody may write; from its network."""
        disk = self.conf.with_name(f"{name}.img")
        disk.touch()
        os.truncate(disk, 32 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-E", "root_perms=0777", disk], check=True)
        convert = ["qemu-img", "convert", "-f", "raw", "-O", "raw", str(disk), self.image(name)]
        subprocess.run(convert, check=True)


@contextmanager
def cluster(directory: Path, monitor: str = MONITOR) -> Iterator[Cluster]:
    """Run one in the caller's network.

    Args:
        directory: is made, for all that it keeps.
        monitor: address and port of an interface that is there.
    """
    argv = [sys.executable, "-m", "tests.fakes.ceph", str(directory), monitor]
    with subprocess.Popen(
        argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        key = process.stdout.readline().strip()
        assert key, "the cluster does not start"
        conf = directory / "client.conf"
        conf.write_text(f"[global]\nmon_host = {monitor}\nkey = {key}\nkeyring =\n")
        try:
            yield Cluster(key, conf)
        finally:
            process.stdin.close()


def _key() -> str:
    return base64.b64encode(
        struct.pack("<HIIH", 1, int(time.time()), 0, 16) + os.urandom(16)
    ).decode()


def _configuration(directory: Path, monitor: str) -> str:
    return f"""\
[global]
fsid = {_FSID}
mon_host = [v2:{monitor}/0]
mon_initial_members = a
mon_data = {directory}/mon
mon_allow_pool_size_one = true
mon_data_avail_crit = 1
keyring = {directory}/keyring
public_network = {monitor.partition(":")[0]}/32
run_dir = {directory}
log_file = {directory}/$name.log
admin_socket =
plugin_dir = {_LIBRARIES}/ceph
erasure_code_dir = {_LIBRARIES}/ceph/erasure-code
osd_class_dir = {_LIBRARIES}/rados-classes
osd_data = {directory}/osd
osd_objectstore = memstore
memstore_device_bytes = 268435456
osd_crush_chooseleaf_type = 0
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_autoscale_mode = off
"""


class _Client:
    """The administrator's connection to the monitor."""

    def __init__(self, conf: Path) -> None:
        self._rados = ctypes.CDLL("librados.so.2")
        self._handle = ctypes.c_void_p()
        self._rados.rados_create(ctypes.byref(self._handle), b"admin")
        self._rados.rados_conf_read_file(self._handle, str(conf).encode())
        self._rados.rados_conf_set(self._handle, b"client_mount_timeout", b"60")
        assert self._rados.rados_connect(self._handle) == 0, "no answer of the monitor"

    def command(self, prefix: str, **arguments: Any) -> str:
        text = json.dumps({"prefix": prefix, **arguments}).encode()
        output, status = ctypes.c_char_p(), ctypes.c_char_p()
        size, length = ctypes.c_size_t(), ctypes.c_size_t()
        result = self._rados.rados_mon_command(
            self._handle,
            (ctypes.c_char_p * 1)(text),
            ctypes.c_size_t(1),
            b"",
            ctypes.c_size_t(0),
            *(ctypes.byref(output), ctypes.byref(size)),
            *(ctypes.byref(status), ctypes.byref(length)),
        )
        assert result == 0, f"{prefix}: {ctypes.string_at(status, length.value)!r}"
        return ctypes.string_at(output, size.value).decode()


def _run(directory: Path, monitor: str) -> None:
    (directory / "osd").mkdir(parents=True)
    conf, monitor_map = directory / "ceph.conf", directory / "monmap"
    conf.write_text(_configuration(directory, monitor))
    (directory / "keyring").write_text(
        f'[mon.]\nkey = {_key()}\ncaps mon = "allow *"\n'
        f'[client.admin]\nkey = {_key()}\ncaps mon = "allow *"\ncaps osd = "allow *"\n'
    )

    def program(name: str, *words: str) -> list[str]:
        return [str(_UNPACKED / "bin" / name), *words]

    def run(name: str, *words: str) -> None:
        subprocess.run(program(name, *words), env=_ENV, check=True, stdout=sys.stderr)

    with ExitStack() as cleanup:

        def serve(name: str, *words: str) -> None:
            argv = program(name, "-f", "-c", str(conf), *words)
            process = subprocess.Popen(argv, env=_ENV, stdin=subprocess.DEVNULL, stdout=sys.stderr)
            cleanup.callback(process.wait)
            cleanup.callback(process.kill)

        address = f"[v2:{monitor}]"
        run("monmaptool", "--create", "--addv", "a", address, "--fsid", _FSID, str(monitor_map))
        keyring = ("--keyring", str(directory / "keyring"))
        of_map = ("--monmap", str(monitor_map))
        run("ceph-mon", "--mkfs", "-i", "a", "-c", str(conf), *of_map, *keyring)
        serve("ceph-mon", "-i", "a")
        client = _Client(conf)
        client.command("osd new", uuid=_OSD)
        caps = ["mon", "allow profile osd", "osd", "allow *"]
        key = client.command("auth get-or-create", entity="osd.0", caps=caps, format="plain")
        osd_key = directory / "osd.keyring"
        osd_key.write_text(key)
        of_osd = ("-i", "0", "--keyring", str(osd_key))
        run("ceph-osd", "--mkfs", "-c", str(conf), "--osd-uuid", _OSD, *of_osd)
        serve("ceph-osd", *of_osd)

        def up() -> bool:
            return bool(json.loads(client.command("osd stat", format="json"))["num_up_osds"])

        until(up, "the OSD", _PATIENCE)
        client.command("osd pool create", pool=POOL, pg_num=8, size=1)
        caps = ["mon", "profile rbd", "osd", f"profile rbd pool={POOL}"]
        user = f"client.{USER}"
        key = client.command("auth get-or-create-key", entity=user, caps=caps, format="plain")
        sys.stdout.write(f"{key.strip()}\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    _run(Path(sys.argv[1]), sys.argv[2])
