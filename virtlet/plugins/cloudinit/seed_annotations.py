"""The annotations of the seed: what a pod may say to cloud-init in its guest."""

import re
from typing import Any, TypeVar

from virtlet.model.option import MAPPING, TEXT, TRUE_ONLY, Annotation, Kind
from virtlet.model.plain import UnquotedError, quote

T = TypeVar("T")

_KEY = re.compile(r"(?:^|\s)(?:ssh|ecdsa|sk-ssh|sk-ecdsa)-[a-z0-9@.-]+\s+[A-Za-z0-9+/]+=*(?:\s|$)")

_SOURCE = "configmap/NAME or secret/NAME"
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
    help="Let the keys of VirtletCloudInitUserData replace the generated ones instead; of "
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


def _keys(text: str) -> tuple[str, ...]:
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


def _refused(name: str, form: str, instead: str) -> Annotation[str]:
    def parse(text: str) -> str:
        if text:
            raise UnquotedError(
                "reading objects of Kubernetes is not served yet: "
                f"write the content itself into {instead}"
            )
        return text

    return Annotation(
        name=name,
        kind=Kind(name=form, parse=parse),
        default="",
        help=f"Refused for now; use {instead}",
    )


SSH_KEYS: Annotation[tuple[str, ...]] = Annotation(
    name="VirtletSSHKeys",
    kind=Kind(name="one OpenSSH public key a line", parse=_keys),
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
SSH_KEY_SOURCE = _refused("VirtletSSHKeySource", f"{_SOURCE}[/KEY]", SSH_KEYS.name)
USER_DATA_SOURCE = _refused("VirtletCloudInitUserDataSource", _SOURCE, USER_DATA.name)
USER_DATA_SOURCE_KEY = _refused("VirtletCloudInitUserDataSourceKey", "text", USER_DATA.name)
USER_DATA_SOURCE_ENCODING = _refused(
    "VirtletCloudInitUserDataSourceEncoding", "plain or base64", USER_DATA.name
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
)
