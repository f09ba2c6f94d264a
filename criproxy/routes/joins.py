"""How the parts of several runtimes become one answer; the primary's comes first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from criproxy.methods import Method, parse_response

#: Takes the method and the parts' encoded messages, and returns the encoded answer.
Join = Callable[[Method, Sequence[bytes]], bytes]

_WHERE = "criproxy"


def concatenated(method: Method, parts: Sequence[bytes]) -> bytes:
    """All items of all.

    In protobuf, joining the encodings of two messages joins their repeated fields; fields that the
    stubs do not know come along.
    """
    return b"".join(parts)


def united(field: str, key: str) -> Join:
    """All items of a field, but only the first of those with one value of `key`."""

    def join(method: Method, parts: Sequence[bytes]) -> bytes:
        if len(parts) < 2:
            return concatenated(method, parts)
        merged = parse_response(method, parts[0], _WHERE)
        items = getattr(merged, field)
        told = {getattr(item, key) for item in items}
        for part in parts[1:]:
            for item in getattr(parse_response(method, part, _WHERE), field):
                if getattr(item, key) not in told:
                    told.add(getattr(item, key))
                    items.append(item)
        return bytes(merged.SerializeToString())

    return join


def filesystems(method: Method, parts: Sequence[bytes]) -> bytes:
    """All filesystems of all, the primary's first in both lists.

    A runtime that tells no container filesystems keeps containers where its images are. A kubelet
    takes the first of the list for the node's, so another runtime's must not get there.
    """
    merged = parse_response(method, concatenated(method, parts), _WHERE)
    if len(parts) < 2 or not merged.container_filesystems:
        return concatenated(method, parts)
    primary = parse_response(method, parts[0], _WHERE)
    if primary.container_filesystems:
        return concatenated(method, parts)
    others = list(merged.container_filesystems)
    del merged.container_filesystems[:]
    merged.container_filesystems.extend([*primary.image_filesystems, *others])
    return bytes(merged.SerializeToString())
