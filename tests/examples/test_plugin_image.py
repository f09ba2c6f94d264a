import configparser
import importlib
import lzma
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from virtlet.core.images.layout import Layout
from virtlet.core.images.pull import Images
from virtlet.core.images.route import Route
from virtlet.core.images.store import ImageStore
from virtlet.errors import FailedPrecondition, InvalidArgument, NotFound
from virtlet.model.node import Node
from virtlet.model.option import Settings

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin-image"
DISK = bytes(510) + b"\x55\xaa" + bytes(range(256)) * 256


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "local-images"
    path.mkdir()
    return path


@pytest.fixture
def plugin(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What the package's entry point names, configured as the manager does."""
    setup = configparser.ConfigParser()
    setup.read(EXAMPLE / "setup.cfg")
    entry = setup["options.entry_points"]["virtlet"].partition("=")[2].strip()
    module_name, _, name = entry.partition(":")
    monkeypatch.syspath_prepend(str(EXAMPLE))
    module = importlib.import_module(module_name)
    plugin = getattr(module, name)()
    (option,) = plugin.virtlet_options()
    node = Node(
        data_dir=directory,
        run_dir=directory,
        instance="test",
        emulator=Path("/bin/true"),
        emulator_uid=0,
        emulator_gid=0,
        launch_socket=directory / "launch.sock",
    )
    plugin.virtlet_configure(Settings(values={option.field: directory}), node)
    yield plugin
    del sys.modules[module_name]


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return Images(ImageStore(Layout(tmp_path / "images", 0), in_use=set))


@pytest.fixture
def route(plugin: Any) -> Route:
    return Route("", plugin.virtlet_resolve_image, plugin.virtlet_fetch_image)


@pytest.mark.parametrize("file", ["a.qcow2", "a.img", "a.img.xz", "a.qcow2.xz"])
def test_a_local_name_is_a_file_of_the_directory(
    directory: Path, images: Images, route: Route, file: str
) -> None:
    packed = file.endswith(".xz")
    (directory / file).write_bytes(lzma.compress(DISK) if packed else DISK)
    image = images.pull("virtlet.cloud/local/a:latest", route)
    assert image.names == ("virtlet.cloud/local/a:latest",)
    assert image.path.read_bytes() == DISK
    assert images.store.get(f"local/a@{image.id}") == image


def test_an_unchanged_file_is_not_read_again_and_a_new_one_is(
    directory: Path, images: Images, route: Route
) -> None:
    (directory / "a.img").write_bytes(DISK)
    first = images.pull("local/a", route)
    assert images.pull("local/a", route).id == first.id
    (directory / "new").write_bytes(DISK + bytes(512))
    (directory / "new").replace(directory / "a.img")
    assert images.pull("local/a", route).id != first.id


@pytest.mark.parametrize(
    "name",
    ["example.com/a", "locality/a", "local/../a", "local/a/b", "local/", "http://local/a"],
)
def test_other_names_are_left_to_others(plugin: Any, name: str) -> None:
    assert plugin.virtlet_resolve_image(name) is None


def test_what_goes_wrong_is_said(directory: Path, images: Images, route: Route) -> None:
    with pytest.raises(NotFound, match=r"has no a\.qcow2"):
        images.pull("local/a", route)
    (directory / "a.img.xz").write_bytes(lzma.compress(DISK)[:-20])
    with pytest.raises(FailedPrecondition, match="no whole xz"):
        images.pull("local/a", route)
    (directory / "a.img").write_bytes(b"<html>")
    with pytest.raises(InvalidArgument, match="web page"):
        images.pull("local/a", route)
    assert images.store.list() == ()
