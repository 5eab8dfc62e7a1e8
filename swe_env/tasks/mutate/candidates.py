"""Every bug that the operators can put into a file, each with the function it lies in."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from swe_env.plugins import Registry
from swe_env.syntax import parse
from swe_env.tasks.mutate.base import (
    Edit,
    FunctionNode,
    Operator,
    Scope,
    Text,
    apply_edits,
    operators,
)

_TRIVIAL = {"__repr__", "__str__", "__del__", "__getstate__", "__setstate__", "__reduce__"}
_BUILTIN = (
    "swe_env.tasks.mutate.blocks",
    "swe_env.tasks.mutate.expressions",
    "swe_env.tasks.mutate.statements",
    "swe_env.tasks.mutate.names",
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One bug not yet tried: a file of the checkout and what to change in it."""

    path: str
    operator: str
    function: str
    """Qualified name, without the module: ``Class.method``."""
    first: int
    """First line of the function, decorators included."""
    last: int
    line: int
    """Line of the edit."""
    edits: tuple[Edit, ...]

    def apply(self, data: bytes) -> bytes:
        """The file with the bug in it."""
        return apply_edits(data, self.edits)

    @property
    def key(self) -> str:
        """What makes it the same bug wherever it was found."""
        edits = ";".join(f"{e.start}:{e.end}:{e.text.decode()}" for e in self.edits)
        return f"{self.path}:{edits}"


def candidates(path: str, data: bytes, names: Sequence[str] | None = None) -> list[Candidate]:
    """Every bug the operators can make in a file, in the order of the text (see `distinct`).

    Args:
        path: the file's path in the checkout.
        data: its bytes; a file that does not parse or is not plain UTF-8 gives none.
        names: operators to use; all that are registered by default.
    """
    try:
        data.decode("utf-8")
        tree = parse(data)
    except (UnicodeDecodeError, SyntaxError, ValueError):
        return []
    if data.startswith(b"\xef\xbb\xbf") or b"\r" in data.replace(b"\r\n", b""):
        return []
    text = Text(data)
    chosen = {name: _registry().get(name) for name in names or _registry().names()}
    found: dict[str, Candidate] = {}
    for function, qualname in _functions(tree, ""):
        found |= _of_function(path, text, function, qualname, chosen)
    return sorted(found.values(), key=lambda c: (c.edits[0].start, c.operator, c.key))


def known_operator(name: str) -> Operator:
    """The operator of that name.

    Raises:
        ConfigError: there is none; says which is near.
    """
    return _registry().get(name)


def _registry() -> Registry[Operator]:
    for module in _BUILTIN:
        importlib.import_module(module)
    return operators


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[FunctionNode, str]]:
    """Outermost functions and methods; what is inside a function belongs to it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            if child.name not in _TRIVIAL:
                yield child, prefix + child.name
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.If) and _is_type_checking(child):
            continue
        elif isinstance(child, ast.stmt):
            yield from _functions(child, prefix)


def _is_type_checking(node: ast.If) -> bool:
    name = node.test
    return (isinstance(name, ast.Name) and name.id == "TYPE_CHECKING") or (
        isinstance(name, ast.Attribute) and name.attr == "TYPE_CHECKING"
    )


def _nodes(function: FunctionNode) -> Iterator[ast.AST]:
    """Nodes worth changing: no annotations, decorators, docstrings, messages of raise or assert."""
    yield function.args
    stack: list[ast.AST] = list(reversed(function.body))
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
            continue
        if isinstance(node, ast.If) and _is_type_checking(node):
            continue
        yield node
        if isinstance(node, ast.AnnAssign):
            stack += [child for child in (node.value, node.target) if child is not None]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            stack += [*reversed(node.body), node.args]
        elif isinstance(node, ast.arguments | ast.arg):
            continue
        else:
            stack += reversed(list(ast.iter_child_nodes(node)))


def _of_function(
    path: str,
    text: Text,
    function: FunctionNode,
    qualname: str,
    chosen: dict[str, Operator],
) -> dict[str, Candidate]:
    first = min([function.lineno, *(d.lineno for d in function.decorator_list)])
    last = function.end_lineno or function.lineno
    scope = Scope(text, function, qualname, _names(function))
    found: dict[str, Candidate] = {}
    for node in _nodes(function):
        for name, operator in chosen.items():
            for edit in operator(node, scope):
                line = text.data.count(b"\n", 0, edit.start) + 1
                made = Candidate(path, name, qualname, first, last, line, (edit,))
                found.setdefault(made.key, made)
    return found


def distinct(data: bytes, ordered: Iterable[Candidate]) -> Iterator[Candidate]:
    """Those of one file that still parse, and whose function's AST is new: no equal twice.

    Lazy, because the check parses the function: ask only for as many as are tried.
    """
    lines = data.split(b"\n")
    shapes: dict[str, set[str | None]] = {}
    for candidate in ordered:
        seen = shapes.get(candidate.function)
        if seen is None:
            original = b"\n".join(lines[candidate.first - 1 : candidate.last])
            seen = shapes[candidate.function] = {None, _shape(original)}
        mutated = candidate.apply(data).split(b"\n")
        last = candidate.last + len(mutated) - len(lines)
        shape = _shape(b"\n".join(mutated[candidate.first - 1 : last]))
        if shape not in seen:
            seen.add(shape)
            yield candidate


def _names(function: FunctionNode) -> tuple[str, ...]:
    names = {
        argument.arg: None for argument in ast.walk(function.args) if isinstance(argument, ast.arg)
    }
    stored = [
        node for node in ast.walk(function)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    ]  # fmt: skip
    stored.sort(key=lambda node: (node.lineno, node.col_offset))
    return tuple({**names, **{node.id: None for node in stored}})


def _shape(body: bytes) -> str | None:
    """The AST of a function's text, or None when it does not parse: equal shapes are equal bugs."""
    try:
        tree = parse(b"if 1:\n" + body if body[:1] in b" \t" else body)
    except (SyntaxError, ValueError):
        return None
    return ast.dump(tree)
