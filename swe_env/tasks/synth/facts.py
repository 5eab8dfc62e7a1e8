"""What a failing test shows a user: the call, what came out, what was expected, the traceback.

Imported by `probe.py` in the package's own Python; stands alone.
"""

from __future__ import annotations

import ast
import os
import re
from typing import Any, TypeAlias

Facts: TypeAlias = "dict[str, Any]"

LIMIT = 200
_EQUAL = {"assertEqual", "assertEquals", "assertListEqual", "assertDictEqual", "assertTupleEqual",
          "assertSequenceEqual", "assertSetEqual", "assertMultiLineEqual", "assertIs",
          "assertAlmostEqual", "assertCountEqual"}  # fmt: skip
_OPERATORS = {ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">",
              ast.GtE: ">=", ast.Is: "is", ast.IsNot: "is not", ast.In: "in",
              ast.NotIn: "not in"}  # fmt: skip


def of(item: Any, excinfo: Any, root: str) -> Facts:
    """The facts of one failure, as a plain dict."""
    test_file = str(item.path)
    entries = [entry for entry in excinfo.traceback if str(entry.path).startswith(root + os.sep)]
    own = [entry for entry in entries if str(entry.path) == test_file]
    inner = [frame(entry, root) for entry in entries if str(entry.path) != test_file]
    error = excinfo.value
    found = {
        "exception": type(error).__name__,
        "message": clean(str(error).split("\n")[0], root),
        "frames": inner[-3:],
    }
    if own:
        entry = own[-1]
        found.update(Reader(entry, root).read(error, bool(inner)))
    return {key: value for key, value in found.items() if value not in (None, "", [])}


def frame(entry: Any, root: str) -> list[Any]:
    """One line of a traceback."""
    line = entry.lineno + 1
    text = str(entry.frame.code.fullsource[entry.lineno]).strip()
    return [os.path.relpath(str(entry.path), root), line, entry.frame.code.name, text]


def clean(text: str, root: str) -> str:
    """Without addresses and paths of this machine, and not longer than `LIMIT`."""
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", text).replace(root + os.sep, "")
    return text if len(text) <= LIMIT else text[: LIMIT - 1] + "…"


class Reader:
    """Reads the statement of a test at which it failed, with the values of its frame."""

    def __init__(self, entry: Any, root: str) -> None:
        self.root = root
        self.line = entry.lineno + 1
        self.locals = dict(entry.frame.f_locals)
        self.names = dict(entry.frame.f_globals)
        self.names.update(self.locals)
        source = "\n".join(str(line) for line in entry.frame.code.fullsource.lines)
        self.tree = ast.parse(source)

    def read(self, error: BaseException, raised: bool) -> Facts:
        """call, got, expected, relation: those that can be told."""
        statement = self.statement()
        if statement is None:
            return {}
        if type(error).__name__ == "Failed" and "DID NOT RAISE" in str(error):
            return {"kind": "no_raise", "call": self.render(self.inside(statement))}
        if raised or not isinstance(error, AssertionError):
            subject = self.subject(statement)
            if subject is None or isinstance(subject, ast.Lambda) or not has_call(subject):
                return {}
            return {"kind": "raised", "call": self.told(subject)}
        if isinstance(statement, ast.With) and "not raised" in str(error):
            return {"kind": "no_raise", "call": self.render(self.inside(statement))}
        return self.mismatch(statement)

    def statement(self) -> ast.stmt | None:
        """The innermost statement that covers the failing line."""
        best: ast.stmt | None = None
        for node in ast.walk(self.tree):
            if not isinstance(node, ast.stmt):
                continue
            covers = node.lineno <= self.line <= (node.end_lineno or node.lineno)
            if covers and (best is None or node.lineno >= best.lineno):
                best = node
        if isinstance(best, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            return None
        return best

    def inside(self, statement: ast.stmt) -> ast.expr | None:
        """The expression in the body of a `with raises` block, or the call given to raises."""
        if isinstance(statement, ast.With):
            return self.subject(statement.body[0])
        call = getattr(statement, "value", None)
        if isinstance(call, ast.Call) and len(call.args) > 1:
            return ast.Call(func=call.args[1], args=call.args[2:], keywords=call.keywords)
        return self.subject(statement)

    def subject(self, statement: ast.stmt) -> ast.expr | None:
        """The expression that a failing statement is about."""
        if isinstance(statement, ast.Assert):
            test = statement.test
            if isinstance(test, ast.UnaryOp):
                test = test.operand
            if isinstance(test, ast.Compare):
                sides = [test.left, *test.comparators]
                calls = [side for side in sides if has_call(side)]
                return calls[0] if calls else test.left
            return test
        if isinstance(statement, (ast.For, ast.While, ast.If)):
            return statement.iter if isinstance(statement, ast.For) else statement.test
        if isinstance(statement, ast.With):
            return statement.items[0].context_expr
        value = getattr(statement, "value", None)
        if isinstance(value, ast.Call):
            name = value.func.attr if isinstance(value.func, ast.Attribute) else ""
            if name.startswith("assert") and value.args:
                calls = [argument for argument in value.args if has_call(argument)]
                return calls[0] if calls else value.args[0]
        return value

    def mismatch(self, statement: ast.stmt) -> Facts:
        """The two sides of a failed comparison."""
        if isinstance(statement, ast.Assert):
            test = statement.test
            if isinstance(test, ast.Compare) and len(test.ops) == 1:
                relation = _OPERATORS[type(test.ops[0])]
                return self.sides(test.left, test.comparators[0], relation, test)
            return self.truth(test)
        call = getattr(statement, "value", None)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
            name = call.func.attr
            if name in _EQUAL and len(call.args) >= 2:
                return self.sides(call.args[0], call.args[1], "==", None)
            if name == "assertIn" and len(call.args) >= 2:
                return self.sides(call.args[0], call.args[1], "in", None)
            if name in ("assertTrue", "assertFalse", "assertIsNone", "assertIsNotNone"):
                return self.truth(call.args[0])
        return {}

    def sides(
        self, left: ast.expr, right: ast.expr, relation: str, whole: ast.expr | None
    ) -> Facts:
        """Values of both sides, evaluated again; nothing when the failure does not repeat."""
        got, expected = self.value(left), self.value(right)
        if relation == "==" and got == expected:
            return {}
        if whole is not None and relation != "==" and self.value(whole):
            return {}
        if relation in ("==", "is") and not self.calls(left) and self.calls(right):
            left, right, got, expected = right, left, expected, got
        shown = repr(got), repr(expected)
        start = max(0, shared(*shown) - LIMIT // 2)
        if start and max(map(len, shown)) > LIMIT:
            # Two long values are told apart only where they begin to differ.
            shown = "…" + shown[0][start:], "…" + shown[1][start:]
        return {
            "kind": "mismatch",
            "call": self.told(left),
            "relation": relation,
            "got": clean(shown[0], self.root),
            "expected": clean(shown[1], self.root),
            "wanted": self.render(right),
        }

    def told(self, node: ast.expr) -> str:
        """The expression where its value came from; never just the value itself."""
        text = self.render(self.origin(node))
        try:
            ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text
        return clean(ast.unparse(node), self.root)

    def truth(self, test: ast.expr) -> Facts:
        """A condition that should hold and does not."""
        expected = "true"
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            test, expected = test.operand, "false"
        if isinstance(test, (ast.BoolOp, ast.Compare)):
            return {"kind": "condition", "call": self.render(test)}
        found = {"kind": "truth", "call": self.told(test), "expected": expected}
        found["got"] = self.show(self.value(test))
        return found

    def calls(self, node: ast.expr) -> bool:
        """Whether the expression, or what made it, calls anything."""
        return has_call(self.origin(node))

    def origin(self, node: ast.expr) -> ast.expr:
        """For a name that the test assigned just before and left alone: what was assigned."""
        if not isinstance(node, ast.Name) or node.id not in self.locals:
            return node
        statement = self.statement()
        if statement is None:
            return node
        last: ast.Assign | None = None
        for other in ast.walk(self.tree):
            if not isinstance(other, ast.Assign) or assigned(other, node.id) is None:
                continue
            end = other.end_lineno or other.lineno
            near = statement.lineno - 15 < other.lineno <= end < statement.lineno
            if near and (last is None or other.lineno > last.lineno):
                last = other
        if last is None:
            return node
        between = range((last.end_lineno or last.lineno) + 1, statement.lineno)
        for other in ast.walk(self.tree):
            if isinstance(other, ast.Name) and other.id == node.id and other.lineno in between:
                return node
        value = assigned(last, node.id)
        return value if value is not None and has_call(value) else node

    def value(self, node: ast.expr) -> Any:
        """The expression's value in the test's frame."""
        code = compile(ast.Expression(node), "<test>", "eval")
        return eval(code, dict(self.names))

    def show(self, value: object) -> str:
        """A value as a statement quotes it."""
        return clean(repr(value), self.root)

    def render(self, node: ast.expr | None) -> str:
        """The expression with the test's short local values in place of their names."""
        if node is None:
            return ""
        bound = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)
                 and isinstance(n.ctx, ast.Store)}  # fmt: skip
        bound |= {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}
        copied = ast.parse(ast.unparse(node), mode="eval").body
        return clean(ast.unparse(Substitute(self, bound).visit(copied)), self.root)


def assigned(statement: ast.Assign, name: str) -> ast.expr | None:
    """What a statement assigns to a name, as an expression; None when it does not."""
    for target in statement.targets:
        if isinstance(target, ast.Name) and target.id == name:
            return statement.value
        if isinstance(target, ast.Tuple):
            for index, part in enumerate(target.elts):
                if isinstance(part, ast.Name) and part.id == name:
                    return ast.Subscript(statement.value, ast.Constant(index), ast.Load())
    return None


class Substitute(ast.NodeTransformer):
    """Names of plain values → the values; receivers → how the test made them."""

    def __init__(self, reader: Reader, bound: set[str]) -> None:
        self.reader = reader
        self.bound = bound

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        """``x.go()`` → ``Thing(1).go()`` where the test made ``x`` just before."""
        base = node.value
        if isinstance(base, ast.Name) and base.id not in self.bound:
            made = self.reader.origin(base)
            if made is not base:
                text = ast.unparse(made)
                if len(text) <= 60:
                    node.value = self.visit(ast.parse(text, mode="eval").body)
                return node
            if self.reader.locals.get(base.id) is None:
                return node
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """A local's short plain value in place of its name."""
        values = self.reader.locals
        if node.id in self.bound or values.get(node.id) is None:
            return node
        text = repr(values[node.id])
        try:
            ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return node
        return ast.parse(text, mode="eval").body if len(text) <= 80 else node


def shared(first: str, second: str) -> int:
    """How many characters two texts share at their start."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def has_call(node: ast.AST) -> bool:
    """Whether an expression calls anything."""
    return any(isinstance(child, ast.Call) for child in ast.walk(node))
