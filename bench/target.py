"""What a forwarded connection ends at: `target.py ADDRESS ROLE BYTES`.

It prints its port, serves one connection and ends: with the role `upload` it takes everything and
answers how much that was, with `download` it sends so many bytes.
"""

import socket
import struct
import sys

from tests.streaming.fakes.traffic import send, take, tell


def main(address: str, role: str, size: int) -> None:
    with socket.create_server((address, 0)) as listener:
        tell(listener.getsockname()[1])
        connection, _ = listener.accept()
        with connection:
            if role == "upload":
                connection.sendall(struct.pack(">Q", take(connection)))
            else:
                send(connection, size)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
