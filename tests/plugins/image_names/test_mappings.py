"""VirtletImageMappings, followed by list and watch on an API server over TLS."""

import logging
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes.api_server import MAPPINGS, ROOT, ApiServer, Served, serving
from tests.plugins.image_names.conftest import Write, configured, resolved
from tests.polling import until
from virtlet.errors import InvalidArgument, NotFound
from virtlet.model.image import Credentials
from virtlet.plugins.image_names.plugin import Plugin
from virtlet.testing.models import make_node

LIMIT = 60.0
LIST = f"/apis/virtlet.k8s/v1/namespaces/kube-system/{MAPPINGS}"


def spec(name: str, url: str) -> dict[str, Any]:
    return {"translations": [{"name": name, "url": url}]}


@pytest.fixture
def api() -> ApiServer:
    return ApiServer()


@pytest.fixture
def served(api: ApiServer, tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path, api) as server:
        yield server


@contextmanager
def following(directory: Path, kubeconfig: object) -> Iterator[Plugin]:
    """The plugin while it follows."""
    plugin = configured(directory, kubeconfig=str(kubeconfig))
    try:
        yield plugin
    finally:
        plugin.virtlet_shutdown()


@pytest.fixture
def plugin(served: Served, directory: Path) -> Iterator[Plugin]:
    with following(directory, served.kubeconfig) as made:
        yield made


def leads(plugin: Plugin, name: str, url: str) -> None:
    """Wait until a name leads to an address."""
    until(lambda: resolved(plugin, name).url == url, f"{name} to lead to {url}", LIMIT)


def lists(api: ApiServer) -> int:
    return api.requests.count(LIST)


def watching(api: ApiServer, count: int = 1) -> Callable[[], bool]:
    return lambda: api.requests.count(f"{LIST} (watch)") >= count


def test_objects_translate_names_from_one_moment_to_the_next(
    plugin: Plugin, api: ApiServer
) -> None:
    """They come, change and go; those of other namespaces are nobody's business."""
    until(watching(api), "a watch", LIMIT)
    api.put(MAPPINGS, "kube-system", "a", spec=spec("cirros", "example.com/1"))
    leads(plugin, "cirros", "https://example.com/1")
    api.put(MAPPINGS, "elsewhere", "a", spec=spec("cirros", "example.com/elsewhere"))
    api.put(MAPPINGS, "kube-system", "a", spec=spec("cirros", "http://example.com/2"))
    leads(plugin, "cirros", "http://example.com/2")
    assert resolved(plugin, "cirros").trusted
    api.delete(MAPPINGS, "kube-system", "a")
    leads(plugin, "cirros", "untranslated:cirros")
    assert lists(api) == 1


def test_objects_win_over_files(
    api: ApiServer, served: Served, directory: Path, write: Write
) -> None:
    """Also an expression over a fixed name; among objects fixed names come first."""
    write("a.yaml", "translations: [{name: a1, url: file.example}, {name: c, url: c.example}]")
    regexp = {"prefix": "", "translations": [{"regexp": r"^a(\d)$", "url": "example.com/$1"}]}
    api.put(MAPPINGS, "kube-system", "first", spec=regexp)
    api.put(MAPPINGS, "kube-system", "second", spec=spec("a2", "example.com/fixed"))
    with following(directory, served.kubeconfig) as plugin:
        leads(plugin, "a1", "https://example.com/1")
        assert resolved(plugin, "a2").url == "https://example.com/fixed"
        assert resolved(plugin, "c").url == "https://c.example"


def test_transports_are_those_of_files(plugin: Plugin, api: ApiServer) -> None:
    made = {
        "translations": [{"name": "x", "url": "example.com", "transport": "slow"}],
        "transports": {"slow": {"timeout": 1500, "maxRedirects": 2, "tls": {"insecure": True}}},
    }
    api.put(MAPPINGS, "kube-system", "a", spec=made)
    leads(plugin, "x", "https://example.com")
    transport = resolved(plugin, "x").transport
    assert (transport.timeout, transport.max_redirects, transport.insecure) == (1.5, 2, True)


def test_a_watch_goes_on_where_the_last_one_ended(plugin: Plugin, api: ApiServer) -> None:
    until(watching(api), "a watch", LIMIT)
    api.put(MAPPINGS, "kube-system", "a", spec=spec("x", "example.com/1"))
    leads(plugin, "x", "https://example.com/1")
    api.cut()
    until(watching(api, 2), "another watch", LIMIT)
    api.put(MAPPINGS, "kube-system", "a", spec=spec("x", "example.com/2"))
    leads(plugin, "x", "https://example.com/2")
    assert lists(api) == 1


def test_what_the_server_has_forgotten_is_listed_again(plugin: Plugin, api: ApiServer) -> None:
    """410 Gone, as an event of the watch."""
    api.put(MAPPINGS, "kube-system", "gone", spec=spec("y", "example.com/y"))
    leads(plugin, "y", "https://example.com/y")
    until(watching(api), "a watch", LIMIT)
    with api.hold():
        api.put(MAPPINGS, "kube-system", "a", spec=spec("x", "example.com/1"))
        api.delete(MAPPINGS, "kube-system", "gone")
        api.compact()
        api.cut()
    leads(plugin, "x", "https://example.com/1")
    assert resolved(plugin, "y").url == "untranslated:y"
    assert lists(api) == 2


def test_bookmarks_move_the_watch_on(plugin: Plugin, api: ApiServer) -> None:
    api.put(MAPPINGS, "kube-system", "a", spec=spec("x", "example.com/1"))
    leads(plugin, "x", "https://example.com/1")
    until(watching(api), "a watch", LIMIT)
    api.put(MAPPINGS, "elsewhere", "b", spec=spec("x", "example.com/b"))
    api.bookmark()
    api.put(MAPPINGS, "kube-system", "a", spec=spec("x", "example.com/2"))
    leads(plugin, "x", "https://example.com/2")
    assert lists(api) == 1


def test_a_server_that_goes_away_takes_no_mapping_with_it(
    api: ApiServer, tmp_path: Path, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does a restart of the manager meanwhile; what is kept for it is root's alone."""
    with serving(tmp_path, api) as served:
        api.put(MAPPINGS, "kube-system", "a", spec=spec("x", "example.com/1"))
        with following(directory, served.kubeconfig) as plugin:
            leads(plugin, "x", "https://example.com/1")
    copy = make_node(directory).state_dir("image_names") / "mappings.json"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert stat.S_IMODE(copy.parent.stat().st_mode) == 0o700
    with following(directory, served.kubeconfig) as plugin:
        assert resolved(plugin, "x").url == "https://example.com/1"
        said = "image mappings not followed"
        until(lambda: said in caplog.text, "a line of the log", LIMIT)
        api.put(MAPPINGS, "kube-system", "a", spec=spec("x", "example.com/2"))
        with serving(tmp_path, api, port=served.port, authority=served.authority):
            leads(plugin, "x", "https://example.com/2")
        assert resolved(plugin, "x").url == "https://example.com/2"


def test_until_the_objects_are_known_no_name_is_taken_for_another(
    api: ApiServer, served: Served, directory: Path
) -> None:
    """`a/b` may be translated, so it is not the host `a`; names that are addresses are."""
    api.broken = 503
    with following(directory, served.kubeconfig) as plugin:
        assert resolved(plugin, "example.com/b").url == "https://example.com/b"
        source = resolved(plugin, "a/b")
        assert source.url == "untranslated:a/b"
        until(lambda: bool(api.requests), "a request", LIMIT)
        until(lambda: "503" in _why(plugin, source), "the reason", LIMIT)
        api.broken = 0
        leads(plugin, "a/b", "https://a/b")


def _why(plugin: Plugin, source: Any) -> str:
    with pytest.raises(NotFound) as caught:
        plugin.virtlet_fetch_image(source, Credentials(), None)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize("missing", ["definition", "right"])
def test_a_cluster_without_them_has_none(
    api: ApiServer,
    served: Served,
    directory: Path,
    missing: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    if missing == "definition":
        api.has_mappings = False
    else:
        api.denied.add(MAPPINGS)
    with following(directory, served.kubeconfig) as plugin:
        leads(plugin, "a/b", "https://a/b")
    assert "image mappings not followed" in caplog.text


def test_an_object_that_is_wrong_is_said_and_keeps_what_it_was(
    plugin: Plugin, api: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    api.put(MAPPINGS, "kube-system", "a", spec=spec("x", "example.com/1"))
    leads(plugin, "x", "https://example.com/1")
    api.put(MAPPINGS, "kube-system", "a", spec={"translations": [{"name": "x"}]})
    api.put(MAPPINGS, "kube-system", "b", spec={"nonsense": 1})
    api.put(MAPPINGS, "kube-system", "c", spec=spec("y", "example.com/y"))
    leads(plugin, "y", "https://example.com/y")
    assert resolved(plugin, "x").url == "https://example.com/1"
    why = _why(plugin, resolved(plugin, "z"))
    assert "VirtletImageMapping kube-system/a: a translation needs a url" in why
    assert "VirtletImageMapping kube-system/b: the file has no field 'nonsense'" in why
    assert caplog.text.count("image mapping not used") == 2


@pytest.mark.parametrize("translation", [{"name": "x"}, {"regexp": "^(x)$"}])
def test_an_object_cannot_name_a_file_of_the_node(
    plugin: Plugin, api: ApiServer, translation: dict[str, str]
) -> None:
    made = {"translations": [translation | {"url": "file:///etc/shadow"}]}
    api.put(MAPPINGS, "kube-system", "a", spec=made)

    def refused() -> bool:
        try:
            resolved(plugin, "x")
        except InvalidArgument as error:
            return "leads to a file of the node" in str(error)
        return False

    until(refused, "the refusal", LIMIT)


def test_a_copy_that_is_damaged_is_passed_over(
    api: ApiServer, served: Served, directory: Path
) -> None:
    copy = make_node(directory).state_dir("image_names") / "mappings.json"
    copy.parent.mkdir(parents=True)
    for content in ("{", "[]", '{"namespace": "kube-system", "objects": {"a": 1}}'):
        copy.write_text(content)
        api.put(MAPPINGS, "kube-system", "a", spec=spec("x", f"example.com/{len(content)}"))
        with following(directory, served.kubeconfig) as plugin:
            leads(plugin, "x", f"https://example.com/{len(content)}")


def test_a_manager_without_access_has_no_thread_and_no_client(directory: Path) -> None:
    """The client's memory is for those that use it."""
    # Threads of tests before may end meanwhile.
    before = set(threading.enumerate())
    with following(directory, "") as plugin:
        assert set(threading.enumerate()) <= before
        assert resolved(plugin, "a/b").url == "https://a/b"
    loads = (
        "import sys; import virtlet.plugins.image_names.plugin, virtlet.plugins.cloudinit.plugin;"
        "sys.exit(any(name.split('.')[0] == 'kubernetes' for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", loads]).returncode == 0


def test_shutting_down_ends_the_watch(api: ApiServer, served: Served, directory: Path) -> None:
    with following(directory, served.kubeconfig):
        until(watching(api), "a watch", LIMIT)
    names = [thread.name for thread in threading.enumerate()]
    assert "objects-virtletimagemappings" not in names


def test_the_definition_knows_the_fields_of_translation_files() -> None:
    definition = yaml.safe_load(
        (ROOT / "deploy" / "cluster" / "virtletimagemapping.yaml").read_text()
    )
    assert definition["metadata"]["name"] == f"{MAPPINGS}.virtlet.k8s"
    (version,) = definition["spec"]["versions"]
    fields = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    assert set(fields) == {"prefix", "translations", "transports"}
    translation = fields["translations"]["items"]["properties"]
    assert set(translation) == {"name", "regexp", "url", "transport"}
    transport = fields["transports"]["additionalProperties"]["properties"]
    assert set(transport) == {"timeout", "maxRedirects", "proxy", "tls"}
    tls = transport["tls"]["properties"]
    assert set(tls) == {"serverName", "insecure", "certificates"}
    assert set(tls["certificates"]["items"]["properties"]) == {"cert", "key"}
