"""Files as lines for a model to read, without losing a byte of what it does not change."""

from __future__ import annotations

import codecs
from dataclasses import dataclass

from swe_env.errors import ToolError
from swe_env.sandbox.base import Files

_PROBE = 8192
_MARGINS = [f"\n{n:6d}\t" for n in range(1, 4001)]
"""What stands before a line: to format the numbers takes most of the time of a long view."""


@dataclass(frozen=True, slots=True)
class TextFile:
    """A text file taken apart so that it can be put together again byte for byte."""

    text: str
    """Its content; invalid UTF-8 as surrogates, line ends as they are."""
    bom: bool = False

    @property
    def newline(self) -> str:
        """The line end that new lines get: the first one used."""
        end = self.text.find("\n")
        return "\r\n" if end > 0 and self.text[end - 1] == "\r" else "\n"

    @property
    def lines(self) -> list[str]:
        """Lines without their ends."""
        return split(self.text)

    @property
    def pieces(self) -> list[str]:
        """Lines with their ends; joined they are the text."""
        parts = self.text.split("\n")
        return [f"{part}\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])

    def encode(self) -> bytes:
        """The file's bytes."""
        data = self.text.encode("utf-8", "surrogateescape")
        return codecs.BOM_UTF8 + data if self.bom else data

    @classmethod
    def decode(cls, data: bytes) -> TextFile:
        """Take a file's bytes apart."""
        bom = data.startswith(codecs.BOM_UTF8)
        body = data[len(codecs.BOM_UTF8) :] if bom else data
        return cls(body.decode("utf-8", "surrogateescape"), bom)


def split(text: str) -> list[str]:
    """Lines as git and editors count them: ends are LF or CRLF, nothing else."""
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines] if "\r" in text else lines


def is_binary(data: bytes) -> bool:
    """Git's rule: a NUL byte near the beginning."""
    return b"\0" in data[:_PROBE]


def read_text(files: Files, path: str) -> TextFile:
    """A text file of the workspace.

    Raises:
        ToolError: it is missing, a folder, outside the workspace, too large or binary.
    """
    data = files.read(path)
    if is_binary(data):
        raise ToolError(
            f"{path} is a binary file of {len(data)} bytes; it cannot be shown as text."
        )
    return TextFile.decode(data)


def printable(text: str) -> str:
    """Text that any encoder takes: bytes that were not UTF-8 show as U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def numbered(lines: list[str], first: int = 1) -> str:
    """Lines with their numbers, as `view` shows them."""
    last = first - 1 + len(lines)
    if last > len(_MARGINS):
        margins = [f"\n{n:6d}\t" for n in range(first, last + 1)]
    else:
        margins = _MARGINS[first - 1 : last]
    # One join over margins and lines in turn: no string is made for a line on its own.
    parts = [""] * (2 * len(lines))
    parts[::2] = margins
    parts[1::2] = lines
    return printable("".join(parts)[1:])
