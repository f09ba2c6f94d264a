"""What a node would refuse of a pod, found without a node: by the manager's own code.

The pod becomes the messages that a kubelet would send, and these meet the checks that the manager
makes before it does anything. What they cannot see here is told as a note: objects of the cluster,
what volumes hold, the image itself.
"""

import contextlib
import copy
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from virtlet.cli.findings import FAULT, NOTE, OK, Finding
from virtlet.cli.manifest import BadManifest, pod_manifest
from virtlet.core import daemon
from virtlet.core.cri import requests
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.profiles import Profiles
from virtlet.core.hooks.registry import discover
from virtlet.core.lifecycle.pods import check_annotations
from virtlet.errors import VirtletError
from virtlet.model.node import Node
from virtlet.model.pod import Pod
from virtlet.model.reference import parse_reference

UID = "00000000-0000-4000-8000-000000000000"
_VOLUMES = Path("/var/lib/kubelet/pods") / UID
_DIRECTORIES = {
    "configMap": "configmap",
    "downwardAPI": "downward-api",
    "emptyDir": "empty-dir",
    "projected": "projected",
    "secret": "secret",
}
"""Kind of a volume to the kubelet's directory; all others are a CSI driver's."""
_OBJECTS = ("VirtletSSHKeySource", "VirtletCloudInitUserDataSource", "VirtletFilesFromDataSource")
"""Annotations that name objects of the cluster."""
_FLAVOR = "VirtletFlavor"
IN_CLUSTER = "KUBERNETES_SERVICE_HOST"
"""The variable by which a pod's program finds the API server with its service account."""


@frozen
class Judge:
    """The manager's checks.

    Args:
        hooks: the plugins, configured.
        profiles: gives those that know a handler.
        knows_flavors: whether those of the cluster are given.
    """

    _hooks: Hooks
    _profiles: Callable[[str], Profiles]
    _knows_flavors: bool

    def look_at(self, name: str, document: Mapping[str, Any]) -> Iterator[Finding]:
        """All that is wrong with a pod, and what was not looked at.

        Args:
            name: of the pod, for findings.
            document: of kind Pod.
        """
        faults = 0
        try:
            for finding in self._findings(name, document):
                faults += finding.level == FAULT
                yield finding
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            faults += 1
            what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
            yield Finding(name, FAULT, f"no usable pod: {what}")
        if not faults:
            yield Finding(name, OK, "a node would take it")

    def _findings(self, name: str, document: Mapping[str, Any]) -> Iterator[Finding]:
        spec = document["spec"]
        yield from _of_pod(name, spec)
        for container in _containers(spec):
            yield from self._of_container(name, document, container)

    def _of_container(
        self, name: str, document: Mapping[str, Any], container: Mapping[str, Any]
    ) -> Iterator[Finding]:
        try:
            manifest = pod_manifest(_completed(document, container), Path("/var/log/pods"))
        except BadManifest as error:
            yield Finding(name, FAULT, str(error))
            return
        found: list[str] = []

        def check(function: Callable[..., Any], *arguments: Any) -> Any:
            try:
                return function(*arguments)
            except VirtletError as error:
                found.append(str(error))
                return None

        config = check(requests.pod_config, manifest.pod)
        vm = check(requests.vm_config, manifest.container)
        check(parse_reference, manifest.container.image.image)
        profile = check(self._profiles(manifest.handler).get, manifest.handler)
        if config and profile:
            pod = Pod(
                id="0" * 32,
                config=config,
                profile=profile,
                directory=Path("/nonexistent"),
                created_at=0,
            )
            check(check_annotations, self._hooks, pod)
            if not found:
                unseen = _OBJECTS if self._knows_flavors else (*_OBJECTS, _FLAVOR)
                yield from _unseen(name, config.annotations, unseen)
                check(self._admit, pod, vm, unseen)
        yield from (Finding(name, FAULT, text) for text in dict.fromkeys(found))

    def _admit(self, pod: Pod, vm: Any, unseen: tuple[str, ...]) -> None:
        """As RunPodSandbox and CreateContainer do; objects of the cluster are left out."""
        annotations = pod.config.annotations
        left = {key: text for key, text in annotations.items() if key not in unseen}
        bare = evolve(pod, config=evolve(pod.config, annotations=left))
        flavor = self._hooks.pod_flavor(bare)
        pod, bare = (evolve(one, profile=evolve(one.profile, flavor=flavor)) for one in (pod, bare))
        self._hooks.admit_pod(pod)
        self._hooks.admit_vm(bare, vm)


@contextlib.contextmanager
def offline_judge(config: Path | None, flavors: Path | None) -> Iterator[Judge]:
    """The manager's checks as on a node without a cluster.

    Args:
        config: a node's configuration; without one every runtime handler is known, and has the
            default machine.
        flavors: a directory of VirtletFlavors, one in each file.

    Raises:
        VirtletError: the configuration is wrong.
    """
    registry = discover()
    with _alone(), tempfile.TemporaryDirectory(prefix="virtlet-validate-") as name:
        given = {"kubeconfig": "", "dataDir": name, "kubeletRootDir": str(_VOLUMES.parent)}
        given["flavorsDir"] = str(flavors.absolute()) if flavors else f"{name}/flavors"
        settings = daemon.settings(registry, config, {}, given)
        hooks = Hooks(registry)
        here = Path(name)
        node = Node(
            data_dir=here,
            run_dir=here / "run",
            instance="validate",
            vmwrapper=here / "vmwrapper",
            emulator_uid=os.getuid(),
            emulator_gid=os.getgid(),
        )
        sections = settings.sections.get("handlers", {})
        known = None if config is None else Profiles(sections, registry)

        def profiles(handler: str) -> Profiles:
            return known or Profiles({handler: {}}, registry)

        hooks.configure(settings, node)
        try:
            yield Judge(hooks, profiles, flavors is not None)
        finally:
            hooks.shutdown()


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Keep plugins from the cluster and from telling what this machine lacks: it is no node."""
    log = logging.getLogger("virtlet")
    level, host = log.level, os.environ.pop(IN_CLUSTER, None)
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)
        if host is not None:
            os.environ[IN_CLUSTER] = host


def _of_pod(name: str, spec: Mapping[str, Any]) -> Iterator[Finding]:
    """What is wrong with a pod as a whole; a node sees one container after the other."""
    if not spec.get("runtimeClassName"):
        yield Finding(
            name,
            NOTE,
            "it has no runtimeClassName: on nodes with containers it becomes a container",
            "write `runtimeClassName: virtlet`, or that of another RuntimeClass of Virtlet's",
        )
    if len(spec.get("containers") or ()) != 1:
        text = (
            f"it has {len(spec.get('containers') or ())} containers; the one of a VM pod is the VM"
        )
        yield Finding(name, FAULT, text, "put others into pods of their own")
    for one in spec.get("initContainers") or ():
        if one.get("restartPolicy") == "Always":
            text = f"the sidecar {one.get('name')} cannot run beside a VM"
            yield Finding(name, FAULT, text, "put it into a pod of its own")
    if spec.get("ephemeralContainers"):
        yield Finding(
            name, FAULT, "an ephemeral container cannot run beside a VM", "use kubectl exec"
        )
    for one in _containers(spec):
        yield from _of_mounts(name, spec, one)


def _of_mounts(
    name: str, spec: Mapping[str, Any], container: Mapping[str, Any]
) -> Iterator[Finding]:
    known = {volume.get("name") for volume in spec.get("volumes") or ()}
    for mount in container.get("volumeMounts") or ():
        where = f"mount {mount.get('mountPath')}"
        if mount.get("name") not in known:
            text = f"{where}: there is no volume {mount.get('name')}"
            yield Finding(name, FAULT, text, "name it under `volumes`")
        if mount.get("mountPropagation") == "Bidirectional":
            text = f"{where}: what a guest mounts cannot appear on the node"
            yield Finding(name, FAULT, text, "use HostToContainer, or none")


def _containers(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """All of a pod that become a VM, one after the other."""
    return [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]


def _completed(document: Mapping[str, Any], container: Mapping[str, Any]) -> dict[str, Any]:
    """A pod of one container as a kubelet has it: what it takes from a cluster is stood for."""
    whole: dict[str, Any] = copy.deepcopy(dict(document))
    spec, own = dict(whole["spec"]), copy.deepcopy(dict(container))
    whole["metadata"] = {**(whole.get("metadata") or {}), "uid": UID}
    for field in ("initContainers", "ephemeralContainers"):
        spec.pop(field, None)
    for field in ("envFrom", "volumeDevices"):
        own.pop(field, None)
    own["env"] = [
        {"name": env["name"]} if "valueFrom" in env else env for env in own.get("env") or ()
    ]
    places = {volume["name"]: _place(volume) for volume in spec.get("volumes") or ()}
    volumes, mounts = [], []
    for number, mount in enumerate(own.get("volumeMounts") or ()):
        place = places.get(mount["name"])
        if place is None:
            continue
        if mount.get("subPath") or mount.get("subPathExpr"):
            place = str(_VOLUMES / "volume-subpaths" / mount["name"] / own["name"] / str(number))
        volumes.append({"name": f"mount-{number}", "hostPath": {"path": place}})
        plain = {key: mount[key] for key in ("mountPath", "readOnly") if key in mount}
        mounts.append({**plain, "name": f"mount-{number}"})
    spec.update(containers=[{**own, "volumeMounts": mounts}], volumes=volumes)
    whole["spec"] = spec
    return whole


def _place(volume: Mapping[str, Any]) -> str:
    """Where a volume is on a node."""
    if isinstance(path := (volume.get("hostPath") or {}).get("path"), str):
        return path
    if driver := (volume.get("flexVolume") or {}).get("driver"):
        plugin = str(driver).replace("/", "~")
    else:
        kind = next((kind for kind in _DIRECTORIES if kind in volume), "")
        plugin = f"kubernetes.io~{_DIRECTORIES.get(kind, 'csi')}"
    return str(_VOLUMES / "volumes" / plugin / volume["name"])


def _unseen(
    name: str, annotations: Mapping[str, str], unseen: tuple[str, ...]
) -> Iterator[Finding]:
    for key in unseen:
        if key in annotations:
            text = f"annotation {key}: whether the cluster has it is not looked at"
            yield Finding(name, NOTE, text)
