"""Telnet as busybox's telnetd speaks it."""

from hypothesis import given
from hypothesis import strategies as st

from virtlet.plugins.guest_agent.terminal import Telnet

GREETING = b"\r\r\n"


def test_commands_and_the_greeting_are_taken_out_and_the_rest_is_kept() -> None:
    """Options, a sub-negotiation, a two-byte command and an escaped 255."""
    told = (
        b"\xff\xfd\x01\xff\xfb\x03" + GREETING + b"a\xff\xffb\xff\xfa\x1f\0\x50\xff\xf0c\xff\xf1d"
    )
    assert Telnet().decode(told) == b"a\xffbcd"


def test_only_a_whole_greeting_at_the_very_start_is_one() -> None:
    """What merely looks like it is the command's own."""
    telnet = Telnet()
    assert telnet.decode(b"\r") == b""
    assert telnet.decode(b"\r\nhello\r\r\n") == b"hello\r\r\n"
    assert Telnet().decode(b"hello") == b"hello"


def test_typed_returns_and_bytes_of_255_are_escaped() -> None:
    """A return would otherwise swallow what follows it."""
    assert Telnet().encode(b"ls\r\n\xff") == b"ls\r\0\n\xff\xff"


@given(st.lists(st.binary(max_size=8)))
def test_output_comes_through_however_it_is_cut(pieces: list[bytes]) -> None:
    """The agent reads at any place of the stream."""
    printed = b"".join(pieces)
    telnet, heard = Telnet(), b""
    told = GREETING + printed.replace(b"\xff", b"\xff\xff")
    for start in range(0, len(told), 3):
        heard += telnet.decode(told[start : start + 3])
    assert heard == printed


@given(st.binary())
def test_no_bytes_of_a_guest_break_it(data: bytes) -> None:
    """A guest may send anything."""
    assert len(Telnet().decode(data)) <= len(data)
