"""Bulk traffic in processes of their own, so that a measurement shows the server alone.

Run as `python traffic.py ROLE …`: a target that sends or takes bytes, or a client that does so
through a plain port (socat) or through SPDY frames (the streaming server). The client prints the
seconds it took.
"""

import socket
import struct
import sys
import time

# What kubectl's copy loop puts into one frame.
FRAME = 32 * 1024
_PATTERN = bytes(range(256)) * (FRAME // 256)


def tell(figure: float) -> None:
    sys.stdout.write(f"{figure}\n")
    sys.stdout.flush()


def send(sock: socket.socket, size: int, head: bytes = b"") -> None:
    """Send `size` bytes, with a head before each frame; the size is a multiple of 256 KiB."""
    batch = (head + _PATTERN) * 8
    for _ in range(size // (8 * FRAME)):
        sock.sendall(batch)


def take(sock: socket.socket) -> int:
    """Take everything up to the end; return how much it was."""
    buffer, total = bytearray(1 << 18), 0
    while got := sock.recv_into(buffer):
        total += got
    return total


def target(role: str, size: int) -> None:
    """Serve one connection on a port that is printed first."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        tell(listener.getsockname()[1])
        sock, _ = listener.accept()
        with sock:
            if role == "upload":
                total = take(sock)
                sock.sendall(struct.pack(">Q", total))
            else:
                send(sock, size)


def client(role: str, size: int, port: int, path: str) -> None:
    """Move the bytes and print the seconds from the first to the target's word for the last."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        head, start = b"", b""
        if path:
            head, start = _spdy(sock, path)
        begin = time.perf_counter()
        sock.sendall(start)
        if role == "upload":
            send(sock, size, head)
            if path:
                sock.sendall(struct.pack(">II", 3, 1 << 24))
            else:
                sock.shutdown(socket.SHUT_WR)
            answer = b""
            while struct.pack(">Q", size) not in answer:
                piece = sock.recv(65536)
                assert piece, "the target did not get it all"
                answer += piece
        else:
            total, buffer = 0, bytearray(1 << 18)
            while total < size:
                got = sock.recv_into(buffer)
                assert got, "the client did not get it all"
                total += got
        tell(time.perf_counter() - begin)


def _spdy(sock: socket.socket, path: str) -> tuple[bytes, bytes]:
    """Upgrade; return the head of a data frame and the frames that open the streams."""
    from virtlet.streaming.spdy_frames import FrameEncoder, SynStream

    place, _, port = path.partition(" ")
    lines = (
        f"POST {place} HTTP/1.1",
        "Host: localhost",
        "Connection: Upgrade",
        "Upgrade: SPDY/3.1",
        "X-Stream-Protocol-Version: portforward.k8s.io",
    )
    sock.sendall("\r\n".join([*lines, "", ""]).encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += sock.recv(4096)
    encoder = FrameEncoder()
    headers = {"port": port, "requestID": "0"}
    start = b"".join(
        encoder.encode(SynStream(number, {"streamType": kind, **headers}))
        for number, kind in ((1, "error"), (3, "data"))
    )
    return struct.pack(">II", 3, FRAME), start


def main(side: str, role: str, size: str, port: str = "", *path: str) -> None:
    if side == "target":
        target(role, int(size))
    else:
        client(role, int(size), int(port), " ".join(path))


if __name__ == "__main__":
    main(*sys.argv[1:])
