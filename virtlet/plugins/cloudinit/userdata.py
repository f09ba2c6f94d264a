"""user-data: files, mounts and commands, and what the pod adds."""

import base64
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import frozen

from virtlet.errors import InvalidArgument
from virtlet.host.guest_files import GuestFile, read_all
from virtlet.model.disk import GuestFiles, Share, Volume
from virtlet.model.vm import Vm
from virtlet.plugins.cloudinit.guest_scripts import (
    MARK_CONFIGURED,
    MOUNT_SCRIPT,
    OWNER_SCRIPT,
    PER_BOOT,
    RESOLVER_SCRIPT,
    SYMLINK_SCRIPT,
    mount_body,
    outer_first,
    owner_body,
    parent_directories,
    resolver_body,
    script_file,
    share_options,
    symlink_body,
    whole_body,
)
from virtlet.plugins.cloudinit.object_sources import Sources
from virtlet.plugins.cloudinit.seed_annotations import (
    FILES_SOURCE,
    USER_DATA,
    USER_DATA_OVERWRITE,
    USER_DATA_SCRIPT,
    USER_DATA_SOURCE_KEY,
)
from virtlet.plugins.cloudinit.sysctls import SYSCTL_COMMAND, SYSCTL_FILE, sysctl_conf

ENVIRONMENT = "/etc/cloud/environment"
PLACEHOLDER = "@virtlet-mount-script@"
UNASKED = frozenset({"/etc/hosts", "/var/run/secrets/kubernetes.io/serviceaccount"})
"""Where the kubelet mounts files that the pod did not ask for."""
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@frozen
class UserData:
    """Either a cloud-config document or a script."""

    document: Mapping[str, Any]
    overrides: frozenset[str] = frozenset()
    script: str | None = None


def user_data(vm: Vm, volumes: Sequence[Volume], sources: Sources) -> UserData:
    """The user-data of a VM.

    Args:
        vm: whose it is.
        volumes: that it has.
        sources: what its pod takes from objects of the cluster.

    Raises:
        InvalidArgument, FailedPrecondition, ResourceExhausted: a file cannot be carried over.
    """
    script = USER_DATA_SCRIPT.of(vm.pod) or sources.script
    if script:
        if PLACEHOLDER in script:
            files = _files(vm, volumes, sources)
            body = whole_body(volumes, files, vm.network.dns.options)
            script = script.replace(PLACEHOLDER, body)
        else:
            _check_complete(vm, volumes)
        return UserData({}, script=script)
    added, over = USER_DATA.of(vm.pod), USER_DATA_OVERWRITE.of(vm.pod)
    added = {**sources.user_data, **added} if over else merge_over(added, sources.user_data)
    generated = _generated(vm, volumes, sources, marked="runcmd" in added)
    if over:
        return UserData(_over(generated, added), overrides=frozenset(added))
    return UserData(merge_over(generated, added))


def _check_complete(vm: Vm, volumes: Iterable[Volume]) -> None:
    """Refuse files that a script without the placeholder leaves out.

    Shared directories and disks are attached in any case, so that the script can mount them.
    """
    name = USER_DATA_SCRIPT.name if USER_DATA_SCRIPT.of(vm.pod) else USER_DATA_SOURCE_KEY.name
    paths = [v.guest_path.rstrip("/") for v in volumes if isinstance(v, GuestFiles)]
    lost = [path for path in paths if path not in UNASKED]
    if lost:
        raise InvalidArgument(
            f"pod {vm.pod.name}: annotation {name} is the whole user-data, so "
            f"nothing writes the files mounted at {', '.join(lost)}: put {PLACEHOLDER} on a line "
            "of the script, or take the mounts out"
        )
    if FILES_SOURCE.of(vm.pod):
        raise InvalidArgument(
            f"pod {vm.pod.name}: annotation {name} is the whole user-data, so nothing writes the "
            f"files of {FILES_SOURCE.name}: put {PLACEHOLDER} on a line of the script, or take "
            "the files out"
        )


def _over(generated: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """The generated document with the pod's keys in place of its own.

    Of `write_files` only entries of the same path are replaced, however it is written: the others
    are what the pod mounts, and what the other generated keys need.
    """
    document = {**generated, **added}
    mine, theirs = generated.get("write_files"), added.get("write_files")
    if mine and "write_files" in added:
        if not isinstance(theirs, list):
            raise InvalidArgument(
                f"annotation {USER_DATA.name}: write_files is not a list of files"
            )
        taken = {_file_path(entry, number) for number, entry in enumerate(theirs, 1)}
        kept = [entry for entry in mine if _normal(entry["path"]) not in taken]
        document["write_files"] = kept + theirs
    return document


def _file_path(entry: Any, number: int) -> str:
    """Where an entry of the pod's `write_files` puts its file."""
    path = entry.get("path") if isinstance(entry, Mapping) else None
    if not isinstance(path, str) or not path:
        raise InvalidArgument(
            f"annotation {USER_DATA.name}: write_files: entry {number} has no path that is a text"
        )
    return _normal(path)


def _normal(path: str) -> str:
    """As cloud-init takes a path: absolute and without needless parts."""
    return posixpath.normpath(f"///{path}")


def merge_over(base: Any, addition: Any) -> Any:
    """cloud-init's merge of two documents: mappings recurse, lists append, the later wins.

    Source: "Merging user-data sections" of cloud-init, `list(append)+dict(recurse_array)`.
    """
    if isinstance(base, Mapping) and isinstance(addition, Mapping):
        merged = dict(base)
        for key, value in addition.items():
            merged[key] = merge_over(base[key], value) if key in base else value
        return merged
    if isinstance(base, list) and isinstance(addition, list):
        return base + addition
    return addition


def environment(envs: Iterable[tuple[str, str]]) -> str:
    """`key=value` a line; a value of several lines is quoted as shells and systemd read it."""
    lines = []
    for name, value in envs:
        if "\n" in value:
            for special in '\\"$`':
                value = value.replace(special, "\\" + special)
            value = f'"{value}"'
        lines.append(f"{name}={value}\n")
    return "".join(lines)


def _files(vm: Vm, volumes: Iterable[Volume], sources: Sources) -> list[GuestFile]:
    files = list(sources.files)
    if vm.config.envs:
        files.append(GuestFile(ENVIRONMENT, environment(vm.config.envs).encode(), 0o600))
    return files + read_all(v for v in volumes if isinstance(v, GuestFiles))


def _generated(
    vm: Vm, volumes: Sequence[Volume], sources: Sources, *, marked: bool
) -> dict[str, Any]:
    files = _files(vm, volumes, sources)
    commands: list[str] = []

    def add(path: str, body: str, command: str) -> None:
        if body:
            files.append(GuestFile(path, script_file(body), 0o755))
            commands.append(command)

    add(OWNER_SCRIPT, owner_body(files), OWNER_SCRIPT)
    add(MOUNT_SCRIPT, mount_body(volumes), MOUNT_SCRIPT)
    # Links below /dev are gone after a reboot.
    add(SYMLINK_SCRIPT, symlink_body(volumes), _at_every_boot(SYMLINK_SCRIPT))
    # DHCP clients write the resolver's file again.
    add(RESOLVER_SCRIPT, resolver_body(vm.network.dns.options), _at_every_boot(RESOLVER_SCRIPT))
    settings = sysctl_conf(vm.pod)
    if settings:
        files.append(GuestFile(SYSCTL_FILE, settings.encode(), 0o644))
        commands.append(SYSCTL_COMMAND)
    if marked:
        # The owner's commands come next, and may take long.
        commands.append(MARK_CONFIGURED)
    mounted = {v.guest_path.rstrip("/") for v in outer_first(volumes)}
    document = {
        "write_files": [_write_file(file, mounted) for file in files],
        "mounts": _mounts(volumes),
        "runcmd": commands,
        # A root disk that outlives its pod has the address of the last one.
        "updates": {"network": {"when": ["boot-new-instance", "boot"]}} if _outlives(vm) else None,
    }
    return {key: value for key, value in document.items() if value}


def _outlives(vm: Vm) -> bool:
    """Whether the pod has a root disk of its own that later pods start from too."""
    return any(device.guest_path == "/" for device in vm.config.devices)


def _at_every_boot(script: str) -> str:
    """A command that runs a script now, and has cloud-init run it at every boot."""
    return f"mkdir -p {PER_BOOT} && ln -sf {script} {PER_BOOT}/ && {script}"


def _write_file(file: GuestFile, mounted: set[str]) -> dict[str, Any]:
    entry: dict[str, Any] = {"path": file.path, "permissions": f"{file.mode:04o}"}
    text = _text(file.content)
    if text is None:
        entry |= {"encoding": "b64", "content": base64.b64encode(file.content).decode()}
    else:
        entry["content"] = text
    if mounted.intersection(parent_directories(file.path)):
        # Else it would be hidden by what is mounted over it later.
        entry["defer"] = True
    return entry


def _text(content: bytes) -> str | None:
    """The content as text; None if it is not UTF-8, or has control characters."""
    if _CONTROL.search(content):
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


def _mounts(volumes: Sequence[Volume]) -> list[list[str]]:
    """fstab lines of the shared directories; disks are left to the script, which finds them."""
    return [
        [v.tag, v.guest_path, v.driver, f"{share_options(v)},nofail", "0", "0"]
        for v in outer_first(volumes)
        if isinstance(v, Share)
    ]
