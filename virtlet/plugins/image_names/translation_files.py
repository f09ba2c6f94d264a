"""One translation file: its schema and its content; errors name the line.

The original's expressions are Go's, whose library is RE2; RE2 itself runs them here. It never
backtracks, so that every expression takes linear time.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml
from attrs import frozen

from virtlet.errors import FailedPrecondition
from virtlet.model.bounded_yaml import compose_yaml
from virtlet.model.image import TlsCertificate, Transport
from virtlet.model.plain import UnquotedError

LARGEST = 1 << 20
"""Bytes of the largest translation file."""
MOST_VALUES = 1 << 17
"""Values of one: it is the administrator's, so it may take a second."""

_REFERENCE = re.compile(r"\$(?:\$|\{(\w+)\}|(\w+))")
_MEMORY = 8 << 20
_FIELDS = ("prefix", "translations", "transports")
_TRANSLATION = ("name", "regexp", "url", "transport")
_TRANSPORT = ("timeout", "maxRedirects", "proxy", "tls")
_TLS = ("certificates", "serverName", "insecure")
_CERTIFICATE = ("cert", "key")
_LONGEST_TIMEOUT = 24 * 3600 * 1000


class Malformed(FailedPrecondition):
    """Translations are malformed; the message names the file and line, or the object."""

    def __init__(self, place: Path | str, problem: str, node: yaml.Node | None = None) -> None:
        where = str(place)
        if isinstance(place, Path):
            line = f":{node.start_mark.line + 1}" if node is not None else ""
            where = f"image translation file {place}{line}"
        super().__init__(f"{where}: {problem}")


class Document:
    """Readers for the nodes of one file or object; each raises Malformed."""

    def __init__(self, place: Path | str) -> None:
        self.place = place

    def compose(self, content: bytes) -> yaml.Node | None:
        """The root node; None if the file is empty."""
        if len(content) > LARGEST:
            raise Malformed(self.place, f"larger than {LARGEST} bytes")
        try:
            return compose_yaml(content.decode(), MOST_VALUES)
        except UnicodeDecodeError:
            raise Malformed(self.place, "no valid YAML: it is no UTF-8 text") from None
        except UnquotedError as error:
            raise Malformed(self.place, str(error)) from None

    def fail(self, node: yaml.Node, problem: str) -> Malformed:
        """The error for a node."""
        return Malformed(self.place, problem, node)

    def mapping(
        self, node: yaml.Node | None, what: str, fields: Collection[str] | None = None
    ) -> dict[str, yaml.Node]:
        """The values of a mapping by key, nothing for an absent node; other keys are errors."""
        if node is None or self._is_null(node):
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise self.fail(node, f"{what} must be a mapping")
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = self.text(key, f"a key of {what}")
            if fields is not None and name not in fields:
                raise self.fail(
                    key, f"{what} has no field {name!r}; its fields are {', '.join(fields)}"
                )
            if name in found:
                raise self.fail(key, f"{what} has {name!r} twice")
            found[name] = value
        return found

    def items(self, node: yaml.Node | None, what: str) -> list[yaml.Node]:
        """The items of a list, none for an absent node."""
        if node is None or self._is_null(node):
            return []
        if not isinstance(node, yaml.SequenceNode):
            raise self.fail(node, f"{what} must be a list")
        return list(node.value)

    def text(self, node: yaml.Node | None, what: str) -> str:
        """A text, "" for an absent node; a number counts as the text it is written as."""
        if node is None or self._is_null(node):
            return ""
        if not isinstance(node, yaml.ScalarNode):
            raise self.fail(node, f"{what} must be a text")
        return str(node.value)

    def number(self, node: yaml.Node | None, what: str, default: int, highest: int) -> int:
        """A whole number from 0 to `highest`."""
        if node is None:
            return default
        text = self.text(node, what)
        if not (text.isascii() and text.isdigit() and len(text) < 16 and int(text) <= highest):
            raise self.fail(node, f"{what} must be a whole number from 0 to {highest}")
        return int(text)

    def boolean(self, node: yaml.Node | None, what: str) -> bool:
        """true or false; false for an absent node."""
        if node is None:
            return False
        text = self.text(node, what).lower()
        if text not in ("true", "false"):
            raise self.fail(node, f"{what} must be true or false")
        return text == "true"

    def _is_null(self, node: yaml.Node) -> bool:
        return bool(node.tag == "tag:yaml.org,2002:null")


@frozen
class Rule:
    """A compiled expression and the address it leads to."""

    _compiled: Any
    _url: str

    @property
    def names_server(self) -> bool:
        """Whether the address has the same server for every name."""
        scheme, found, rest = self._url.partition("://")
        server = re.split("[/?#]", rest if found else scheme, maxsplit=1)[0]
        return "$" not in server and not (found and "$" in scheme)

    def apply(self, name: str) -> str | None:
        """The address of a name; None if the expression is not found in it."""
        match = self._compiled.search(name)
        if match is None:
            return None

        def value(reference: re.Match[str]) -> str:
            group = reference[1] or reference[2]
            if group is None:
                return "$"
            return match[int(group) if group.isdigit() else group] or ""

        return _REFERENCE.sub(value, self._url)


def compile_rule(regexp: str, url: str) -> Rule:
    """Compile an expression, and check that the address refers to sub-matches it has.

    Args:
        regexp: in RE2's syntax; found anywhere in the name, unless it has ^ and $.
        url: with `$1`, `${1}` or `${name}` for sub-matches and `$$` for a dollar.

    Raises:
        ValueError: what is wrong with either.
    """
    # Imported late: most nodes have no expressions, and save its memory.
    import re2  # type: ignore[import-untyped]

    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MEMORY
    try:
        compiled = re2.compile(regexp, options)
    except re2.error as error:
        reason = error.args[0] if error.args else b""
        text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise ValueError(f"no valid regular expression: {text}") from None
    for reference in _REFERENCE.finditer(url):
        group = reference[1] or reference[2]
        if group is None:
            continue
        known = int(group) <= compiled.groups if group.isdigit() else group in compiled.groupindex
        if not known:
            raise ValueError(
                f"the url refers to ${group}, which the regexp does not have; "
                "write ${1} where letters, digits or _ follow, and $$ for a dollar"
            )
    return Rule(compiled, url)


@frozen
class ImageAddress:
    """The address of an image, and how it is fetched."""

    url: str
    transport: Transport
    trusted: bool = True
    """Whether the file names the server, rather than the name of the image."""


@frozen
class Translations:
    """The content of one file."""

    prefix: str
    fixed: Mapping[str, ImageAddress]
    rules: tuple[tuple[Rule, Transport], ...]

    def relative(self, name: str) -> str | None:
        """The name without this file's prefix; None if it has another."""
        if not self.prefix:
            return name
        head = f"{self.prefix}/"
        return name[len(head) :] if name.startswith(head) else None


def parse_translations(place: Path | str, content: bytes) -> Translations:
    """Read a translation file, or the `spec` of a VirtletImageMapping, which has the same form.

    Args:
        place: the file, or what to call the object.
        content: YAML or JSON.

    Raises:
        Malformed: something is wrong with it.
    """
    document = Document(place)
    root = document.mapping(document.compose(content), "the file", _FIELDS)
    transports = _transports(document, root.get("transports"))
    fixed: dict[str, ImageAddress] = {}
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
            fixed[name] = ImageAddress(url, transport)
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
