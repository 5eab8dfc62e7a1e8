"""What a mutation operator gets and gives: places in a function, edits of spans of its text."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from swe_env.plugins import Registry

FunctionNode: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace the bytes [start, end) of a file; everything else stays as it is."""

    start: int
    end: int
    text: bytes


def apply_edits(data: bytes, edits: Iterable[Edit]) -> bytes:
    """A file with edits made that do not overlap."""
    for edit in sorted(edits, key=lambda edit: -edit.start):
        data = data[: edit.start] + edit.text + data[edit.end :]
    return data


class Text:
    """A file's bytes and the way from AST positions to offsets in them."""

    def __init__(self, data: bytes) -> None:
        """Take the file's bytes; columns of the AST count UTF-8 bytes, so offsets are exact."""
        self.data = data
        self._starts = [0, *(found.end() for found in re.finditer(rb"\n", data))]

    def offset(self, line: int, column: int) -> int:
        """Offset of a position; `line` counts from 1, `column` is in bytes."""
        return self._starts[line - 1] + column

    def span(self, node: ast.expr | ast.stmt | ast.arg | ast.keyword) -> tuple[int, int]:
        """First and one-past-last offset of a node."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self.offset(node.lineno, node.col_offset)
        return start, self.offset(node.end_lineno, node.end_col_offset)

    def of(self, node: ast.expr | ast.stmt | ast.arg | ast.keyword) -> bytes:
        """The text of a node."""
        start, end = self.span(node)
        return self.data[start:end]

    def line(self, number: int) -> str:
        """One line without its ending; `number` counts from 1."""
        end = self._starts[number] if number < len(self._starts) else len(self.data)
        return self.data[self._starts[number - 1] : end].decode("utf-8", "replace").rstrip("\r\n")

    def replace(self, node: ast.expr | ast.stmt | ast.arg, text: bytes) -> Edit:
        """The edit that puts `text` in a node's place."""
        return Edit(*self.span(node), text)

    def token(self, start: int, end: int, word: bytes) -> tuple[int, int] | None:
        """Where `word` stands alone between two offsets, or None when that is not certain."""
        gap = self.data[start:end]
        if b"#" in gap or b"\\" in gap:
            return None
        edge = rb"\b" if word[:1].isalpha() else rb""
        pattern = edge + rb"\s+".join(re.escape(part) for part in word.split()) + edge
        found = list(re.finditer(pattern, gap))
        return (start + found[0].start(), start + found[0].end()) if len(found) == 1 else None


@dataclass(frozen=True, slots=True)
class Scope:
    """A function as the operators see it."""

    text: Text
    function: FunctionNode
    qualname: str
    names: tuple[str, ...]
    """Names bound in the function (parameters and assigned locals), in order."""


Operator: TypeAlias = Callable[[ast.AST, Scope], Iterator[Edit]]
"""Yields the edits it can make at one node; called for every node of a function's body."""

operators: Registry[Operator] = Registry("operators")
"""Operators by name; a plug-in registers with ``@operators.register("name")``."""
