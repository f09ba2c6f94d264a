"""A mounted file that ends in .img is a disk of the VM, a copy of its own."""

from virtlet.api import (
    Disk,
    Node,
    Settings,
    Vm,
    Volume,
    VolumeRequest,
    hookimpl,
    new_disk_file,
    remove_file,
    run,
)

COPY_SECONDS = 600


class Plugin:
    """Serves a mount of the pod, and takes away what it made for it."""

    VIRTLET_HOOK_API = 1

    @hookimpl
    def virtlet_configure(self, settings: Settings, node: Node) -> None:
        """Remember the emulator's user, whose the disk has to be."""
        self._uid, self._gid = node.emulator_uid, node.emulator_gid

    @hookimpl
    def virtlet_volume(self, vm: Vm, request: VolumeRequest) -> Volume | None:
        """Make the disk; None leaves a mount to other plugins."""
        source = request.source
        if not source.host_path.endswith(".img"):
            return None
        path = vm.directory / request.role
        with new_disk_file(path, self._uid, self._gid) as descriptor:
            copy = ["cp", "--sparse=always", source.host_path, f"/proc/self/fd/{descriptor}"]
            run(copy, timeout=COPY_SECONDS, pass_fds=(descriptor,))
        return Disk(path=path, format="raw", serial=request.role, guest_path=source.guest_path)

    @hookimpl
    def virtlet_release_volume(self, vm: Vm, request: VolumeRequest, volume: Volume | None) -> None:
        """Remove it, finished or not; `volume` is None after a crash or an error."""
        remove_file(vm.directory / request.role)
