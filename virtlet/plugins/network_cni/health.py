"""Whether pods could get a network now."""

import threading
import time
from pathlib import Path

from virtlet.errors import FailedPrecondition, VirtletError
from virtlet.plugins.network_cni import chain, configuration
from virtlet.plugins.network_cni.configuration import NetworkList
from virtlet.plugins.network_cni.dhcp import program
from virtlet.plugins.network_cni.execution import find

_FRESH = 10.0
"""Seconds an answer of the plugins is good for: the kubelet asks every 5."""
_PATIENCE = 3.0
"""Seconds a plugin may take to say how it is."""


class Health:
    """Looks at the configuration at every call, asks the plugins now and then."""

    def __init__(self, plugin_directory: Path, configuration_directory: Path) -> None:
        self._plugins = plugin_directory
        self._configuration = configuration_directory
        self._lock = threading.Lock()
        self._asked: tuple[NetworkList, float, str] | None = None
        self._spoken: dict[tuple[Path, int], tuple[str, ...]] = {}
        """Executable and its time of change to the versions it speaks."""

    def problems(self) -> tuple[str, ...]:
        """Why not; empty when they could."""
        try:
            network = self.find_all()
        except VirtletError as error:
            return (str(error),)
        with self._lock:
            answer = self._answer(network)
        return (answer,) if answer else ()

    def find_all(self) -> NetworkList:
        """Find all that pods' networks need on the node, without asking a plugin.

        Raises:
            FailedPrecondition: something is missing or cannot be read.
        """
        network = configuration.load(self._configuration)
        for plugin in network.plugins:
            for executable in plugin.executables:
                find(self._plugins, executable)
        program()
        return network

    def _answer(self, network: NetworkList) -> str:
        """What the plugins said, at most `_FRESH` seconds ago."""
        if self._asked is not None:
            asked, at, answer = self._asked
            if asked == network and time.monotonic() - at < _FRESH:
                return answer
        try:
            self._check_versions(network)
            chain.status(self._plugins, network, timeout=_PATIENCE)
            answer = ""
        except VirtletError as error:
            answer = str(error)
        self._asked = (network, time.monotonic(), answer)
        return answer

    def _check_versions(self, network: NetworkList) -> None:
        for plugin in network.plugins:
            path = find(self._plugins, plugin.type)
            key = (path, path.stat().st_mtime_ns)
            if key not in self._spoken:
                self._spoken[key] = chain.versions(self._plugins, plugin, timeout=_PATIENCE)
            if network.version not in self._spoken[key]:
                raise FailedPrecondition(
                    f"network {network.name} is written for CNI {network.version}, but plugin "
                    f"{plugin.type} speaks {', '.join(self._spoken[key])} only: install a newer "
                    "one, or lower the cniVersion"
                )
