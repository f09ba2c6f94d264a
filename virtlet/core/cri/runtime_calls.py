"""Version, Status, RuntimeConfig and UpdateRuntimeConfig: what the runtime says about itself."""

import ipaddress
import json
import logging

import virtlet
from virtlet.core.cri.calls import Call, CallKind
from virtlet.core.lifecycle import warm_start
from virtlet.core.lifecycle.context import Context
from virtlet.cri import api_pb2 as cri
from virtlet.errors import InvalidArgument, VirtletError

log = logging.getLogger(__name__)

KUBELET_API_VERSION = "0.1.0"
"""What the kubelet expects in `version` (its `kubeRuntimeAPIVersion`)."""


class RuntimeCalls:
    """Serves the calls about the runtime itself.

    Args:
        context: the manager.
        cgroup_driver: `systemd` or `cgroupfs`.
    """

    def __init__(self, context: Context, cgroup_driver: str) -> None:
        self._context = context
        self._driver = cri.SYSTEMD if cgroup_driver == "systemd" else cri.CGROUPFS

    def calls(self) -> list[Call]:
        """The calls served here."""
        return [
            Call("RuntimeService.Version", CallKind.READ, self.version),
            Call("RuntimeService.Status", CallKind.STATUS, self.status),
            Call("RuntimeService.RuntimeConfig", CallKind.READ, self.config),
            Call("RuntimeService.UpdateRuntimeConfig", CallKind.READ, self.update_config),
        ]

    def version(self, request: cri.VersionRequest) -> cri.VersionResponse:
        """Version."""
        return cri.VersionResponse(
            version=KUBELET_API_VERSION,
            runtime_name=virtlet.PROJECT,
            runtime_version=virtlet.__version__,
            runtime_api_version="v1",
        )

    def status(self, request: cri.StatusRequest) -> cri.StatusResponse:
        """Status: both conditions, told honestly."""
        # A kubelet asks for the default handler in any list, served or not.
        unserved = self._context.hypervisors.missing.keys() - {""}
        return cri.StatusResponse(
            status=cri.RuntimeStatus(conditions=[self._runtime_ready(), self._network_ready()]),
            runtime_handlers=[
                # Whatever is read-only is so with all that is mounted inside.
                cri.RuntimeHandler(
                    name=p.handler,
                    features=cri.RuntimeHandlerFeatures(recursive_read_only_mounts=True),
                )
                for p in self._context.profiles.all
                if p.handler not in unserved
            ],
            features=cri.RuntimeFeatures(),
            info=self._info() if request.verbose else {},
        )

    def config(self, request: cri.RuntimeConfigRequest) -> cri.RuntimeConfigResponse:
        """RuntimeConfig."""
        linux = cri.LinuxRuntimeConfiguration(cgroup_driver=self._driver)
        return cri.RuntimeConfigResponse(linux=linux)

    def update_config(
        self, request: cri.UpdateRuntimeConfigRequest
    ) -> cri.UpdateRuntimeConfigResponse:
        """UpdateRuntimeConfig: CNI's own configuration decides the addresses, so only checked."""
        for cidr in filter(None, request.runtime_config.network_config.pod_cidr.split(",")):
            try:
                ipaddress.ip_network(cidr.strip(), strict=False)
            except ValueError:
                raise InvalidArgument(f"pod_cidr {cidr!r} is not a network in CIDR form") from None
        return cri.UpdateRuntimeConfigResponse()

    def _runtime_ready(self) -> cri.RuntimeCondition:
        health = self._context.hypervisors.default_health()
        reason = "" if health.ready else health.reason or "HypervisorNotReady"
        return _condition("RuntimeReady", reason, health.message)

    def _network_ready(self) -> cri.RuntimeCondition:
        try:
            problems = self._context.hooks.network_status(self._context.profiles.get(""))
        except VirtletError as error:
            problems = [str(error)]
        if problems:
            return _condition("NetworkReady", "NetworkPluginNotReady", "; ".join(problems))
        return _condition("NetworkReady")

    def _info(self) -> dict[str, str]:
        context = self._context
        info = {
            "instance": context.node.instance,
            "dataDir": str(context.node.data_dir),
            "hookApi": virtlet.HOOK_API,
            "handlers": {
                p.handler: list(p.plugins)
                for p in context.profiles.all
                if p.handler not in context.hypervisors.missing
            },
            "brokenHandlers": dict(context.hypervisors.missing),
            "hypervisors": {
                plugin: {
                    "name": hypervisor.info().name,
                    "version": hypervisor.info().version,
                    "accelerator": hypervisor.info().accelerator,
                    "isolation": hypervisor.info().isolation,
                }
                for plugin, hypervisor in context.hypervisors.all.items()
                if context.hypervisors.health(plugin).ready
            },
            "needsRestart": dict(context.needs_restart()),
            "pods": len(context.store.pods),
            "vms": len(context.store.vms),
        }
        return {"info": json.dumps(info), "templates": json.dumps(warm_start.report(context))}


def _condition(kind: str, reason: str = "", message: str = "") -> cri.RuntimeCondition:
    """A condition; without a reason it is met."""
    return cri.RuntimeCondition(type=kind, status=not reason, reason=reason, message=message)
