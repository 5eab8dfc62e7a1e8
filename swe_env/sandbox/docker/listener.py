"""Tells a command's output, its result channel and our own records on a stream apart."""

from __future__ import annotations

import re

from swe_env.sandbox.docker.stream import OUTPUT
from swe_env.sandbox.output import Capture
from swe_env.sandbox.running import MOST_CHANNEL

_RECORD = 1 << 14
"""Room for one record of ours."""
_OOM = re.compile(r"oom_kill (\d+)")
_MAX = re.compile(r"max (\d+)")


class Listener:
    """A `Sink` for one command; done when its end is reported and all its output is in."""

    def __init__(self, token: str, capture: Capture) -> None:
        self._mark = token.encode()
        self._record = b"\0" + self._mark + b" "
        self._capture = capture
        self._held = b""
        self._marked = False
        self._searched = 0
        self.side = bytearray()
        """What came on the second stream, our records taken out."""
        self.since = 0
        """Tick of the boot clock at which the command began; 0 when it has not."""
        self.pid = 0
        """Process that runs the command: the shell, or what waits for a list."""
        self.code: int | None = None
        """Exit code, once the end was reported."""
        self.sound = True
        """Whether the shell's output still came here at the command's end."""
        self.cwd = ""
        self.struck: dict[str, int] = {}
        """Limit → how often it has struck in this container, where the command failed."""

    def __call__(self, kind: int, data: bytes) -> bool:
        """See `Sink`."""
        if kind == OUTPUT:
            self._output(data)
        else:
            self.side += data
            while self._take():
                pass
            del self.side[MOST_CHANNEL:-_RECORD]
        return self._marked and self.code is not None

    def go_on(self, capture: Capture) -> None:
        """Put the output from here on into another capture."""
        self._capture = capture

    def flush(self) -> None:
        """No more will come: what was held back is output."""
        if not self._marked:
            self._capture.feed(self._held)
        self._held = b""

    @property
    def rest(self) -> bytes:
        """Output of background processes that came after the command's end."""
        return self._held if self._marked else b""

    def _output(self, data: bytes) -> None:
        if self._marked:
            self._held += data
            return
        data = self._held + data
        place = data.find(self._mark)
        if place >= 0:
            self._capture.feed(data[:place])
            self._held = data[place + len(self._mark) :]
            self._marked = True
            return
        keep = next(n for n in range(len(self._mark) - 1, -1, -1) if data.endswith(self._mark[:n]))
        self._capture.feed(data[: len(data) - keep])
        self._held = data[len(data) - keep :]

    def _take(self) -> bool:
        """Take one whole record out of `side`."""
        place = self.side.find(self._record, self._searched)
        if place < 0:
            self._searched = max(0, len(self.side) - len(self._record))
            return False
        end = self.side.find(b"\0", place + 1)
        if end < 0:
            self._searched = place
            return False
        text = self.side[place + len(self._record) : end].decode("utf-8", "surrogateescape")
        del self.side[place : end + 1]
        self._searched = place
        if text.startswith("S "):
            _, seconds, pid = text.split(" ")
            self.since, self.pid = int(seconds.replace(".", "")), int(pid)
            del self.side[:place]  # bash's own complaints, of a locale that is missing
            self._searched = 0
        elif text.startswith("E "):
            code, sound, memory, processes, self.cwd = text[2:].split("\t", 4)
            self.code, self.sound = int(code), sound != "0"
            for name, pattern, said in (("memory", _OOM, memory), ("processes", _MAX, processes)):
                if found := pattern.search(said):
                    self.struck[name] = int(found.group(1))
        return True
