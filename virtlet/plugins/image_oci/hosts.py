"""Which servers an image of a registry may come from: hosts.toml, as containerd reads it.

Source: docs/hosts.md of containerd.
"""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from attrs import field, frozen

from virtlet.errors import FailedPrecondition
from virtlet.model.image import TlsCertificate, Transport

_FILE = "hosts.toml"
_CAPABILITIES = ("pull", "resolve", "push")
_ELSEWHERE = {"docker.io": "registry-1.docker.io"}
"""Registries that are not where their name says."""


class Malformed(FailedPrecondition):
    """A file of the administrator's is malformed; the message names it."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")


@frozen
class Endpoint:
    """A server that has a registry's images, or some of them."""

    url: str
    """Of the API: with its path, without a slash at its end."""
    is_registry: bool
    """Whether it is the registry itself, which is shown the pull secret; else it is a mirror."""
    trusted: bool = False
    """Whether the administrator chose it."""
    resolves: bool = True
    """Whether it may say what a tag means."""
    pulls: bool = True
    """Whether it may be asked for content."""
    plain: bool = False
    """Whether the administrator wants its connections to have no TLS."""
    transport: Transport = Transport()
    headers: Mapping[str, str] = field(factory=dict, repr=False)


def endpoints(
    directory: Path, registry: str, *, scheme: str, trusted: bool
) -> tuple[Endpoint, ...]:
    """The servers of a registry, in the order in which they are to be asked.

    Args:
        directory: has a directory with a hosts.toml for each registry, or for `_default`.
        registry: `HOST[:PORT]`.
        scheme: of a registry of which no file says another.
        trusted: whether the administrator named the registry elsewhere.

    Raises:
        Malformed: its hosts.toml is.
    """
    default = Endpoint(f"{scheme}://{_ELSEWHERE.get(registry, registry)}/v2", True, trusted)
    for name in _directories(registry):
        path = directory / name / _FILE
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise Malformed(path, str(error.strerror)) from None
        return tuple(_Reader(path).endpoints(content, default, everyones=name == "_default"))
    return (default,)


def _directories(registry: str) -> Iterator[str]:
    host, colon, port = registry.rpartition(":")
    if colon:
        yield f"{host}_{port}_"
    yield registry
    yield "_default"


class _Reader:
    def __init__(self, path: Path) -> None:
        self._path = path

    def endpoints(
        self, content: bytes, default: Endpoint, *, everyones: bool
    ) -> Iterator[Endpoint]:
        try:
            document = tomllib.loads(content.decode())
        except (ValueError, RecursionError) as error:
            raise self._fail(f"no valid TOML: {error}") from None
        hosts = document.get("host", {})
        if not isinstance(hosts, dict):
            raise self._fail("host is no table")
        own = urlsplit(default.url).netloc
        for url, fields in hosts.items():
            if not isinstance(fields, dict):
                raise self._fail(f"host {url!r} is no table")
            yield self._endpoint(url, fields, own)
        server = document.get("server", "")
        if not isinstance(server, str):
            raise self._fail("server is no text")
        # A file for all registries names none of them.
        if everyones and not server:
            yield default
            return
        yield self._endpoint(server or default.url, document, own, is_server=not everyones)

    def _endpoint(
        self, url: str, fields: Mapping[str, Any], registry: str, *, is_server: bool = False
    ) -> Endpoint:
        if "://" not in url:
            url = f"https://{url}"
        address = urlsplit(url)
        if address.scheme not in ("http", "https") or not address.netloc or "@" in address.netloc:
            raise self._fail(f"{url!r} is no http:// or https:// address without credentials")
        path = address.path.rstrip("/")
        if not (self._flag(fields, "override_path") or path.endswith("/v2")):
            path += "/v2"
        abilities = self._texts(fields.get("capabilities"), "capabilities") or _CAPABILITIES
        unknown = {ability.lower() for ability in abilities} - {*_CAPABILITIES}
        if unknown:
            raise self._fail(f"capabilities has {sorted(unknown)[0]!r}, which is none")
        return Endpoint(
            url=f"{address.scheme}://{address.netloc}{path}",
            is_registry=is_server or address.netloc == registry,
            trusted=True,
            plain=address.scheme == "http",
            resolves="resolve" in abilities,
            pulls="pull" in abilities,
            transport=Transport(
                certificates=(*self._authorities(fields), *self._clients(fields)),
                insecure=self._flag(fields, "skip_verify"),
                trust_node=True,
            ),
            headers=self._headers(fields.get("header", {})),
        )

    def _authorities(self, fields: Mapping[str, Any]) -> Iterator[TlsCertificate]:
        for name in self._texts(fields.get("ca"), "ca"):
            yield TlsCertificate(cert=self._pem(name))

    def _clients(self, fields: Mapping[str, Any]) -> Iterator[TlsCertificate]:
        given = fields.get("client")
        for each in given if isinstance(given, list) else [given] if given else []:
            names = self._texts(each, "client")
            if len(names) not in (1, 2):
                raise self._fail("client is a file, a list of files, or a list of pairs of files")
            yield TlsCertificate(cert=self._pem(names[0]), key=self._pem(names[-1]))

    def _pem(self, name: str) -> str:
        path = self._path.parent / name
        try:
            text = path.read_text()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise self._fail(f"{path}: {reason}") from None
        if "-----BEGIN " not in text:
            raise self._fail(f"{path} holds no certificate or key in PEM form")
        return text

    def _headers(self, given: Any) -> Mapping[str, str]:
        if not isinstance(given, dict):
            raise self._fail("header is no table")
        return {
            name: ", ".join(self._texts(value, f"header {name!r}")) for name, value in given.items()
        }

    def _texts(self, given: Any, what: str) -> list[str]:
        """A text or a list of texts; none for what is not there."""
        texts = given if isinstance(given, list) else [] if given is None else [given]
        if not all(isinstance(text, str) for text in texts):
            raise self._fail(f"{what} is neither a text nor a list of texts")
        return texts

    def _flag(self, fields: Mapping[str, Any], name: str) -> bool:
        given = fields.get(name, False)
        if not isinstance(given, bool):
            raise self._fail(f"{name} is neither true nor false")
        return given

    def _fail(self, problem: str) -> Malformed:
        return Malformed(self._path, problem)
