"""Operators on statements: returns, guards, assignments, whole branches."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from swe_env.tasks.mutate.base import Edit, Scope, operators


@operators.register("dropped_return_value")
def dropped_return_value(node: ast.AST, scope: Scope) -> Iterator[Edit]:
    """``return x`` → ``return None``."""
    if isinstance(node, ast.Return) and node.value is not None:
        constant = isinstance(node.value, ast.Constant) and node.value.value is None
        if not constant:
            yield scope.text.replace(node, b"return None")


@operators.register("changed_return")
def changed_return(node: ast.AST, scope: Scope) -> Iterator[Edit]:
    """``return f(x)`` → ``return x``; ``return a, b`` → ``return b, a``."""
    if not isinstance(node, ast.Return):
        return
    value = node.value
    if isinstance(value, ast.Call) and len(value.args) == 1 and not value.keywords:
        argument = value.args[0]
        if not isinstance(argument, ast.Starred | ast.GeneratorExp):
            yield scope.text.replace(value, scope.text.of(argument))
    elif isinstance(value, ast.Tuple) and len(value.elts) == 2 and _one_line(value):
        (a0, a1), (b0, b1) = scope.text.span(value.elts[0]), scope.text.span(value.elts[1])
        data = scope.text.data
        yield Edit(a0, b1, data[b0:b1] + data[a1:b0] + data[a0:a1])


@operators.register("removed_guard")
def removed_guard(node: ast.AST, scope: Scope) -> Iterator[Edit]:
    """``if bad: return …`` (no else) → the statement is gone."""
    if isinstance(node, ast.If) and not node.orelse and len(node.body) == 1:
        leaves = isinstance(node.body[0], ast.Return | ast.Raise | ast.Continue | ast.Break)
        if leaves and not is_elif(node, scope) and not is_alone(node, scope):
            yield without(node, scope)


@operators.register("removed_branch")
def removed_branch(node: ast.AST, scope: Scope) -> Iterator[Edit]:
    """``elif …:`` or ``else:`` with its block is gone."""
    if not (isinstance(node, ast.If) and node.orelse):
        return
    last = node.orelse[-1]
    assert last.end_lineno is not None
    start = scope.text.offset((node.body[-1].end_lineno or 0) + 1, 0)
    yield Edit(start, _line_end(scope, last.end_lineno), b"")


@operators.register("removed_statement")
def removed_statement(node: ast.AST, scope: Scope) -> Iterator[Edit]:
    """An assignment or call statement on its own line is gone."""
    if isinstance(node, ast.AugAssign) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        if not is_alone(node, scope) and _one_line(node):
            yield without(node, scope)
    elif isinstance(node, ast.Assign) and _one_line(node) and not is_alone(node, scope):
        target = node.targets[0]
        # Only what is bound elsewhere too: a missing name would be a dull NameError.
        if isinstance(target, ast.Attribute | ast.Subscript) or (
            isinstance(target, ast.Name) and _bound_before(target.id, node, scope)
        ):
            yield without(node, scope)


@operators.register("plain_assignment")
def plain_assignment(node: ast.AST, scope: Scope) -> Iterator[Edit]:
    """``a += b`` → ``a = b``."""
    if isinstance(node, ast.AugAssign):
        start, end = scope.text.span(node.target)[1], scope.text.span(node.value)[0]
        if scope.text.data[start:end].strip().endswith(b"="):
            yield Edit(start, end, b" = ")


@operators.register("loop_exit")
def loop_exit(node: ast.AST, scope: Scope) -> Iterator[Edit]:
    """``break`` ↔ ``continue``."""
    if isinstance(node, ast.Break):
        yield scope.text.replace(node, b"continue")
    elif isinstance(node, ast.Continue):
        yield scope.text.replace(node, b"break")


def _one_line(node: ast.stmt | ast.expr) -> bool:
    return node.lineno == node.end_lineno


def is_elif(node: ast.If, scope: Scope) -> bool:
    """Whether an ``if`` is written as ``elif``."""
    return scope.text.of(node).startswith(b"elif")


def is_alone(node: ast.stmt, scope: Scope) -> bool:
    """Whether the statement is the only one of its block, or shares its line with another."""
    for parent in ast.walk(scope.function):
        for field in ("body", "orelse", "finalbody"):
            block = getattr(parent, field, None)
            if isinstance(block, list) and node in block:
                real = [s for s in block if not is_docstring(s)]
                lines = [line for s in block if s is not node for line in (s.lineno, s.end_lineno)]
                shared = node.lineno in lines or node.end_lineno in lines
                header = getattr(parent, "lineno", 0) == node.lineno
                return len(real) == 1 or shared or header
    return True


def is_docstring(node: ast.stmt) -> bool:
    """Whether a statement is a bare constant."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _bound_before(name: str, node: ast.stmt, scope: Scope) -> bool:
    arguments = scope.function.args
    parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    if any(argument.arg == name for argument in parameters):
        return True
    return any(
        isinstance(other, ast.Name)
        and other.id == name
        and isinstance(other.ctx, ast.Store)
        and other.lineno < node.lineno
        for other in ast.walk(scope.function)
    )


def _line_end(scope: Scope, line: int) -> int:
    end = scope.text.data.find(b"\n", scope.text.offset(line, 0))
    return len(scope.text.data) if end < 0 else end + 1


def without(node: ast.stmt, scope: Scope) -> Edit:
    """The edit that takes a statement's lines away."""
    assert node.end_lineno is not None
    return Edit(scope.text.offset(node.lineno, 0), _line_end(scope, node.end_lineno), b"")
