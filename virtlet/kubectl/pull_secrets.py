"""Which credentials a kubelet would send for an image: those of pull secrets, or of Docker's file.

Source of the rules: pkg/credentialprovider of Kubernetes (keyring.go, config.go).
"""

import base64
import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from attrs import frozen

from virtlet.cli.ending import CommandFailed
from virtlet.kubectl.cluster import Kubectl
from virtlet.model.image import Credentials

_DATA = {
    "kubernetes.io/dockerconfigjson": ".dockerconfigjson",
    "kubernetes.io/dockercfg": ".dockercfg",
}
"""Key of the data by the secret's type."""
_DOCKER_HUB = ("index.docker.io", "registry-1.docker.io")


@frozen
class PullSecret:
    """Credentials by registry."""

    name: str
    """For messages."""
    entries: Mapping[str, Credentials]
    """By what a registry is called there: a host, perhaps with `*`, and the beginning of a path."""

    def of(self, url: str) -> tuple[str, Credentials] | None:
        """The most specific entry for the image at an address, and its name; None without one."""
        address = urlsplit(url)
        for name in sorted(self.entries, reverse=True):
            if _is_of(name, address.netloc.rpartition("@")[2].lower(), address.path.lstrip("/")):
                return name, self.entries[name]
        return None


def of_cluster(kubectl: Kubectl, name: str) -> PullSecret:
    """A secret of the namespace.

    Raises:
        CommandFailed: it may not be read, or is no pull secret.
    """
    secret = kubectl.in_namespace("secrets", name)
    shown = f"secret {kubectl.namespace}/{name}"
    kind = secret.get("type", "")
    data = (secret.get("data") or {}).get(_DATA.get(kind, ""))
    if data is None:
        raise CommandFailed(
            f"{shown} is no pull secret, its type is {kind}: make one with "
            "`kubectl create secret docker-registry`"
        )
    return _read(shown, base64.b64decode(data))


def of_file(file: Path) -> PullSecret:
    """Docker's config.json, or one that `podman login` wrote.

    Raises:
        CommandFailed: it cannot be read, or its credentials are kept elsewhere.
    """
    try:
        return _read(str(file), file.read_bytes())
    except OSError as error:
        raise CommandFailed(f"{file}: {error.strerror}") from None


def _read(shown: str, text: bytes) -> PullSecret:
    try:
        document = json.loads(text)
        found = {
            name: _credentials(entry)
            for name, entry in document.get("auths", document).items()
            if isinstance(entry, dict) and entry
        }
    except (ValueError, TypeError, AttributeError):
        # Nothing of it may be told.
        raise CommandFailed(f"{shown} is malformed: it has no credentials by registry") from None
    if not found and isinstance(document, dict) and "credsStore" in document:
        raise CommandFailed(
            f"{shown} has no credentials, a program keeps them (credsStore): "
            "log in with `--authfile` of podman, or name a pull secret"
        )
    return PullSecret(shown, found)


def _credentials(entry: Mapping[str, Any]) -> Credentials:
    username, password = entry.get("username", ""), entry.get("password", "")
    if auth := entry.get("auth"):
        username, _, password = base64.b64decode(auth).decode().partition(":")
    return Credentials(
        username=username,
        password=password,
        identity_token=entry.get("identitytoken", ""),
        registry_token=entry.get("registrytoken", ""),
    )


def _is_of(name: str, host: str, path: str) -> bool:
    registry, _, beginning = name.rpartition("://")[2].partition("/")
    for version in ("v1", "v2"):
        if beginning == version or beginning.startswith(f"{version}/"):
            beginning = beginning[3:]
    if registry in _DOCKER_HUB:
        registry = "docker.io"
    ours, theirs = registry.split("."), host.split(".")
    return (
        len(ours) == len(theirs)
        and all(map(fnmatchcase, theirs, ours))
        and path.startswith(beginning)
    )
