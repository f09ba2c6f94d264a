"""The one typed place where the core calls hooks."""

import contextlib
import copy
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast
from xml.etree.ElementTree import Element

from virtlet.core.hooks import departed, networks, startup
from virtlet.core.hooks.blame import Blamed, logged, returned
from virtlet.core.hooks.caller import Caller
from virtlet.core.hooks.policy import Policy, read_policy
from virtlet.core.hooks.registry import Registry
from virtlet.core.hooks.watch import HookWatch
from virtlet.errors import FailedPrecondition, VirtletError
from virtlet.hookspecs import HOOKS
from virtlet.model.cloudinit import CloudInit, CloudInitPart
from virtlet.model.disk import Disk, Volume
from virtlet.model.event import Event
from virtlet.model.execution import ExecSession, GuestCommand
from virtlet.model.flavor import Flavor
from virtlet.model.hypervisor import Hypervisor
from virtlet.model.image import (
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

    First hooks with an effect are split in two, so that the core can write down whom it is about
    to ask: `asked_for_…` names the plugins in order, and the method asks one of them.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.watch = HookWatch()
        self._policy = Policy()
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
        active = profile.plugins if profile else self._everyone
        return [(plugin, found) for plugin, found in self._annotations if plugin in active]

    def govern(self, section: Mapping[Any, Any], data_dir: Path) -> None:
        """Take the configuration's `plugins` section.

        Raises:
            InvalidArgument: something in it is wrong.
        """
        known = departed.names(data_dir)
        self._policy = read_policy(section, self._registry, known)
        self.watch.limits = self._policy.patience

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
        departed.recall(data_dir, self._registry)
        self._registry.forgotten = frozenset(forgotten)

    def remember(self, data_dir: Path) -> None:
        """Keep what is to be known of the plugins of now when they are gone."""
        departed.remember(data_dir, self._registry, self.options())

    def forgets(self, plugin: str) -> bool:
        """Whether a plugin is not usable, and the operator has given up what it made."""
        return self._registry.forgets(plugin)

    def why_missing(self, plugin: str) -> str:
        """Why a plugin is not usable, with the ways out; "" when it is."""
        usable = self._registry.manager.has_plugin(plugin)
        return "" if usable else self._registry.why_missing(plugin)

    def shutdown(self) -> None:
        """Let every plugin end its threads; errors are logged."""
        for plugin in self._caller.providers("virtlet_shutdown", self._everyone):
            try:
                self._call("virtlet_shutdown", plugin)
            except VirtletError as error:
                log.error("plugin did not shut down", extra={"problem": str(error)})

    def network_status(self, profile: Profile) -> list[str]:
        """Why pods cannot get a network now; empty when they can."""
        problems: list[str] = []
        for plugin in self._caller.providers("virtlet_network_status", profile.plugins):
            problems += self._call("virtlet_network_status", plugin) or ()
        return problems

    def hypervisor(self, profile: Profile) -> tuple[str, Hypervisor]:
        """(plugin, hypervisor) of a profile."""
        hook = "virtlet_hypervisor"
        for plugin in self._caller.asked(hook, profile.plugins):
            answer = self._call(hook, plugin)
            if answer is not None:
                blamed = Blamed(plugin, hook, Hypervisor, answer, self.watch)
                return plugin, cast("Hypervisor", blamed)
        raise self._nobody(hook, profile, "offers a hypervisor")

    # Images

    def resolve_image(self, profile: Profile, name: str) -> ImageSource:
        """Where the content of an image name is."""
        hook = "virtlet_resolve_image"
        what = f"knows where image {shown_name(name)!r} is"
        found: ImageSource = self._first(hook, profile, what, name=name)
        return found

    def knows_image(self, plugin: str, profile: Profile, name: str) -> bool:
        """Whether one plugin says where an image is; its errors are logged and mean no."""
        try:
            hook = "virtlet_resolve_image"
            return self._call(hook, plugin, name=name) is not None
        except VirtletError as error:
            log.warning("image name not known", extra={"plugin": plugin, "problem": str(error)})
            return False

    def fetch_image(
        self, profile: Profile, source: ImageSource, credentials: Credentials, staging: Staging
    ) -> FetchedImage:
        """Download an image into the staging file."""
        hook = "virtlet_fetch_image"
        found: FetchedImage = self._first(
            hook,
            profile,
            f"can fetch image {shown_name(source.name)!r} from a "
            f"{source.url.partition(':')[0]!r} address",
            source=source,
            credentials=credentials,
            staging=staging,
        )
        return found

    def recognize_image(
        self, profile: Profile, name: str, file: Path
    ) -> tuple[str, RecognizedImage]:
        """(plugin, what it says that a file is)."""
        hook, before = "virtlet_recognize_image", _state(file)
        for plugin in self._caller.asked(hook, profile.plugins):
            found: RecognizedImage | None = self._call(hook, plugin, name=name, file=file)
            if _state(file) != before:
                raise returned(plugin, hook, "changed the file, which is for reading alone")
            if found is not None:
                if not found.format or found.virtual_size < 0:
                    problem = "returned a RecognizedImage without a format or of a negative size"
                    raise returned(plugin, hook, problem)
                return plugin, found
        raise self._nobody(hook, profile, f"recognises image {shown_name(name)!r}")

    # Pods

    def admit_pod(self, pod: Pod) -> None:
        """Ask every plugin whether the pod may be."""
        active = pod.profile.plugins
        for plugin in self._caller.providers("virtlet_admit_pod", active):
            self._call("virtlet_admit_pod", plugin, pod=pod)

    def admit_vm(self, pod: Pod, config: VmConfig) -> None:
        """Ask every plugin whether the VM may be."""
        active = pod.profile.plugins
        for plugin in self._caller.providers("virtlet_admit_vm", active):
            self._call("virtlet_admit_vm", plugin, pod=pod, config=config)

    def asked_for(self, hook: str, profile: Profile) -> tuple[str, ...]:
        """Plugins that a first hook asks, in order."""
        return self._caller.asked(hook, profile.plugins)

    def order(self, hook: str, profile: Profile | None = None) -> tuple[str, ...]:
        """Plugins of a profile, or all, that have a hook, in the order in which it calls them."""
        active = profile.plugins if profile else self._everyone
        return (self._caller.asked if HOOKS[hook] == "first" else self._caller.providers)(
            hook, active
        )

    def setup_network(self, plugin: str, pod: Pod) -> Network | None:
        """Ask one plugin for the pod's network."""
        hook = "virtlet_setup_network"
        answer: Network | None = self._call(hook, plugin, pod=pod)
        problem = networks.problem(answer) if answer else ""
        if problem:
            raise returned(plugin, hook, problem)
        return answer

    def adjust_network(self, pod: Pod, network: Network) -> Network:
        """The network that `setup_network` gave, as the active plugins want it."""
        hook, problem = "virtlet_adjust_network", networks.problem_of_adjustment
        return self._adjusted(hook, pod.profile, "network", network, problem, pod=pod)

    def serve_network(self, plugin: str, pod: Pod, network: Network) -> None:
        """Have the plugin that made a network serve it as it is now."""
        hook = "virtlet_serve_network"
        self._call(hook, plugin, pod=pod, network=network)

    def teardown_network(self, plugin: str, pod: Pod, network: Network | None) -> None:
        """Undo `setup_network` on the plugin that did it."""
        hook = "virtlet_teardown_network"
        self._call(hook, plugin, pod=pod, network=network)

    # VMs

    def flavor(self, pod: Pod, config: VmConfig, image: Image) -> Flavor:
        """The machine a VM gets, as one plugin chose it and others adjusted it."""
        profile = pod.profile
        about: dict[str, Any] = {"pod": pod, "config": config, "image": image}
        chosen: Flavor = self._first("virtlet_flavor", profile, "chooses a flavor", **about)
        return self._adjusted("virtlet_adjust_flavor", profile, "flavor", chosen, **about)

    def root_disk(self, plugin: str, vm: Vm, flavor: Flavor) -> Disk | None:
        """Ask one plugin for the root disk."""
        hook = "virtlet_root_disk"
        answer: Disk | None = self._call(hook, plugin, vm=vm, flavor=flavor)
        return answer

    def release_root_disk(self, plugin: str, vm: Vm, disk: Disk | None) -> None:
        """Undo `root_disk` on the plugin that did it."""
        self._call("virtlet_release_root_disk", plugin, vm=vm, disk=disk)

    def volume(self, plugin: str, vm: Vm, request: VolumeRequest) -> Volume | None:
        """Ask one plugin to serve a mount or device."""
        hook = "virtlet_volume"
        answer: Volume | None = self._call(hook, plugin, vm=vm, request=request)
        return answer

    def release_volume(
        self, plugin: str, vm: Vm, request: VolumeRequest, volume: Volume | None
    ) -> None:
        """Undo `volume` on the plugin that did it."""
        hook = "virtlet_release_volume"
        self._call(hook, plugin, vm=vm, request=request, volume=volume)

    def cloud_init(
        self, vm: Vm, flavor: Flavor, volumes: Sequence[Volume]
    ) -> list[tuple[str, CloudInitPart]]:
        """Every plugin's contribution to the seed."""
        hook, active = "virtlet_cloud_init", vm.pod.profile.plugins
        parts: list[tuple[str, CloudInitPart]] = []
        for plugin in self._caller.providers(hook, active):
            with self._optional(hook, plugin):
                part = self._call(hook, plugin, vm=vm, flavor=flavor, volumes=volumes)
                if part is not None:
                    parts.append((plugin, part))
        return parts

    def seed(self, plugin: str, vm: Vm, cloud_init: CloudInit) -> Disk | None:
        """Ask one plugin for the seed disk."""
        hook = "virtlet_seed"
        answer: Disk | None = self._call(hook, plugin, vm=vm, cloud_init=cloud_init)
        return answer

    def release_seed(self, plugin: str, vm: Vm, disk: Disk | None) -> None:
        """Undo `seed` on the plugin that did it."""
        self._call("virtlet_release_seed", plugin, vm=vm, disk=disk)

    def render_domain(self, machine: Machine) -> tuple[str, Element]:
        """(plugin, domain document) of the first that makes one."""
        hook, profile = "virtlet_render_domain", machine.vm.pod.profile
        for plugin in self._caller.asked(hook, profile.plugins):
            domain = self._call(hook, plugin, machine=machine)
            if domain is not None:
                return plugin, domain
        raise self._nobody(hook, profile, "renders the domain document")

    def domain_customizers(self, profile: Profile) -> tuple[str, ...]:
        """Plugins that edit the domain document, in turn."""
        return self._caller.providers("virtlet_customize_domain", profile.plugins)

    def customize_domain(self, plugin: str, machine: Machine, domain: Element) -> None:
        """Let one plugin edit the domain document."""
        hook = "virtlet_customize_domain"
        self._call(hook, plugin, machine=machine, domain=domain)

    def launch(self, machine: Machine) -> list[tuple[str, LaunchPart]]:
        """Every plugin's contribution to the emulator's start; the descriptors are the caller's."""
        hook, active = "virtlet_launch", machine.vm.pod.profile.plugins
        parts: list[tuple[str, LaunchPart]] = []
        try:
            for plugin in self._caller.providers(hook, active):
                part = self._call(hook, plugin, machine=machine)
                if part is not None:
                    parts.append((plugin, part))
        except VirtletError:
            for _, part in parts:
                for item in part.fds:
                    with contextlib.suppress(OSError):
                        os.close(item.fd)
            raise
        return parts

    def guest_exec(self, machine: Machine, command: GuestCommand) -> ExecSession:
        """A session for a command in a guest."""
        hook, profile = "virtlet_guest_exec", machine.vm.pod.profile
        for plugin in self._caller.asked(hook, profile.plugins):
            session = self._call(hook, plugin, machine=machine, command=command)
            if session is not None:
                return cast("ExecSession", Blamed(plugin, hook, ExecSession, session))
        raise self._nobody(hook, profile, "runs commands in guests")

    # Observers

    def event(self, profile: Profile | None, event: Event) -> None:
        """Tell every observer; an observer's error is logged and goes no further."""
        active = profile.plugins if profile else self._everyone
        for plugin in self._caller.providers("virtlet_event", active):
            try:
                self._call("virtlet_event", plugin, event=event)
            except VirtletError as error:
                log.error("observer failed", extra={"plugin": plugin, "problem": str(error)})

    # How they are called

    @property
    def _everyone(self) -> tuple[str, ...]:
        return self._registry.builtin + self._registry.extra

    def _call(self, hook: str, plugin: str, **arguments: Any) -> Any:
        """What one plugin answers, of the hook's type all the way down; or None."""
        with logged():
            return self._caller.call(hook, plugin, **arguments)

    @contextlib.contextmanager
    def _optional(self, hook: str, plugin: str) -> Iterator[None]:
        """Log what a plugin fails with and go on, where the operator wants to do without it."""
        try:
            yield
        except VirtletError as error:
            if plugin not in self._policy.lenient:
                raise
            extra = {"plugin": plugin, "hook": hook, "problem": str(error)}
            log.error("optional hook failed and is passed over", extra=extra)

    def _first(self, hook: str, profile: Profile, what: str, **arguments: Any) -> Any:
        for plugin in self._caller.asked(hook, profile.plugins):
            answer = self._call(hook, plugin, **arguments)
            if answer is not None:
                return answer
        raise self._nobody(hook, profile, what)

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
        for plugin in self._caller.providers(hook, profile.plugins):
            with self._optional(hook, plugin):
                # A copy, which a plugin that fails may have changed in part.
                given = {name: copy.deepcopy(value)}
                answer: T | None = self._call(hook, plugin, **given, **arguments)
                wrong = "" if answer is None else problem(value, answer)
                if wrong:
                    raise returned(plugin, hook, wrong)
                value = value if answer is None else answer
        return value

    def _nobody(self, hook: str, profile: Profile, what: str) -> VirtletError:
        return FailedPrecondition(
            f"no plugin of handler {profile.handler!r} {what} ({hook}); asked: "
            f"{', '.join(self._caller.asked(hook, profile.plugins)) or 'none has this hook'}"
            f"{_REMEDIES.get(hook, '')}"
        )


def _state(file: Path) -> tuple[int, int, int] | None:
    """What is different of a file that somebody changed, replaced or removed."""
    try:
        stat = file.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
