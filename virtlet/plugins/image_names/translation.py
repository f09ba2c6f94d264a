"""One translation file: its schema and what it says."""

from collections.abc import Mapping
from pathlib import Path

import yaml
from attrs import frozen

from virtlet.model.image import TlsCertificate, Transport
from virtlet.plugins.image_names.document import Document
from virtlet.plugins.image_names.regexps import Rule, compile_rule

_FIELDS = ("prefix", "translations", "transports")
_TRANSLATION = ("name", "regexp", "url", "transport")
_TRANSPORT = ("timeout", "maxRedirects", "proxy", "tls")
_TLS = ("certificates", "serverName", "insecure")
_CERTIFICATE = ("cert", "key")
_LONGEST_TIMEOUT = 24 * 3600 * 1000


@frozen
class Target:
    """Where a name leads."""

    url: str
    transport: Transport


@frozen
class Translations:
    """What one file says."""

    prefix: str
    fixed: Mapping[str, Target]
    rules: tuple[tuple[Rule, Transport], ...]

    def relative(self, name: str) -> str | None:
        """The name without this file's prefix; None when it has another."""
        if not self.prefix:
            return name
        head = f"{self.prefix}/"
        return name[len(head) :] if name.startswith(head) else None


def parse_translations(path: Path, content: bytes) -> Translations:
    """Read a translation file.

    Raises:
        Malformed: it is not as it should be.
    """
    document = Document(path)
    root = document.mapping(document.compose(content), "the file", _FIELDS)
    transports = _transports(document, root.get("transports"))
    fixed: dict[str, Target] = {}
    rules: list[tuple[Rule, Transport]] = []
    for item in document.items(root.get("translations"), "translations"):
        fields = document.mapping(item, "a translation", _TRANSLATION)
        name = document.text(fields.get("name"), "name")
        regexp = document.text(fields.get("regexp"), "regexp")
        url = document.text(fields.get("url"), "url")
        if bool(name) == bool(regexp):
            raise document.fail(item, "a translation needs either name or regexp")
        if not url:
            raise document.fail(item, "a translation needs a url")
        profile = document.text(fields.get("transport"), "transport")
        if profile and profile not in transports:
            raise document.fail(fields["transport"], f"there is no transport {profile!r} here")
        transport = transports.get(profile, Transport())
        if regexp:
            try:
                rules.append((compile_rule(regexp, url), transport))
            except ValueError as error:
                raise document.fail(fields["regexp"], str(error)) from None
        elif name in fixed:
            raise document.fail(item, f"{name!r} is translated twice")
        else:
            fixed[name] = Target(url, transport)
    prefix = document.text(root.get("prefix"), "prefix").rstrip("/")
    return Translations(prefix, fixed, tuple(rules))


def _transports(document: Document, node: yaml.Node | None) -> dict[str, Transport]:
    found: dict[str, Transport] = {}
    for name, profile in document.mapping(node, "transports").items():
        fields = document.mapping(profile, f"transport {name!r}", _TRANSPORT)
        tls = document.mapping(fields.get("tls"), "tls", _TLS)
        timeout = document.number(fields.get("timeout"), "timeout", 0, _LONGEST_TIMEOUT)
        found[name] = Transport(
            timeout=timeout / 1000,
            max_redirects=document.number(fields.get("maxRedirects"), "maxRedirects", -1, 100),
            proxy=document.text(fields.get("proxy"), "proxy"),
            certificates=tuple(
                _certificate(document, item)
                for item in document.items(tls.get("certificates"), "certificates")
            ),
            server_name=document.text(tls.get("serverName"), "serverName"),
            insecure=document.boolean(tls.get("insecure"), "insecure"),
        )
    return found


def _certificate(document: Document, node: yaml.Node) -> TlsCertificate:
    fields = document.mapping(node, "a certificate", _CERTIFICATE)
    cert = document.text(fields.get("cert"), "cert")
    key = document.text(fields.get("key"), "key")
    if "-----BEGIN CERTIFICATE-----" not in cert:
        raise document.fail(fields.get("cert", node), "cert must be a PEM certificate")
    if key and "PRIVATE KEY-----" not in key:
        raise document.fail(fields["key"], "key must be a PEM private key")
    return TlsCertificate(cert=cert, key=key or None)
