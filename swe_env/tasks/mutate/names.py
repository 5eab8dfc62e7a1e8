"""Operators on names and calls: arguments, variables, methods, defaults."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from swe_env.tasks.mutate.base import Edit, Scope, operators

_METHODS = {
    "lower": "upper",
    "upper": "lower",
    "strip": "lstrip",
    "lstrip": "rstrip",
    "rstrip": "lstrip",
    "startswith": "endswith",
    "endswith": "startswith",
    "find": "rfind",
    "rfind": "find",
    "index": "rindex",
    "split": "rsplit",
    "rsplit": "split",
    "partition": "rpartition",
    "rpartition": "partition",
    "ljust": "rjust",
    "rjust": "ljust",
    "isdigit": "isalpha",
    "isalpha": "isdigit",
    "isupper": "islower",
    "islower": "isupper",
    "title": "capitalize",
    "capitalize": "title",
    "keys": "values",
    "values": "keys",
    "append": "extend",
    "appendleft": "append",
    "popleft": "pop",
    "union": "intersection",
    "intersection": "union",
    "issubset": "issuperset",
    "issuperset": "issubset",
    "group": "groups",
    "search": "match",
    "match": "search",
}
_FUNCTIONS = {
    "min": "max",
    "max": "min",
    "any": "all",
    "all": "any",
    "floor": "ceil",
    "ceil": "floor",
    "sorted": "list",
    "set": "list",
    "tuple": "list",
    "isinstance": "issubclass",
}


@operators.register("swapped_arguments")
def swapped_arguments(node: ast.AST, scope: Scope) -> Iterator[Edit]:
    """``f(a, b)`` → ``f(b, a)``, neighbours only."""
    if not isinstance(node, ast.Call) or node.lineno != node.end_lineno:
        return
    for first, second in zip(node.args, node.args[1:], strict=False):
        if isinstance(first, ast.Starred) or isinstance(second, ast.Starred):
            continue
        (a0, a1), (b0, b1) = scope.text.span(first), scope.text.span(second)
        data = scope.text.data
        if data[a0:a1] != data[b0:b1]:
            yield Edit(a0, b1, data[b0:b1] + data[a1:b0] + data[a0:a1])


@operators.register("removed_keyword")
def removed_keyword(node: ast.AST, scope: Scope) -> Iterator[Edit]:
    """``f(a, key=b)`` → ``f(a)``."""
    if not isinstance(node, ast.Call):
        return
    for keyword in node.keywords:
        if keyword.arg is None:
            continue
        start, end = scope.text.span(keyword)
        before = scope.text.data[:start].rstrip()
        if before.endswith(b",") and b"#" not in scope.text.data[len(before) : start]:
            yield Edit(len(before) - 1, end, b"")


@operators.register("wrong_variable")
def wrong_variable(node: ast.AST, scope: Scope) -> Iterator[Edit]:
    """A name that is read → its neighbours among the function's own names."""
    if not (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)):
        return
    if node.id not in scope.names or len(scope.names) < 2:
        return
    others = [name for name in scope.names if name not in (node.id, "self", "cls")]
    place = scope.names.index(node.id)
    others.sort(key=lambda name: abs(scope.names.index(name) - place))
    for name in others[:2]:
        yield scope.text.replace(node, name.encode())


@operators.register("method_swap")
def method_swap(node: ast.AST, scope: Scope) -> Iterator[Edit]:
    """``s.lower()`` → ``s.upper()``, ``startswith`` → ``endswith`` and so on."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        new = _METHODS.get(node.func.attr)
        if new is not None:
            _, end = scope.text.span(node.func)
            yield Edit(end - len(node.func.attr.encode()), end, new.encode())


@operators.register("function_swap")
def function_swap(node: ast.AST, scope: Scope) -> Iterator[Edit]:
    """``min(a)`` → ``max(a)``, ``any`` → ``all``, ``sorted`` → ``list`` and so on."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        new = _FUNCTIONS.get(node.func.id)
        if new is not None and not (new == "list" and node.keywords):
            yield scope.text.replace(node.func, new.encode())


@operators.register("dropped_call")
def dropped_call(node: ast.AST, scope: Scope) -> Iterator[Edit]:
    """``x = s.strip()`` → ``x = s``; ``str(x)`` → ``x`` where it is an operand or argument."""
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
        return
    call = node.value
    if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
        if call.func.value.id in scope.names and call.func.value.id not in ("self", "cls"):
            yield scope.text.replace(call, scope.text.of(call.func.value))
        return
    plain = isinstance(call.func, ast.Name) and len(call.args) == 1 and not call.keywords
    if plain and not isinstance(call.args[0], ast.Starred | ast.GeneratorExp):
        yield scope.text.replace(call, scope.text.of(call.args[0]))


@operators.register("changed_default")
def changed_default(node: ast.AST, scope: Scope) -> Iterator[Edit]:
    """``def f(a=True)`` → ``def f(a=False)``; numbers, strings and ``None`` likewise."""
    if not isinstance(node, ast.arguments):
        return
    for default in [*node.defaults, *(d for d in node.kw_defaults if d is not None)]:
        if isinstance(default, ast.Constant):
            new = _other(default.value)
            if new is not None:
                yield scope.text.replace(default, new)


def _other(value: object) -> bytes | None:
    if isinstance(value, bool):
        return str(not value).encode()
    if isinstance(value, int):
        return str(value + 1).encode()
    if isinstance(value, str):
        return b"''" if value else b"' '"
    return None
