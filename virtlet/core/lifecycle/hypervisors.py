"""The hypervisors of all profiles."""

import logging
from collections.abc import Mapping

from attrs import evolve

from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.profiles import Profiles
from virtlet.errors import FailedPrecondition, InvalidArgument, Unavailable, VirtletError
from virtlet.model.hypervisor import DomainCallback, Hypervisor, HypervisorHealth
from virtlet.model.pod import Profile

log = logging.getLogger(__name__)


class Hypervisors:
    """One hypervisor per plugin that offers one; profiles share those of the same plugin.

    The pods of a profile whose plugins offer none, or one that does not open, are refused with the
    reason; the others go on.

    Raises:
        InvalidArgument: the default handler's settings are wrong.
    """

    def __init__(self, hooks: Hooks, profiles: Profiles) -> None:
        self._hooks = hooks
        self._profiles = profiles
        self._by_plugin: dict[str, Hypervisor] = {}
        self._by_handler: dict[str, str] = {}
        self._missing: dict[str, str] = dict(profiles.broken)
        for profile in profiles.all:
            try:
                plugin, hypervisor = hooks.hypervisor(profile)
            except VirtletError as error:
                if profile.handler == "" and isinstance(error, InvalidArgument):
                    raise
                self._missing[profile.handler] = str(error)
                continue
            self._by_handler[profile.handler] = plugin
            self._by_plugin.setdefault(plugin, hypervisor)
        for handler, reason in self._missing.items():
            log.error("handler not served", extra={"handler": handler, "problem": reason})

    @property
    def missing(self) -> Mapping[str, str]:
        """Handler to why it has no hypervisor, and is not served."""
        return dict(self._missing)

    @property
    def all(self) -> dict[str, Hypervisor]:
        """Plugin name to its hypervisor."""
        return dict(self._by_plugin)

    def open(self, callback: DomainCallback) -> None:
        """Connect to all of them, and have every change of a domain told to `callback`.

        Raises:
            VirtletError: the default handler's cannot be had.
        """
        for plugin, hypervisor in self.all.items():
            try:
                hypervisor.subscribe(callback)
                hypervisor.open()
            except VirtletError as error:
                if plugin == self._by_handler.get(""):
                    raise
                log.error("hypervisor not served", extra={"plugin": plugin, "problem": str(error)})
                self._drop(plugin, f"the hypervisor of plugin {plugin!r} did not start: {error}")

    def _drop(self, plugin: str, why: str) -> None:
        del self._by_plugin[plugin]
        for handler in [h for h, served_by in self._by_handler.items() if served_by == plugin]:
            del self._by_handler[handler]
            self._missing[handler] = why

    def close(self) -> None:
        """Disconnect from all of them; VMs go on running."""
        for hypervisor in self._by_plugin.values():
            hypervisor.close()

    def named(self, plugin: str) -> Hypervisor:
        """The hypervisor of a plugin, whichever handler it serves today."""
        try:
            return self._by_plugin[plugin]
        except KeyError:
            raise FailedPrecondition(self._why_missing(plugin)) from None

    def _why_missing(self, plugin: str) -> str:
        reasons = (
            self._missing[profile.handler]
            for profile in self._profiles.all
            if profile.handler in self._missing and plugin in profile.plugins
        )
        return self._hooks.why_missing(plugin) or (
            f"plugin {plugin!r}, whose hypervisor runs this VM, serves no handler now: "
            + next(reasons, "name it under `handlers:` in the configuration again")
        )

    def forgets(self, plugin: str) -> bool:
        """Whether a plugin is not there, and the operator has given up what its hypervisor has."""
        return self._hooks.forgets(plugin)

    def health(self, plugin: str) -> HypervisorHealth:
        """Whether a plugin's hypervisor answers now; never blocks, never raises."""
        try:
            return self.named(plugin).health()
        except VirtletError as error:
            return HypervisorHealth(ready=False, reason="HypervisorFailed", message=str(error))

    def default_health(self) -> HypervisorHealth:
        """Whether VMs of the default handler can be run now; others that cannot are mentioned.

        Where that handler has no hypervisor, it is enough that another handler's is there: a
        kubelet starts nothing at all on a runtime that is not ready.
        """
        problems = {
            plugin: f"hypervisor of plugin {plugin}: {self.health(plugin).message}"
            for plugin in self._by_plugin
            if not self.health(plugin).ready
        }
        message = "; ".join(problems.values())
        plugin = self._by_handler.get("")
        if plugin is None:
            why = self._missing.get("", "")
            return HypervisorHealth(
                ready=len(problems) < len(self._by_plugin),
                reason="NoHypervisor",
                message="; ".join(filter(None, (f"handler '': {why}" if why else "", message))),
            )
        return evolve(self.health(plugin), message=message)

    def require(self, plugin: str) -> None:
        """Refuse at once what a plugin's hypervisor is needed for while it is away.

        Raises:
            Unavailable: it is.
        """
        health = self.health(plugin)
        if not health.ready:
            raise Unavailable(
                f"the hypervisor of plugin {plugin} is away ({health.message}): try again"
            )

    def plugin_of(self, profile: Profile) -> str:
        """Name of the plugin whose hypervisor runs a profile's VMs."""
        handler = profile.handler
        if handler not in self._by_handler:
            why = self._missing.get(handler)
            raise FailedPrecondition(
                f"handler {handler!r} cannot be served: {why}"
                if why
                else f"handler {handler!r} is not configured any more"
            )
        return self._by_handler[handler]
