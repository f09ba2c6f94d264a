"""What the node's administrator says of all image servers.

`image_http` declares these settings; other fetching plugins read them too.
"""

import ipaddress

from virtlet.model.option import BYTES, Kind, Option

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_networks(text: str) -> tuple[Network, ...]:
    """Networks in CIDR notation, with commas between them.

    Raises:
        ValueError: one is none; says which.
    """
    return tuple(ipaddress.ip_network(word.strip()) for word in text.split(",") if word.strip())


ALLOWED_NETWORKS: Option[tuple[Network, ...]] = Option(
    field="imageAllowedNetworks",
    flag="--image-allowed-networks",
    env="VIRTLET_IMAGE_ALLOWED_NETWORKS",
    kind=Kind(name="comma-separated networks", parse=parse_networks),
    default="",
    help="networks that images may come from, such as 10.1.0.0/16, beside public ones and the "
    "addresses in image translation files",
)
LEAST_RATE: Option[int] = Option(
    field="imageLeastRate",
    flag="--image-least-rate",
    env="VIRTLET_IMAGE_LEAST_RATE",
    kind=BYTES,
    default="16Ki",
    help="bytes a second that an image server must send over each minute; 0 is any",
    mappable=True,
)
