"""The plugin with translation files of the test's own."""

from collections.abc import Callable
from pathlib import Path

import pytest

from virtlet.cluster.api import KUBECONFIG
from virtlet.model.image import ImageSource
from virtlet.model.option import Settings
from virtlet.model.reference import parse_reference
from virtlet.plugins.image_names.plugin import (
    DOWNLOAD_PROTOCOL,
    MAPPING_NAMESPACE,
    REGEXP_TRANSLATION,
    TRANSLATIONS_DIR,
    Plugin,
)
from virtlet.testing.models import make_node

Write = Callable[[str, str], Path]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The translation directory."""
    path = tmp_path / "translations"
    path.mkdir()
    return path


@pytest.fixture
def write(directory: Path) -> Write:
    """Writes a translation file."""

    def write_it(name: str, content: str) -> Path:
        path = directory / name
        path.write_text(content)
        return path

    return write_it


def configured(
    directory: Path, *, regexps: bool = True, protocol: str = "https", kubeconfig: str = ""
) -> Plugin:
    """The plugin as the manager would have it."""
    plugin = Plugin()
    values = {
        TRANSLATIONS_DIR.field: directory,
        REGEXP_TRANSLATION.field: regexps,
        DOWNLOAD_PROTOCOL.field: protocol,
        MAPPING_NAMESPACE.field: "kube-system",
        KUBECONFIG.field: kubeconfig,
    }
    plugin.virtlet_configure(Settings(values=values), make_node(directory))
    return plugin


@pytest.fixture
def plugin(directory: Path) -> Plugin:
    """The plugin with default settings."""
    return configured(directory)


def resolved(plugin: Plugin, name: str) -> ImageSource:
    """The source of a name that the plugin must know."""
    source = plugin.virtlet_resolve_image(parse_reference(name))
    assert source is not None
    return source
