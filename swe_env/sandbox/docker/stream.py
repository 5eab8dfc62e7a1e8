"""An exec's connection: what is sent is its standard input, its two outputs come back framed."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Literal

OUTPUT, REPORT = 1, 2
"""The process's standard output and standard error."""
_HEADER = struct.Struct(">BxxxI")
_CHUNK = 1 << 18

Sink = Callable[[int, bytes], bool]
"""Takes (`OUTPUT` or `REPORT`, bytes); True when enough has come."""


class Stream:
    """Reads and writes at the same time, so that neither side can block the other."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = bytearray()
        self._unsent = bytearray()
        self._last = False
        self._kind = self._left = 0
        self.open = True

    @property
    def sending(self) -> bool:
        """Whether something queued has not been taken yet."""
        return bool(self._unsent)

    def queue(self, data: bytes, *, end: bool = False) -> None:
        """Have the next `pump` send this, and close the process's standard input if it is all."""
        self._unsent += data
        self._last = end
        if end and not self._unsent:
            self._end()

    def pump(self, sink: Sink, *, until: float) -> Literal["done", "ended", "late"]:
        """Send what is queued and give what arrives to `sink`.

        Args:
            sink: see `Sink`.
            until: monotonic time at which to give up.

        Returns:
            ``done`` when the sink said so, ``ended`` when the process has gone, ``late``.
        """
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        while True:
            if self._frames(sink):
                return "done"
            if not self.open:
                return "ended"
            events = poll.poll(max(0.0, until - time.monotonic()) * 1000)
            if not events and time.monotonic() >= until:
                return "late"
            for _, event in events:
                if event & ~select.POLLOUT:
                    self._receive()
                if event & select.POLLOUT and self._unsent:
                    self._send()
                    if not self._unsent:
                        poll.modify(self._socket, select.POLLIN)
                        if self._last:
                            self._end()

    def close(self) -> None:
        """Let go of the connection; safe to call twice."""
        self.open = False
        self._socket.close()

    def _receive(self) -> None:
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._buffer += data
        else:
            self.open = False

    def _send(self) -> None:
        try:
            with memoryview(self._unsent) as view:
                sent = self._socket.send(view[:_CHUNK])
            del self._unsent[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent.clear()  # nobody is left to read it

    def _end(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def _frames(self, sink: Sink) -> bool:
        """Hand over what has arrived; True when the sink has enough (the rest is kept)."""
        buffer = self._buffer
        while buffer:
            if not self._left:
                if len(buffer) < _HEADER.size:
                    return False
                self._kind, self._left = _HEADER.unpack_from(buffer)
                del buffer[: _HEADER.size]
                continue
            part = bytes(buffer[: self._left])
            del buffer[: self._left]
            self._left -= len(part)
            if sink(self._kind, part):
                return True
        return False
