"""Operators on blocks: whole bodies, branches, loops and handlers; every edit spans lines."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from swe_env.tasks.mutate.base import Edit, Scope, operators
from swe_env.tasks.mutate.statements import is_alone, is_docstring, is_elif, without


@operators.register("removed_body")
def removed_body(node: ast.AST, scope: Scope) -> Iterator[Edit]:
    """The function does nothing any more; its signature and docstring stay."""
    if node is not scope.function.args:
        return
    body = scope.function.body
    yield from _replaced(body[1:] if is_docstring(body[0]) else body, scope)


@operators.register("emptied_branch")
def emptied_branch(node: ast.AST, scope: Scope) -> Iterator[Edit]:
    """The block under an ``if``, ``else`` or loop → ``pass``."""
    if isinstance(node, ast.If | ast.For | ast.AsyncFor | ast.While):
        yield from _replaced(node.body, scope)
        # An `elif` is a branch of its own, met as such.
        if node.orelse and not (
            isinstance(node.orelse[0], ast.If) and is_elif(node.orelse[0], scope)
        ):
            yield from _replaced(node.orelse, scope)


@operators.register("removed_block")
def removed_block(node: ast.AST, scope: Scope) -> Iterator[Edit]:
    """An ``if``, a loop or a ``try`` is gone with all that is under it."""
    if not isinstance(node, ast.If | ast.For | ast.While | ast.Try):
        return
    elif_ = isinstance(node, ast.If) and is_elif(node, scope)
    if node.end_lineno != node.lineno and not elif_ and not is_alone(node, scope):
        yield without(node, scope)


@operators.register("removed_handler")
def removed_handler(node: ast.AST, scope: Scope) -> Iterator[Edit]:
    """What an ``except`` clause did → ``raise``: the error is handled no more."""
    if not isinstance(node, ast.ExceptHandler) or isinstance(node.body[0], ast.Raise):
        return
    first, last = node.body[0], node.body[-1]
    if first.lineno == node.lineno:
        return
    line = scope.text.offset(_first_line(first), 0)
    indent = scope.text.data[line : line + first.col_offset]
    yield Edit(line - 1, scope.text.span(last)[1], b"\n" + indent + b"raise")


def _replaced(block: Sequence[ast.stmt], scope: Scope) -> Iterator[Edit]:
    """``pass`` for a block of several lines that starts on a line of its own."""
    if not block:
        return
    line = scope.text.offset(_first_line(block[0]), 0)
    start, end = line + block[0].col_offset, scope.text.span(block[-1])[1]
    if not scope.text.data[line:start].strip() and b"\n" in scope.text.data[start:end]:
        yield Edit(start, end, b"pass")


def _first_line(node: ast.stmt) -> int:
    """The statement's first line, decorators included."""
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])
