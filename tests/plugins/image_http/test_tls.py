import ssl
from collections.abc import Iterator

import pytest
import trustme

from tests.fakes.image_server import ImageServer, Resource, image_server
from virtlet.errors import FailedPrecondition, Unavailable
from virtlet.images.staging import StagingFile
from virtlet.model.image import Credentials, TlsCertificate, Transport

from .conftest import CONTENT, Start, fetch, pem, written


def test_an_unknown_authority_is_not_trusted(
    authority: trustme.CA, start: Start, staging: StagingFile
) -> None:
    server = start(authority.issue_cert("127.0.0.1"))
    with pytest.raises(FailedPrecondition, match=r"not trusted .*transport's tls"):
        fetch(f"{server.url}/x", staging)
    assert server.requests == []


def test_the_transports_authority_is_trusted(
    authority: trustme.CA, start: Start, staging: StagingFile, trusting: Transport
) -> None:
    server = start(authority.issue_cert("127.0.0.1"))
    fetch(f"{server.url}/x", staging, transport=trusting)
    assert written(staging) == CONTENT


def test_another_authority_of_the_transport_is_not_enough(
    authority: trustme.CA, start: Start, staging: StagingFile
) -> None:
    server = start(authority.issue_cert("127.0.0.1"))
    other = Transport(certificates=(TlsCertificate(cert=pem(trustme.CA().cert_pem)),))
    with pytest.raises(FailedPrecondition, match="not trusted"):
        fetch(f"{server.url}/x", staging, transport=other)


def test_the_servers_own_certificate_may_be_trusted_as_such(
    authority: trustme.CA, start: Start, staging: StagingFile
) -> None:
    certificate = authority.issue_cert("127.0.0.1")
    server = start(certificate)
    own = Transport(certificates=(TlsCertificate(cert=pem(certificate.cert_chain_pems[0])),))
    fetch(f"{server.url}/x", staging, transport=own)
    assert written(staging) == CONTENT


def test_a_certificate_for_another_name_is_not_trusted(
    authority: trustme.CA, start: Start, staging: StagingFile, trusting: Transport
) -> None:
    server = start(authority.issue_cert("images.example.com"))
    with pytest.raises(FailedPrecondition, match="not trusted"):
        fetch(f"{server.url}/x", staging, transport=trusting)


def test_the_transport_may_say_which_name_to_expect(
    authority: trustme.CA, start: Start, staging: StagingFile
) -> None:
    server = start(authority.issue_cert("images.example.com"))
    transport = Transport(
        certificates=(TlsCertificate(cert=pem(authority.cert_pem)),),
        server_name="images.example.com",
    )
    fetch(f"{server.url}/x", staging, transport=transport)
    assert written(staging) == CONTENT


def test_it_may_also_behind_a_proxy(
    authority: trustme.CA, start: Start, staging: StagingFile
) -> None:
    server = start(authority.issue_cert("images.example.com"))
    with image_server() as proxy:
        proxy.tunnels["cdn.example.net:443"] = int(server.url.rpartition(":")[2])
        transport = Transport(
            certificates=(TlsCertificate(cert=pem(authority.cert_pem)),),
            server_name="images.example.com",
            proxy=proxy.url,
        )
        fetch("https://cdn.example.net/x", staging, transport=transport)
    assert written(staging) == CONTENT


def test_an_insecure_transport_trusts_anybody(
    authority: trustme.CA, start: Start, staging: StagingFile
) -> None:
    server = start(authority.issue_cert("images.example.com"))
    fetch(f"{server.url}/x", staging, transport=Transport(insecure=True))
    assert written(staging) == CONTENT


class TestClientCertificate:
    """A server that demands one."""

    @pytest.fixture
    def server(self, authority: trustme.CA) -> Iterator[ImageServer]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
        with image_server(context) as running:
            running.resources["/x"] = Resource(CONTENT)
            yield running

    def test_it_is_shown(
        self, authority: trustme.CA, server: ImageServer, staging: StagingFile
    ) -> None:
        client = authority.issue_cert("node.example.com")
        shown = TlsCertificate(cert=pem(*client.cert_chain_pems), key=pem(client.private_key_pem))
        known = TlsCertificate(cert=pem(authority.cert_pem))
        transport = Transport(certificates=(known, shown))
        fetch(f"{server.url}/x", staging, transport=transport)
        assert written(staging) == CONTENT

    def test_without_it_there_is_no_connection(
        self, server: ImageServer, staging: StagingFile, trusting: Transport
    ) -> None:
        with pytest.raises(Unavailable):
            fetch(f"{server.url}/x", staging, transport=trusting)

    def test_a_redirect_to_another_server_does_not_show_it(
        self, authority: trustme.CA, start: Start, server: ImageServer, staging: StagingFile
    ) -> None:
        client = authority.issue_cert("node.example.com")
        shown = TlsCertificate(cert=pem(*client.cert_chain_pems), key=pem(client.private_key_pem))
        transport = Transport(certificates=(TlsCertificate(cert=pem(authority.cert_pem)), shown))
        first = start(authority.issue_cert("127.0.0.1"))
        first.resources["/y"] = Resource(status=302, location=f"{server.url}/x")
        with pytest.raises(Unavailable):
            fetch(f"{first.url}/y", staging, transport=transport)
        assert server.requests == []


@pytest.mark.parametrize(
    "certificate",
    [
        TlsCertificate(cert="-----BEGIN CERTIFICATE-----\nhunter2\n-----END CERTIFICATE-----"),
        TlsCertificate(
            cert="-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", key="hunter2"
        ),
    ],
)
def test_a_broken_certificate_is_an_error_of_its_own(
    staging: StagingFile, certificate: TlsCertificate
) -> None:
    with pytest.raises(FailedPrecondition, match="certificate or key") as caught:
        fetch("https://127.0.0.1:1/x", staging, transport=Transport(certificates=(certificate,)))
    assert "hunter2" not in str(caught.value)


class TestRedirects:
    """From one server to another."""

    def test_https_does_not_lead_to_http(
        self, authority: trustme.CA, start: Start, staging: StagingFile, trusting: Transport
    ) -> None:
        server = start(authority.issue_cert("127.0.0.1"))
        with image_server() as plain:
            plain.resources["/x"] = Resource(CONTENT)
            server.resources["/y"] = Resource(status=302, location=f"{plain.url}/x")
            with pytest.raises(FailedPrecondition, match="plain http"):
                fetch(f"{server.url}/y", staging, transport=trusting)
            assert plain.requests == []

    def test_nor_does_it_where_the_content_is_pinned(
        self, authority: trustme.CA, start: Start, staging: StagingFile, trusting: Transport
    ) -> None:
        server = start(authority.issue_cert("127.0.0.1"))
        with image_server() as plain:
            plain.resources["/x"] = Resource(CONTENT)
            server.resources["/y"] = Resource(status=302, location=f"{plain.url}/x")
            digest = "sha256:" + "a1" * 32
            credentials = Credentials(username="user", password="hunter2")
            with pytest.raises(FailedPrecondition, match="from https to plain http"):
                fetch(f"{server.url}/y", staging, credentials, trusting, digest)
            assert plain.requests == []

    def test_another_server_has_its_own_name(
        self, authority: trustme.CA, start: Start, staging: StagingFile
    ) -> None:
        first = start(authority.issue_cert("images.example.com"))
        second = start(authority.issue_cert("127.0.0.1"))
        first.resources["/y"] = Resource(status=302, location=f"{second.url}/x")
        transport = Transport(
            certificates=(TlsCertificate(cert=pem(authority.cert_pem)),),
            server_name="images.example.com",
        )
        fetch(f"{first.url}/y", staging, transport=transport)
        assert written(staging) == CONTENT
