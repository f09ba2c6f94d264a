"""The interfaces of the calling thread's network namespace, for tests."""

from virtlet.host.links import Link, Links


def loopback_up() -> None:
    """Let the namespace talk to itself."""
    with Links() as net:
        net.set("lo", up=True)


def shown() -> tuple[Link, ...]:
    """What interfaces there are."""
    with Links() as net:
        return net.show()


def names() -> list[str]:
    """Their names."""
    return [link.name for link in shown()]
