"""One picture of a VNC server's screen, as a PNG.

As much of RFB (RFC 6143) as it takes. The server is an emulator that its guest may have taken over,
so all that it says is bounded in size and time; the VNC clients of PyPI take a server's word for
both, and bring Twisted or numpy.
"""

import socket
import struct
import time
import zlib

from attrs import frozen

VERSION = b"RFB 003.008\n"
MOST_PIXELS = 16 << 20
"""QEMU's largest screen has 5120 by 2160."""
_MOST_TEXT = 1 << 20
_RAW, _DESKTOP_SIZE = 0, -223
_FORMAT = struct.pack(">4B3H3B3x", 32, 24, 0, 1, 255, 255, 255, 0, 8, 16)
"""Four bytes a pixel: red, green, blue, and nothing."""


class NoPicture(Exception):
    """The server showed none; the text says why."""


@frozen
class Picture:
    """What was on a screen."""

    width: int
    height: int
    rgb: bytes
    """Red, green and blue of each pixel, line by line from the top."""

    def png(self) -> bytes:
        """The picture as a PNG file (ISO/IEC 15948)."""
        length = 3 * self.width
        # Before each line is the number of its filter: none.
        lines = b"".join(
            b"\0" + self.rgb[start : start + length] for start in range(0, len(self.rgb), length)
        )
        head = struct.pack(">2I5B", self.width, self.height, 8, 2, 0, 0, 0)
        chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )


def look(connection: socket.socket, patience: float = 60.0) -> Picture:
    """Take a picture of all that is on a screen, while others go on looking at it.

    Args:
        connection: to the server, that has said nothing yet.
        patience: seconds for all of it.

    Raises:
        NoPicture: the server does not show one; says why.
    """
    server = _Server(connection, time.monotonic() + patience)
    try:
        return server.picture(*server.greet())
    except TimeoutError:
        raise NoPicture(f"the screen was not shown within {patience:.0f} seconds") from None
    except OSError as error:
        raise NoPicture(f"the connection was lost: {error.strerror or error}") from None


class _Server:
    """The server's side of a connection; everything ends at the deadline."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline

    def greet(self) -> tuple[int, int]:
        """Be let in; returns the screen's width and height."""
        version = self._read(12)
        if not version.startswith(b"RFB 003."):
            raise NoPicture("what answers is no VNC server")
        if version < VERSION:
            raise NoPicture(f"it speaks {version[:11].decode(errors='replace')}, older than 3.8")
        self._send(VERSION)
        kinds = self._read(self._read(1)[0])
        if not kinds:
            raise NoPicture(f"it lets nobody in: {self._text()}")
        if 1 not in kinds:
            raise NoPicture("it wants a password")
        self._send(b"\1")
        if self._number() != 0:
            raise NoPicture(f"it does not let us in: {self._text()}")
        self._send(b"\1")  # others may stay
        width, height = struct.unpack(">2H", self._read(4))
        self._read(16)
        self._text()
        encodings = struct.pack(">BxH2i", 2, 2, _RAW, _DESKTOP_SIZE)
        self._send(b"\0\0\0\0" + _FORMAT + encodings)
        return width, height

    def picture(self, width: int, height: int) -> Picture:
        """All of the screen, whose size may change meanwhile."""
        while True:
            if not 0 < width * height <= MOST_PIXELS:
                raise NoPicture(f"its screen has {width} by {height} pixels")
            self._send(struct.pack(">2B4H", 3, 0, 0, 0, width, height))
            canvas = _Canvas(width, height)
            while not canvas.complete:
                size = self._update(canvas)
                if size is not None:
                    width, height = size
                    break
            else:
                return canvas.picture()

    def _update(self, canvas: "_Canvas") -> tuple[int, int] | None:
        """Take one message; returns the new size if the screen has another one now."""
        size = None
        match self._read(1)[0]:
            case 0:
                self._read(1)
                for _ in range(struct.unpack(">H", self._read(2))[0]):
                    x, y, width, height, encoding = struct.unpack(">4Hi", self._read(12))
                    if encoding == _DESKTOP_SIZE:
                        size = (width, height)
                    elif encoding == _RAW and canvas.has(x, y, width, height):
                        for line in range(y, y + height):
                            canvas.put(x, line, self._read(4 * width))
                    else:
                        raise NoPicture("it shows what is no part of the screen")
            case 2:
                pass  # the bell
            case 3:
                self._read(3)
                self._text()
            case other:
                raise NoPicture(f"it sends a message of the unknown kind {other}")
        return size

    def _text(self) -> str:
        length = self._number()
        if length > _MOST_TEXT:
            raise NoPicture(f"it sends a text of {length} bytes")
        text = self._read(length)[:200].decode(errors="replace")
        return "".join(letter for letter in text if letter.isprintable())

    def _number(self) -> int:
        (number,) = struct.unpack(">I", self._read(4))
        return int(number)

    def _send(self, data: bytes) -> None:
        self._connection.settimeout(self._left())
        self._connection.sendall(data)

    def _read(self, length: int) -> bytes:
        data = bytearray(length)
        view, filled = memoryview(data), 0
        while filled < length:
            self._connection.settimeout(self._left())
            read = self._connection.recv_into(view[filled:])
            if not read:
                raise NoPicture("the connection was closed")
            filled += read
        return bytes(data)

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


class _Canvas:
    """A picture that is being made of rectangles."""

    def __init__(self, width: int, height: int) -> None:
        self._width, self._height = width, height
        self._pixels = bytearray(4 * width * height)
        self._shown = bytearray(width * height)

    @property
    def complete(self) -> bool:
        """Whether each pixel was shown."""
        return 0 not in self._shown

    def has(self, x: int, y: int, width: int, height: int) -> bool:
        """Whether a rectangle is within it."""
        return x + width <= self._width and y + height <= self._height

    def put(self, x: int, line: int, pixels: bytes) -> None:
        """Show a part of a line."""
        start = line * self._width + x
        count = len(pixels) // 4
        self._pixels[4 * start : 4 * (start + count)] = pixels
        self._shown[start : start + count] = b"\1" * count

    def picture(self) -> Picture:
        """What it is by now."""
        rgb = bytearray(3 * self._width * self._height)
        for place in range(3):
            rgb[place::3] = self._pixels[place::4]
        return Picture(self._width, self._height, bytes(rgb))
