"""The same work as a pod's start and stop, done by a plain script: no manager, no safety.

A pod comes up by CNI's ADD with the node's own configuration, a qcow2 overlay, a seed and
libvirt's define and create, and goes by destroy, undefine, CNI's DEL and deleting the files. It
has no NIC, so nothing bridges a tap and nothing serves DHCP; nothing is checked, written down or
followed.

The script is one process with one connection to an embedded libvirt of its own, which is open
before anything is timed. It reads commands, one line of JSON each: {"do": "up" or "down",
"names": [...]}. All names are worked on at a time, and the answer is the seconds that each took.
"""

import ctypes
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import libvirt
import pycdlib

from virtlet.host import netns

QEMU = "/usr/bin/qemu-system-x86_64"
_PR_SET_CHILD_SUBREAPER = 36
"""From <sys/prctl.h>."""
QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
ElementTree.register_namespace("qemu", QEMU_NAMESPACE)

SEED = {
    "meta-data": b'{"instance-id":"plain.default","local-hostname":"plain"}\n',
    "user-data": b"#!/bin/sh\necho hello\n",
    "network-config": b'{"version":1,"config":[{"type":"physical","name":"eth0"}]}\n',
}


class Script:
    """What all its pods share.

    Args:
        place: `directory` (an existing one of ours), `conflist` and `cni_bin` (CNI's
            configuration and plugins), `image` (the backing file), `domain` (a domain document to
            take after), `uid` and `gid` (the emulator's user), `qemu_conf` (its driver's).
    """

    def __init__(self, place: dict[str, Any]) -> None:
        self.directory = Path(place["directory"])
        self.network = json.loads(Path(place["conflist"]).read_text())
        self.cni_bin = Path(place["cni_bin"])
        self.image = place["image"]
        self.domain = Path(place["domain"]).read_text()
        self.owner = (place["uid"], place["gid"])
        root = self.directory / "libvirt"
        (root / "etc").mkdir(parents=True)
        root.chmod(0o711)
        shutil.copy(place["qemu_conf"], root / "etc/qemu.conf")
        self.connection = _open_libvirt(root)

    def up(self, name: str) -> float:
        """Start a pod; returns the seconds it took."""
        started = time.perf_counter()
        directory = self.directory / name
        directory.mkdir(mode=0o700)
        os.chown(directory, *self.owner)
        netns.create(self._namespace(name))
        self._cni("ADD", name)
        self._make_overlay(directory / "root.qcow2")
        self._make_seed(directory / "seed.iso")
        domain = self.connection.defineXML(self._document(name, directory))
        domain.create()
        pid = int((self.directory / f"libvirt/run/qemu/{name}.pid").read_text())
        threading.Thread(target=os.waitpid, args=(pid, 0), daemon=True).start()
        return time.perf_counter() - started

    def down(self, name: str) -> float:
        """Take a pod away; returns the seconds it took."""
        started = time.perf_counter()
        domain = self.connection.lookupByUUIDString(_uuid(name))
        domain.destroy()
        domain.undefine()
        self._cni("DEL", name)
        netns.delete(self._namespace(name))
        shutil.rmtree(self.directory / name)
        (self.directory / f"libvirt/log/qemu/{name}.log").unlink()
        return time.perf_counter() - started

    def _namespace(self, name: str) -> Path:
        return self.directory / f"{name}.netns"

    def _cni(self, command: str, name: str) -> None:
        environment = {
            **os.environ,
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": name,
            "CNI_NETNS": str(self._namespace(name)),
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.cni_bin),
        }
        kept = self.directory / name / "cni.json"
        previous = json.loads(kept.read_text()) if kept.exists() else None
        plugins = self.network["plugins"]
        for plugin in plugins if command == "ADD" else reversed(plugins):
            config = {k: v for k, v in plugin.items() if k != "capabilities"}
            config["name"] = self.network["name"]
            config["cniVersion"] = self.network["cniVersion"]
            if previous:
                config["prevResult"] = previous
            done = subprocess.run(
                [self.cni_bin / plugin["type"]],
                input=json.dumps(config).encode(),
                env=environment,
                stdout=subprocess.PIPE,
                check=True,
            )
            if command == "ADD":
                previous = json.loads(done.stdout)
        if command == "ADD":
            kept.write_text(json.dumps(previous))

    def _make_overlay(self, path: Path) -> None:
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", self.image]
        subprocess.run([*argv, str(path)], check=True)
        os.chown(path, *self.owner)

    def _make_seed(self, path: Path) -> None:
        iso = pycdlib.PyCdlib()
        iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
        for number, (name, content) in enumerate(SEED.items()):
            iso.add_fp(
                io.BytesIO(content),
                len(content),
                f"/F{number}.;1",
                rr_name=name,
                joliet_path=f"/{name}",
            )
        iso.write(str(path))
        iso.close()
        os.chown(path, *self.owner)

    def _document(self, name: str, directory: Path) -> str:
        """The manager's document with our paths, a real emulator and a console in a file."""
        domain = ElementTree.fromstring(self.domain)
        _find(domain, "name").text = name
        _find(domain, "uuid").text = _uuid(name)
        _find(domain, "devices/emulator").text = QEMU
        for element in ("metadata", f"{{{QEMU_NAMESPACE}}}commandline"):
            for found in domain.findall(element):
                domain.remove(found)
        entry = domain.find("sysinfo/system/entry[@name='uuid']")
        if entry is not None:
            entry.text = _uuid(name)
        for source in domain.findall("devices/disk/source"):
            source.set("file", str(directory / Path(source.get("file", "")).name))
        for tag in ("serial", "console"):
            device = _find(domain, f"devices/{tag}")
            device.set("type", "file")
            _find(device, "source").set("path", str(directory / "console"))
        for source in domain.findall("devices/channel/source"):
            source.set("path", str(directory / "agent.sock"))
        return ElementTree.tostring(domain, encoding="unicode")


def _open_libvirt(root: Path) -> Any:
    """An embedded driver that is ready and knows the emulator."""
    # Emulators are daemons. Where init reaps such orphans late, libvirt's destroy takes a second
    # or two. The manager reaps them itself; a script that did not would be beaten too easily.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    libvirt.virEventRegisterDefaultImpl()
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    threading.Thread(target=_run_events, daemon=True).start()
    connection = libvirt.open(f"qemu:///embed?root={root}")
    known = threading.Event()
    threading.Thread(target=_reap_probes, args=(known,)).start()
    connection.getDomainCapabilities(QEMU, "x86_64", "q35", "qemu")
    known.set()
    return connection


def _reap_probes(known: threading.Event) -> None:
    """Reap the daemons that libvirt starts to learn what the emulator can."""
    while not known.wait(0.01):
        for listing in Path("/proc/self/task").glob("*/children"):
            for pid in map(int, listing.read_text().split()):
                if os.getsid(pid) not in (pid, os.getsid(0)):
                    os.waitpid(pid, os.WNOHANG)


def _run_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def _find(element: ElementTree.Element, path: str) -> ElementTree.Element:
    found = element.find(path)
    if found is None:
        raise LookupError(f"the domain document has no <{path}>")
    return found


def _uuid(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, name))


def main() -> None:
    """Serve commands until the input ends."""
    script = Script(json.loads(sys.argv[1]))
    print(json.dumps("ready"), flush=True)
    with ThreadPoolExecutor(32) as pool:
        for line in sys.stdin:
            command = json.loads(line)
            work = script.up if command["do"] == "up" else script.down
            print(json.dumps(list(pool.map(work, command["names"]))), flush=True)


if __name__ == "__main__":
    main()
