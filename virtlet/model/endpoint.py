"""Where a CRI runtime listens, as a kubelet, crictl and we write it."""

SCHEMES = ("unix://", "unix:")


def socket_path(endpoint: str) -> str:
    """The path of a unix socket, given as it is or as `unix:///run/virtlet.sock`.

    Raises:
        ValueError: it is no unix socket's.
    """
    for scheme in SCHEMES:
        endpoint = endpoint.removeprefix(scheme)
    if "://" in endpoint:
        raise ValueError(
            f"{endpoint!r} is no unix socket: write its path, /run/virtlet.sock say, or "
            "unix:///run/virtlet.sock"
        )
    return endpoint
