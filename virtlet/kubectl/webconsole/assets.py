"""The files that a browser may have: the console's own, and those of noVNC and xterm.js."""

from collections.abc import Mapping
from pathlib import Path

from attrs import frozen

from virtlet.cli.ending import CommandFailed

_HERE = Path(__file__).parent / "page"
NOVNC = Path("/usr/share/novnc")
XTERM = Path("/usr/share/nodejs/xterm")


@frozen
class Assets:
    """Files by the path of their address; nothing else is read."""

    files: Mapping[str, Path]

    @classmethod
    def find(cls, novnc: Path = NOVNC, xterm: Path = XTERM) -> "Assets":
        """Those of this machine.

        Args:
            novnc: Debian's package novnc, or npm's @novnc/novnc.
            xterm: Debian's package node-xterm, or npm's @xterm/xterm.

        Raises:
            CommandFailed: one of them is not installed.
        """
        files = {
            "/": _HERE / "index.html",
            "/console.js": _HERE / "console.js",
            "/sessions.js": _HERE / "sessions.js",
            "/console.css": _HERE / "console.css",
            "/xterm/xterm.js": xterm / "lib" / "xterm.js",
            "/xterm/xterm.css": xterm / "css" / "xterm.css",
            "/novnc/core/rfb.js": novnc / "core" / "rfb.js",
        }
        for path, file in files.items():
            if not file.is_file():
                package, option = (
                    ("node-xterm", "xterm") if path.startswith("/xterm/") else ("novnc", "novnc")
                )
                raise CommandFailed(
                    f"the web console needs {file}, which is not there: install Debian's package "
                    f"{package}, or name the directory of npm's by --{option}"
                )
        for directory in ("core", "vendor"):
            for file in (novnc / directory).rglob("*.js"):
                files[f"/novnc/{file.relative_to(novnc)}"] = file
        return cls(files)
