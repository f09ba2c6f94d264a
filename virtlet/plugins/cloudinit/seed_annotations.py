"""The annotations of the seed: what a pod may say to cloud-init in its guest."""

import re
from typing import Any, TypeVar

from virtlet.cluster.api import ObjectName, parse_object_key, parse_object_name
from virtlet.model.option import MAPPING, TEXT, TRUE_ONLY, Annotation, Kind
from virtlet.model.plain import UnquotedError, quote

T = TypeVar("T")

_KEY = re.compile(r"(?:^|\s)(?:ssh|ecdsa|sk-ssh|sk-ecdsa)-[a-z0-9@.-]+\s+[A-Za-z0-9+/]+=*(?:\s|$)")

_SOURCE = Kind(name="configmap/NAME or secret/NAME", parse=parse_object_name)
_NOTHING: ObjectName | None = None
META_DATA: Annotation[dict[str, Any]] = Annotation(
    name="VirtletCloudInitMetaData",
    kind=MAPPING,
    default={},
    help="Meta-data; its keys replace the generated ones",
    secret=True,
)
USER_DATA: Annotation[dict[str, Any]] = Annotation(
    name="VirtletCloudInitUserData",
    kind=MAPPING,
    default={},
    help="User-data (a cloud-config document), merged into the generated: mappings recurse, lists "
    "append, anything else replaces",
    secret=True,
)
USER_DATA_OVERWRITE = Annotation(
    name="VirtletCloudInitUserDataOverwrite",
    kind=TRUE_ONLY,
    default=False,
    help="Let the keys of VirtletCloudInitUserData replace the generated ones, and those of its "
    "source, instead; of "
    "`write_files` only entries of the same path, so that the pod's mounted files stay. A `runcmd` "
    "that replaces the generated one calls what it needs of /etc/cloud/*.sh (volumes, owners of "
    "files, device paths, resolver options) and `sysctl -p` itself",
)
USER_DATA_SCRIPT = Annotation(
    name="VirtletCloudInitUserDataScript",
    kind=TEXT,
    default="",
    help="A script that is the whole user-data; `@virtlet-mount-script@` in it becomes shell code "
    "that "
    "writes the pod's files and environment and mounts its volumes. Without it, ConfigMaps, "
    "Secrets and other files are refused, but for the kubelet's own (hosts file, service "
    "account), and the script finds directories by tag and disks by serial number, `volume-N`",
    secret=True,
)
FORCE_DHCP = Annotation(
    name="VirtletForceDHCPNetworkConfig",
    kind=TRUE_ONLY,
    default=False,
    help="Leave the network configuration out, so that the guest uses DHCP",
)


def parse_keys(text: str) -> tuple[str, ...]:
    """Read OpenSSH public keys, one a line.

    Raises:
        UnquotedError: one of them is none.
    """
    lines = [line.strip() for line in text.splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    for number, key in enumerate(keys, 1):
        if not _KEY.search(key):
            raise UnquotedError(
                f"key {number} is not a public key of OpenSSH: write one key a line, such as "
                "`ssh-ed25519 AAAA… comment`"
            )
    return tuple(keys)


def _image_type(text: str) -> str:
    if text not in ("", "nocloud", "configdrive"):
        raise ValueError(f"{quote(text)} is neither 'nocloud' nor 'configdrive'")
    return text or "nocloud"


def _encoding(text: str) -> str:
    if text not in ("", "plain", "base64"):
        raise ValueError(f"{quote(text)} is neither 'plain' nor 'base64'")
    return text or "plain"


SSH_KEYS: Annotation[tuple[str, ...]] = Annotation(
    name="VirtletSSHKeys",
    kind=Kind(name="one OpenSSH public key a line", parse=parse_keys),
    default=(),
    help="Public keys that may log in",
    secret=True,
)
IMAGE_TYPE = Annotation(
    name="VirtletCloudInitImageType",
    kind=Kind(name="nocloud or configdrive", parse=_image_type),
    default="nocloud",
    help="Which of cloud-init's data sources the seed is written for",
)
SSH_KEY_SOURCE = Annotation(
    name="VirtletSSHKeySource",
    kind=Kind(
        name="configmap/NAME[/KEY] or secret/NAME[/KEY]",
        parse=lambda text: parse_object_name(text, with_key=True),
    ),
    default=_NOTHING,
    help="An object of the pod's namespace with more public keys, under KEY (`authorized_keys` "
    "unless given). Those of VirtletSSHKeys come after them, or instead of them with "
    "VirtletCloudInitUserDataOverwrite",
)
USER_DATA_SOURCE = Annotation(
    name="VirtletCloudInitUserDataSource",
    kind=_SOURCE,
    default=_NOTHING,
    help="An object of the pod's namespace: each key is a key of user-data, with a YAML or JSON "
    "document as its value. It is merged over VirtletCloudInitUserData",
)
USER_DATA_SOURCE_KEY = Annotation(
    name="VirtletCloudInitUserDataSourceKey",
    kind=Kind(name="key of a ConfigMap or Secret", parse=parse_object_key),
    default="",
    help="Key of that object which holds all of the user-data: a cloud-config document, merged "
    "likewise, or anything else, which is taken as VirtletCloudInitUserDataScript is",
)
USER_DATA_SOURCE_ENCODING = Annotation(
    name="VirtletCloudInitUserDataSourceEncoding",
    kind=Kind(name="plain or base64", parse=_encoding),
    default="plain",
    help="How the content under that key is written",
)
FILES_SOURCE = Annotation(
    name="VirtletFilesFromDataSource",
    kind=_SOURCE,
    default=_NOTHING,
    help="An object of the pod's namespace with files for the root disk: the content under a key "
    "`x`, its absolute path under `x_path`, and `plain` or `base64` (the default) under "
    "`x_encoding`. They are root's, 0644 from a ConfigMap and 0600 from a Secret, and cloud-init "
    "writes them",
)
ALL: tuple[Annotation[Any], ...] = (
    SSH_KEYS,
    IMAGE_TYPE,
    META_DATA,
    USER_DATA,
    USER_DATA_OVERWRITE,
    USER_DATA_SCRIPT,
    FORCE_DHCP,
    SSH_KEY_SOURCE,
    USER_DATA_SOURCE,
    USER_DATA_SOURCE_KEY,
    USER_DATA_SOURCE_ENCODING,
    FILES_SOURCE,
)
