"""Messages between the library and its helpers: a length, JSON, and descriptors beside it."""

from __future__ import annotations

import array
import json
import select
import socket
import struct
from collections.abc import Sequence
from typing import Any

_HEADER = struct.Struct(">I")
_MOST_FDS = 16


def send(sock: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one message; the descriptors stay open here."""
    data = json.dumps(message).encode()
    sent = socket.send_fds(sock, [_HEADER.pack(len(data)) + data[:65536]], fds)
    if sent < _HEADER.size + len(data):
        sock.sendall(data[max(0, sent - _HEADER.size) :])


def recv(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Receive one message; descriptors arrive close-on-exec.

    Raises:
        EOFError: the other side is gone.
    """
    # Not `socket.recv_fds`, which drops its flags: a command would inherit what is in flight.
    room = socket.CMSG_LEN(_MOST_FDS * array.array("i").itemsize)
    head, given, _, _ = sock.recvmsg(_HEADER.size, room, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, data in given:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if not head:
        raise EOFError
    head += _exactly(sock, _HEADER.size - len(head))
    message: dict[str, Any] = json.loads(_exactly(sock, _HEADER.unpack(head)[0]))
    return message, list(fds)


def ready(fds: Sequence[int], timeout: float | None = None) -> set[int]:
    """Which of the descriptors can be read or were closed on the other side, after a wait.

    Not `select.select`, which fails on numbers of 1024 and above.
    """
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return {fd for fd, _ in poll.poll(None if timeout is None else timeout * 1000)}


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = sock.recv(min(count - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)
