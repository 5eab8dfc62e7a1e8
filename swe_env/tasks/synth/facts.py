"""What a failing test shows a user: the call, what came out, what was expected, the traceback.

Imported by `probe.py` in the package's own Python; stands alone.
"""

import ast
import os
import re

LIMIT = 200
_EQUAL = {"assertEqual", "assertEquals", "assertListEqual", "assertDictEqual", "assertTupleEqual",
          "assertSequenceEqual", "assertSetEqual", "assertMultiLineEqual", "assertIs",
          "assertAlmostEqual", "assertCountEqual"}  # fmt: skip
_OPERATORS = {ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">",
              ast.GtE: ">=", ast.Is: "is", ast.IsNot: "is not", ast.In: "in",
              ast.NotIn: "not in"}  # fmt: skip


def of(item, excinfo, root):
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


def frame(entry, root):
    """One line of a traceback."""
    line = entry.lineno + 1
    text = str(entry.frame.code.fullsource[entry.lineno]).strip()
    return [os.path.relpath(str(entry.path), root), line, entry.frame.code.name, text]


def clean(text, root):
    """Without addresses and paths of this machine, and not longer than `LIMIT`."""
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", text).replace(root + os.sep, "")
    return text if len(text) <= LIMIT else text[: LIMIT - 1] + "…"


class Reader:
    """Reads the statement of a test at which it failed, with the values of its frame."""

    def __init__(self, entry, root):
        self.root = root
        self.line = entry.lineno + 1
        self.locals = dict(entry.frame.f_locals)
        self.names = dict(entry.frame.f_globals)
        self.names.update(self.locals)
        source = "\n".join(str(line) for line in entry.frame.code.fullsource.lines)
        self.tree = ast.parse(source)

    def read(self, error, raised):
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
            return {"kind": "raised", "call": self.render(subject)}
        if isinstance(statement, ast.With) and "not raised" in str(error):
            return {"kind": "no_raise", "call": self.render(self.inside(statement))}
        return self.mismatch(statement)

    def statement(self):
        """The innermost statement that covers the failing line."""
        best = None
        for node in ast.walk(self.tree):
            if isinstance(node, ast.stmt) and node.lineno <= self.line <= node.end_lineno:
                if best is None or node.lineno >= best.lineno:
                    best = node
        if isinstance(best, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            return None
        return best

    def inside(self, statement):
        """The expression in the body of a `with raises` block, or the call given to raises."""
        if isinstance(statement, ast.With):
            return self.subject(statement.body[0])
        call = getattr(statement, "value", None)
        if isinstance(call, ast.Call) and len(call.args) > 1:
            return ast.Call(func=call.args[1], args=call.args[2:], keywords=call.keywords)
        return self.subject(statement)

    def subject(self, statement):
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
            return getattr(statement, "iter", None) or statement.test
        if isinstance(statement, ast.With):
            return statement.items[0].context_expr
        value = getattr(statement, "value", None)
        if isinstance(value, ast.Call):
            name = value.func.attr if isinstance(value.func, ast.Attribute) else ""
            if name.startswith("assert") and value.args:
                calls = [argument for argument in value.args if has_call(argument)]
                return calls[0] if calls else value.args[0]
        return value

    def mismatch(self, statement):
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

    def sides(self, left, right, relation, whole):
        """Values of both sides, evaluated again; nothing when the failure does not repeat."""
        got, expected = self.value(left), self.value(right)
        if relation == "==" and got == expected:
            return {}
        if whole is not None and relation != "==" and self.value(whole):
            return {}
        if relation in ("==", "is") and not self.calls(left) and self.calls(right):
            left, right, got, expected = right, left, expected, got
        return {
            "kind": "mismatch",
            "call": self.render(self.origin(left)),
            "relation": relation,
            "got": self.show(got),
            "expected": self.show(expected),
            "wanted": self.render(right),
        }

    def truth(self, test):
        """A condition that should hold and does not."""
        expected = "true"
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            test, expected = test.operand, "false"
        if isinstance(test, ast.BoolOp) or isinstance(test, ast.Compare):
            return {"kind": "condition", "call": self.render(test)}
        found = {"kind": "truth", "call": self.render(self.origin(test)), "expected": expected}
        found["got"] = self.show(self.value(test))
        return found

    def calls(self, node):
        return has_call(self.origin(node))

    def origin(self, node):
        """For a name that the test assigned just before: the expression assigned to it."""
        if not isinstance(node, ast.Name) or node.id not in self.locals:
            return node
        best = None
        for other in ast.walk(self.tree):
            if isinstance(other, ast.Assign) and other.lineno < self.line:
                target = other.targets[0]
                same = isinstance(target, ast.Name) and target.id == node.id
                near = self.line - other.lineno < 15
                if same and near and (best is None or other.lineno > best.lineno):
                    best = other
        return best.value if best is not None and has_call(best.value) else node

    def value(self, node):
        code = compile(ast.Expression(node), "<test>", "eval")
        return eval(code, dict(self.names))

    def show(self, value):
        return clean(repr(value), self.root)

    def render(self, node):
        """The expression with the test's short local values in place of their names."""
        if node is None:
            return ""
        bound = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)
                 and isinstance(n.ctx, ast.Store)}  # fmt: skip
        bound |= {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}
        copied = ast.parse(ast.unparse(node), mode="eval").body
        return clean(ast.unparse(Substitute(self.locals, bound).visit(copied)), self.root)


class Substitute(ast.NodeTransformer):
    """Names of plain values → the values."""

    def __init__(self, values, bound):
        self.values = values
        self.bound = bound

    def visit_Name(self, node):
        if node.id in self.bound or node.id not in self.values:
            return node
        text = repr(self.values[node.id])
        try:
            ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return node
        return ast.parse(text, mode="eval").body if len(text) <= 80 else node


def has_call(node):
    """Whether an expression calls anything."""
    return any(isinstance(child, ast.Call) for child in ast.walk(node))
