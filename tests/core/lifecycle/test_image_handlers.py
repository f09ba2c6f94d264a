"""Whose plugins find and fetch an image: a kubelet names no handler when it pulls."""

import threading
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from attrs import evolve

from tests.fakes.manager import Manager, Plugin
from tests.fakes.model import make_pod
from tests.images.disks import raw_disk
from tests.polling import until
from virtlet import hookimpl
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.profiles import Profiles
from virtlet.core.hooks.registry import discover
from virtlet.core.lifecycle import image_handlers, pods, vms
from virtlet.core.lifecycle.context import Context
from virtlet.core.lifecycle.hypervisors import Hypervisors
from virtlet.core.store.records import PodPhase, PodRecord
from virtlet.errors import FailedPrecondition, InvalidArgument
from virtlet.model.event import Event, EventKind
from virtlet.model.image import (
    Credentials,
    FetchedImage,
    ImageSource,
    RecognizedImage,
    Staging,
)
from virtlet.model.pod import PodConfig, PodMetadata
from virtlet.model.reference import parse_reference
from virtlet.model.vm import VmConfig, VmMetadata


class _Source:
    """Serves a disk of its own for every name that has one of its words in it."""

    VIRTLET_HOOK_API = 1
    WORDS: tuple[str, ...] = ()

    @hookimpl
    def virtlet_resolve_image(self, name: str) -> ImageSource | None:
        if not any(word in name for word in self.WORDS):
            return None
        return ImageSource(name=name, url=f"{type(self).__name__}:{name}")

    @hookimpl
    def virtlet_fetch_image(
        self, source: ImageSource, credentials: Credentials, staging: Staging
    ) -> FetchedImage | None:
        scheme = source.url.partition(":")[0]
        if scheme != type(self).__name__:
            return None
        disk = raw_disk(scheme)
        staging.begin("", 0, len(disk))
        staging.write(disk)
        return FetchedImage(size=len(disk))

    @hookimpl
    def virtlet_recognize_image(self, name: str, file: Path) -> RecognizedImage | None:
        content = file.read_bytes()
        ours = content == raw_disk(type(self).__name__)
        return RecognizedImage(format="raw", virtual_size=len(content)) if ours else None


class Blue(_Source):
    WORDS = ("blue", "both")

    @hookimpl
    def virtlet_resolve_image(self, name: str) -> ImageSource | None:
        if name == "picky":
            raise InvalidArgument("there is no such name")
        return super().virtlet_resolve_image(name)


class Green(_Source):
    WORDS = ("green", "both")


class Fallback(_Source):
    WORDS = ("",)

    @hookimpl
    def virtlet_resolve_image(self, name: str) -> ImageSource | None:
        return super().virtlet_resolve_image(name)


class Slow(_Source):
    """Brings a part, and the rest when it is let."""

    WORDS = ("slow",)
    release = threading.Event()

    @hookimpl
    def virtlet_fetch_image(
        self, source: ImageSource, credentials: Credentials, staging: Staging
    ) -> FetchedImage | None:
        disk = raw_disk("Slow")
        staging.begin("", 0, len(disk))
        staging.write(disk)
        self.release.wait(30)
        return FetchedImage(size=len(disk))


class Kernels:
    """Takes everything for a kernel."""

    VIRTLET_HOOK_API = 1

    @hookimpl
    def virtlet_recognize_image(self, name: str, file: Path) -> RecognizedImage | None:
        return RecognizedImage(format="kernel")


@pytest.fixture
def context(manager: Manager) -> Context:
    """Handlers `blue` and `green`, with a plugin each, and the default one."""
    names = ("Blue", "Green", "Fallback")
    registry = discover(EntryPoint(name, f"{__name__}:{name}", "virtlet") for name in names)
    sections = {
        "": {"plugins": ["Fallback"]},
        "green": {"plugins": ["Green", "Fallback"]},
        "blue": {"plugins": ["Blue", "Fallback"]},
    }
    made = evolve(manager.context, hooks=Hooks(registry), profiles=Profiles(sections, registry))
    made.journal = manager.context.journal
    return made


def _pull(context: Context, name: str, handler: str = "", pod: PodMetadata | None = None) -> str:
    """Pull; returns the class of the plugin that served it."""
    image = image_handlers.pull(context, parse_reference(name), Credentials(), handler, pod=pod)
    content = image.path.read_bytes()
    return next(k.__name__ for k in (Blue, Green, Fallback) if content == raw_disk(k.__name__))


def _run(context: Context, handler: str, attempt: int = 0) -> PodMetadata:
    """Have a pod of a handler; returns what PullImage says of it."""
    metadata = PodMetadata(name="web", uid="uid-web", namespace="default", attempt=attempt)
    pod = evolve(
        make_pod(),
        id=f"{attempt:032x}",
        config=PodConfig(metadata=metadata),
        profile=context.profiles.get(handler),
        created_at=attempt,
    )
    context.store.put_pod(PodRecord(pod=pod, phase=PodPhase.READY))
    return metadata


def test_a_pods_image_comes_by_the_plugins_of_the_pods_handler(context: Context) -> None:
    pod = _run(context, "green")
    assert _pull(context, "both", pod=pod) == "Green"
    assert _pull(context, "blue", pod=pod) == "Fallback"


def test_the_newest_of_a_pods_sandboxes_says_the_handler(context: Context) -> None:
    _run(context, "blue")
    assert _pull(context, "both", pod=_run(context, "green", attempt=1)) == "Green"


def test_what_the_request_says_goes_before_the_pod(context: Context) -> None:
    assert _pull(context, "both", "blue", _run(context, "green")) == "Blue"


def test_without_a_pod_the_plugins_of_all_handlers_are_asked_by_name_in_their_order(
    context: Context,
) -> None:
    unknown = PodMetadata(name="x", uid="x", namespace="x")
    assert _pull(context, "both") == "Blue"
    assert _pull(context, "green", pod=unknown) == "Green"
    assert _pull(context, "red") == "Fallback"


def test_a_name_is_pulled_again_for_the_handler_that_it_was_pulled_for(context: Context) -> None:
    assert _pull(context, "both", "green") == "Green"
    assert _pull(context, "both") == "Green"
    assert _pull(context, "green", "") == "Green"


def test_a_plugin_that_refuses_a_name_leaves_it_to_the_others(context: Context) -> None:
    assert _pull(context, "picky") == "Fallback"
    with pytest.raises(InvalidArgument, match="no such name"):
        _pull(context, "picky", "blue")


def test_two_handlers_that_give_a_name_two_meanings_take_it_from_each_other(
    context: Context,
) -> None:
    store = context.images.store
    for handler, plugin in (("blue", "Blue"), ("green", "Green")):
        assert _pull(context, "both:v1", handler) == plugin
        (image,) = store.list()
        assert image.names == ("both:v1",)
        assert (
            store.handler(parse_reference("both:v1"))
            == store.handler(parse_reference(image.id))
            == handler
        )


def test_a_name_that_was_never_pulled_removes_nothing(context: Context, manager: Manager) -> None:
    _pull(context, "virtlet.cloud/tiny:latest")
    image_handlers.remove(context, parse_reference("virtlet.cloud/tiny:zzz"))
    (image,) = context.images.store.list()
    assert image.names == ("virtlet.cloud/tiny:latest",)
    image_handlers.remove(context, parse_reference("tiny"))
    assert context.images.store.list() == ()
    image_handlers.remove(context, parse_reference("tiny"))
    kinds = [event.kind for event in manager.told.events]
    assert kinds == [EventKind.IMAGE_PULLED, EventKind.IMAGE_REMOVED]


def test_a_pull_that_takes_long_is_told_to_its_pod(manager: Manager) -> None:
    Slow.release.clear()
    registry = discover([EntryPoint("Slow", f"{__name__}:Slow", "virtlet")])
    profiles = Profiles({"": {"plugins": ["Slow"]}}, registry)
    context = evolve(manager.context, hooks=Hooks(registry), profiles=profiles)
    pod = PodMetadata(name="web", uid="uid-web", namespace="default")
    image = parse_reference("slow")
    arguments = (context, image, Credentials(), "", lambda: True, pod, 0.0)
    pulling = threading.Thread(target=image_handlers.pull, args=arguments)
    pulling.start()
    try:

        def progress() -> list[Event]:
            told = list(manager.told.events)
            return [e for e in told if e.kind is EventKind.IMAGE_PROGRESS and e.message]

        first = until(progress, "how far it is")[-1]
    finally:
        Slow.release.set()
        pulling.join()
    assert (first.subject, first.pod) == (str(image), pod)
    assert "MiB" in first.message
    (end,) = [e for e in manager.told.events if e.kind is EventKind.IMAGE_PULLED]
    assert end.pod == pod


@pytest.fixture
def kernels(manager: Manager) -> Context:
    """A handler `kernel`, whose plugin recognises kernels, beside the default one."""
    entries = ("fake", "tests.fakes.manager:Plugin"), ("kernels", f"{__name__}:Kernels")
    registry = discover(EntryPoint(name, value, "virtlet") for name, value in entries)
    plugin = registry.manager.get_plugin("fake")
    assert isinstance(plugin, Plugin)
    plugin.node = manager.node
    sections = {"": {"plugins": ["fake"]}, "kernel": {"plugins": ["kernels", "fake"]}}
    hooks, profiles = Hooks(registry), Profiles(sections, registry)
    hypervisors = Hypervisors(hooks, profiles)
    made = evolve(manager.context, hooks=hooks, profiles=profiles, hypervisors=hypervisors)
    made.journal = manager.context.journal
    return made


def _create(context: Context, handler: str) -> str:
    metadata = PodMetadata(name=f"pod{handler}", uid=f"uid{handler}", namespace="default")
    logs = str(context.node.data_dir / "logs")
    pod = pods.run_pod(context, PodConfig(metadata=metadata, log_directory=logs), handler)
    config = VmConfig(metadata=VmMetadata(name="guest"), image="boot", user_image="boot:v1")
    return vms.create_vm(context, pod, config)


def test_an_image_of_a_kind_that_a_handler_does_not_know_is_refused_before_any_effect(
    kernels: Context, manager: Manager
) -> None:
    image = image_handlers.pull(kernels, parse_reference("boot"), Credentials(), "kernel")
    assert (image.format, image.recognized_by) == ("kernel", "kernels")
    with pytest.raises(
        FailedPrecondition,
        match="image boot:v1: plugin 'kernels' recognised it as 'kernel', and handler '' does not "
        "have that plugin: use a runtimeClassName",
    ):
        _create(kernels, "")
    assert not any("vm-" in point or "volume" in point for point in manager.points)
    vm_id = _create(kernels, "kernel")
    vm = kernels.store.vms[vm_id].vm
    # The VM has a name of its own of it.
    assert vm.image == evolve(image, path=vm.directory / "image")
    assert vm.image.path.samefile(image.path)


def test_a_vm_is_told_what_its_image_says_of_itself_where_the_pods_name_leads(
    manager: Manager,
) -> None:
    """The kubelet gives the image's id; another name may lead to the same bytes elsewhere."""
    context = manager.context
    own = {"cloud.virtlet.share-drivers": "9p"}
    way = image_handlers.route(context, context.profiles.get(""))

    def fetch(source: ImageSource, credentials: Credentials, staging: Staging) -> FetchedImage:
        return evolve(way.fetch(source, credentials, staging), annotations=own)

    image = context.images.pull(parse_reference("told:v1"), evolve(way, fetch=fetch))
    assert context.images.pull(parse_reference("bare:v1"), way).id == image.id
    for number, (name, said) in enumerate((("told:v1", own), ("bare:v1", {}))):
        metadata = PodMetadata(name=f"pod{number}", uid=f"uid{number}", namespace="default")
        logs = str(context.node.data_dir / "logs")
        pod = pods.run_pod(context, PodConfig(metadata=metadata, log_directory=logs), "")
        config = VmConfig(metadata=VmMetadata(name="guest"), image=image.id, user_image=name)
        vm_id = vms.create_vm(context, pod, config)
        assert context.store.vms[vm_id].vm.image.annotations == said


def test_content_is_what_the_handler_that_pulled_it_first_takes_it_for(kernels: Context) -> None:
    assert (
        image_handlers.pull(kernels, parse_reference("boot"), Credentials(), "kernel").format
        == "kernel"
    )
    assert (
        image_handlers.pull(kernels, parse_reference("again"), Credentials(), "").format == "kernel"
    )
    image_handlers.remove(kernels, parse_reference("boot"))
    assert image_handlers.pull(kernels, parse_reference("again"), Credentials(), "").format == "raw"


def test_an_image_whose_plugin_is_gone_is_left_to_who_makes_its_root_disk(
    kernels: Context, manager: Manager
) -> None:
    image_handlers.pull(kernels, parse_reference("boot"), Credentials(), "kernel")
    vm = _create(manager.context, "")
    assert manager.vm(vm).vm.image.format == "kernel"
