import hashlib
import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import trustme

from tests.fakes.image_server import ImageServer, Resource, image_server, trickling_server
from virtlet.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    VirtletError,
)
from virtlet.images.lease import Lease
from virtlet.images.singleflight import apart
from virtlet.images.staging import StagingFile
from virtlet.model.image import Credentials, ImageSource, Transport
from virtlet.plugins.image_http.plugin import Plugin
from virtlet.testing import configured

from .conftest import CONTENT, Stagings, Start, fetch, written

BASIC = "Basic dXNlcjpodW50ZXIy"  # user:hunter2
LONG_AGO = "Mon, 01 Jan 2024 00:00:00 GMT"


class TestPlain:
    def test_a_file_arrives_whole(self, server: ImageServer, staging: StagingFile) -> None:
        headers = {"Content-Type": "application/x-qcow2"}
        server.resources["/x"] = Resource(CONTENT, '"v1"', LONG_AGO, headers=headers)
        fetched = fetch(f"{server.url}/x", staging)
        assert fetched.size == len(CONTENT)
        assert fetched.annotations == {
            "mediaType": "application/x-qcow2",
            "lastModified": LONG_AGO,
        }
        assert written(staging) == CONTENT
        assert staging.validator == '"v1"'
        (request,) = server.requests
        assert request.headers["accept-encoding"] == "identity"
        assert "authorization" not in request.headers

    def test_the_length_need_not_be_told_where_the_end_is(
        self, server: ImageServer, staging: StagingFile
    ) -> None:
        server.resources["/x"] = Resource(CONTENT, chunked=True, breaks=[200_000])
        with pytest.raises(Unavailable, match="broke"):
            fetch(f"{server.url}/x", staging)
        assert fetch(f"{server.url}/x", staging).size == len(CONTENT)
        assert written(staging) == CONTENT

    def test_an_answer_that_tells_neither_length_nor_end_is_taken_by_digest_alone(
        self, server: ImageServer, staging: StagingFile
    ) -> None:
        server.resources["/x"] = Resource(CONTENT, length=False)
        with pytest.raises(FailedPrecondition, match="neither its length.*@sha256:"):
            fetch(f"{server.url}/x", staging)
        assert staging.size == 0
        digest = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
        assert fetch(f"{server.url}/x", staging, digest=digest).size == len(CONTENT)

    def test_an_announced_length_over_the_limit_is_refused_before_it_comes(
        self, server: ImageServer, staging: StagingFile
    ) -> None:
        server.resources["/x"] = Resource(bytes(2 << 20))
        with pytest.raises(ResourceExhausted, match="larger than the limit"):
            fetch(f"{server.url}/x", staging)
        assert staging.size == 0

    def test_an_endless_answer_ends_at_the_limit(
        self, server: ImageServer, staging: StagingFile
    ) -> None:
        server.resources["/x"] = Resource(bytes(8 << 20), chunked=True)
        with pytest.raises(ResourceExhausted, match="larger than the limit"):
            fetch(f"{server.url}/x", staging)
        assert staging.size <= 1 << 20

    def test_a_compressed_answer_is_refused(
        self, server: ImageServer, staging: StagingFile
    ) -> None:
        server.resources["/x"] = Resource(CONTENT, headers={"Content-Encoding": "gzip"})
        with pytest.raises(FailedPrecondition, match="gzip"):
            fetch(f"{server.url}/x", staging)

    def test_other_schemes_are_left_to_other_plugins(self, staging: StagingFile) -> None:
        source = ImageSource(name="x", url="docker://example.com/x")
        assert Plugin().virtlet_fetch_image(source, Credentials(), staging) is None


class TestResume:
    def test_a_broken_download_goes_on_where_it_broke(
        self, server: ImageServer, staging: StagingFile
    ) -> None:
        server.resources["/x"] = Resource(CONTENT, '"v1"', breaks=[200_000])
        with pytest.raises(Unavailable, match="127.0.0.1"):
            fetch(f"{server.url}/x", staging)
        assert staging.size == 200_000
        fetch(f"{server.url}/x", staging)
        assert written(staging) == CONTENT
        assert server.sent == len(CONTENT)
        assert server.requests[1].headers["range"] == "bytes=200000-"
        assert server.requests[1].headers["if-range"] == '"v1"'

    def test_a_file_that_changed_in_between_is_fetched_again(
        self, server: ImageServer, staging: StagingFile
    ) -> None:
        server.resources["/x"] = Resource(CONTENT, '"v1"', breaks=[200_000])
        with pytest.raises(Unavailable):
            fetch(f"{server.url}/x", staging)
        server.resources["/x"] = Resource(CONTENT[::-1], '"v2"')
        fetch(f"{server.url}/x", staging)
        assert written(staging) == CONTENT[::-1]
        assert staging.validator == '"v2"'

    def test_a_file_that_shrank_in_between_is_fetched_again(
        self, server: ImageServer, staging: StagingFile
    ) -> None:
        server.resources["/x"] = Resource(CONTENT, '"v1"', breaks=[200_000])
        with pytest.raises(Unavailable):
            fetch(f"{server.url}/x", staging)
        server.resources["/x"] = Resource(b"short", '"v1"')
        fetch(f"{server.url}/x", staging)
        assert written(staging) == b"short"

    @pytest.mark.parametrize(("etag", "again"), [('"v1"', 0), ('"v2"', len(CONTENT))])
    def test_a_file_that_is_whole_already_is_asked_for_no_more_than_changes(
        self, server: ImageServer, staging: StagingFile, etag: str, again: int
    ) -> None:
        server.resources["/x"] = Resource(CONTENT, '"v1"')
        fetch(f"{server.url}/x", staging)
        server.resources["/x"] = Resource(CONTENT, etag)
        assert fetch(f"{server.url}/x", staging).size == len(CONTENT)
        assert written(staging) == CONTENT
        assert server.sent == len(CONTENT) + again

    def test_a_server_without_ranges_sends_all_again(
        self, server: ImageServer, staging: StagingFile
    ) -> None:
        server.resources["/x"] = Resource(CONTENT, '"v1"', ranges=False, breaks=[200_000])
        with pytest.raises(Unavailable):
            fetch(f"{server.url}/x", staging)
        fetch(f"{server.url}/x", staging)
        assert written(staging) == CONTENT

    @pytest.mark.parametrize(
        "lie",
        [
            {"Content-Range": "bytes 0-511999/512000"},
            {"Content-Range": "bytes */512000"},
            {"Content-Range": "elephants"},
        ],
    )
    def test_a_wrong_range_is_not_believed(
        self, server: ImageServer, staging: StagingFile, lie: dict[str, str]
    ) -> None:
        server.resources["/x"] = Resource(CONTENT, '"v1"', breaks=[200_000])
        with pytest.raises(Unavailable):
            fetch(f"{server.url}/x", staging)
        server.resources["/x"] = Resource(CONTENT, '"v1"', headers=lie)
        fetch(f"{server.url}/x", staging)
        assert written(staging) == CONTENT
        assert "range" not in server.requests[-1].headers

    @pytest.mark.parametrize(
        "resource",
        [Resource(CONTENT), Resource(CONTENT, 'W/"v1"'), Resource(CONTENT, "v1")],
        ids=["none", "weak", "unquoted"],
    )
    def test_without_a_strong_validator_it_starts_over(
        self, server: ImageServer, staging: StagingFile, resource: Resource
    ) -> None:
        resource.breaks = [200_000]
        server.resources["/x"] = resource
        with pytest.raises(Unavailable):
            fetch(f"{server.url}/x", staging)
        fetch(f"{server.url}/x", staging)
        assert written(staging) == CONTENT
        assert "range" not in server.requests[1].headers

    def test_an_old_date_is_a_validator(self, server: ImageServer, staging: StagingFile) -> None:
        server.resources["/x"] = Resource(CONTENT, last_modified=LONG_AGO, breaks=[200_000])
        with pytest.raises(Unavailable):
            fetch(f"{server.url}/x", staging)
        fetch(f"{server.url}/x", staging)
        assert written(staging) == CONTENT
        assert server.requests[1].headers["if-range"] == LONG_AGO

    def test_a_fresh_date_is_none(self, server: ImageServer, staging: StagingFile) -> None:
        now = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
        server.resources["/x"] = Resource(CONTENT, last_modified=now)
        fetch(f"{server.url}/x", staging)
        assert staging.validator == ""


class TestUnchanged:
    def test_an_unchanged_image_is_not_sent(self, server: ImageServer, stagings: Stagings) -> None:
        server.resources["/x"] = Resource(CONTENT, '"v1"')
        staging = stagings.known(len(CONTENT), '"v1"')
        assert fetch(f"{server.url}/x", staging).size == len(CONTENT)
        assert staging.complete
        assert server.sent == 0

    @pytest.mark.parametrize("validator", ['"v0"', LONG_AGO])
    def test_a_changed_image_is_sent(
        self, server: ImageServer, stagings: Stagings, validator: str
    ) -> None:
        server.resources["/x"] = Resource(CONTENT, '"v1"', LONG_AGO)
        staging = stagings.known(7, validator)
        fetch(f"{server.url}/x", staging)
        assert written(staging) == CONTENT

    def test_not_modified_without_having_asked_is_an_error(
        self, server: ImageServer, staging: StagingFile
    ) -> None:
        server.resources["/x"] = Resource(status=304)
        with pytest.raises(FailedPrecondition, match="HTTP 304"):
            fetch(f"{server.url}/x", staging)


class TestErrors:
    @pytest.mark.parametrize(
        ("status", "error"),
        [
            (404, NotFound),
            (410, NotFound),
            (401, PermissionDenied),
            (403, PermissionDenied),
            (408, Unavailable),
            (429, Unavailable),
            (500, Unavailable),
            (503, Unavailable),
            (400, FailedPrecondition),
            (204, FailedPrecondition),
            (206, FailedPrecondition),
            (416, FailedPrecondition),
            (501, FailedPrecondition),
        ],
    )
    def test_every_status_has_its_error(
        self, server: ImageServer, staging: StagingFile, status: int, error: type[VirtletError]
    ) -> None:
        server.resources["/x"] = Resource(status=status)
        with pytest.raises(error, match=rf"image x: 127.0.0.1:\d+ .*{status}"):
            fetch(f"{server.url}/x", staging)

    @pytest.mark.parametrize("status", [429, 503])
    def test_a_busy_server_is_asked_again_when_it_says_when(
        self, server: ImageServer, staging: StagingFile, status: int
    ) -> None:
        def recover() -> None:
            server.resources["/x"].status = 0 if len(server.requests) == 3 else status

        busy = {"Retry-After": "0"}
        server.resources["/x"] = Resource(CONTENT, headers=busy, on_request=recover)
        fetch(f"{server.url}/x", staging)
        assert staging.path.read_bytes() == CONTENT
        assert len(server.requests) == 3

    @pytest.mark.parametrize(("seconds", "requests"), [("0", 4), ("31", 1), ("soon", 1)])
    def test_a_server_that_stays_busy_is_left_to_the_kubelet(
        self, server: ImageServer, staging: StagingFile, seconds: str, requests: int
    ) -> None:
        server.resources["/x"] = Resource(status=429, headers={"Retry-After": seconds})
        with pytest.raises(Unavailable, match="cannot serve it now"):
            fetch(f"{server.url}/x", staging)
        assert len(server.requests) == requests

    def test_a_pull_that_waits_for_a_busy_server_ends_when_nobody_waits_for_it(
        self, server: ImageServer, staging: StagingFile
    ) -> None:
        server.resources["/x"] = Resource(status=503, headers={"Retry-After": "30"})
        lease = Lease(staging)
        source = ImageSource(name="x", url=f"{server.url}/x", trusted=True)
        plugin = configured(Plugin(), staging.path.parent)
        asked = threading.Event()
        server.resources["/x"].on_request = asked.set
        outcome = apart(lambda: plugin.virtlet_fetch_image(source, Credentials(), lease))
        assert asked.wait(30)
        lease.end()
        with pytest.raises(Unavailable):
            outcome.result(20)

    def test_nobody_there_is_unavailable(self, staging: StagingFile) -> None:
        with image_server() as gone:
            pass
        where = gone.url.removeprefix("http://")
        with pytest.raises(Unavailable, match=f"image x: {where}: Connection refused; check"):
            fetch(f"{gone.url}/x", staging)

    def test_nobody_there_after_a_redirect_is_named_too(
        self, server: ImageServer, staging: StagingFile
    ) -> None:
        with image_server() as gone:
            pass
        server.resources["/x"] = Resource(status=302, location=f"{gone.url}/x")
        where = gone.url.removeprefix("http://")
        with pytest.raises(Unavailable, match=f"image x: {where}: Connection refused; check"):
            fetch(f"{server.url}/x", staging)

    def test_an_unknown_host_is_unavailable(self, staging: StagingFile) -> None:
        says = r"image x: the name of nowhere\.invalid:80 does not resolve .*node's DNS$"
        with pytest.raises(Unavailable, match=says):
            fetch("http://nowhere.invalid/x", staging)

    def test_the_first_word_of_a_plugins_names_is_told_from_a_host(
        self, staging: StagingFile
    ) -> None:
        says = r"the name of oci:443 does not resolve .*if oci/… are names of an image plugin"
        with pytest.raises(Unavailable, match=says):
            fetch("https://oci/registry.example.com/x", staging)

    def test_silence_ends_after_the_transports_timeout(
        self, server: ImageServer, staging: StagingFile
    ) -> None:
        server.resources["/x"] = Resource(CONTENT, pause=1.0)
        with pytest.raises(Unavailable, match=r"no answer from 127.0.0.1:\d+ in time"):
            fetch(f"{server.url}/x", staging, transport=Transport(timeout=0.1))

    def test_headers_that_trickle_in_end_in_time(self, staging: StagingFile) -> None:
        with ThreadPoolExecutor(1) as pool, trickling_server() as server:
            transport = Transport(timeout=0.2)
            pull = pool.submit(fetch, f"{server.url}/x", staging, transport=transport)
            with pytest.raises(Unavailable, match=r"127.0.0.1:\d+ has not begun to send it in 0.6"):
                pull.result(20)
            assert server.gone.wait(20)

    def test_a_store_that_fails_does_not_wait_for_a_silent_server(
        self, staging: StagingFile, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(chunk: bytes) -> None:
            raise ResourceExhausted("no space")

        def serve() -> bytes:
            with listener.accept()[0] as client:
                client.recv(65536)
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbegin")
                return client.recv(1)

        monkeypatch.setattr(staging, "write", full)
        with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
            gone = pool.submit(serve)
            with pytest.raises(ResourceExhausted):
                fetch(f"http://127.0.0.1:{listener.getsockname()[1]}/x", staging)
            assert gone.result(20) == b""
        assert "image-layer" not in {thread.name for thread in threading.enumerate()}

    @pytest.mark.parametrize(
        "url", ["http://", "http:///x", "http://a:port/x", "http://[::1/x", "http://a:99999/x"]
    )
    def test_a_malformed_address_is_an_invalid_argument(
        self, staging: StagingFile, url: str
    ) -> None:
        with pytest.raises(InvalidArgument, match="image x: its address"):
            fetch(url, staging)

    def test_secrets_of_the_address_are_in_no_message_and_no_log(
        self, server: ImageServer, staging: StagingFile, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        host = server.url.removeprefix("http://")
        url = f"http://user:hunter2@{host}/x?signature=hunter3"
        credentials = Credentials(registry_token="hunter4")
        with pytest.raises(NotFound) as caught:
            fetch(url, staging, credentials)
        told = str(caught.value) + "".join(
            f"{record.getMessage()} {record.__dict__}" for record in caplog.records
        )
        assert "hunter" not in told


class TestRedirects:
    def test_redirects_are_followed(self, server: ImageServer, staging: StagingFile) -> None:
        for status in (301, 302, 303, 307, 308):
            server.resources[f"/{status}"] = Resource(status=status, location="x")
        server.resources["/x"] = Resource(CONTENT)
        for status in (301, 302, 303, 307, 308):
            fetch(f"{server.url}/{status}", staging)
            assert written(staging) == CONTENT

    @pytest.mark.parametrize(("limit", "followed"), [(-1, 10), (0, 0), (3, 3)])
    def test_their_number_is_limited(
        self, server: ImageServer, staging: StagingFile, limit: int, followed: int
    ) -> None:
        server.resources["/x"] = Resource(status=302, location="/x")
        with pytest.raises(FailedPrecondition, match=f"more than {followed} times"):
            fetch(f"{server.url}/x", staging, transport=Transport(max_redirects=limit))
        assert len(server.requests) == followed + 1

    @pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher:x"])
    def test_they_lead_nowhere_but_to_web_servers(
        self, server: ImageServer, staging: StagingFile, location: str
    ) -> None:
        server.resources["/x"] = Resource(status=302, location=location)
        with pytest.raises(FailedPrecondition, match="redirects to"):
            fetch(f"{server.url}/x", staging)

    @pytest.mark.parametrize("location", ["http://[::1/", "http://a:99999/", "http://a:b/"])
    def test_a_malformed_one_is_an_error(
        self, server: ImageServer, staging: StagingFile, location: str
    ) -> None:
        server.resources["/x"] = Resource(status=302, location=location)
        with pytest.raises((FailedPrecondition, Unavailable), match="image x: .*malformed"):
            fetch(f"{server.url}/x", staging)

    @pytest.mark.parametrize("host", ["a..b", "4400.5..1", f"{'a' * 64}.b"])
    def test_one_to_what_is_no_host_name_is_an_error(
        self, server: ImageServer, staging: StagingFile, host: str
    ) -> None:
        server.resources["/x"] = Resource(status=302, location=f"http://{host}/x")
        with pytest.raises(Unavailable, match="does not resolve"):
            fetch(f"{server.url}/x", staging)

    def test_resuming_follows_them_too(self, server: ImageServer, staging: StagingFile) -> None:
        server.resources["/y"] = Resource(status=302, location="/x")
        server.resources["/x"] = Resource(CONTENT, '"v1"', breaks=[200_000])
        with pytest.raises(Unavailable):
            fetch(f"{server.url}/y", staging)
        fetch(f"{server.url}/y", staging)
        assert written(staging) == CONTENT
        assert server.sent == len(CONTENT)


class TestCredentials:
    @pytest.mark.parametrize(
        ("credentials", "header"),
        [
            (Credentials(username="user", password="hunter2"), BASIC),
            (Credentials(auth="dXNlcjpodW50ZXIy"), BASIC),
            (Credentials(registry_token="t0ken"), "Bearer t0ken"),
        ],
    )
    def test_those_of_the_pod_are_sent(
        self,
        secure: ImageServer,
        staging: StagingFile,
        trusting: Transport,
        credentials: Credentials,
        header: str,
    ) -> None:
        secure.resources["/x"] = Resource(CONTENT, authorization=header)
        with pytest.raises(PermissionDenied):
            fetch(f"{secure.url}/x", staging, transport=trusting)
        fetch(f"{secure.url}/x", staging, credentials, trusting)
        assert written(staging) == CONTENT

    def test_those_of_the_address_go_first(
        self, secure: ImageServer, staging: StagingFile, trusting: Transport
    ) -> None:
        secure.resources["/x"] = Resource(CONTENT, authorization=BASIC)
        host = secure.url.removeprefix("https://")
        fetch(
            f"https://user:hunter2@{host}/x",
            staging,
            Credentials(username="other", password="x"),
            trusting,
        )
        assert written(staging) == CONTENT

    def test_those_meant_for_another_server_are_kept_back(
        self, secure: ImageServer, staging: StagingFile, trusting: Transport
    ) -> None:
        secure.resources["/x"] = Resource(CONTENT)
        fetch(
            f"{secure.url}/x",
            staging,
            Credentials(username="u", password="p", server_address="example.com"),
            trusting,
        )
        assert "authorization" not in secure.requests[-1].headers
        host = secure.url.removeprefix("https://")
        for address in (secure.url, host, f"{host}/v1/"):
            fetch(
                f"{secure.url}/x",
                staging,
                Credentials(username="u", password="p", server_address=address),
                trusting,
            )
            assert "authorization" in secure.requests[-1].headers

    @pytest.mark.parametrize(
        "credentials",
        [
            Credentials(auth="no base64!"),
            Credentials(auth="aGk=\r\nX-Evil: 1"),
            Credentials(registry_token="a\r\nX-Evil: 1"),
        ],
    )
    def test_malformed_ones_are_refused_before_anything_is_sent(
        self,
        secure: ImageServer,
        staging: StagingFile,
        trusting: Transport,
        credentials: Credentials,
    ) -> None:
        with pytest.raises(InvalidArgument, match="credentials") as caught:
            fetch(f"{secure.url}/x", staging, credentials, trusting)
        assert secure.requests == []
        assert "X-Evil" not in str(caught.value)

    def test_a_redirect_to_the_same_server_takes_them_along(
        self, secure: ImageServer, staging: StagingFile, trusting: Transport
    ) -> None:
        secure.resources["/y"] = Resource(status=302, location="/x", authorization=BASIC)
        secure.resources["/x"] = Resource(CONTENT, authorization=BASIC)
        fetch(
            f"{secure.url}/y", staging, Credentials(username="user", password="hunter2"), trusting
        )

    def test_a_redirect_to_another_server_does_not(
        self,
        secure: ImageServer,
        staging: StagingFile,
        trusting: Transport,
        authority: trustme.CA,
        start: Start,
    ) -> None:
        other = start(authority.issue_cert("127.0.0.1"))
        host = other.url.removeprefix("https://")
        secure.resources["/x"] = Resource(status=302, location=f"{other.url}/x")
        secure.resources["/y"] = Resource(status=302, location=f"https://a:b@{host}/x")
        credentials = Credentials(username="user", password="hunter2")
        for path in ("/x", "/y"):
            fetch(f"{secure.url}{path}", staging, credentials, trusting)
            assert "authorization" in secure.requests[-1].headers
            assert "authorization" not in other.requests[-1].headers

    @pytest.mark.parametrize(
        ("name", "sent"),
        [
            ("{host}/x", True),
            # A kubelet takes this for a name of Docker's registry, and sends the secret for that.
            ("docker/x", False),
            ("example.com/x", False),
        ],
    )
    def test_those_that_name_no_server_are_for_the_registry_of_the_name(
        self,
        secure: ImageServer,
        staging: StagingFile,
        trusting: Transport,
        name: str,
        *,
        sent: bool,
    ) -> None:
        secure.resources["/x"] = Resource(CONTENT)
        name = name.format(host=secure.url.removeprefix("https://"))
        credentials = Credentials(username="user", password="hunter2")
        fetch(f"{secure.url}/x", staging, credentials, trusting, name=name, trusted=False)
        assert ("authorization" in secure.requests[-1].headers) == sent
        secure.resources["/x"] = Resource(CONTENT, authorization="another")
        with pytest.raises(PermissionDenied, match="check the" if sent else "another registry's"):
            fetch(f"{secure.url}/x", staging, credentials, trusting, name=name, trusted=False)

    def test_those_of_the_pod_are_not_sent_over_plain_http(
        self, server: ImageServer, staging: StagingFile
    ) -> None:
        server.resources["/x"] = Resource(CONTENT, authorization=BASIC)
        with pytest.raises(PermissionDenied, match="pull secrets are not sent over plain http"):
            fetch(f"{server.url}/x", staging, Credentials(username="user", password="hunter2"))
        assert "authorization" not in server.requests[-1].headers
        # The address of a translation file is the operator's, with all that is in it.
        host = server.url.removeprefix("http://")
        fetch(f"http://user:hunter2@{host}/x", staging)
        assert written(staging) == CONTENT


class TestProxy:
    def test_the_transports_proxy_is_asked(self, server: ImageServer, staging: StagingFile) -> None:
        # A proxy is sent the whole address as the path.
        server.resources["http://images.example.com/x"] = Resource(CONTENT)
        fetch("http://images.example.com/x", staging, transport=Transport(proxy=server.url))
        assert written(staging) == CONTENT

    def test_a_proxy_that_is_away_is_unavailable(self, staging: StagingFile) -> None:
        with image_server() as gone:
            pass
        where = gone.url.removeprefix("http://")
        with pytest.raises(Unavailable, match=f"the proxy {where}: Connection refused"):
            fetch("http://images.example.com/x", staging, transport=Transport(proxy=gone.url))

    def test_a_proxy_that_refuses_is_unavailable(
        self, server: ImageServer, staging: StagingFile
    ) -> None:
        with pytest.raises(Unavailable, match="proxy"):
            fetch("https://images.example.com/x", staging, transport=Transport(proxy=server.url))

    def test_a_malformed_proxy_is_an_error_of_its_own(self, staging: StagingFile) -> None:
        for proxy in ("nonsense://hunter2", "http://[", "hunter2"):
            with pytest.raises(FailedPrecondition, match="proxy") as caught:
                fetch("http://example.com/x", staging, transport=Transport(proxy=proxy))
            assert "hunter2" not in str(caught.value)
