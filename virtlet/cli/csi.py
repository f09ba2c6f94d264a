"""`virtlet csi`: the CSI driver `virtlet.cloud` of a node, for inline volumes that become disks.

It keeps the attributes of a volume where the manager finds them, as the FlexVolume driver does, and
needs neither the manager nor a cluster. Sources: "Node Service RPC" of the Container Storage
Interface, and "Device plugin registration" of Kubernetes' pluginregistration v1.
"""

import base64
import contextlib
import json
import os
import platform
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import click
import grpc

import virtlet
from virtlet.cli.ending import Ended, ended_by_signals
from virtlet.cri.csi import csi_pb2 as csi
from virtlet.cri.csi import registration_pb2 as registration
from virtlet.errors import VirtletError
from virtlet.host.commands import run
from virtlet.host.files import write_atomically
from virtlet.model.quantity import parse_bytes
from virtlet.plugins.volumes.ceph import SECRETS
from virtlet.plugins.volumes.flexvolume import CSI_DRIVER, OPTIONS_FILE, check_options

_EPHEMERAL = "csi.storage.k8s.io/ephemeral"
_KUBERNETES = "csi.storage.k8s.io/"
_Method = Callable[[Any, grpc.ServicerContext], Any]
_GRACE = 5.0
"""Seconds for calls under way at the end."""


@click.command("csi")
@click.option(
    "--socket",
    type=click.Path(path_type=Path),
    default=f"/var/lib/kubelet/plugins/{CSI_DRIVER}/csi.sock",
    show_default=True,
    help="Where the kubelet calls the driver.",
)
@click.option(
    "--registration",
    "registry",
    type=click.Path(path_type=Path),
    default=f"/var/lib/kubelet/plugins_registry/{CSI_DRIVER}-reg.sock",
    show_default=True,
    help="Where the kubelet learns of the driver.",
)
@click.option("--node", default=platform.node, help="Name of the node; its host name unless said.")
def csi_command(socket: Path, registry: Path, node: str) -> None:
    """Serve the CSI driver virtlet.cloud until SIGTERM; volumes stay as they are."""
    with contextlib.suppress(Ended), ended_by_signals(), serving(socket, registry, node):
        threading.Event().wait()


@contextlib.contextmanager
def serving(socket: Path, registry: Path, node: str) -> Iterator[None]:
    """Serve driver and registration in the block.

    Args:
        socket: of the driver.
        registry: of the registration; the kubelet takes the driver when it appears.
        node: name of the node.

    Raises:
        OSError: a socket cannot be made.
    """
    for path in (socket, registry):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
    server = grpc.server(ThreadPoolExecutor(4, "csi"))
    server.add_generic_rpc_handlers([_registration(socket), _identity(), _Node(node).handler()])
    mask = os.umask(0o077)  # nobody but root calls
    try:
        for path in (socket, registry):
            server.add_insecure_port(f"unix:{path}")
    finally:
        os.umask(mask)
    server.start()
    try:
        yield
    finally:
        # First, so that the kubelet lets go of the driver.
        registry.unlink(missing_ok=True)
        server.stop(_GRACE).wait()
        socket.unlink(missing_ok=True)


def _handler(service: str, methods: Mapping[str, tuple[type[Any], _Method]]) -> Any:
    """A service of gRPC.

    Args:
        service: its full name.
        methods: name of each call to the kind of its request, and what answers it.
    """
    return grpc.method_handlers_generic_handler(
        service,
        {
            name: grpc.unary_unary_rpc_method_handler(
                method,
                request_deserializer=kind.FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )
            for name, (kind, method) in methods.items()
        },
    )


def _registration(socket: Path) -> Any:
    info = registration.PluginInfo(
        type="CSIPlugin", name=CSI_DRIVER, endpoint=str(socket), supported_versions=["1.0.0"]
    )

    def notify(status: registration.RegistrationStatus, _context: Any) -> Any:
        if not status.plugin_registered:
            click.echo(f"virtlet csi: the kubelet refuses the driver: {status.error}", err=True)
        return registration.RegistrationStatusResponse()

    return _handler(
        "pluginregistration.Registration",
        {
            "GetInfo": (registration.InfoRequest, lambda _, __: info),
            "NotifyRegistrationStatus": (registration.RegistrationStatus, notify),
        },
    )


def _identity() -> Any:
    info = csi.GetPluginInfoResponse(name=CSI_DRIVER, vendor_version=virtlet.__version__)
    ready = csi.ProbeResponse()
    ready.ready.value = True
    nothing = csi.GetPluginCapabilitiesResponse()
    return _handler(
        "csi.v1.Identity",
        {
            "GetPluginInfo": (csi.GetPluginInfoRequest, lambda _, __: info),
            "GetPluginCapabilities": (csi.GetPluginCapabilitiesRequest, lambda _, __: nothing),
            "Probe": (csi.ProbeRequest, lambda _, __: ready),
        },
    )


class _Node:
    def __init__(self, node: str) -> None:
        self._node = node
        self._lock = threading.Lock()

    def handler(self) -> Any:
        info = csi.NodeGetInfoResponse(node_id=self._node)
        nothing = csi.NodeGetCapabilitiesResponse()
        return _handler(
            "csi.v1.Node",
            {
                "NodeGetInfo": (csi.NodeGetInfoRequest, lambda _, __: info),
                "NodeGetCapabilities": (csi.NodeGetCapabilitiesRequest, lambda _, __: nothing),
                "NodePublishVolume": (csi.NodePublishVolumeRequest, self.publish),
                "NodeUnpublishVolume": (csi.NodeUnpublishVolumeRequest, self.unpublish),
            },
        )

    def publish(
        self, request: csi.NodePublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi.NodePublishVolumeResponse:
        target = _target(request.volume_id, request.target_path, context)
        if not request.HasField("volume_capability"):
            _refuse(context, "volume_capability is missing")
        if request.volume_capability.HasField("block"):
            _refuse(context, "a volume of virtlet.cloud is of volumeMode Filesystem")
        if request.volume_context.get(_EPHEMERAL) != "true":
            _refuse(context, "only inline volumes are served (volumeLifecycleModes: Ephemeral)")
        try:
            options = _options(request.volume_context, request.secrets)
        except (VirtletError, ValueError) as error:
            _refuse(context, str(error))
        text = json.dumps(options, sort_keys=True).encode()
        try:
            with self._lock:
                published = _publish(target, text)
        except (OSError, VirtletError) as error:
            context.abort(grpc.StatusCode.INTERNAL, f"{target}: {error}")
        if not published:
            context.abort(
                grpc.StatusCode.ALREADY_EXISTS, f"{target} has a volume with other attributes"
            )
        return csi.NodePublishVolumeResponse()

    def unpublish(
        self, request: csi.NodeUnpublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi.NodeUnpublishVolumeResponse:
        target = _target(request.volume_id, request.target_path, context)
        try:
            with self._lock:
                while os.path.ismount(target):
                    run(["umount", "--", str(target)], package="mount")
                with contextlib.suppress(FileNotFoundError):
                    target.rmdir()
        except (OSError, VirtletError) as error:
            context.abort(grpc.StatusCode.INTERNAL, f"{target}: {error}")
        return csi.NodeUnpublishVolumeResponse()


def _refuse(context: grpc.ServicerContext, problem: str) -> NoReturn:
    context.abort(grpc.StatusCode.INVALID_ARGUMENT, problem)
    raise AssertionError("abort raises")


def _target(volume_id: str, path: str, context: grpc.ServicerContext) -> Path:
    if not volume_id:
        _refuse(context, "volume_id is missing")
    if not path.startswith("/") or ".." in Path(path).parts:
        _refuse(context, "target_path is missing, or no absolute path")
    return Path(path)


def _options(attributes: Mapping[str, str], secrets: Mapping[str, str]) -> dict[str, str]:
    """What a pod's author wrote, in the words in which the FlexVolume driver gets it.

    Args:
        attributes: of the volume.
        secrets: what is in the Secret that the volume names.

    Raises:
        InvalidArgument, ValueError: they are not those of a volume; names the attribute.
    """
    options = {k: v for k, v in attributes.items() if not k.startswith(_KUBERNETES)}
    options.setdefault("type", "qcow2")
    if "size" in options:
        try:
            options["capacity"] = f"{parse_bytes(options.pop('size'))}B"
        except ValueError as error:
            raise ValueError(f"size: {error}") from None
    for name, value in secrets.items():
        options[SECRETS + name] = base64.b64encode(value.encode()).decode()
    check_options(options)
    return options


def _publish(target: Path, options: bytes) -> bool:
    """Keep a volume's options at its place; whether nothing else was there."""
    file = target / OPTIONS_FILE
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.path.ismount(target):
        # The kubelet looks for a mount, and takes it away if the driver cannot.
        settings = "mode=0700,size=1m,nosuid,nodev,noexec"
        run(["mount", "-t", "tmpfs", "-o", settings, "virtlet", str(target)], package="mount")
    if file.exists():
        return file.read_bytes() == options
    write_atomically(file, options)
    return True
