"""The CRI log format: raw console bytes to log lines and back.

A line is `2026-01-02T15:04:05.123456789Z stdout F payload` and a newline; `P` instead of `F`
says that the printed line goes on in the next one. The mapping is reversible, which is what
lets a restarted manager count how much of the raw file the log already holds: an F line stands
for its payload and a newline, a P line for its payload alone. Nothing is changed in between;
carriage returns and bytes that are no UTF-8 are kept. What the manager has to say, such as what was
lost, stands on stderr, which no guest has, so that nothing a guest prints looks like it.
"""

import re
import time

from attrs import frozen

MAX_PAYLOAD = 16 * 1024
"""Longest payload of one log line in bytes; longer printed lines become P parts."""

HEADER_SIZE = len("2026-01-02T15:04:05.123456789Z stdout F ")
"""Every header of ours is of this length."""

_LINE = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z stdout ([FP]) ")
_NOTICE = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z stderr F \[virtlet: (.*)\]")
_LOSS = re.compile(rb"(\d+) bytes of console output were lost: the log could not be written")


@frozen
class Encoded:
    """Log lines made of raw bytes."""

    text: bytes
    """Whole log lines."""
    taken: int
    """How many of the raw bytes, from the first, the lines stand for."""


@frozen
class Decoded:
    """Raw bytes found in log text."""

    payload: bytes
    """What the whole lines stand for."""
    whole: int
    """Length of the text up to its last newline; what follows is a torn line."""
    lost: int = 0
    """Raw bytes that the lines say were lost."""


def encode(data: bytes, now: int, *, flush: bool) -> Encoded:
    """Turn raw bytes into log lines, all with the same time.

    Args:
        data: raw bytes; they begin a line of the log, whatever they are.
        now: nanoseconds since the epoch.
        flush: take the unfinished line at the end too, as a P line. Otherwise it is taken only
            in parts of MAX_PAYLOAD and its remainder is left for a later call.
    """
    stamp = _timestamp(now)
    full, part = stamp + b" stdout F ", stamp + b" stdout P "
    end = data.rfind(b"\n") + 1
    text = [_finished_lines(data[:end], full, part)] if end else []
    stop = len(data) if flush else end + (len(data) - end) // MAX_PAYLOAD * MAX_PAYLOAD
    for start in range(end, stop, MAX_PAYLOAD):
        text += (part, data[start : min(start + MAX_PAYLOAD, stop)], b"\n")
    return Encoded(b"".join(text), max(end, stop))


def encode_loss(count: int, now: int) -> bytes:
    """The log line that tells of so many lost bytes; `now` in nanoseconds since the epoch."""
    return encode_notice(
        f"{count} bytes of console output were lost: the log could not be written", now
    )


def encode_notice(text: str, now: int) -> bytes:
    """The log line that tells the pod's owner something; `now` in nanoseconds since the epoch.

    It stands for no raw bytes, and begins a line of the log as every other does.
    """
    words = " ".join(text.split()).encode(errors="replace")[:MAX_PAYLOAD]
    return _timestamp(now) + b" stderr F [virtlet: " + words + b"]\n"


def decode(text: bytes) -> Decoded:
    """Turn log text back into the raw bytes it stands for.

    Raises:
        ValueError: a whole line is not one that `encode`, `encode_loss` or `encode_notice` makes.
    """
    whole = text.rfind(b"\n") + 1
    payload, lost = [], 0
    for line in text[:whole].split(b"\n")[:-1]:
        header = _LINE.match(line)
        if header is None:
            notice = _NOTICE.fullmatch(line)
            if notice is None:
                raise ValueError("a log line without the header of this format")
            loss = _LOSS.fullmatch(notice[1])
            lost += int(loss[1]) if loss else 0
            continue
        payload.append(line[HEADER_SIZE:])
        if header[1] == b"F":
            payload.append(b"\n")
    return Decoded(b"".join(payload), whole, lost)


def _timestamp(now: int) -> bytes:
    seconds, nanoseconds = divmod(now, 1_000_000_000)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{stamp}.{nanoseconds:09d}Z".encode()


def _finished_lines(lines: bytes, full: bytes, part: bytes) -> bytes:
    """Give headers to lines that all end in a newline; in the common case one replacement in C."""
    if not _has_long_line(lines):
        return full + lines[:-1].replace(b"\n", b"\n" + full) + b"\n"
    text: list[bytes] = []
    for line in lines[:-1].split(b"\n"):
        start = 0
        while len(line) - start > MAX_PAYLOAD:
            text += (part, line[start : start + MAX_PAYLOAD], b"\n")
            start += MAX_PAYLOAD
        text += (full, line[start:], b"\n")
    return b"".join(text)


def _has_long_line(lines: bytes) -> bool:
    """Whether a payload is over MAX_PAYLOAD; looks at one newline per MAX_PAYLOAD bytes."""
    start = 0
    while len(lines) - start > MAX_PAYLOAD:
        newline = lines.rfind(b"\n", start, start + MAX_PAYLOAD + 1)
        if newline < 0:
            return True
        start = newline + 1
    return False
