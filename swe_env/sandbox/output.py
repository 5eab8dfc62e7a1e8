"""Keep head and tail of a command's output in bounded memory."""

from __future__ import annotations

import codecs


class Capture:
    """Decodes bytes as UTF-8 with replacement and keeps at most `limit` characters."""

    def __init__(self, limit: int) -> None:
        self._head_room = limit - limit // 2
        self._tail_room = limit // 2
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._head: list[str] = []
        self._tail = ""
        self._left_out = 0

    def feed(self, data: bytes, *, final: bool = False) -> None:
        """Take the next bytes; `final` ends an unfinished character."""
        text = self._decoder.decode(data, final)
        if self._head_room:
            self._head.append(text[: self._head_room])
            text = text[self._head_room :]
            self._head_room -= len(self._head[-1])
        if text:
            self._tail += text
            if len(self._tail) > 2 * self._tail_room + 65536:
                self._trim()

    def _trim(self) -> None:
        surplus = len(self._tail) - self._tail_room
        if surplus > 0:
            self._tail = self._tail[surplus:]
            self._left_out += surplus

    @property
    def cut(self) -> bool:
        """Whether anything was left out."""
        return self._left_out > 0 or len(self._tail) > self._tail_room

    def text(self) -> str:
        """What was kept, with the number of characters left out between head and tail."""
        self.feed(b"", final=True)
        self._trim()
        head = "".join(self._head)
        if not self._left_out:
            return head + self._tail
        return f"{head}\n[… {self._left_out} characters left out …]\n{self._tail}"
