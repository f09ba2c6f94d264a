"""Which servers are asked, and what they are shown."""

import base64
import json
from collections.abc import Iterator

import pytest

from tests.fakes.image_server import ImageServer, Resource, image_server
from tests.fakes.oci_images import container_disk
from tests.images.disks import raw_disk
from virtlet.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unavailable,
    VirtletError,
)
from virtlet.model.image import Credentials
from virtlet.plugins.image_oci.hosts import endpoints

from .conftest import Node, authorizations, paths

DISK = raw_disk("registry")
SECRET = Credentials(username="me", password="my secret")
BASIC = "Basic " + base64.b64encode(b"me:my secret").decode()
SPEAKS = {"Docker-Distribution-Api-Version": "registry/2.0"}


@pytest.fixture
def other() -> Iterator[ImageServer]:
    """Another server."""
    with image_server() as running:
        yield running


def protect(server: ImageServer, challenge: str, authorization: str) -> None:
    """Have all that a server has demand something."""
    for path, resource in server.resources.items():
        if path.startswith("/v2/"):
            resource.authorization = authorization
            resource.challenge = {"WWW-Authenticate": challenge, **SPEAKS}


class TestSecrets:
    def test_they_are_shown_where_they_are_asked_for(self, node: Node, server: ImageServer) -> None:
        container_disk(DISK).serve(server, "vms/a", "1")
        protect(server, 'Basic realm="x"', BASIC)
        # As a kubelet sends them: without the server.
        found = node.pull(f"{node.plain(server)}/vms/a:1", SECRET)
        assert found.path.read_bytes() == DISK
        first, *others = server.requests
        assert "authorization" not in first.headers
        assert {request.headers["authorization"] for request in others} == {BASIC}

    @pytest.mark.parametrize("wrong", [Credentials(), Credentials(username="me", password="x")])
    def test_wrong_ones_are_told(self, node: Node, server: ImageServer, wrong: Credentials) -> None:
        container_disk(DISK).serve(server, "vms/a", "1")
        protect(server, 'Basic realm="x"', BASIC)
        with pytest.raises(
            PermissionDenied, match=r"\(HTTP 401\); check the name and the image pu"
        ):
            node.pull(f"{node.plain(server)}/vms/a:1", wrong)

    def test_they_become_a_token(self, node: Node, server: ImageServer, other: ImageServer) -> None:
        container_disk(DISK).serve(server, "vms/a", "1")
        realm = f'realm="{other.url}/token",service="reg",scope="repository:vms/a:pull"'
        protect(server, f"Bearer {realm}", "Bearer t0ken")
        path = "/token?service=reg&scope=repository%3Avms%2Fa%3Apull"
        token = json.dumps({"token": "t0ken", "expires_in": 300}).encode()
        other.resources[path] = Resource(token, authorization=BASIC)
        found = node.pull(f"{node.plain(server)}/vms/a:1", SECRET)
        assert found.path.read_bytes() == DISK
        assert authorizations(other) == {path: BASIC}
        assert set(authorizations(server).values()) == {"Bearer t0ken"}

    def test_a_token_may_need_none(self, node: Node, server: ImageServer) -> None:
        container_disk(DISK).serve(server, "vms/a", "1")
        protect(server, f'Bearer realm="{server.url}/token"', "Bearer t0ken")
        path = "/token?scope=repository%3Avms%2Fa%3Apull"
        server.resources[path] = Resource(b'{"access_token": "t0ken"}')
        assert node.pull(f"{node.plain(server)}/vms/a:1").path.read_bytes() == DISK

    def test_a_token_of_the_pods_is_shown_as_it_is(self, node: Node, server: ImageServer) -> None:
        container_disk(DISK).serve(server, "vms/a", "1")
        protect(server, 'Bearer realm="https://nowhere.example/"', "Bearer t0ken")
        node.pull(f"{node.plain(server)}/vms/a:1", Credentials(registry_token="t0ken"))
        assert set(authorizations(server).values()) == {"Bearer t0ken"}

    @pytest.mark.parametrize(
        ("answer", "match"),
        [
            (Resource(b"{}"), "answers without a token"),
            (Resource(b'{"token": "a\\nb"}'), "answers without a token"),
            (Resource(status=401), "refuses a token .*check the name and the image pull secret"),
            (Resource(status=503), "cannot serve it now"),
        ],
    )
    def test_a_token_server_that_has_none_is_told(
        self, node: Node, server: ImageServer, answer: Resource, match: str
    ) -> None:
        container_disk(DISK).serve(server, "vms/a", "1")
        protect(server, f'Bearer realm="{server.url}/token"', "Bearer t0ken")
        server.resources["/token?scope=repository%3Avms%2Fa%3Apull"] = answer
        with pytest.raises(VirtletError, match=match) as error:
            node.pull(f"{node.plain(server)}/vms/a:1", SECRET)
        assert "my secret" not in str(error.value)

    @pytest.mark.parametrize("realm", ["file:///etc/shadow", "", "http://[", "https://a:b@c/"])
    def test_a_token_server_that_is_none_is_not_asked(
        self, node: Node, server: ImageServer, realm: str
    ) -> None:
        container_disk(DISK).serve(server, "vms/a", "1")
        protect(server, f'Bearer realm="{realm}"', "Bearer t0ken")
        with pytest.raises(FailedPrecondition, match="names no https:// address as the server of"):
            node.pull(f"{node.plain(server)}/vms/a:1", SECRET)

    def test_a_token_server_within_the_node_is_not_asked(
        self, node: Node, server: ImageServer
    ) -> None:
        node.allowed = ""
        container_disk(DISK).serve(server, "vms/a", "1")
        port = server.url.rpartition(":")[2]
        protect(server, f'Bearer realm="http://127.0.0.2:{port}/token"', "Bearer t0ken")
        with pytest.raises(PermissionDenied, match=r"127\.0\.0\.2 is a loopback address"):
            node.pull(f"{node.plain(server)}/vms/a:1", SECRET)
        assert paths(server) == ["/v2/vms/a/manifests/1"]

    def test_they_are_not_sent_over_plain_http_unless_the_administrator_says_so(
        self, node: Node, server: ImageServer
    ) -> None:
        container_disk(DISK).serve(server, "vms/a", "1")
        protect(server, 'Basic realm="x"', BASIC)
        registry = server.url.partition("://")[2]
        node.protocol = "http"
        with pytest.raises(PermissionDenied, match="not sent over plain http"):
            node.pull(f"{registry}/vms/a:1", SECRET)
        assert not any("authorization" in request.headers for request in server.requests)
        node.pull(f"{node.plain(server)}/vms/a:1", SECRET)

    def test_plain_http_of_a_registry_is_not_that_of_its_token_server(
        self, node: Node, server: ImageServer, other: ImageServer
    ) -> None:
        container_disk(DISK).serve(server, "vms/a", "1")
        node.allowed = "127.0.0.0/8,::1/128"
        realm = f"{other.url.replace('127.0.0.1', 'localhost')}/token"
        protect(server, f'Bearer realm="{realm}"', "Bearer t0ken")
        path = "/token?scope=repository%3Avms%2Fa%3Apull"
        other.resources[path] = Resource(b'{"token": "t0ken"}')
        node.pull(f"{node.plain(server)}/vms/a:1", SECRET)
        assert authorizations(other) == {path: ""}

    def test_those_of_another_registry_are_not_sent(self, node: Node, server: ImageServer) -> None:
        container_disk(DISK).serve(server, "vms/a", "1")
        protect(server, 'Basic realm="x"', BASIC)
        secret = Credentials(username="me", password="my secret", server_address="quay.io")
        with pytest.raises(PermissionDenied, match="the pull secret is another registry's"):
            node.pull(f"{node.plain(server)}/vms/a:1", secret)
        assert not any("authorization" in request.headers for request in server.requests)

    def test_a_blob_stores_server_gets_none(
        self, node: Node, server: ImageServer, other: ImageServer
    ) -> None:
        container_disk(DISK).serve(server, "vms/a", "1")
        protect(server, 'Basic realm="x"', BASIC)
        for path, resource in list(server.resources.items()):
            if "/blobs/" in path:
                other.resources[path] = Resource(resource.content)
                server.resources[path] = Resource(
                    status=307, location=f"{other.url}{path}", authorization=BASIC
                )
        found = node.pull(f"{node.plain(server)}/vms/a:1", SECRET)
        assert found.path.read_bytes() == DISK
        assert set(authorizations(other).values()) == {""}

    def test_a_server_that_a_blob_is_sent_to_asks_for_them_in_vain(
        self, node: Node, server: ImageServer, other: ImageServer
    ) -> None:
        container_disk(DISK).serve(server, "vms/a", "1")
        for path in [path for path in server.resources if "/blobs/" in path]:
            challenge = {"WWW-Authenticate": 'Basic realm="x"'}
            other.resources[path] = Resource(status=401, headers=challenge)
            server.resources[path] = Resource(status=307, location=f"{other.url}{path}")
        with pytest.raises(PermissionDenied, match="refuses a blob"):
            node.pull(f"{node.plain(server)}/vms/a:1", SECRET)
        assert set(authorizations(other).values()) == {""}


class TestMirrors:
    def hosts(self, node: Node, server: ImageServer, mirror: ImageServer, more: str = "") -> str:
        """Have a registry with a mirror."""
        registry = server.url.partition("://")[2]
        node.hosts(registry, f'server = "{server.url}"\n[host."{mirror.url}"]\n{more}')
        return registry

    def test_they_are_asked_first_and_told_of_whom(
        self, node: Node, server: ImageServer, other: ImageServer
    ) -> None:
        container_disk(DISK).serve(other, "vms/a", "1")
        registry = self.hosts(node, server, other)
        for path, resource in list(other.resources.items()):
            other.resources[f"{path}?ns={registry.replace(':', '%3A')}"] = resource
        assert node.pull(f"{registry}/vms/a:1", SECRET).path.read_bytes() == DISK
        assert paths(server) == []
        assert set(authorizations(other).values()) == {""}

    def test_what_they_lack_comes_from_the_registry(
        self, node: Node, server: ImageServer, other: ImageServer
    ) -> None:
        container_disk(DISK).serve(server, "vms/a", "1")
        registry = self.hosts(node, server, other)
        assert node.pull(f"{registry}/vms/a:1").path.read_bytes() == DISK
        assert len(other.requests) == len(server.requests) == 3

    def test_one_that_cannot_be_reached_is_passed_over(
        self, node: Node, server: ImageServer
    ) -> None:
        container_disk(DISK).serve(server, "vms/a", "1")
        registry = server.url.partition("://")[2]
        node.hosts(registry, f'server = "{server.url}"\n[host."http://127.0.0.1:9"]\n')
        assert node.pull(f"{registry}/vms/a:1").path.read_bytes() == DISK

    def test_one_without_resolve_is_not_asked_for_tags(
        self, node: Node, server: ImageServer, other: ImageServer
    ) -> None:
        container_disk(DISK).serve(server, "vms/a", "1")
        container_disk(raw_disk("stale")).serve(other, "vms/a", "1")
        registry = self.hosts(node, server, other, 'capabilities = ["pull"]')
        assert node.pull(f"{registry}/vms/a:1").path.read_bytes() == DISK
        assert all("/blobs/" in path for path in paths(other))

    def test_their_own_header_and_path_are_used(
        self, node: Node, server: ImageServer, other: ImageServer
    ) -> None:
        made = container_disk(DISK)
        registry = server.url.partition("://")[2]
        made.serve(other, "vms/a", "1", prefix="/proxy")
        for path in list(other.resources):
            key = f"{path}?ns={registry.replace(':', '%3A')}"
            other.resources[key] = other.resources.pop(path)
            other.resources[key].authorization = "Basic of-the-mirror"
        node.hosts(
            registry,
            f'server = "{server.url}"\n[host."{other.url}/proxy"]\noverride_path = true\n'
            f'[host."{other.url}/proxy".header]\nAuthorization = "Basic of-the-mirror"\n',
        )
        assert node.pull(f"{registry}/vms/a:1", SECRET).path.read_bytes() == DISK
        assert paths(server) == []

    def test_those_of_all_registries_do_not_make_a_registry_the_administrators(
        self, node: Node, server: ImageServer, other: ImageServer
    ) -> None:
        node.allowed = ""
        node.hosts("_default", f'[host."{other.url}"]\n')
        registry = server.url.partition("://")[2]
        with pytest.raises(PermissionDenied, match="is a loopback address"):
            node.pull(f"{registry}/vms/a:1")
        assert len(other.requests) == 1
        assert paths(server) == []


class TestHosts:
    def test_the_directory_of_a_port_has_either_form(self, node: Node) -> None:
        for name in ("a.example:5000", "a.example_5000_"):
            node.hosts(name, 'server = "http://b.example"\n')
            (found,) = endpoints(node.certs, "a.example:5000", scheme="https", trusted=False)
            assert (found.url, found.plain, found.is_registry) == (
                "http://b.example/v2",
                True,
                True,
            )

    def test_dockers_hub_is_where_it_is(self, node: Node) -> None:
        (found,) = endpoints(node.certs, "docker.io", scheme="https", trusted=False)
        assert found.url == "https://registry-1.docker.io/v2"
        assert (found.trusted, found.plain) == (False, False)

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ("server = ", "no valid TOML"),
            ("server = 1", "server is no text"),
            ('server = "ftp://x"', "is no http:// or https:// address"),
            ('server = "https://a:b@x"', "without credentials"),
            ("host = 1", "host is no table"),
            ('[host]\n"https://x" = 1', "host 'https://x' is no table"),
            ('capabilities = ["fly"]', "capabilities has 'fly'"),
            ('skip_verify = "yes"', "skip_verify is neither true nor false"),
            ("ca = 1", "ca is neither a text nor a list of texts"),
            ('ca = "nowhere.crt"', r"nowhere\.crt: No such file"),
            ('ca = "hosts.toml"', "holds no certificate or key"),
            ('client = [["a", "b", "c"]]', "client is a file, a list of files, or"),
            ("header = 1", "header is no table"),
            ("[header]\nX = 1", "header 'X' is neither"),
        ],
    )
    def test_a_malformed_file_is_told_with_its_name(
        self, node: Node, server: ImageServer, text: str, match: str
    ) -> None:
        node.hosts("a.example", text)
        with pytest.raises(FailedPrecondition, match=match) as error:
            node.pull("a.example/vms/a:1")
        assert f"{node.certs}/a.example/" in str(error.value)


class TestNames:
    def test_a_server_that_is_no_registry_is_downloaded_from(
        self, node: Node, server: ImageServer
    ) -> None:
        node.protocol = "http"
        registry = server.url.partition("://")[2]
        node.otherwise[f"{server.url}/images/a"] = DISK
        missing = "/v2/images/a/manifests/latest"
        page = Resource(b"<html>", headers={"Content-Type": "text/html"})
        for answer in (None, page, Resource(status=400), Resource(status=403)):
            server.resources = {missing: answer} if answer else {}
            assert node.pull(f"{registry}/images/a:latest").path.read_bytes() == DISK
        assert set(paths(server)) == {missing}

    def test_a_file_is_not_looked_for_in_a_registry(self, node: Node, server: ImageServer) -> None:
        node.protocol = "http"
        for path in ("a.qcow2", "x/a.img", "A", "a.raw.xz"):
            node.otherwise[f"{server.url}/{path}"] = DISK
            node.pull(f"{server.url.partition('://')[2]}/{path}:latest")
        assert paths(server) == []

    def test_a_registry_without_the_image_is_not_downloaded_from(
        self, node: Node, server: ImageServer
    ) -> None:
        node.protocol = "http"
        registry = server.url.partition("://")[2]
        path = "/v2/images/a/manifests/1"
        for answer in (SPEAKS, None):
            server.resources[path] = (
                Resource(status=404, headers=answer)
                if answer
                else Resource(b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}', code=404)
            )
            with pytest.raises(NotFound, match="does not have the manifest of images/a"):
                node.pull(f"{registry}/images/a:1")
        server.resources[path] = Resource(status=503)
        with pytest.raises(Unavailable, match="cannot serve it now"):
            node.pull(f"{registry}/images/a:1")

    @pytest.mark.parametrize("scheme", ["oci", "docker"])
    def test_a_translation_leads_to_a_registry_with_the_tag_of_the_name(
        self, node: Node, server: ImageServer, scheme: str
    ) -> None:
        container_disk(DISK).serve(server, "vms/a", "41")
        node.translate("fedora", f"{scheme}://{node.plain(server)}/vms/a")
        node.translate("pinned", f"{scheme}://{node.plain(server)}/vms/a:41")
        assert node.pull("virtlet.cloud/fedora:41").path.read_bytes() == DISK
        assert node.pull("virtlet.cloud/pinned").path.read_bytes() == DISK
        with pytest.raises(FailedPrecondition, match=r"is no image registry \(HTTP 404\)"):
            node.pull("virtlet.cloud/fedora:42")

    def test_a_translation_may_hold_credentials(self, node: Node, server: ImageServer) -> None:
        container_disk(DISK).serve(server, "vms/a", "1")
        protect(server, 'Basic realm="x"', BASIC)
        node.translate("a", f"oci://me:my%20secret@{node.plain(server)}/vms/a:1")
        assert node.pull("a").path.read_bytes() == DISK

    @pytest.mark.parametrize(
        "url", ["oci://a.example", "oci://a.example/A", "oci://a.example/a@md5:1"]
    )
    def test_a_malformed_address_is_told(self, node: Node, url: str) -> None:
        node.translate("a", url)
        with pytest.raises(
            InvalidArgument, match="its address in a registry is malformed; write oc"
        ):
            node.pull("a")
