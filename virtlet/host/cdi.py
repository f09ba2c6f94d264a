"""CDI: what the names of devices stand for, as device plugins and DRA drivers write it down.

Source: SPEC.md of the Container Device Interface, version 1.0. Of the edits of a container a VM
has device nodes, mounts and variables. Hooks are programs that change the root of a container, and
a VM has none; they are left out, as are its limits of caches and further groups.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from virtlet.errors import FailedPrecondition, InvalidArgument
from virtlet.model.bounded_yaml import load_yaml
from virtlet.model.plain import quote
from virtlet.model.vm import Device, Mount

DIRECTORIES = (Path("/etc/cdi"), Path("/var/run/cdi"))
"""Where specs are; those of a later directory win."""
_MOST = 1 << 20
"""Characters of a spec."""


@frozen(kw_only=True)
class Edits:
    """What named devices bring."""

    devices: tuple[Device, ...] = ()
    mounts: tuple[Mount, ...] = ()
    envs: tuple[tuple[str, str], ...] = ()


def resolve(names: Sequence[str], directories: Sequence[Path] = DIRECTORIES) -> Edits:
    """What some devices bring; nothing is read where there are none.

    Args:
        names: as `vendor.com/class=device`.
        directories: with specs, the last of which wins.

    Raises:
        InvalidArgument: a name has another form.
        FailedPrecondition: no spec has a device, two of one directory have it, or what it takes is
            nothing that a VM can have.
    """
    if not names:
        return Edits()
    devices: list[Device] = []
    mounts: list[Mount] = []
    envs: dict[str, str] = {}
    specs, broken = _specs(directories)
    used: list[Path] = []
    for name in dict.fromkeys(names):
        kind, equals, short = name.partition("=")
        if not (equals and short and "/" in kind):
            raise InvalidArgument(
                f"CDI_devices: {quote(name)} must be VENDOR/CLASS=DEVICE, as vendor.com/gpu=0"
            )
        file, spec, device = _find(specs, broken, kind, short)
        parts = [device] if file in used else [spec, device]
        used.append(file)
        for part in parts:
            edits = part.get("containerEdits") or {}
            try:
                devices += map(_device, edits.get("deviceNodes") or ())
                mounts += map(_mount, edits.get("mounts") or ())
                envs |= dict(str(env).split("=", 1) for env in edits.get("env") or ())
                refused = edits.get("netDevices")
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise FailedPrecondition(
                    f"CDI device {quote(name)}: {file} is no CDI spec ({error!r})"
                ) from None
            if refused:
                raise FailedPrecondition(
                    f"CDI device {quote(name)} moves a network interface into a container, which a "
                    "VM has none of: use a network of the CNI for it, or the device by vfio-pci"
                )
    return Edits(
        devices=tuple(dict.fromkeys(devices)),
        mounts=tuple(dict.fromkeys(mounts)),
        envs=tuple(envs.items()),
    )


_Specs = list[list[tuple[Path, Mapping[str, Any]]]]


def _specs(directories: Sequence[Path]) -> tuple[_Specs, list[str]]:
    """The specs of each directory, the one that wins first; and which files are none."""
    found: _Specs = []
    broken = []
    for directory in reversed(directories):
        here = []
        for file in _files(directory):
            try:
                text = file.read_text()
                spec = load_yaml(text) if len(text) <= _MOST else None
            except (OSError, ValueError):
                spec = None
            if isinstance(spec, Mapping) and isinstance(spec.get("devices"), list):
                here.append((file, spec))
            else:
                broken.append(str(file))
        found.append(here)
    return found, broken


def _files(directory: Path) -> Iterator[Path]:
    if directory.is_dir():
        yield from sorted(f for f in directory.iterdir() if f.suffix in (".json", ".yaml", ".yml"))


def _find(
    specs: _Specs, broken: Sequence[str], kind: str, short: str
) -> tuple[Path, Mapping[str, Any], Mapping[str, Any]]:
    """File, spec and device of a name."""
    for directory in specs:
        found = [
            (file, spec, device)
            for file, spec in directory
            for device in spec["devices"]
            if spec.get("kind") == kind
            and isinstance(device, Mapping)
            and str(device.get("name")) == short
        ]
        if len(found) > 1:
            files = " and ".join(str(file) for file, _, _ in found)
            raise FailedPrecondition(
                f"CDI device {quote(f'{kind}={short}')} is in {files}: remove the one that is stale"
            )
        if found:
            return found[0]
    hint = f"; no CDI spec: {', '.join(broken)}" if broken else ""
    raise FailedPrecondition(
        f"no CDI spec of this node has the device {quote(f'{kind}={short}')}: see whether its "
        f"device plugin or DRA driver runs{hint}"
    )


def _device(node: Mapping[str, Any]) -> Device:
    path = _absolute(node["path"])
    return Device(
        guest_path=path,
        host_path=_absolute(node.get("hostPath") or path),
        permissions=str(node.get("permissions") or "rw"),
    )


def _mount(mount: Mapping[str, Any]) -> Mount:
    return Mount(
        guest_path=_absolute(mount["containerPath"]),
        host_path=_absolute(mount["hostPath"]),
        readonly="ro" in (mount.get("options") or ()),
    )


def _absolute(path: Any) -> str:
    text = str(path)
    if not text.startswith("/") or "\0" in text:
        raise ValueError(f"{quote(text)} is no absolute path")
    return text
