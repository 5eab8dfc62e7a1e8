"""Operators on expressions: comparisons, logic, arithmetic, constants, slices."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from swe_env.tasks.mutate.base import Edit, Scope, operators

_COMPARE = {
    ast.Eq: (b"==", b"!="),
    ast.NotEq: (b"!=", b"=="),
    ast.Lt: (b"<", b">"),
    ast.Gt: (b">", b"<"),
    ast.LtE: (b"<=", b">="),
    ast.GtE: (b">=", b"<="),
    ast.Is: (b"is", b"is not"),
    ast.IsNot: (b"is not", b"is"),
    ast.In: (b"in", b"not in"),
    ast.NotIn: (b"not in", b"in"),
}
_BOUNDARY = {
    ast.Lt: (b"<", b"<="),
    ast.Gt: (b">", b">="),
    ast.LtE: (b"<=", b"<"),
    ast.GtE: (b">=", b">"),
}
_ARITHMETIC = {
    ast.Add: (b"+", b"-"),
    ast.Sub: (b"-", b"+"),
    ast.Mult: (b"*", b"//"),
    ast.Div: (b"/", b"*"),
    ast.FloorDiv: (b"//", b"*"),
    ast.Mod: (b"%", b"//"),
    ast.LShift: (b"<<", b">>"),
    ast.RShift: (b">>", b"<<"),
    ast.BitAnd: (b"&", b"|"),
    ast.BitOr: (b"|", b"&"),
}
_Table = dict[type[ast.cmpop], tuple[bytes, bytes]]


def _compare(node: ast.AST, scope: Scope, table: _Table) -> Iterator[Edit]:
    if not isinstance(node, ast.Compare):
        return
    left = node.left
    for op, right in zip(node.ops, node.comparators, strict=True):
        if pair := table.get(type(op)):
            gap = scope.text.span(left)[1], scope.text.span(right)[0]
            if found := scope.text.token(*gap, pair[0]):
                yield Edit(*found, pair[1])
        left = right


@operators.register("comparison")
def comparison(node: ast.AST, scope: Scope) -> Iterator[Edit]:
    """``a == b`` → ``a != b``, ``a < b`` → ``a > b``, ``a in b`` → ``a not in b`` and so on."""
    yield from _compare(node, scope, _COMPARE)


@operators.register("boundary")
def boundary(node: ast.AST, scope: Scope) -> Iterator[Edit]:
    """``a < b`` ↔ ``a <= b``, ``a > b`` ↔ ``a >= b``."""
    yield from _compare(node, scope, _BOUNDARY)


@operators.register("boolean")
def boolean(node: ast.AST, scope: Scope) -> Iterator[Edit]:
    """``a and b`` ↔ ``a or b``, one operator at a time."""
    if not isinstance(node, ast.BoolOp):
        return
    old, new = (b"and", b"or") if isinstance(node.op, ast.And) else (b"or", b"and")
    for left, right in zip(node.values, node.values[1:], strict=False):
        if found := scope.text.token(scope.text.span(left)[1], scope.text.span(right)[0], old):
            yield Edit(*found, new)


@operators.register("dropped_not")
def dropped_not(node: ast.AST, scope: Scope) -> Iterator[Edit]:
    """``not a`` → ``a``."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        start, _ = scope.text.span(node)
        inner, _ = scope.text.span(node.operand)
        if scope.text.data[start:inner].strip() == b"not":
            yield Edit(start, inner, b"")


@operators.register("arithmetic")
def arithmetic(node: ast.AST, scope: Scope) -> Iterator[Edit]:
    """``a + b`` → ``a - b``, ``a * b`` → ``a // b``, ``a += b`` → ``a -= b`` and so on."""
    if isinstance(node, ast.BinOp):
        pair = _ARITHMETIC.get(type(node.op))
        if pair is None or _is_text(node.left):
            return
        start, end = scope.text.span(node.left)[1], scope.text.span(node.right)[0]
        if found := scope.text.token(start, end, pair[0]):
            yield Edit(*found, pair[1])
    elif isinstance(node, ast.AugAssign):
        pair = _ARITHMETIC.get(type(node.op))
        if pair is None or _is_text(node.value):
            return
        start, end = scope.text.span(node.target)[1], scope.text.span(node.value)[0]
        if found := scope.text.token(start, end, pair[0] + b"="):
            yield Edit(*found, pair[1] + b"=")


def _is_text(node: ast.expr) -> bool:
    constant = isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
    return constant or isinstance(node, ast.JoinedStr)


@operators.register("off_by_one")
def off_by_one(node: ast.AST, scope: Scope) -> Iterator[Edit]:
    """``1`` → ``2`` and ``1`` → ``0`` (slice bounds are `slice_bound`'s)."""
    if isinstance(node, ast.Constant) and type(node.value) is int and 0 <= node.value <= 100_000:
        if scope.text.of(node) != str(node.value).encode():
            return
        yield scope.text.replace(node, str(node.value + 1).encode())
        if node.value > 0:
            yield scope.text.replace(node, str(node.value - 1).encode())


@operators.register("flipped_constant")
def flipped_constant(node: ast.AST, scope: Scope) -> Iterator[Edit]:
    """``True`` ↔ ``False``."""
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield scope.text.replace(node, str(not node.value).encode())


@operators.register("slice_bound")
def slice_bound(node: ast.AST, scope: Scope) -> Iterator[Edit]:
    """``a[1:n]`` → ``a[:n]``, ``a[1:]``; ``a[i:]`` → ``a[i + 1:]``; ``a[:-1]`` → ``a[:-2]``."""
    if not isinstance(node, ast.Slice):
        return
    for bound in (node.lower, node.upper):
        if bound is None:
            continue
        yield scope.text.replace(bound, b"")
        if isinstance(bound, ast.Name | ast.Attribute):
            yield scope.text.replace(bound, scope.text.of(bound) + b" + 1")
        elif isinstance(bound, ast.UnaryOp) and isinstance(bound.operand, ast.Constant):
            value = bound.operand.value
            if isinstance(bound.op, ast.USub) and type(value) is int:
                yield scope.text.replace(bound, str(-value - 1).encode())


@operators.register("negated_condition")
def negated_condition(node: ast.AST, scope: Scope) -> Iterator[Edit]:
    """``if a:`` → ``if not a:``, for conditions that no other operator reverses."""
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        test = node.test
        simple = isinstance(test, ast.Name | ast.Call | ast.Attribute | ast.Subscript)
        if simple and b"\n" not in scope.text.of(test):
            yield scope.text.replace(test, b"not " + scope.text.of(test))


@operators.register("swapped_branches")
def swapped_branches(node: ast.AST, scope: Scope) -> Iterator[Edit]:
    """``a if c else b`` → ``b if c else a``."""
    if isinstance(node, ast.IfExp) and node.lineno == node.end_lineno:
        text = scope.text
        (b0, b1), (e0, e1) = text.span(node.body), text.span(node.orelse)
        middle = text.data[b1:e0]
        yield Edit(b0, e1, text.of(node.orelse) + middle + text.of(node.body))
