"""Messages between the host and its verifier processes: JSON behind its length, on a stream socket."""

import json
import socket
import struct
from typing import Any

HEADER = struct.Struct("!Q")


def read_exactly(connection: socket.socket, size: int) -> bytes:
    """Raises EOFError where the other end closed first."""
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        count = connection.recv_into(view[done:])
        if count == 0:
            raise EOFError("the other end of the pipe closed")
        done += count
    return bytes(data)


def read_frame(connection: socket.socket) -> dict[str, Any]:
    (size,) = HEADER.unpack(read_exactly(connection, HEADER.size))
    frame: dict[str, Any] = json.loads(read_exactly(connection, size))
    return frame


def frame_of(values: dict[str, Any]) -> bytes:
    """ASCII JSON behind its length: a lone surrogate in a response survives the trip."""
    body = json.dumps(values).encode()
    return HEADER.pack(len(body)) + body
