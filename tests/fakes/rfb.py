"""Both sides of a screen: as much of RFB (RFC 6143) as it takes to see one picture."""

import socket
import struct
import zlib
from typing import Self

from attrs import frozen

PIXEL_FORMAT = struct.pack(">4B3H3B3x", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)
"""32 bits in little endian: blue, green, red, and nothing."""


@frozen
class Viewer:
    """A viewer that was let in."""

    connection: socket.socket
    width: int
    height: int

    @classmethod
    def greet(cls, connection: socket.socket, *, shared: bool = True) -> Self:
        """Be let in; without `shared`, all others are to leave."""
        connection.settimeout(60)
        stream = connection.makefile("rb")
        assert stream.read(12) == b"RFB 003.008\n"
        connection.sendall(b"RFB 003.008\n")
        methods = stream.read(stream.read(1)[0])
        assert 1 in methods, "it wants to be shown a password"
        connection.sendall(b"\1")
        assert stream.read(4) == bytes(4)
        connection.sendall(bytes([shared]))
        width, height = struct.unpack(">2H", stream.read(4))
        stream.read(16)
        stream.read(*struct.unpack(">I", stream.read(4)))
        connection.sendall(b"\0\0\0\0" + PIXEL_FORMAT + struct.pack(">BxHi", 2, 1, 0))
        return cls(connection, width, height)

    def picture(self) -> bytes:
        """All that is on the screen now: red, green and blue of each pixel, line by line."""
        request = struct.pack(">2B4H", 3, 0, 0, 0, self.width, self.height)
        self.connection.sendall(request)
        stream = self.connection.makefile("rb")
        lines = [bytearray(4 * self.width) for _ in range(self.height)]
        seen = 0
        while seen < self.width * self.height:
            assert stream.read(2) == b"\0\0", "something else than a picture"
            (rectangles,) = struct.unpack(">H", stream.read(2))
            for _ in range(rectangles):
                x, y, width, height, encoding = struct.unpack(">4Hi", stream.read(12))
                assert encoding == 0
                seen += width * height
                for line in range(y, y + height):
                    lines[line][4 * x : 4 * (x + width)] = stream.read(4 * width)
        pixels = b"".join(lines)
        rgb = bytearray(3 * self.width * self.height)
        for place in range(3):
            rgb[place::3] = pixels[2 - place :: 4]
        return bytes(rgb)


def greeting(width: int, height: int, name: bytes = b"QEMU") -> bytes:
    """All that a server says before it shows anything, whatever the viewer says."""
    return b"".join(said for said, _ in turns(width, height, name))


def turns(width: int, height: int, name: bytes = b"QEMU") -> list[tuple[bytes, int]]:
    """The greeting in turns: what the server says, and how many bytes the viewer answers.

    noVNC looks at no more than the version when more comes with it.
    """
    size = struct.pack(">2H", width, height) + PIXEL_FORMAT + struct.pack(">I", len(name))
    return [(b"RFB 003.008\n", 12), (b"\1\1", 1), (bytes(4), 1), (size + name, 0)]


def update(*rectangles: tuple[tuple[int, int, int, int], bytes], encoding: int = 0) -> bytes:
    """Rectangles (x, y, width, height) with their pixels, as a server shows them."""
    return struct.pack(">2xH", len(rectangles)) + b"".join(
        struct.pack(">4Hi", *place, encoding) + pixels for place, pixels in rectangles
    )


def pixels_of_png(png: bytes) -> tuple[int, int, list[bytes]]:
    """Width, height and lines (red, green and blue of each pixel) of a PNG without filters."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, at = {}, 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        checksum = struct.unpack(">I", png[at + 8 + length : at + 12 + length])[0]
        assert zlib.crc32(kind + data) == checksum
        chunks[kind] = data
        at += 12 + length
    width, height, *kinds = struct.unpack(">2I5B", chunks[b"IHDR"])
    assert kinds == [8, 2, 0, 0, 0]
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    lines, step = zlib.decompress(chunks[b"IDAT"]), 3 * width + 1
    assert len(lines) == step * height
    assert {lines[place] for place in range(0, len(lines), step)} == {0}
    return width, height, [lines[place + 1 : place + step] for place in range(0, len(lines), step)]
