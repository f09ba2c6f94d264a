import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pluggy
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny.tiny_guest import ROOT
from virtlet import PROJECT, hookimpl, hookspecs
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.profiles import Profiles
from virtlet.core.hooks.registry import Registry
from virtlet.errors import FailedPrecondition, NotFound
from virtlet.model.image import Credentials, ImageSource, TlsCertificate, Transport
from virtlet.model.reference import parse_reference
from virtlet.plugins.image_names.plugin import Plugin
from virtlet.plugins.image_names.translation_files import (
    Malformed,
    compile_rule,
    parse_translations,
)

from .conftest import Write, configured, resolved

DIGEST = "sha256:" + "a1" * 32
PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
KEY = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"

FULL = f"""
prefix: cloud
translations:
- name: cirros
  url: https://example.com/cirros.img
- name: slow
  url: https://slow.example.com/x.img
  transport: slow
- regexp: '^centos/(\\d+)-(?P<minor>\\d+)$'
  url: https://example.com/centos/$1/${{minor}}$$.qcow2
  transport: ''
transports:
  '':
    timeout: 2500
  slow:
    timeout: 60000
    maxRedirects: 0
    proxy: http://user:hunter2@proxy.example.com:3128
    tls:
      serverName: images.example.com
      insecure: true
      certificates:
      - cert: {PEM!r}
        key: {KEY!r}
      - cert: {PEM!r}
""".replace("'-----", '"-----').replace("-----\\n'", '-----\\n"')


def untranslated(plugin: Plugin, name: str) -> str:
    """What the plugin says when a name that leads nowhere is fetched."""
    source = resolved(plugin, name)

    class NoStaging:
        size, validator, complete = 0, "", False

        def begin(self, validator: str, offset: int, total: int | None) -> None:
            raise AssertionError

        def write(self, chunk: bytes) -> None:
            raise AssertionError

        def at_end(self, close: Callable[[], None]) -> None:
            raise AssertionError

    with pytest.raises(NotFound) as caught:
        plugin.virtlet_fetch_image(source, Credentials(), NoStaging())
    return str(caught.value)


class TestAddresses:
    def test_a_name_with_a_path_is_an_address_without_its_scheme(self, plugin: Plugin) -> None:
        assert resolved(plugin, "virtlet.cloud/example.com/a.qcow2:latest") == ImageSource(
            name="example.com/a.qcow2", url="https://example.com/a.qcow2"
        )

    def test_the_download_protocol_can_be_chosen(self, directory: Path, write: Write) -> None:
        write("a.yaml", "translations: [{name: x, url: example.com/x.img}]")
        plugin = configured(directory, protocol="http")
        assert resolved(plugin, "example.com/a").url == "http://example.com/a"
        assert resolved(plugin, "x").url == "http://example.com/x.img"

    def test_a_digest_is_kept(self, plugin: Plugin) -> None:
        assert resolved(plugin, f"example.com/a:v1@{DIGEST}").digest == DIGEST

    @pytest.mark.parametrize(
        "name", ["file:///srv/a.qcow2", "http://localhost:1/a", "https://example.com/a"]
    )
    def test_an_address_with_a_scheme_is_taken_as_it_is(self, plugin: Plugin, name: str) -> None:
        assert resolved(plugin, name) == ImageSource(name=name, url=name)

    def test_other_schemes_are_left_to_other_plugins(self, plugin: Plugin) -> None:
        assert plugin.virtlet_resolve_image(parse_reference("docker://example.com/a")) is None
        other = ImageSource(name="a", url="docker://example.com/a")
        assert plugin.virtlet_fetch_image(other, Credentials(), None) is None  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("name", "oci"),
        [
            ("quay.io/containerdisks/fedora:41", "quay.io/containerdisks/fedora:41"),
            ("quay.io/containerdisks/fedora", "quay.io/containerdisks/fedora:latest"),
            (f"localhost:5000/a@sha256:{'1' * 64}", "localhost:5000/a"),
            ("example.com/images/cirros.qcow2:latest", ""),
            ("example.com/images/cirros.img.xz", ""),
            ("example.com/Images/cirros", ""),
            ("host/cirros:1", ""),
            ("cirros:1", ""),
        ],
    )
    def test_one_that_may_be_in_a_registry_says_so(
        self, plugin: Plugin, name: str, oci: str
    ) -> None:
        assert resolved(plugin, name).oci == oci

    def test_a_bare_name_still_is_a_name_and_only_fetching_it_fails(
        self, plugin: Plugin, directory: Path
    ) -> None:
        assert resolved(plugin, "cirros:latest").name == "cirros"
        assert str(directory) in untranslated(plugin, "cirros")


class TestFiles:
    def test_a_file_with_everything(self, plugin: Plugin, write: Write) -> None:
        write("a.yaml", FULL)
        assert resolved(plugin, "cloud/cirros:latest") == ImageSource(
            name="cloud/cirros",
            url="https://example.com/cirros.img",
            digest="",
            transport=Transport(timeout=2.5),
            trusted=True,
        )
        assert resolved(plugin, "cloud/slow").transport == Transport(
            timeout=60,
            max_redirects=0,
            proxy="http://user:hunter2@proxy.example.com:3128",
            certificates=(TlsCertificate(cert=PEM, key=KEY), TlsCertificate(cert=PEM)),
            server_name="images.example.com",
            insecure=True,
        )
        source = resolved(plugin, "cloud/centos/7-11")
        assert source.url == "https://example.com/centos/7/11$.qcow2"
        assert source.transport.timeout == 2.5

    @pytest.mark.parametrize(
        ("url", "trusted"),
        [
            ("https://example.com/$1", True),
            ("example.com:8443/a?b=$1", True),
            ("https://$1", False),
            ("https://$1.example.com/a", False),
            ("https://example.com$1/a", False),
            ("https://example.com:$1/a", False),
            ("$1", False),
            ("$1/a", False),
            ("$1://example.com/a", False),
        ],
    )
    def test_a_server_that_comes_from_the_name_is_not_the_administrators(
        self, plugin: Plugin, write: Write, url: str, *, trusted: bool
    ) -> None:
        write("a.yaml", f"translations: [{{regexp: '^own/(.*)$', url: '{url}'}}]")
        assert resolved(plugin, "own/80").trusted == trusted

    def test_a_prefix_is_needed_where_a_file_has_one(self, plugin: Plugin, write: Write) -> None:
        write("a.yaml", FULL)
        assert resolved(plugin, "centos/7-11").url == "https://centos/7-11"
        assert resolved(plugin, "cloudy/cirros").url == "https://cloudy/cirros"

    def test_fixed_names_of_all_files_go_before_expressions(
        self, plugin: Plugin, write: Write
    ) -> None:
        write("a.yaml", "translations: [{regexp: '.*', url: 'https://a/all'}]")
        write("b.yaml", "translations: [{name: x, url: 'https://b/x'}]")
        assert resolved(plugin, "x").url == "https://b/x"
        assert resolved(plugin, "y").url == "https://a/all"

    def test_files_count_in_the_order_of_their_names(self, plugin: Plugin, write: Write) -> None:
        write("b.yaml", "translations: [{name: x, url: 'https://b'}]")
        write("a.yaml", "translations: [{name: x, url: 'https://a'}]")
        write("0.yml", "translations: [{name: x, url: 'https://0'}]")
        assert resolved(plugin, "x").url == "https://a"

    def test_expressions_can_be_switched_off(self, directory: Path, write: Write) -> None:
        write("a.yaml", "translations: [{regexp: '.*', url: 'https://a/all'}]")
        plugin = configured(directory, regexps=False)
        assert resolved(plugin, "a/x").url == "https://a/x"

    def test_a_url_may_lead_to_another_plugins_scheme(self, plugin: Plugin, write: Write) -> None:
        write("a.yaml", "translations: [{name: x, url: 'docker://example.com/x:v1'}]")
        assert resolved(plugin, "x") == ImageSource(
            name="x", url="docker://example.com/x:v1", trusted=True
        )

    def test_an_empty_file_says_nothing(self, plugin: Plugin, write: Write) -> None:
        write("a.yaml", "")
        write("b.yaml", "translations:\ntransports:\nprefix:\n")
        assert "no translation file" in untranslated(plugin, "x")

    def test_secrets_in_addresses_are_not_shown(self, plugin: Plugin, write: Write) -> None:
        write("a.yaml", "translations: [{name: x, url: 'https://u:hunter2@a/x?sig=hunter3'}]")
        assert "hunter" not in repr(resolved(plugin, "x"))


class TestChanges:
    def test_files_are_read_again_when_they_change(self, plugin: Plugin, write: Write) -> None:
        path = write("a.yaml", "translations: [{name: x, url: 'https://a/1'}]")
        assert resolved(plugin, "x").url == "https://a/1"
        write("a.yaml", "translations: [{name: x, url: 'https://a/two'}]")
        assert resolved(plugin, "x").url == "https://a/two"
        write("b.yaml", "translations: [{name: y, url: 'https://b/y'}]")
        assert resolved(plugin, "y").url == "https://b/y"
        path.unlink()
        assert resolved(plugin, "x").url.startswith("untranslated:")

    def test_a_replaced_file_of_same_size_and_date_is_noticed(
        self, plugin: Plugin, write: Write
    ) -> None:
        path = write("a.yaml", "translations: [{name: x, url: 'https://a/1'}]")
        assert resolved(plugin, "x").url == "https://a/1"
        stat = path.stat()
        new = write("new", "translations: [{name: x, url: 'https://a/2'}]")
        os.utime(new, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        new.replace(path)
        assert resolved(plugin, "x").url == "https://a/2"

    def test_a_missing_directory_has_no_translations(self, tmp_path: Path) -> None:
        plugin = configured(tmp_path / "missing")
        assert resolved(plugin, "a/x").url == "https://a/x"

    def test_unchanged_files_cost_little(self, plugin: Plugin, write: Write) -> None:
        for number in range(50):
            write(f"{number}.yaml", FULL.replace("cloud", f"cloud{number}"))
        resolved(plugin, "cloud1/cirros")
        started = time.process_time()
        for _ in range(20):
            resolved(plugin, "cloud1/cirros")
        assert time.process_time() - started < 0.5


def test_the_sample_file_has_the_image_of_the_sample_pod() -> None:
    plugin = configured(ROOT / "deploy" / "images")
    pod = yaml.safe_load((ROOT / "examples" / "pods" / "tiny.yaml").read_text())
    url = resolved(plugin, pod["spec"]["containers"][0]["image"]).url
    assert url == "file:///srv/virtlet/tiny.qcow2"
    for page in ("docs/guide/first-pod.md", "docs/node.md"):
        text = (ROOT / page).read_text()
        assert "deploy/images/tiny.yaml" in text
        assert "install -D -m 644 -t /srv/virtlet build/tiny.qcow2" in text


class TestMalformed:
    @pytest.mark.parametrize(
        ("content", "line", "problem"),
        [
            ("translations: [", None, "no valid YAML at line 1"),
            (
                "translations: []\n---\ntranslations: []\n",
                None,
                "it holds a second document at line 2, column 1: leave one alone in it",
            ),
            ("a: b: c", None, "no valid YAML at line 1, column 5"),
            ("\x00", None, "no valid YAML"),
            ("[" * 5000, None, "no valid YAML"),
            ("- x", 1, "the file must be a mapping"),
            ("\ntranslation: []", 2, "has no field 'translation'"),
            ("prefix: a\nprefix: b", 2, "'prefix' twice"),
            ("prefix: [a]", 1, "prefix must be a text"),
            ("translations: {}", 1, "translations must be a list"),
            ("translations:\n- x", 2, "a translation must be a mapping"),
            ("translations:\n- url: u", 2, "either name or regexp"),
            ("translations:\n- {name: x, regexp: y, url: u}", 2, "either name or regexp"),
            ("translations:\n- name: x", 2, "needs a url"),
            ("translations:\n- {name: x, url: u}\n- {name: x, url: v}", 3, "'x' is translated"),
            ("translations:\n- {name: x, url: u, transport: t}", 2, "no transport 't'"),
            ("translations:\n- url: u\n  regexp: '('", 3, "missing \\)"),
            ("translations:\n- url: u\n  regexp: '(?=x)'", 3, "no valid regular expression"),
            ("translations:\n- url: u$2\n  regexp: '(x)'", 3, "refers to \\$2"),
            ("translations:\n- url: u$1a\n  regexp: '(x)'", 3, "refers to \\$1a"),
            ("transports:\n  t:\n    timeout: soon", 3, "timeout must be a whole number"),
            ("transports:\n  t:\n    timeout: -1", 3, "timeout must be a whole number"),
            ("transports:\n  t:\n    tls: {insecure: maybe}", 3, "insecure must be true or false"),
            ("transports:\n  t:\n    tls: {certificates: [{cert: x}]}", 3, "PEM certificate"),
            ("x: &a [*a]", 1, "has no field 'x'"),
        ],
    )
    def test_the_file_and_line_are_named_and_other_files_count(
        self, plugin: Plugin, write: Write, content: str, line: int | None, problem: str
    ) -> None:
        write("good.yaml", "translations: [{name: good, url: 'https://a/good'}]")
        path = write("bad.yaml", content)
        with pytest.raises(Malformed, match=problem) as caught:
            parse_translations(path, path.read_bytes())
        assert isinstance(caught.value, FailedPrecondition)
        where = f"{path}:{line}: " if line else f"{path}: "
        assert where in str(caught.value)
        assert resolved(plugin, "good").url == "https://a/good"
        assert str(caught.value) in untranslated(plugin, "other")

    def test_a_key_in_it_is_not_shown(self, tmp_path: Path) -> None:
        content = "transports: {t: {tls: {certificates: [{cert: x, key: hunter2}]}}}"
        with pytest.raises(Malformed) as caught:
            parse_translations(tmp_path / "a.yaml", content.encode())
        assert "hunter2" not in str(caught.value)

    def test_a_name_that_it_may_have_meant_is_not_taken_for_an_address(
        self, plugin: Plugin, write: Write
    ) -> None:
        write("bad.yaml", "translations: [")
        assert resolved(plugin, "cloud/cirros").url == "untranslated:cloud/cirros"
        assert resolved(plugin, "example.com/a").url == "https://example.com/a"
        assert resolved(plugin, "localhost/a").url == "https://localhost/a"

    def test_what_it_said_before_stays_in_force(
        self, plugin: Plugin, write: Write, caplog: pytest.LogCaptureFixture
    ) -> None:
        write("a.yaml", "translations: [{name: x, url: 'https://a/1'}]")
        assert resolved(plugin, "x").url == "https://a/1"
        with caplog.at_level(logging.ERROR):
            path = write("a.yaml", "translations:\n- {name: x, url: 'https://a/2'}\n- {}")
            assert resolved(plugin, "x").url == "https://a/1"
            assert resolved(plugin, "x").url == "https://a/1"
        (record,) = caplog.records
        assert f"{path}:3" in vars(record)["problem"]
        write("a.yaml", "translations: [{name: x, url: 'https://a/3'}]")
        assert resolved(plugin, "x").url == "https://a/3"

    def test_a_huge_file_is_refused(self, plugin: Plugin, write: Write) -> None:
        write("a.yaml", "#" * ((1 << 20) + 1))
        assert "larger than" in untranslated(plugin, "x")

    @given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
    def test_any_content_is_taken_or_malformed(self, content: bytes) -> None:
        try:
            parse_translations(Path("/x.yaml"), content)
        except Malformed as error:
            problem = str(error)
        else:
            problem = "/x.yaml"
        assert "/x.yaml" in problem


class TestExpressions:
    def test_an_expression_made_to_backtrack_takes_no_time(self) -> None:
        rule = compile_rule("(a*)*(a*)*(a|aa)+$", "u")
        started = time.process_time()
        assert rule.apply("a" * 5000 + "b") is None
        assert time.process_time() - started < 1

    def test_an_absurdly_large_expression_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no valid regular expression"):
            compile_rule("((a{1000}){1000}){1000}", "u")

    def test_an_expression_is_found_anywhere_unless_anchored(self) -> None:
        assert compile_rule("b", "u").apply("abc") == "u"
        assert compile_rule("^b$", "u").apply("abc") is None

    def test_a_group_without_a_part_in_the_match_is_empty(self) -> None:
        assert compile_rule("a(b)?", "u/$1").apply("a") == "u/"

    @given(st.text(alphabet="abc/.-_0", max_size=20))
    def test_the_whole_match_can_be_put_into_the_address(self, name: str) -> None:
        assert compile_rule("^.*$", "https://x/$0").apply(name) == f"https://x/{name}"


def test_hook_resolve_image_asks_the_translation_files_last(directory: Path, write: Write) -> None:
    """A plugin of the handler goes first, and None leaves the name to the built-in one."""
    write("a.yaml", "translations: [{name: x, url: 'https://a/x'}]")

    class Other:
        @hookimpl
        def virtlet_resolve_image(self, name: str) -> ImageSource | None:
            return ImageSource(name="mine", url="mine:x") if name == "mine" else None

    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(Other(), "other")
    manager.register(configured(directory), "image_names")
    registry = Registry(manager, builtin=("image_names",), extra=("other",))
    hooks, profile = Hooks(registry), Profiles({"x": {"plugins": ["other"]}}, registry).get("x")
    assert hooks.resolve_image(profile, parse_reference("mine")).url == "mine:x"
    assert hooks.resolve_image(profile, parse_reference("x")).url == "https://a/x"
