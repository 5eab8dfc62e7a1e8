"""Wait for a command while reading what it writes."""

from __future__ import annotations

import array
import fcntl
import os
import select
import termios
import time
from dataclasses import dataclass, field

from swe_env.errors import PatchRefused
from swe_env.sandbox.keeper.spawn import STATUS
from swe_env.sandbox.output import Capture

_CHUNK = 1 << 16
MOST_CHANNEL = 64 << 20
"""Bytes of a result channel, or of a diff, that are taken."""


def pending(fd: int) -> int:
    """Bytes that can be read from a pipe now."""
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]


def drain(fd: int) -> bytes:
    """What is in the pipe now; what a background process writes meanwhile waits for later."""
    left = pending(fd)
    parts = []
    while left > 0 and (part := os.read(fd, left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def exit_code(status: bytes) -> int:
    """Exit code from what a helper wrote; 128 + the signal's number for one that was killed."""
    if len(status) != STATUS.size:
        return -1
    code: int = STATUS.unpack(status)[0]
    return code if code >= 0 else 128 - code


@dataclass(slots=True)
class Pipes:
    """The ends of a command's pipes that the library holds."""

    output: int
    status: int
    side: int = -1
    """The result channel, or a shell's reports."""

    def close(self) -> None:
        """Close them all."""
        for fd in (self.output, self.status, self.side):
            if fd >= 0:
                os.close(fd)


@dataclass(slots=True)
class Ended:
    """Why waiting ended."""

    status: bytes | None = None
    """What the helper wrote when the process itself ended, empty when the helper died."""
    side: bytearray = field(default_factory=bytearray)
    timed_out: bool = False
    cut: bool = False
    """The side pipe held more than `MOST_CHANNEL` bytes; the rest was left out."""


def too_large() -> PatchRefused:
    """What a diff of more than `MOST_CHANNEL` bytes is answered with."""
    return PatchRefused(
        f"The diff is larger than {MOST_CHANNEL >> 20} MiB: delete the large files or have git "
        "ignore them."
    )


def wait(
    pipes: Pipes,
    capture: Capture,
    *,
    timeout: float,
    outgoing: dict[int, bytes] | None = None,
    until: bytes = b"",
) -> Ended:
    """Read until the process ends, the side pipe holds `until` at its end, or time is up.

    With `until` the side pipe's reports end the wait (a persistent shell); without, only the
    process's own end does. Output already written is always read before returning. `outgoing`
    holds the bytes for each (non-blocking) descriptor, and afterwards those not yet taken.
    """
    outgoing = outgoing if outgoing is not None else {}
    ended = Ended()
    deadline = time.monotonic() + timeout
    poll = select.poll()
    for fd in (pipes.output, pipes.status, pipes.side):
        if fd >= 0:
            poll.register(fd, select.POLLIN)
    for fd in outgoing:
        poll.register(fd, select.POLLOUT)
    while True:
        remaining = deadline - time.monotonic()
        events = poll.poll(max(0, remaining * 1000)) if remaining > 0 else []
        if not events:
            if time.monotonic() < deadline:
                continue
            ended.timed_out = True
            return ended
        for fd, _ in events:
            if fd == pipes.output:
                if not (data := os.read(fd, _CHUNK)):
                    poll.unregister(fd)
                capture.feed(data)
            elif fd == pipes.side:
                if not (data := os.read(fd, _CHUNK)):
                    poll.unregister(fd)
                elif len(ended.side) < MOST_CHANNEL:
                    ended.side += data
                else:
                    ended.cut = True
            elif fd in outgoing:
                outgoing[fd] = _write(fd, outgoing[fd])
                if not outgoing[fd]:
                    poll.unregister(fd)
                    del outgoing[fd]
            else:
                ended.status = os.read(fd, 256)
        if ended.status is not None or (until and ended.side.endswith(until)):
            capture.feed(drain(pipes.output))
            if ended.status is not None and pipes.side >= 0:
                ended.side += drain(pipes.side)
            return ended


def _write(fd: int, data: bytes) -> bytes:
    """What of `data` the pipe did not take; nothing once nobody can read it."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view[:_CHUNK]) :]
    except BlockingIOError:
        return bytes(view)
    except OSError:
        pass
    return b""
