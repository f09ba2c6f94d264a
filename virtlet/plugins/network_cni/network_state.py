"""What is kept on disk of each pod's network, so that any manager can undo it."""

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cattrs
from attrs import frozen

from virtlet.host.files import make_private_directory, remove_tree, write_atomically
from virtlet.host.links import KernelRoute
from virtlet.model.network import Route
from virtlet.plugins.network_cni.bridging import BridgedNic
from virtlet.plugins.network_cni.cni_plugins import CniAttachment
from virtlet.plugins.network_cni.passed_nics import PassedNic

_log = logging.getLogger(__name__)

_converter = cattrs.Converter()
_converter.register_unstructure_hook(Path, str)
_converter.register_structure_hook(Path, lambda text, _: Path(text))


def _kernel_route(written: Any, _: object) -> KernelRoute:
    """A veth's route; up to release 2.0.0.dev0 it was written as arguments of ip-route(8)."""
    if not isinstance(written, str):
        return KernelRoute(**written)
    destination, *words = written.split()
    said = dict(zip(words[::2], words[1::2], strict=True))
    return KernelRoute(
        destination=destination,
        device=said["dev"],
        gateway=said.get("via", ""),
        metric=int(said.get("metric", 0)),
        automatic=False,
    )


def _guest_route(written: Any, _: object) -> Route:
    """A guest's route, likewise."""
    if not isinstance(written, str):
        return Route(**written)
    destination, _via, gateway = written.split()
    return Route(destination=destination, gateway=gateway)


_converter.register_structure_hook(KernelRoute, _kernel_route)
_converter.register_structure_hook(Route, _guest_route)


@frozen
class PodState:
    """How far a pod's network has come."""

    attachment: CniAttachment
    """With the configuration that ADD had; the files may have changed."""
    result: Mapping[str, Any] | None = None
    """Of the last plugin of ADD that succeeded."""
    nics: tuple[BridgedNic, ...] = ()
    """Once bridging has begun."""
    passed: tuple[PassedNic, ...] = ()
    """Once devices are being taken from their drivers, until they have them again."""


class StateStore:
    """A directory per pod below the plugin's own."""

    def __init__(self, root: Path) -> None:
        self._root = root / "pods"

    def directory(self, pod_id: str) -> Path:
        """The pod's directory."""
        return self._root / pod_id

    def save(self, pod_id: str, state: PodState) -> None:
        """Write the state of a pod, before the next effect."""
        directory = self.directory(pod_id)
        make_private_directory(directory)
        document = json.dumps(_converter.unstructure(state))
        write_atomically(directory / "state.json", document.encode())

    def load(self, pod_id: str) -> PodState | None:
        """What was saved last; None if nothing was, or it cannot be read."""
        path = self.directory(pod_id) / "state.json"
        try:
            return _converter.structure(json.loads(path.read_bytes()), PodState)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, cattrs.BaseValidationError) as error:
            # As after a power cut.
            _log.warning("the network state %s cannot be read: %s", path, error)
            return None

    def known(self, pod_id: str) -> bool:
        """Whether there is a state of the pod, readable or not."""
        return self.directory(pod_id).exists()

    def first_launch(self, pod_id: str) -> bool:
        """Note that a VM of the pod is launched, and return whether it is the first."""
        try:
            (self.directory(pod_id) / "launched").touch(exist_ok=False)
        except FileExistsError:
            return False
        except FileNotFoundError:  # the state is lost
            pass
        return True

    def remove(self, pod_id: str) -> None:
        """Forget a pod. Idempotent."""
        remove_tree(self.directory(pod_id))

    def pods(self) -> Iterator[str]:
        """Ids of all pods with a state."""
        if self._root.is_dir():
            yield from sorted(path.name for path in self._root.iterdir())
