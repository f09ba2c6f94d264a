"""Boots the tiny guest directly under QEMU and talks to it: console, QMP, guest agent."""

import io
import json
import os
import re
import selectors
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pycdlib

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "images" / "tiny" / "build.sh"
# An emulated guest needs 5 s on an idle machine; tests may share theirs.
BOOT_SECONDS = 90.0


def make_seed(path: Path, label: str = "cidata", **documents: object) -> Path:
    """Writes a cloud-init seed; `meta_data={...}` becomes the file meta-data, and so on.

    A name with folders is taken as it is. Strings are written so too, anything else as JSON.
    """
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, vol_ident=label, rock_ridge="1.09")
    for number, (name, content) in enumerate(documents.items()):
        text = content if isinstance(content, str) else json.dumps(content)
        data = text.encode()
        *folders, file = name.split("/")
        place = ""
        for folder in folders:
            place += "/" + folder.upper()
            iso.add_directory(place, rr_name=folder)
        file = file if folders else file.replace("_", "-")
        iso.add_fp(io.BytesIO(data), len(data), f"{place}/F{number}.;1", rr_name=file)
    iso.write(str(path))
    iso.close()
    return path


def free_port() -> int:
    """A TCP port of the loopback interface that nobody uses right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class JsonSocket:
    """A unix socket that speaks JSON documents, one a line: QMP and the guest agent."""

    def __init__(self, path: Path, timeout: float = 60.0) -> None:
        """Connects; `timeout` in seconds holds for every answer."""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("rw", encoding="utf-8")

    def read(self) -> dict[str, Any]:
        """The next document."""
        document: dict[str, Any] = json.loads(self._file.readline())
        return document

    def ask(self, command: str, **arguments: object) -> Any:
        """Sends a command and returns what its answer holds; events before it are dropped."""
        document: dict[str, object] = {"execute": command}
        if arguments:
            document["arguments"] = arguments
        self._file.write(json.dumps(document) + "\n")
        self._file.flush()
        while True:
            answer = self.read()
            if "return" in answer or "error" in answer:
                assert "return" in answer, answer
                return answer["return"]

    def wait_event(self, name: str) -> dict[str, Any]:
        """Reads until an event of that name comes."""
        while True:
            document = self.read()
            if document.get("event") == name:
                return document

    def __enter__(self) -> "JsonSocket":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()


class Guest:
    """One QEMU with the tiny guest; a context manager that leaves no process behind."""

    def __init__(
        self,
        image: Path,
        directory: Path,
        *arguments: str,
        machine: str = "q35",
        disk: Sequence[str] = ("-device", "virtio-blk-pci,drive=root"),
        network: Sequence[str] = ("-nic", "none"),
        wrapper: Sequence[str] = (),
    ) -> None:
        """Starts it.

        `disk` attaches the drive named root, whose writes are lost; `wrapper` is put before
        QEMU's command line.
        """
        self.qmp_path = directory / "qmp"
        self.agent_path = directory / "agent"
        self.transcript = ""
        self._text = ""
        drive = f"if=none,id=root,file={image},format=qcow2,snapshot=on"
        self._process = subprocess.Popen(
            [
                *wrapper,
                # QEMU 10.0 aborts now and then when vCPUs with a thread each meet a change of the
                # memory map ("iotlb_to_section: Assertion").
                *("qemu-system-x86_64", "-machine", machine, "-accel", "tcg,thread=single"),
                *("-cpu", "qemu64"),
                *("-m", "256", "-nodefaults", "-display", "none", "-no-reboot"),
                *("-serial", "stdio", "-drive", drive, *disk, *network),
                *("-qmp", f"unix:{self.qmp_path},server=on,wait=off"),
                *("-chardev", f"socket,id=agent,path={self.agent_path},server=on,wait=off"),
                *("-device", "virtio-serial-pci", "-device", "virtio-rng-pci"),
                *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
                *arguments,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input = self._process.stdin
        self._output = self._process.stdout
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._output, selectors.EVENT_READ)

    def __enter__(self) -> "Guest":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._selector.close()
        self._input.close()
        self._output.close()

    def wait_for(self, pattern: str, seconds: float = BOOT_SECONDS) -> re.Match[str]:
        """Waits until the console shows `pattern` after what was waited for before."""
        end = time.monotonic() + seconds
        while True:
            found = re.search(pattern, self._text)
            if found:
                self._text = self._text[found.end() :]
                return found
            left = end - time.monotonic()
            assert left > 0, f"no {pattern!r} on the console within {seconds} s:\n{self._text}"
            if self._selector.select(left):
                data = os.read(self._output.fileno(), 65536)
                assert data, f"QEMU ended before {pattern!r}:\n{self._text}"
                text = data.decode(errors="replace").replace("\r", "")
                self._text += text
                self.transcript += text

    def wait_user_data(self) -> None:
        """Waits for the end of the user-data, which runs beside the login."""
        if "user-data finished" not in self.transcript:
            self.wait_for("user-data finished")

    def login(self) -> None:
        """Logs in on the console as root, who has no password."""
        self.wait_for(r"login: ")
        self.type("root")
        self.wait_for(r":~# ")
        # The kernel's messages would stand between the lines of what `run` returns.
        self.type("dmesg -n 1")

    def run(self, command: str) -> str:
        """What a command prints, run by the shell on the console; it has to succeed."""
        # The words are split, so that the echo of the command line is not taken for them.
        self.type(f"echo beg''in; {command}; echo e''nd=$?")
        found = self.wait_for(r"(?s)begin\n(.*?)end=(\d+)\n", 120)
        assert found[2] == "0", found[0]
        return found[1]

    def type(self, line: str) -> None:
        """Types a line on the console."""
        self._input.write(line.encode() + b"\n")
        self._input.flush()

    def qmp(self) -> JsonSocket:
        """A QMP connection, ready for commands."""
        qmp = JsonSocket(self.qmp_path)
        qmp.read()
        qmp.ask("qmp_capabilities")
        return qmp

    def wait_end(self, seconds: float) -> int:
        """Waits for QEMU to end by itself and returns its exit status."""
        return self._process.wait(seconds)
