"""The hooks of the fetcher, and of container images that are mounted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from virtlet import hookimpl
from virtlet.image_servers.settings import ALLOWED_NETWORKS, LEAST_RATE, Network
from virtlet.model.disk import Disk
from virtlet.model.image import (
    Credentials,
    FetchedImage,
    ImageSource,
    RecognizedImage,
    Staging,
)
from virtlet.model.node import Node
from virtlet.model.option import PATH, Option, Settings
from virtlet.model.vm import Vm

REGISTRY_CONFIGS_DIR: Option[Path] = Option(
    field="imageRegistryConfigsDir",
    flag="--image-registry-configs-dir",
    env="VIRTLET_IMAGE_REGISTRY_CONFIGS_DIR",
    kind=PATH,
    default="/etc/virtlet/certs.d",
    help="directory with HOST/hosts.toml files of image registries, in containerd's form: mirrors, "
    "plain HTTP, authorities; read with each pull",
)


class Plugin:
    """Fetches images from registries: their disks, or the content of those that have none."""

    VIRTLET_HOOK_API = 1

    _allowed: tuple[Network, ...] = ()
    _least_rate = 0
    _certs_dir: Path

    @hookimpl
    def virtlet_options(self) -> Sequence[Option[Any]]:
        """Declare the setting of its own."""
        return (REGISTRY_CONFIGS_DIR,)

    @hookimpl
    def virtlet_configure(self, settings: Settings, node: Node) -> None:
        """Take the settings."""
        self._allowed = settings[ALLOWED_NETWORKS]
        self._least_rate = settings[LEAST_RATE]
        self._certs_dir = settings[REGISTRY_CONFIGS_DIR]

    @hookimpl
    def virtlet_fetch_image(
        self, source: ImageSource, credentials: Credentials, staging: Staging
    ) -> FetchedImage | None:
        """Fetch from a registry; None where the name is, or may be, another kind of address."""
        if not (source.oci or source.url.partition("://")[0] in ("oci", "docker")):
            return None
        # Imported when needed: a manager that pulls nothing starts quicker and stays smaller.
        from virtlet.image_servers.pace import Bounds
        from virtlet.image_servers.reach import Reach
        from virtlet.plugins.image_oci.disk import fetch_disk

        bounds = Bounds(Reach(self._allowed), self._least_rate)
        return fetch_disk(source, credentials, staging, bounds, self._certs_dir)

    @hookimpl
    def virtlet_recognize_image(self, name: str, file: Path) -> RecognizedImage | None:
        """Know the content of container images, of which a file system is made."""
        from virtlet.plugins.image_oci.content import recognise

        return recognise(name, file)

    @hookimpl
    def virtlet_root_disk(self, vm: Vm) -> Disk | None:
        """None; says what a container image lacks for a VM to start from it."""
        from virtlet.plugins.image_oci.content import refuse_to_start

        refuse_to_start(vm.image, vm.config.user_image or vm.config.image)
        return None

    @hookimpl
    def virtlet_release_root_disk(self) -> None:
        """Nothing: no disk is made here."""
