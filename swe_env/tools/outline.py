"""Classes and functions of a Python file with their line numbers, through its syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from swe_env.remember import by_content
from swe_env.syntax import parse

Definition = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_BLOCKS = ("body", "cases", "handlers", "orelse", "finalbody")
"""Where a statement holds others, in the order in which they stand."""
_SIMPLE = (ast.Expr, ast.Assign, ast.Return, ast.Import, ast.ImportFrom, ast.Raise, ast.AugAssign)
"""The most frequent statements that hold no others."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """A class or function."""

    name: str
    """Dotted from the module: ``Class.method``."""
    kind: str
    """``class`` or ``def``."""
    first: int
    """Line of the first decorator or of the definition, from 1."""
    last: int
    depth: int


@by_content(1024)
def symbols(source: str) -> tuple[Symbol, ...]:
    """Every class and function in order; empty when the source does not parse."""
    try:
        return tuple(_walk(parse(source), "", 0))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ()


def _walk(node: ast.AST, prefix: str, depth: int) -> Iterator[Symbol]:
    for children in _BLOCKS:
        for child in getattr(node, children, ()):
            if isinstance(child, Definition):
                name = f"{prefix}{child.name}"
                first = min([child.lineno, *(d.lineno for d in child.decorator_list)])
                kind = "class" if isinstance(child, ast.ClassDef) else "def"
                yield Symbol(name, kind, first, child.end_lineno or child.lineno, depth)
                yield from _walk(child, f"{name}.", depth + 1)
            elif not isinstance(child, _SIMPLE):
                yield from _walk(child, prefix, depth)


def outline(source: str, limit: int = 200) -> str:
    """One line a symbol: its lines, indented by depth."""
    found = symbols(source)
    lines = [
        f"{s.first:6d}-{s.last:<6d}\t{'  ' * s.depth}{s.kind} {s.name.rpartition('.')[2]}"
        for s in found[:limit]
    ]
    if len(found) > limit:
        lines.append(f"[... {len(found) - limit} more ...]")
    return "\n".join(lines)
