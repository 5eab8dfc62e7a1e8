"""Take test functions out of a test file, leaving the rest of its text as it is."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from swe_env.syntax import parse
from swe_env.tasks.mutate.base import FunctionNode, Text


def file_of(test_id: str) -> str:
    """The file part of a pytest node id."""
    return test_id.split("::", 1)[0]


def function_of(test_id: str) -> tuple[str, ...]:
    """Class names and function name of a pytest node id, its parameters left out."""
    path, _, rest = test_id.partition("::")
    del path
    return tuple(rest.split("[", 1)[0].split("::"))


def without_tests(source: str, functions: Iterable[tuple[str, ...]]) -> str | None:
    """The file without those test functions, or None when one of them is not written in it.

    A function goes as a whole with its decorators; a class left empty gets ``pass``. (None: a
    test that a class inherits, or one made at run time.)
    """
    tree = parse(source)
    text = Text(source.encode())
    wanted = set(functions)
    cuts: dict[tuple[int, int], bytes] = {}
    closed: set[tuple[str, ...]] = set()
    for function in sorted(wanted):
        owner = function[:-1]
        parent = _class(tree, owner)
        found = _functions(parent, function[-1]) if parent else []
        if parent is None or not found:
            return None
        for node in found:
            cuts[_span(text, node)] = b""
        is_class = isinstance(parent, ast.ClassDef)
        if is_class and owner not in closed and _emptied(parent, owner, wanted):
            closed.add(owner)
            cuts[_span(text, found[0])] = b" " * found[0].col_offset + b"pass\n"
    data = text.data
    for (start, end), replacement in sorted(cuts.items(), reverse=True):
        data = data[:start] + replacement + data[end:]
    try:
        compile(data, "<tests>", "exec")
    except SyntaxError:
        return None
    return data.decode()


def _class(tree: ast.Module, names: tuple[str, ...]) -> ast.Module | ast.ClassDef | None:
    parent: ast.Module | ast.ClassDef = tree
    for name in names:
        inner = [n for n in parent.body if isinstance(n, ast.ClassDef) and n.name == name]
        if not inner:
            return None
        parent = inner[-1]
    return parent


def _functions(parent: ast.Module | ast.ClassDef, name: str) -> list[FunctionNode]:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return [node for node in parent.body if isinstance(node, kinds) and node.name == name]


def _emptied(
    parent: ast.Module | ast.ClassDef, name: tuple[str, ...], wanted: set[tuple[str, ...]]
) -> bool:
    def goes(node: ast.stmt) -> bool:
        named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        return named and (*name, getattr(node, "name", "")) in wanted

    return all(goes(node) for node in parent.body)


def _span(text: Text, node: FunctionNode) -> tuple[int, int]:
    """Whole lines of a function, with its decorators and the blank lines after it."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    start, end = text.offset(first, 0), text.span(node)[1]
    newline = text.data.find(b"\n", end)
    end = len(text.data) if newline < 0 else newline + 1
    while (newline := text.data.find(b"\n", end)) >= 0 and not text.data[end:newline].strip():
        end = newline + 1
    return start, end
