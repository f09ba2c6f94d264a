"""The one typed place where the core calls hooks."""

import contextlib
import copy
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, cast
from xml.etree.ElementTree import Element

from virtlet.core.hooks import hook_contract, startup
from virtlet.core.hooks.blame import Blamed, returned
from virtlet.core.hooks.caller import Caller, Failed
from virtlet.core.hooks.profiles import read_policy
from virtlet.core.hooks.registry import Registry, ever_installed, recall, remember
from virtlet.core.hooks.watch import HookWatch
from virtlet.errors import FailedPrecondition, VirtletError
from virtlet.model.cloudinit import CloudInit, CloudInitPart
from virtlet.model.disk import Disk, Volume
from virtlet.model.event import Event
from virtlet.model.execution import ExecSession, GuestCommand
from virtlet.model.flavor import Flavor
from virtlet.model.hypervisor import Hypervisor
from virtlet.model.image import (
    Conversion,
    Credentials,
    FetchedImage,
    Image,
    ImageSource,
    RecognizedImage,
    Staging,
    shown_name,
)
from virtlet.model.launch import LaunchPart
from virtlet.model.network import Network
from virtlet.model.node import Node
from virtlet.model.option import Annotation, Option, Settings
from virtlet.model.pod import Pod, Profile
from virtlet.model.reference import Reference
from virtlet.model.vm import Machine, Vm, VmConfig, VolumeRequest

log = logging.getLogger(__name__)
T = TypeVar("T")

_NAME_ONE = "; name one that does under `handlers:` in the manager's configuration"
_REMEDIES = {
    "virtlet_resolve_image": _NAME_ONE,
    "virtlet_fetch_image": _NAME_ONE,
    "virtlet_recognize_image": _NAME_ONE,
}


class Hooks:
    """Every hook as a typed method.

    The methods of first hooks with an effect ask one plugin, so that the core can write down whom
    it is about to ask; `first` calls them in turn.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.watch = HookWatch()
        self._annotations: list[tuple[str, Annotation[Any]]] | None = None
        self._caller = Caller(registry, self.watch)

    # Start-up and shut-down

    def options(self) -> list[tuple[str, Option[Any]]]:
        """(plugin, option) of every declared option; see `startup.collect_options`."""
        return startup.collect_options(self._registry, self._caller)

    def annotations(self, profile: Profile | None = None) -> list[tuple[str, Annotation[Any]]]:
        """(plugin, annotation) of every annotation the profile's (or all) plugins understand.

        Plugins are asked once; see `startup.collect_annotations`.
        """
        if self._annotations is None:
            self._annotations = startup.collect_annotations(self._registry, self._caller)
        active = profile.plugins if profile else self._registry.everyone
        return [(plugin, found) for plugin, found in self._annotations if plugin in active]

    def govern(self, section: Mapping[Any, Any], data_dir: Path) -> None:
        """Take the configuration's `plugins` section.

        Raises:
            InvalidArgument: something in it is wrong.
        """
        known = ever_installed(data_dir)
        self._caller.policy = read_policy(section, self._registry, known)
        self.watch.limits = self._caller.policy.patience

    def configure(self, settings: Settings, node: Node) -> None:
        """Hand every plugin its settings; see `startup.configure`.

        Before that, refuse those whose annotations cannot be had.
        """
        self.annotations()
        startup.configure(self._registry, self._caller, settings, node)

    def reconcile(self, pods: Sequence[Pod], vms: Sequence[Vm]) -> None:
        """Tell every plugin which pods and VMs there are; see `startup.reconcile`."""
        startup.reconcile(self._registry, self._caller, pods, vms)

    def recall(self, data_dir: Path, forgotten: tuple[str, ...]) -> None:
        """Learn what is known of plugins that are not installed any more.

        Args:
            data_dir: where it is kept.
            forgotten: those whose effects are forgotten instead of undone.
        """
        recall(data_dir, self._registry)
        self._registry.forgotten = frozenset(forgotten)

    def remember(self, data_dir: Path) -> None:
        """Keep what is to be known of the plugins of now when they are gone."""
        remember(data_dir, self._registry, self.options())

    def forgets(self, plugin: str) -> bool:
        """Whether a plugin is not usable, and the operator has given up what it made."""
        return self._registry.forgets(plugin)

    def why_missing(self, plugin: str) -> str:
        """Why a plugin is not usable, with the ways out; "" when it is."""
        usable = self._registry.manager.has_plugin(plugin)
        return "" if usable else self._registry.why_missing(plugin)

    def shutdown(self) -> None:
        """Let every plugin end its threads; errors are logged."""

        def failed(plugin: str, error: VirtletError) -> None:
            log.error("plugin did not shut down", extra={"problem": str(error)})

        self._all("virtlet_shutdown", None, failed)

    def network_status(self, profile: Profile) -> list[str]:
        """Why pods cannot get a network now; empty when they can."""
        told = self._all("virtlet_network_status", profile)
        return [problem for _, problems in told for problem in problems]

    def hypervisor(self, profile: Profile) -> tuple[str, Hypervisor]:
        """(plugin, hypervisor) of a profile."""
        hook = "virtlet_hypervisor"
        plugin, found = self._first(hook, profile, "offers a hypervisor")
        return plugin, cast("Hypervisor", Blamed(plugin, hook, Hypervisor, found, self.watch))

    # Images

    def resolve_image(self, profile: Profile, reference: Reference) -> ImageSource:
        """Where the content of an image name is."""
        what = f"knows where image {reference.shown!r} is"
        about: dict[str, Any] = {"name": reference.text, "reference": reference}
        found: ImageSource = self._first("virtlet_resolve_image", profile, what, **about)[1]
        return found

    def knows_image(self, plugin: str, profile: Profile, reference: Reference) -> bool:
        """Whether one plugin says where an image is; its errors are logged and mean no."""

        def failed(plugin: str, error: VirtletError) -> None:
            log.warning("image name not known", extra={"plugin": plugin, "problem": str(error)})

        hook = "virtlet_resolve_image"
        ask = partial(self._caller.call, hook, name=reference.text, reference=reference)
        asked = self._caller.in_turn(hook, (plugin,), ask, failed=failed)
        return any(asked)

    def fetch_image(
        self, profile: Profile, source: ImageSource, credentials: Credentials, staging: Staging
    ) -> FetchedImage:
        """Download an image into the staging file."""
        image, scheme = shown_name(source.name), source.url.partition(":")[0]
        what = f"can fetch image {image!r} from a {scheme!r} address"
        about: dict[str, Any] = {"source": source, "credentials": credentials, "staging": staging}
        found: FetchedImage = self._first("virtlet_fetch_image", profile, what, **about)[1]
        return found

    def unpack_image(self, profile: Profile, name: str, head: bytes) -> Conversion | None:
        """What unpacks content that begins so; None where it is taken as it is."""
        hook = "virtlet_unpack_image"
        ask = partial(self._caller.call, hook, name=name, head=head)
        found: tuple[str, Conversion] | None = self.first(hook, profile, ask)
        return found[1] if found else None

    def recognize_image(
        self, profile: Profile, name: str, file: Path
    ) -> tuple[str, RecognizedImage]:
        """(plugin, what it says that a file is)."""
        check = hook_contract.recognition_check(file)
        what = f"recognises image {shown_name(name)!r}"
        return self._first("virtlet_recognize_image", profile, what, check, name=name, file=file)

    # Pods

    def pod_flavor(self, pod: Pod) -> Mapping[str, Any]:
        """The settings of a pod's machine: a plugin's answer, else those of its handler."""
        hook = "virtlet_pod_flavor"
        asked = self.order(hook, pod.profile)
        call = partial(self._caller.call, hook, pod=pod)
        found: tuple[str, Mapping[str, Any]] | None
        found = next(self._caller.in_turn(hook, asked, call), None)
        return MappingProxyType(dict(found[1])) if found else pod.profile.flavor

    def admit_pod(self, pod: Pod) -> None:
        """Ask every plugin whether the pod may be."""
        self._all("virtlet_admit_pod", pod.profile, pod=pod)

    def admit_vm(self, pod: Pod, config: VmConfig) -> None:
        """Ask every plugin whether the VM may be."""
        self._all("virtlet_admit_vm", pod.profile, pod=pod, config=config)

    def order(self, hook: str, profile: Profile | None = None) -> tuple[str, ...]:
        """Plugins of a profile, or all, that have a hook, in the order in which it calls them."""
        active = profile.plugins if profile else self._registry.everyone
        return self._caller.order(hook, active)

    def first(
        self, hook: str, profile: Profile, perform: Callable[[str], T | None]
    ) -> tuple[str, T] | None:
        """Perform with one plugin after the other, until one has an answer.

        Args:
            hook: that `perform` calls, of mode first.
            profile: whose plugins.
            perform: calls the hook of the plugin that it is given, and writes down the effect.

        Returns:
            (plugin, answer); None where nobody has one.
        """
        return next(self._caller.in_turn(hook, self.order(hook, profile), perform), None)

    def setup_network(self, plugin: str, pod: Pod) -> Network | None:
        """Ask one plugin for the pod's network."""
        hook = "virtlet_setup_network"
        answer: Network | None = self._caller.call(hook, plugin, pod=pod)
        problem = hook_contract.network_problem(answer) if answer else ""
        if problem:
            raise returned(plugin, hook, problem)
        return answer

    def adjust_network(self, pod: Pod, network: Network) -> Network:
        """The network that `setup_network` gave, as the active plugins want it."""
        hook, problem = "virtlet_adjust_network", hook_contract.adjustment_problem
        return self._adjusted(hook, pod.profile, "network", network, problem, pod=pod)

    def serve_network(self, plugin: str, pod: Pod, network: Network) -> None:
        """Have the plugin that made a network serve it as it is now."""
        hook = "virtlet_serve_network"
        self._caller.call(hook, plugin, pod=pod, network=network)

    def teardown_network(self, plugin: str, pod: Pod, network: Network | None) -> None:
        """Undo `setup_network` on the plugin that did it."""
        hook = "virtlet_teardown_network"
        self._caller.call(hook, plugin, pod=pod, network=network)

    # VMs

    def flavor(self, pod: Pod, config: VmConfig, image: Image) -> Flavor:
        """The machine a VM gets, as one plugin chose it and others adjusted it."""
        profile = pod.profile
        about: dict[str, Any] = {"pod": pod, "config": config, "image": image}
        chosen: Flavor = self._first("virtlet_flavor", profile, "chooses a flavor", **about)[1]
        return self._adjusted("virtlet_adjust_flavor", profile, "flavor", chosen, **about)

    def root_disk(self, plugin: str, vm: Vm, flavor: Flavor) -> Disk | None:
        """Ask one plugin for the root disk."""
        hook = "virtlet_root_disk"
        answer: Disk | None = self._caller.call(hook, plugin, vm=vm, flavor=flavor)
        return answer

    def release_root_disk(self, plugin: str, vm: Vm, disk: Disk | None) -> None:
        """Undo `root_disk` on the plugin that did it."""
        self._caller.call("virtlet_release_root_disk", plugin, vm=vm, disk=disk)

    def volume(self, plugin: str, vm: Vm, request: VolumeRequest) -> Volume | None:
        """Ask one plugin to serve a mount or device."""
        hook = "virtlet_volume"
        answer: Volume | None = self._caller.call(hook, plugin, vm=vm, request=request)
        return answer

    def release_volume(
        self, plugin: str, vm: Vm, request: VolumeRequest, volume: Volume | None
    ) -> None:
        """Undo `volume` on the plugin that did it."""
        hook = "virtlet_release_volume"
        self._caller.call(hook, plugin, vm=vm, request=request, volume=volume)

    def cloud_init(
        self, vm: Vm, flavor: Flavor, volumes: Sequence[Volume]
    ) -> list[tuple[str, CloudInitPart]]:
        """Every plugin's contribution to the seed."""
        about: dict[str, Any] = {"vm": vm, "flavor": flavor, "volumes": volumes}
        return self._all("virtlet_cloud_init", vm.pod.profile, **about)

    def seed(self, plugin: str, vm: Vm, cloud_init: CloudInit) -> Disk | None:
        """Ask one plugin for the seed disk."""
        hook = "virtlet_seed"
        answer: Disk | None = self._caller.call(hook, plugin, vm=vm, cloud_init=cloud_init)
        return answer

    def release_seed(self, plugin: str, vm: Vm, disk: Disk | None) -> None:
        """Undo `seed` on the plugin that did it."""
        self._caller.call("virtlet_release_seed", plugin, vm=vm, disk=disk)

    def render_domain(self, machine: Machine) -> tuple[str, Element]:
        """(plugin, domain document) of the first that makes one."""
        profile, what = machine.vm.pod.profile, "renders the domain document"
        return self._first("virtlet_render_domain", profile, what, machine=machine)

    def customize_domain(self, plugin: str, machine: Machine, domain: Element) -> None:
        """Let one plugin edit the domain document."""
        hook = "virtlet_customize_domain"
        self._caller.call(hook, plugin, machine=machine, domain=domain)

    def launch(self, machine: Machine) -> list[tuple[str, LaunchPart]]:
        """Every plugin's contribution to the emulator's start; the descriptors are the caller's."""
        parts: list[tuple[str, LaunchPart]] = []

        def failed(plugin: str, error: VirtletError) -> None:
            for _, part in parts:
                for item in part.fds:
                    with contextlib.suppress(OSError):
                        os.close(item.fd)
            raise error

        profile = machine.vm.pod.profile
        for found in self._each("virtlet_launch", profile, failed, machine=machine):
            parts.append(found)
        return parts

    def guest_exec(self, machine: Machine, command: GuestCommand) -> ExecSession:
        """A session for a command in a guest."""
        hook, profile = "virtlet_guest_exec", machine.vm.pod.profile
        about: dict[str, Any] = {"machine": machine, "command": command}
        plugin, session = self._first(hook, profile, "runs commands in guests", **about)
        return cast("ExecSession", Blamed(plugin, hook, ExecSession, session))

    # Observers

    def event(self, profile: Profile | None, event: Event) -> None:
        """Tell every observer; an observer's error is logged and goes no further."""

        def failed(plugin: str, error: VirtletError) -> None:
            log.error("observer failed", extra={"plugin": plugin, "problem": str(error)})

        self._all("virtlet_event", profile, failed, event=event)

    # How they are called

    def _each(
        self, hook: str, profile: Profile | None, failed: Failed | None = None, **arguments: Any
    ) -> Iterator[tuple[str, Any]]:
        """(plugin, answer) of each plugin of a profile, or of all, that has an answer."""
        call = partial(self._caller.call, hook, **arguments)
        return self._caller.in_turn(hook, self.order(hook, profile), call, failed=failed)

    def _all(
        self, hook: str, profile: Profile | None, failed: Failed | None = None, **arguments: Any
    ) -> list[tuple[str, Any]]:
        return list(self._each(hook, profile, failed, **arguments))

    def _first(
        self,
        hook: str,
        profile: Profile,
        what: str,
        check: Callable[[str, Any], str] = lambda plugin, answer: "",
        **arguments: Any,
    ) -> tuple[str, Any]:
        """(plugin, answer) of the first that has one.

        Raises:
            FailedPrecondition: nobody has; "no plugin of the handler" does `what`.
        """
        asked = self.order(hook, profile)
        call = partial(self._caller.call, hook, **arguments)
        for found in self._caller.in_turn(hook, asked, call, check):
            return found
        raise FailedPrecondition(
            f"no plugin of handler {profile.handler!r} {what} ({hook}); asked: "
            f"{', '.join(asked) or 'none has this hook'}{_REMEDIES.get(hook, '')}"
        )

    def _adjusted(
        self,
        hook: str,
        profile: Profile,
        name: str,
        value: T,
        problem: Callable[[T, T], str] = lambda before, after: "",
        **arguments: Any,
    ) -> T:
        """What the active plugins, one after the other, make of a value.

        Args:
            hook: of mode adjust.
            profile: whose plugins.
            name: of the hook's argument that the value is.
            value: to begin with.
            problem: why a plugin may not make the second value of the first; "" when it may.
            arguments: of the hook, beside the value.
        """

        def adjust(plugin: str) -> T | None:
            # A copy, which a plugin that fails may have changed in part.
            given: dict[str, Any] = {name: copy.deepcopy(value), **arguments}
            answer: T | None = self._caller.call(hook, plugin, **given)
            return answer

        def check(plugin: str, answer: T | None) -> str:
            return "" if answer is None else problem(value, answer)

        asked = self._caller.in_turn(hook, self.order(hook, profile), adjust, check)
        for _, answer in asked:
            value = answer
        return value
