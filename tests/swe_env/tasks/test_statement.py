"""Statements tell what a user would see, as far as their detail allows."""

from __future__ import annotations

import pytest

from swe_env.tasks.statement import LIMIT, Place, write

PLACE = Place("pkg/mod.py", "Box.size", 12, "        return self.n - 1")
MISMATCH = {
    "kind": "mismatch",
    "call": "Box(3).size()",
    "relation": "==",
    "got": "2",
    "expected": "3",
    "exception": "AssertionError",
}
RAISED = {
    "kind": "raised",
    "call": "Box(0).size()",
    "exception": "ZeroDivisionError",
    "message": "division by zero",
    "frames": [["pkg/mod.py", 14, "ratio", "return 1 / self.n"]],
}


def test_each_level_adds_to_the_one_before():
    symptom = write([MISMATCH], PLACE, "symptom")
    assert symptom == "`Box(3).size()` gives `2`, but the right result is `3`.\n"
    function = write([MISMATCH], PLACE, "function")
    assert function.startswith(symptom.strip())
    assert "`Box.size` in `pkg/mod.py`" in function
    assert "self.n" not in function
    line = write([MISMATCH], PLACE, "line")
    assert '  File "pkg/mod.py", line 12, in size\n    return self.n - 1\n' in line


def test_exceptions_come_with_their_last_lines():
    told = write([RAISED], PLACE, "symptom")
    assert '  File "pkg/mod.py", line 14, in ratio\n    return 1 / self.n\n' in told
    assert told.endswith("ZeroDivisionError: division by zero\n")


def test_the_plainest_failure_is_told():
    assert write([RAISED, MISMATCH], PLACE, "symptom").startswith("`Box(3).size()` gives")


def test_what_is_too_long_or_says_nothing_is_not_told():
    long = {**MISMATCH, "got": "x" * LIMIT}
    assert write([long], PLACE, "line") == ""
    assert write([{"exception": "AssertionError"}], PLACE, "symptom") == ""
    assert len(write([RAISED], PLACE, "line")) < LIMIT


@pytest.mark.parametrize(
    ("message", "name"),
    [("DID NOT RAISE <class 'pkg.errors.Bad'>", "Bad"), ("ValueError not raised", "ValueError")],
)
def test_an_exception_that_stays_out_is_named(message, name):
    facts = {"kind": "no_raise", "call": "f(1)", "message": message}
    assert write([facts], PLACE, "symptom").startswith(f"`f(1)` should raise `{name}`")
