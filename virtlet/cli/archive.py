"""The archive of a report of trouble: texts that hold no secret, and what could not be had.

Two walls keep secrets out. Documents are made of fields that are known to hold none, and what is
left of free text goes through `scrubbed`, which takes out what looks like one.
"""

import io
import json
import os
import re
import tarfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from virtlet.cli.ending import CommandFailed
from virtlet.errors import VirtletError

LARGEST_TEXT = 16 << 20
"""Characters of one text; of a longer one the end is kept."""
KEPT_ANNOTATIONS = frozenset(
    {
        "VirtletCPUModel",
        "VirtletChown9pfsMounts",
        "VirtletCloudInitImageType",
        "VirtletCloudInitUserDataOverwrite",
        "VirtletCloudInitUserDataSource",
        "VirtletDiskBandwidth",
        "VirtletDiskBandwidthBurst",
        "VirtletDiskDriver",
        "VirtletDiskIOPS",
        "VirtletDiskIOPSBurst",
        "VirtletEmptyDirDisks",
        "VirtletFilesFromDataSource",
        "VirtletFirmware",
        "VirtletFlavor",
        "VirtletForceDHCPNetworkConfig",
        "VirtletMaxMemory",
        "VirtletMaxVCPUCount",
        "VirtletRootVolumeSize",
        "VirtletSSHKeySource",
        "VirtletShareDriver",
        "VirtletSystemUUID",
        "VirtletVCPUCount",
        "io.kubernetes.container.hash",
        "io.kubernetes.container.restartCount",
        "io.kubernetes.container.terminationMessagePolicy",
        "io.kubernetes.pod.terminationGracePeriod",
        "kubernetes.io/config.seen",
        "kubernetes.io/config.source",
        "kubernetes.io/egress-bandwidth",
        "kubernetes.io/ingress-bandwidth",
    }
)
"""Annotations whose values hold nothing secret; of others the size is shown."""
_REMOVED = "[removed]"
_SECRETS = (
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*KEY-----|\Z)", re.S),
    re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"),
    re.compile(r"(?i)(?<=bearer )[\w.~+/=-]+"),
    re.compile(r"(?i)(?<=basic )[\w+/=-]{8,}"),
    re.compile(r"(?<=://)[^/\s@\"']+(?=@)"),
    re.compile(
        r"(?i)(?<![a-z])(?P<keep>[\w-]*(?:passw(?:or)?d|secret|token|signature|credential|api-?key)"
        r"[\w-]*[\"']?\s*[=:]\s*)(?:\"[^\"]*\"|'[^']*'|[^\s\"',;&}{\[\]]+)"
    ),
)
"""A key, a token of a service account, credentials of HTTP and of an address, and what a name calls
a secret."""


def scrubbed(text: str) -> str:
    """A text without what looks like a secret."""
    for pattern in _SECRETS:
        text = pattern.sub(lambda found: f"{found.groupdict().get('keep', '')}{_REMOVED}", text)
    return text


def _cleaned(found: Any) -> Any:
    """A document whose texts are scrubbed."""
    if isinstance(found, Mapping):
        return {key: _cleaned(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [_cleaned(value) for value in found]
    return scrubbed(found) if isinstance(found, str) else found


def kept_annotations(annotations: Mapping[str, str]) -> dict[str, str]:
    """Annotations as they may be shown: user-data, say, by its size alone."""
    return {
        name: text if name in KEPT_ANNOTATIONS else f"[{len(text)} characters]"
        for name, text in annotations.items()
    }


class Archive:
    """Writes a tar.gz of texts.

    Args:
        file: where to.
        top: directory in it that all is below.
    """

    def __init__(self, file: BinaryIO, top: str) -> None:
        self._tar = tarfile.open(fileobj=file, mode="w:gz")  # noqa: SIM115
        self._top = top
        self._problems: list[str] = []

    @property
    def problems(self) -> tuple[str, ...]:
        """What could not be had, and why."""
        return tuple(self._problems)

    def add(self, name: str, produce: Callable[[], Any]) -> None:
        """Write what a function returns, a text or a document; what fails is a problem.

        Args:
            name: path in the archive.
            produce: raises CommandFailed, VirtletError or OSError where there is nothing.
        """
        try:
            made = produce()
        except (CommandFailed, VirtletError, OSError) as error:
            self._problems.append(scrubbed(f"{name}: {error}"))
            return
        if made is None:
            return
        self.write(name, made)

    def write(self, name: str, made: Any) -> None:
        """Write a text or a document, without what looks like a secret."""
        text = scrubbed(made) if isinstance(made, str) else json.dumps(_cleaned(made), indent=2)
        if len(text) > LARGEST_TEXT:
            text = (
                f"[the first {len(text) - LARGEST_TEXT} characters are left out]\n"
                + (text[-LARGEST_TEXT:])
            )
        data = text.encode(errors="replace")
        entry = tarfile.TarInfo(f"{self._top}/{name}")
        entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
        self._tar.addfile(entry, io.BytesIO(data))

    def close(self) -> None:
        """Write what could not be had, and end the archive."""
        if self._problems:
            self.write("problems.txt", "\n".join(self._problems) + "\n")
        self._tar.close()


def create(path: str, standard: BinaryIO) -> BinaryIO:
    """A new file for its owner alone; - is `standard`.

    Raises:
        CommandFailed: there is such a file.
    """
    if path == "-":
        return standard
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise CommandFailed(f"{path} is there already: name another file") from None
    return os.fdopen(descriptor, "wb")


def default_name(what: str) -> str:
    """A file of this moment in the working directory."""
    return str(Path(f"virtlet-diag-{what}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.tar.gz"))
