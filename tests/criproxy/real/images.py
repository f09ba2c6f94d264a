"""Images made of Debian's busybox-static, as OCI archives: no registry is needed."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

BUSYBOX = "registry.test/busybox:1"
PAUSE = "registry.test/pause:1"
_APPLETS = ("sh", "sleep", "cat", "echo", "nc", "tr", "true", "false", "head", "date")


def _tar(entries: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for info, data in entries:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _entry(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> Any:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname = kind, 0o755, link
    return info, data


def _layer() -> bytes:
    entries = [_entry(d, kind=tarfile.DIRTYPE) for d in ("bin", "proc", "sys", "dev", "etc", "tmp")]
    entries.append(_entry("bin/busybox", Path("/bin/busybox").read_bytes()))
    entries += [_entry(f"bin/{a}", kind=tarfile.SYMTYPE, link="busybox") for a in _APPLETS]
    return _tar(entries)


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def write_image(path: Path, name: str, command: list[str]) -> Path:
    """Write an OCI archive that `ctr images import` takes.

    Args:
        path: the file.
        name: the image's name.
        command: what a container runs that says nothing else.
    """
    layer = _layer()
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": command, "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
    ).encode()
    kind = "application/vnd.oci.image"
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": f"{kind}.manifest.v1+json",
            "config": {
                "mediaType": f"{kind}.config.v1+json",
                "digest": _digest(config),
                "size": len(config),
            },
            "layers": [
                {
                    "mediaType": f"{kind}.layer.v1.tar",
                    "digest": _digest(layer),
                    "size": len(layer),
                }
            ],
        }
    ).encode()
    index = json.dumps(
        {
            "schemaVersion": 2,
            "manifests": [
                {
                    "mediaType": f"{kind}.manifest.v1+json",
                    "digest": _digest(manifest),
                    "size": len(manifest),
                    "annotations": {"io.containerd.image.name": name},
                    "platform": {"architecture": "amd64", "os": "linux"},
                }
            ],
        }
    ).encode()
    blobs = [_entry(f"blobs/sha256/{_digest(b)[7:]}", b) for b in (layer, config, manifest)]
    layout = _entry("oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
    path.write_bytes(_tar([layout, _entry("index.json", index), *blobs]))
    return path
