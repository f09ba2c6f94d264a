"""Whether pods could get a network now."""

import threading
import time
from pathlib import Path

from virtlet.errors import FailedPrecondition, VirtletError
from virtlet.plugins.network_cni import cni_config
from virtlet.plugins.network_cni.cni_config import SUPPORTED, NetworkList, PluginConfig, at_least
from virtlet.plugins.network_cni.cni_plugins import CniError, find, invoke
from virtlet.plugins.network_cni.dhcp import program

_FRESH = 10.0
"""Seconds an answer of the plugins is good for: the kubelet asks every 5."""
_PATIENCE = 3.0
"""Seconds a plugin may take to say how it is."""


class NetworkReadiness:
    """Looks at the configuration at every call, and asks the plugins every ten seconds."""

    def __init__(self, plugin_directory: Path, configuration_directory: Path) -> None:
        self._plugins = plugin_directory
        self._configuration = configuration_directory
        self._lock = threading.Lock()
        self._asked: tuple[NetworkList, float, str] | None = None
        self._spoken: dict[tuple[Path, int], tuple[str, ...]] = {}
        """Executable and its modification time to the versions that it speaks."""

    def problems(self) -> tuple[str, ...]:
        """Why pods could get no network; empty if they could."""
        try:
            network = self.find_all()
        except VirtletError as error:
            return (str(error),)
        with self._lock:
            answer = self._answer(network)
        return (answer,) if answer else ()

    def find_all(self) -> NetworkList:
        """Find all that networks need on the node, without asking a plugin.

        Raises:
            FailedPrecondition: something is missing or cannot be read.
        """
        network = cni_config.load(self._configuration)
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
            _ask_status(self._plugins, network)
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
                self._spoken[key] = _versions(self._plugins, plugin)
            if network.version not in self._spoken[key]:
                raise FailedPrecondition(
                    f"network {network.name} is written for CNI {network.version}, but plugin "
                    f"{plugin.type} speaks {', '.join(self._spoken[key])} only: install a newer "
                    "one, or lower the cniVersion"
                )


def _versions(directory: Path, plugin: PluginConfig) -> tuple[str, ...]:
    """VERSION: which versions of the specification a plugin speaks.

    Raises:
        VirtletError: it does not answer.
    """
    document = invoke(
        directory, plugin.type, "VERSION", {}, {"cniVersion": SUPPORTED[-1]}, timeout=_PATIENCE
    )
    spoken = document.get("supportedVersions") if isinstance(document, dict) else None
    if not isinstance(spoken, list):
        raise CniError(plugin.type, "VERSION", "it names no supportedVersions")
    return tuple(map(str, spoken))


def _ask_status(directory: Path, network: NetworkList) -> None:
    """STATUS: ask all plugins whether they could ADD now (specification 1.1 and later).

    Raises:
        VirtletError: a plugin says why it could not.
    """
    if at_least(network.version, "1.1.0"):
        for plugin in network.plugins:
            config = network.execution_config(plugin)
            invoke(directory, plugin.type, "STATUS", {}, config, timeout=_PATIENCE)
