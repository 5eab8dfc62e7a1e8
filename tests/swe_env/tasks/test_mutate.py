"""Operators: each makes the edit it names, and nothing else in the file changes."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import swe_env.tasks.synth
from swe_env.tasks.mutate import candidates, distinct, operators

EXAMPLES = {
    "comparison": ("    return a == b", "    return a != b"),
    "boundary": ("    return a < b", "    return a <= b"),
    "boolean": ("    return a and b", "    return a or b"),
    "negated_condition": ("    while a: b()", "    while not a: b()"),
    "arithmetic": ("    return a + b", "    return a - b"),
    "off_by_one": ("    return a[b] + 1", "    return a[b] + 2"),
    "dropped_not": ("    return not a", "    return a"),
    "swapped_arguments": ("    g(a,  b)", "    g(b,  a)"),
    "dropped_return_value": ("    return a", "    return None"),
    "changed_return": ("    return sorted(a)", "    return a"),
    "wrong_variable": ("    return a(b)", "    return a(a)"),
    "removed_guard": ("    if a: return 1\n    return b", "    return b"),
    "removed_branch": ("    if a:\n        b()\n    else:\n        a()", "    if a:\n        b()"),
    "removed_statement": ("    a.x = b\n    return a", "    return a"),
    "plain_assignment": ("    a += b", "    a = b"),
    "loop_exit": ("    for x in a:\n        break", "    for x in a:\n        continue"),
    "method_swap": ("    return a.lower()", "    return a.upper()"),
    "function_swap": ("    return min(a, b)", "    return max(a, b)"),
    "dropped_call": ("    x = a.strip()\n    return x", "    x = a\n    return x"),
    "slice_bound": ("    return a[1:b]", "    return a[:b]"),
    "swapped_branches": ("    return a if b else 3", "    return 3 if b else a"),
    "removed_keyword": ("    g(a, key=b)", "    g(a)"),
    "flipped_constant": ("    return True", "    return False"),
    "changed_default": ("    return a", "    return a"),
    "removed_body": ("    c = a\n    # why\n    return c", "    pass"),
    "emptied_branch": (
        "    if a:\n        b()\n        a()\n    else:\n        a()",
        "    if a:\n        pass\n    else:\n        a()",
    ),
    "removed_block": ("    for x in a:\n        b()\n    return b", "    return b"),
    "removed_handler": (
        "    try:\n        b()\n    except KeyError:\n        b = 1\n        a()",
        "    try:\n        b()\n    except KeyError:\n        raise",
    ),
}


def file(body: str, default: str = "5") -> bytes:
    return f"def f(a, b={default}):  # größer\n    'Doc.'  \n{body}\n\n\n# end\r\n".encode()


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_operator_makes_its_edit_and_keeps_the_rest(name):
    before, after = EXAMPLES[name]
    wanted = file(after, "6" if name == "changed_default" else "5")
    made = [c.apply(file(before)) for c in candidates("m.py", file(before), [name])]
    assert wanted in made


def test_every_registered_operator_has_an_example():
    candidates("m.py", b"")
    assert set(operators.names()) == set(EXAMPLES)


def test_blocks_are_left_alone_where_no_whole_lines_can_go():
    blocks = ["removed_body", "emptied_branch", "removed_block", "removed_handler"]
    data = (
        b"def f(a): return a\n"
        b"def g(a):\n    'Doc.'\n    return a\n"
        b"def h(a):\n    if a: return 1\n    elif not a:\n        return 2\n"
        b"def i(a):\n    try: a()\n    except ValueError:\n        raise\n"
    )
    assert [c.operator for c in candidates("m.py", data, blocks)] == ["removed_body"] * 2
    decorated = b"def f(a):\n    @a\n    def g():\n        return 1\n    return g\n"
    (body,) = candidates("m.py", decorated, ["removed_body"])
    assert body.apply(decorated) == b"def f(a):\n    pass\n"


def test_block_edits_always_span_lines():
    """What makes single-line tasks (quickstart's among them) stays as it was without them."""
    blocks = ["removed_body", "emptied_branch", "removed_block", "removed_handler"]
    for path in sorted(Path(swe_env.tasks.synth.__file__).parent.glob("*.py")):
        data = path.read_bytes()
        for candidate in candidates(path.name, data, blocks):
            (edit,) = candidate.edits
            assert b"\n" in edit.text + data[edit.start : edit.end]


def test_real_files_change_only_within_the_edit_and_still_parse():
    paths = sorted(Path(swe_env.tasks.synth.__file__).parent.glob("*.py"))
    tried = 0
    for path in paths:
        data = path.read_bytes()
        found = candidates(path.name, data)
        for candidate in distinct(data, found[::40]):
            (edit,) = candidate.edits
            mutated = candidate.apply(data)
            assert mutated[: edit.start] == data[: edit.start]
            assert mutated[edit.start + len(edit.text) :] == data[edit.end :]
            assert ast.dump(ast.parse(mutated)) != ast.dump(ast.parse(data))
            tried += 1
    assert tried > 60


def test_equal_bugs_come_once():
    data = b"def f(a, b):\n    return (a) < b\n"
    found = [c.apply(data) for c in distinct(data, candidates("m.py", data))]
    assert len({ast.dump(ast.parse(text)) for text in found}) == len(found)
    assert len(found) > 3


def test_docstrings_trivia_and_module_level_stay():
    data = (
        b"import typing\nX = 1 < 2\n"
        b"if typing.TYPE_CHECKING:\n    def g(a):\n        return a < 1\n"
        b"class C:\n    def __repr__(self):\n        return 'a' + 'b'\n"
        b"    def m(self):\n        '''1 < 2'''\n        raise ValueError(1 + 2)\n"
    )
    assert candidates("m.py", data) == []


def test_files_that_cannot_be_edited_safely_give_nothing():
    assert candidates("m.py", b"def f(:\n") == []
    assert candidates("m.py", b"\xef\xbb\xbfdef f(a):\n    return a < 1\n") == []
    assert (
        candidates("m.py", b"# -*- coding: latin-1 -*-\ndef f(a):\n    return '\xe9' < a\n") == []
    )
