"""Logs of commands without a channel, and ids as the parsers of rows have cut them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swe_env.errors import GradingError
from swe_env.grading.ids import outcomes_of
from swe_env.grading.log_parsers import PARSERS
from swe_env.grading.runs import runners
from swe_env.types import Outcome

PYTEST = """\
============================= test session starts ==============================
tests/test_a.py ..F.s                                                    [100%]
ERROR: something printed this
PASSED tests/test_a.py::test_one
PASSED tests/test_a.py::test_two[a b]
PASSED tests/test_a.py::test_path[/home/x/y.py]
SKIPPED [2] tests/test_a.py:9: not here
XFAIL tests/test_a.py::test_known - it is known
FAILED tests/test_a.py::test_no - assert 1 == 2
ERROR tests/test_b.py - ModuleNotFoundError
============== 1 failed, 3 passed, 2 skipped, 1 xfailed in 0.05s ===============
"""


def test_pytest_summaries():
    assert PARSERS["parse_log_pytest"](PYTEST) == {
        "something": "ERROR:",
        "tests/test_a.py::test_one": Outcome.PASSED,
        "tests/test_a.py::test_two[a": Outcome.PASSED,
        "tests/test_a.py::test_path[/home/x/y.py]": Outcome.PASSED,
        "tests/test_a.py::test_known": Outcome.XFAIL,
        "tests/test_a.py::test_no": Outcome.FAILED,
        "tests/test_b.py": Outcome.ERROR,
    }
    short = PARSERS["parse_log_pylint"](PYTEST)
    assert short["tests/test_a.py::test_path[/y.py]"] == Outcome.PASSED
    whole = PARSERS["parse_log_sphinx"](PYTEST + "\x1b[32mPASSED\x1b[0m t.py::test_x[a b]\n")
    assert whole["t.py::test_x[a b]"] == Outcome.PASSED
    assert whole["tests/test_a.py::test_two[a b]"] == Outcome.PASSED
    assert whole["tests/test_a.py::test_no"] == Outcome.FAILED
    assert PARSERS["parse_log_astropy"]("t.py::test_x[a b] SKIPPED\n") == {
        "t.py::test_x[a b]": Outcome.SKIPPED
    }
    assert PARSERS["parse_log_matplotlib"]("PASSED t.py::x[MouseButton.LEFT]") == {
        "t.py::x[1]": Outcome.PASSED
    }
    assert PARSERS["parse_log_seaborn"]("t.py::a PASSED [ 1%]\nFAILED t.py::b - no\n") == {
        "t.py::a": Outcome.PASSED,
        "t.py::b": Outcome.FAILED,
    }


def test_djangos_log():
    log = """\
test_a (pkg.tests.A) ... ok
test_b (pkg.tests.A)
What it is about. ... ok
test_c (pkg.tests.A) ... skipped 'no database'
test_d (pkg.tests.A) ... FAIL
test_e (pkg.tests.A) ... ERROR
test_f (pkg.tests.A) ... something is printed
ok
FAIL: test_g (pkg.tests.A)
"""
    assert PARSERS["parse_log_django"](log) == {
        "test_a (pkg.tests.A)": Outcome.PASSED,
        "What it is about.": Outcome.PASSED,
        "test_c (pkg.tests.A)": Outcome.SKIPPED,
        "test_d (pkg.tests.A)": Outcome.FAILED,
        "test_e (pkg.tests.A)": Outcome.ERROR,
        "test_f (pkg.tests.A)": Outcome.PASSED,
        "test_g": Outcome.FAILED,
    }


def test_sympys_log():
    log = "sympy/x/test_y.py[3]\ntest_a ok\ntest_b F\ntest_c E\ntest_d f\n__ sympy/x.py:test_b __\n"
    assert PARSERS["parse_log_sympy"](log) == {
        "sympy/x.py:test_b": Outcome.FAILED,
        "test_a": Outcome.PASSED,
        "test_b": Outcome.FAILED,
        "test_c": Outcome.ERROR,
    }


@given(st.text(alphabet="PASEDFILKRXokE .\n[]/:-_test", max_size=400))
def test_no_log_breaks_a_parser(log):
    for parse in PARSERS.values():
        parse(log)


def test_a_command_without_a_channel_is_read_from_its_log(make_project):
    project = make_project(
        {
            "check.sh": "echo PASSED t.py::a; echo FAILED t.py::b - no; exit 1\n",
            "liar.sh": "echo PASSED t.py::a; exit 1\n",
        }
    )
    run = project.run(command="sh check.sh", runner="parse_log_pytest")
    assert run.ended
    assert run.outcomes == {"t.py::a": Outcome.PASSED, "t.py::b": Outcome.FAILED}
    run = project.run(command="sh liar.sh", runner="parse_log_pytest")
    assert run.error == "exit code 1 though no failure was printed"
    with pytest.raises(GradingError, match="could not be run"):
        project.run(command="no-such-program", runner="parse_log_pytest")


def test_every_parser_is_a_runner():
    assert set(PARSERS) <= set(runners.names())
    assert runners.get("parse_log_xarray").files(["t.py::a", "t.py::b"]) == ["t.py"]


def test_ids_cut_by_a_parser_find_their_test():
    said = {
        "t.py::test_x[a b]": Outcome.PASSED,
        "t.py::test_y[c d]": Outcome.PASSED,
        "t.py::test_y[c e]": Outcome.FAILED,
        "t.py::test_p[/home/u/z.py]": Outcome.PASSED,
        "t.py::TestA::test_m": Outcome.PASSED,
    }
    wanted = ["t.py::test_x[a", "t.py::test_y[c", "t.py::test_p[/z.py]", "TestA.test_m", "t.py::no"]
    assert outcomes_of(wanted, said) == {
        "t.py::test_x[a": Outcome.PASSED,
        "t.py::test_y[c": Outcome.FAILED,
        "t.py::test_p[/z.py]": Outcome.PASSED,
        "TestA.test_m": Outcome.PASSED,
        "t.py::no": Outcome.MISSING,
    }


def test_a_whole_id_is_never_taken_for_another():
    assert outcomes_of(["t.py::test_x"], {"t.py::test_x[a]": Outcome.PASSED}) == {
        "t.py::test_x": Outcome.MISSING
    }
