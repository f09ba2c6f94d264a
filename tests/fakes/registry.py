"""Debian's docker-registry, run for a test on the loopback interface."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

PROGRAM = (
    Path(__file__).parents[2] / "build" / "docker-registry" / "usr" / "bin" / "docker-registry"
)
USER, PASSWORD = "me", "my secret"
_HASHED = "$2b$05$abcdefghijklmnopqrstuupqLg1BL33hGD7CWEqEy2bQnsGrjuIku"
"""bcrypt's of that password, of the least cost."""
_LISTENING = re.compile(r"listening on (127\.0\.0\.1:\d+)")


@contextmanager
def docker_registry(
    directory: Path, *, secret: bool = False, tls: tuple[Path, Path] | None = None
) -> Iterator[str]:
    """Run a registry; yields its `HOST:PORT`.

    Args:
        directory: for all that it keeps; made.
        secret: whether it asks for USER and PASSWORD.
        tls: files of its certificate and key; without them it speaks plain HTTP.
    """
    directory.mkdir()
    http: dict[str, Any] = {"addr": "127.0.0.1:0", "secret": "of no use"}
    if tls is not None:
        http["tls"] = {"certificate": str(tls[0]), "key": str(tls[1])}
    configuration: dict[str, Any] = {
        "version": "0.1",
        "storage": {"filesystem": {"rootdirectory": str(directory / "data")}},
        "http": http,
    }
    if secret:
        users = directory / "htpasswd"
        users.write_text(f"{USER}:{_HASHED}\n")
        configuration["auth"] = {"htpasswd": {"realm": "tests", "path": str(users)}}
    file = directory / "config.yml"
    file.write_text(yaml.safe_dump(configuration))
    with subprocess.Popen(
        [PROGRAM, "serve", file], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if match := _LISTENING.search(line):
                    break
            else:
                raise AssertionError(f"the registry does not start: {''.join(said)}")
            yield match[1]
        finally:
            process.kill()
