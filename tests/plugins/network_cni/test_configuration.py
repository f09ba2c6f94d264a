"""CNI configuration: which file counts, and what is wrong with it."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from tests.fakes.users import as_user
from tests.plugins.network_cni.test_result import JSON
from virtlet.errors import FailedPrecondition
from virtlet.plugins.network_cni.configuration import load, parse


def write(directory: Path, name: str, document: Any) -> None:
    path = directory / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document))


def network(**more: Any) -> dict[str, Any]:
    return {"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}], **more}


def test_first_by_name(tmp_path: Path) -> None:
    """The first file by name counts; other endings do not."""
    write(tmp_path, "20-b.conflist", network(name="b"))
    write(tmp_path, "10-a.conf", {"cniVersion": "0.4.0", "name": "a", "type": "ptp"})
    write(tmp_path, "05-c.conflist.bak", network(name="c"))
    loaded = load(tmp_path)
    assert (loaded.name, loaded.version) == ("a", "0.4.0")
    assert [plugin.type for plugin in loaded.plugins] == ["ptp"]


def test_changes_are_seen(tmp_path: Path) -> None:
    """Files are read again every time."""
    write(tmp_path, "10.conflist", network())
    assert load(tmp_path).name == "net"
    write(tmp_path, "10.conflist", network(name="other"))
    assert load(tmp_path).name == "other"


def test_plugins_in_files_of_their_own(tmp_path: Path) -> None:
    """Plugins below a directory of the network's name are added, unless the list forbids it."""
    write(tmp_path, "10.conflist", network())
    write(tmp_path / "net", "50-more.conf", {"type": "tuning"})
    assert [plugin.type for plugin in load(tmp_path).plugins] == ["bridge", "tuning"]
    write(tmp_path, "10.conflist", network(loadOnlyInlinedPlugins=True))
    assert [plugin.type for plugin in load(tmp_path).plugins] == ["bridge"]


def test_newest_common_version() -> None:
    """Of the versions that a configuration offers, the newest that we speak is used."""
    assert parse(network(cniVersions=["0.4.0", "1.1.0", "2.0.0"])).version == "1.1.0"


def test_capabilities_that_are_wanted() -> None:
    """Only capabilities that are true count."""
    plugin = {"type": "x", "capabilities": {"dns": True, "ips": False, "mac": None}}
    assert parse(network(plugins=[plugin])).plugins[0].capabilities == {"dns"}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "must be a JSON object"),
        (network(name=""), "name must be a non-empty text"),
        (network(name="../up"), "name '../up' is none"),
        (network(cniVersion="0.2.0"), "cniVersion '0.2.0': supported are 0.3.0"),
        ({"name": "net", "plugins": [{"type": "x"}]}, "cniVersion is missing"),
        (network(plugins=[]), "the list of plugins is empty"),
        (network(plugins={}), "plugins must be a list"),
        (network(plugins=["x"]), "plugins[0] must be an object"),
        (network(plugins=[{}]), "plugins[0].type must be a non-empty text"),
        (network(plugins=[{"type": "../x"}]), "plugins[0].type '../x' is no file name"),
        (network(plugins=[{"type": "x", "capabilities": 1}]), "capabilities must be an object"),
        (network(disableCheck="maybe"), "disableCheck must be true or false"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, document: Any, message: str) -> None:
    """The message names the file and the place in it."""
    write(tmp_path, "10-wrong.conflist", document)
    with pytest.raises(FailedPrecondition) as caught:
        load(tmp_path)
    assert f"{tmp_path}/10-wrong.conflist" in str(caught.value)
    assert message in str(caught.value)


def refusal(document: Any) -> str | None:
    """Why a document is refused, or None."""
    try:
        parse(document)
    except ValueError as error:
        return str(error)
    return None


@given(JSON)
def test_any_document_is_read_or_refused(document: Any) -> None:
    """Whatever JSON stands in the file: a network or a ValueError with a message."""
    assert refusal(document) != ""


def test_closed_directory() -> None:
    """Where the manager may not read, the message says at which directory, and whose that is."""
    with tempfile.TemporaryDirectory() as parent:  # closed to all but its owner
        directory = Path(parent) / "net.d"
        directory.mkdir()
        with as_user(65534), pytest.raises(FailedPrecondition) as caught:
            load(directory)
        text = str(caught.value)
        assert f"CNI configuration directory {directory}: permission denied to nobody at" in text
        assert f"at {parent} (drwx------, of root): let it enter" in text
