"""Trying a plugin's hooks without a manager."""

from pathlib import Path
from typing import Any, TypeVar
from xml.etree.ElementTree import Element

import pluggy

from virtlet import PROJECT, hookspecs
from virtlet.errors import NotFound
from virtlet.images.image_store import ImageStore
from virtlet.images.layout import Layout
from virtlet.images.pull import ImageRoute, Images
from virtlet.model.image import (
    Conversion,
    Credentials,
    FetchedImage,
    Image,
    ImageSource,
    RecognizedImage,
    Staging,
)
from virtlet.model.reference import Reference, parse_reference
from virtlet.model.vm import Machine
from virtlet.plugins.domain_xml.render import Renderer
from virtlet.plugins.image_formats.plugin import Plugin as ImageFormats
from virtlet.testing.models import make_node, make_settings

P = TypeVar("P")


def configured(plugin: P, root: Path, **texts: str) -> P:
    """A plugin as the manager has it after its start.

    Args:
        plugin: a new one.
        root: the node's data directory.
        texts: settings of the plugin, by their field.

    Raises:
        InvalidArgument: an option does not take its text.
    """
    hooks = _hooks_of(plugin)
    options = [option for declared in hooks.virtlet_options() for option in declared]
    hooks.virtlet_configure(settings=make_settings(options, root, **texts), node=make_node(root))
    return plugin


def pull_image(plugin: object, name: str, directory: Path) -> Image:
    """Pull an image by a plugin's hooks into a store, as the core does it.

    The built-in plugin recognises qcow2 and raw disks that the plugin does not.

    Args:
        plugin: that resolves and fetches it.
        name: as a pod has it.
        directory: the store's; it keeps what was pulled into it before.

    Raises:
        NotFound: the plugin does not know the name.
        VirtletError: what the plugin raised, or the core finds wrong with the content.
    """
    hooks = _hooks_of(plugin)

    def resolve(reference: Reference) -> ImageSource:
        source: ImageSource | None = hooks.virtlet_resolve_image(name=name, reference=reference)
        if source is None:
            raise NotFound(f"virtlet_resolve_image returned None for {name!r}")
        return source

    def fetch(source: ImageSource, credentials: Credentials, staging: Staging) -> FetchedImage:
        fetched: FetchedImage | None = hooks.virtlet_fetch_image(
            source=source, credentials=credentials, staging=staging
        )
        if fetched is None:
            raise NotFound(f"virtlet_fetch_image returned None for {source.name!r}")
        return fetched

    def recognize(name: str, file: Path) -> tuple[str, RecognizedImage]:
        found: RecognizedImage | None = hooks.virtlet_recognize_image(name=name, file=file)
        return ("", found) if found else ("", built_in.virtlet_recognize_image(name, file))

    built_in = ImageFormats()

    def unpack(name: str, head: bytes) -> Conversion | None:
        found: Conversion | None = hooks.virtlet_unpack_image(name=name, head=head)
        return found or built_in.virtlet_unpack_image(name, head)

    images = Images(ImageStore(Layout(directory, 0), in_use=set, recognize=recognize))
    return images.pull(parse_reference(name), ImageRoute("", resolve, fetch, recognize, unpack))


def rendered(machine: Machine) -> Element:
    """A machine's domain document, as the built-in plugin renders it."""
    node = make_node(machine.vm.directory)
    return Renderer(node.emulator_uid, node.emulator_gid, "").render(machine)


def _hooks_of(plugin: object) -> Any:
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(plugin)
    return manager.hook
