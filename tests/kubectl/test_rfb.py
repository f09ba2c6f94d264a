"""Pictures of screens, also of those whose server means ill."""

import socket
import struct
from collections.abc import Callable

import pytest

from tests.fakes.rfb import greeting, pixels_of_png, update
from virtlet.kubectl.rfb import NoPicture, Picture, look

RED, GREEN = b"\xff\0\0\0", b"\0\xff\0\0"
DESKTOP_SIZE = -223


@pytest.fixture
def shown() -> Callable[..., Picture]:
    """Looks at a screen whose server says this, and then nothing more or that it leaves."""

    def see(said: bytes, *, leaves: bool = True, patience: float = 30) -> Picture:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(said)
            if leaves:
                theirs.shutdown(socket.SHUT_WR)
            return look(ours, patience)

    return see


def test_a_picture_is_made_of_rectangles_and_may_be_drawn_twice(
    shown: Callable[..., Picture],
) -> None:
    bell, text = b"\2", b"\3\0\0\0" + struct.pack(">I", 5) + b"hello"
    above = update(((0, 0, 2, 1), RED + RED), ((0, 0, 2, 1), GREEN + RED))
    picture = shown(greeting(2, 2) + bell + above + text + update(((0, 1, 2, 1), RED + GREEN)))
    lines = [b"\0\xff\0\xff\0\0", b"\xff\0\0\0\xff\0"]
    assert pixels_of_png(picture.png()) == (2, 2, lines)


def test_a_screen_that_gets_another_size_is_looked_at_again(shown: Callable[..., Picture]) -> None:
    resized = update(((0, 0, 1, 2), b""), encoding=DESKTOP_SIZE)
    picture = shown(greeting(4, 4) + resized + update(((0, 0, 1, 2), RED + GREEN)))
    assert (picture.width, picture.height, picture.rgb) == (1, 2, b"\xff\0\0\0\xff\0")


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "no VNC server"),
        (b"RFB 003.003\n", "older than 3.8"),
        (b"RFB 003.008\n\0" + struct.pack(">I", 4) + b"\x1bbye", "it lets nobody in: bye"),
        (b"RFB 003.008\n\1\2", "it wants a password"),
        (b"RFB 003.008\n\1\1\0\0\0\1" + struct.pack(">I", 2) + b"no", "not let us in: no"),
        (b"RFB 003.008\n\1\1\0\0\0\1\xff\xff\xff\xff", "a text of 4294967295 bytes"),
        (greeting(65535, 65535), "its screen has 65535 by 65535 pixels"),
        (greeting(0, 9), "its screen has 0 by 9 pixels"),
        (greeting(2, 2) + update(((1, 0, 2, 1), RED + RED)), "no part of the screen"),
        (greeting(2, 2) + update(((0, 0, 2, 2), b""), encoding=16), "no part of the screen"),
        (greeting(2, 2) + b"\7", "a message of the unknown kind 7"),
        (greeting(2, 2) + update(((0, 0, 2, 1), RED + RED)), "the connection was closed"),
    ],
)
def test_a_server_that_means_ill_is_told(
    shown: Callable[..., Picture], said: bytes, problem: str
) -> None:
    with pytest.raises(NoPicture) as refused:
        shown(said)
    assert problem in str(refused.value)


def test_one_that_says_nothing_more_is_left(shown: Callable[..., Picture]) -> None:
    with pytest.raises(NoPicture, match="was not shown within 0 seconds"):
        shown(greeting(2, 2), leaves=False, patience=0.2)
