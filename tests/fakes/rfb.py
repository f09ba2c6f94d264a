"""A viewer of a screen: as much of RFB (RFC 6143) as it takes to see one picture."""

import socket
import struct
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
