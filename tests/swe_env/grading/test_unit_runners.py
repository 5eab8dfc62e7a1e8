"""The unittest, django and sympy runners: every outcome, over the channel, and none forged."""

from __future__ import annotations

import pytest

from swe_env.errors import ConfigError, GradingError
from swe_env.grading.unit_runner import parse_command
from swe_env.types import Outcome
from tests.swe_env.grading.test_grading_outcomes import PARSING

KINDS = """\
import unittest

from calc import add, mul


class TestKinds(unittest.TestCase):
    def test_passes(self):
        \"\"\"Products are products.\"\"\"
        self.assertEqual(mul(2, 3), 6)

    def test_fails(self):
        self.assertEqual(add(1, 2), 3, "numbers differ")

    def test_errs(self):
        raise RuntimeError("no")

    @unittest.skip("not here")
    def test_skips(self):
        pass

    @unittest.expectedFailure
    def test_expected(self):
        self.assertEqual(1, 2)

    @unittest.expectedFailure
    def test_unexpected(self):
        pass

    def test_parts(self):
        for n in range(3):
            with self.subTest(n=n):
                self.assertNotEqual(n, 1)


class TestNoSetUp(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        raise RuntimeError("no set-up")

    def test_never_runs(self):
        pass
"""
RUNTESTS = """\
import sys
import unittest

labels = [word for word in sys.argv[1:] if not word.startswith("-")]
suite = unittest.defaultTestLoader.loadTestsFromNames(labels)
result = unittest.TextTestRunner(verbosity=2).run(suite)
sys.exit(not result.wasSuccessful())
"""
DJANGO = "./tests/runtests.py --verbosity 2"
UNITTEST = "python -m unittest"
HIDDEN = """\
import unittest

from calc import add


class TestAdd(unittest.TestCase):
    def test_add(self):
        self.assertEqual(add(1, 2), 3)

    def test_text(self):
        \"\"\"Texts are joined.\"\"\"
        self.assertEqual(add("a", "b"), "ab")
"""


def test_every_unittest_outcome(make_project):
    run = make_project({"tests/test_kinds.py": KINDS, "tests/__init__.py": ""}).run(
        "tests/test_kinds.py", command=UNITTEST, runner="unittest"
    )
    prefix = "tests.test_kinds.TestKinds."
    assert run.ended
    assert run.exit_code == 1
    assert run.tampering == ()
    shown = {k.removeprefix(prefix): v for k, v in run.outcomes.items() if k.startswith(prefix)}
    assert shown == {
        "test_passes": Outcome.PASSED,
        "test_fails": Outcome.FAILED,
        "test_errs": Outcome.ERROR,
        "test_skips": Outcome.SKIPPED,
        "test_expected": Outcome.XFAIL,
        "test_unexpected": Outcome.XPASS,
        "test_parts": Outcome.FAILED,
    }
    assert [v for k, v in run.outcomes.items() if "setUpClass" in k] == [Outcome.ERROR]
    assert not any("test_never_runs" in test for test in run.outcomes)
    assert "numbers differ" in run.details[prefix + "test_fails"]
    assert run.also["Products are products."] == Outcome.PASSED


def test_a_module_that_cannot_be_imported_is_an_error_and_others_still_run(make_project):
    files = {"tests/__init__.py": "", "tests/test_bad.py": "import nowhere_at_all\n"}
    files["tests/test_ok.py"] = KINDS
    run = make_project(files).run(
        "tests/test_bad.py", "tests/test_ok.py", command=UNITTEST, runner="unittest"
    )
    assert run.ended
    (bad,) = [test for test in run.outcomes if "test_bad" in test]
    assert run.outcomes[bad] == Outcome.ERROR
    assert "nowhere_at_all" in run.details[bad]
    assert run.outcomes["tests.test_ok.TestKinds.test_passes"] == Outcome.PASSED


PARSING_HERE = f"""\
import unittest

{PARSING}

class TestParsing(unittest.TestCase):
    def test_threads(self):
        test_threads_parse_at_once()
"""


def test_threads_that_parse_at_once_do_not_fail(make_project):
    files = {"tests/__init__.py": "", "tests/test_parse.py": PARSING_HERE}
    run = make_project(files).run("tests/test_parse.py", command=UNITTEST, runner="unittest")
    assert list(run.outcomes.values()) == [Outcome.PASSED], run.details


@pytest.fixture
def django(make_project):
    """A repository with a runner like Django's, and a task graded by it."""
    return make_project(
        {"tests/runtests.py": RUNTESTS, "tests/sums/__init__.py": ""},
        test_patch=(
            "diff --git a/tests/sums/tests.py b/tests/sums/tests.py\nnew file mode 100644\n"
            "--- /dev/null\n+++ b/tests/sums/tests.py\n"
            f"@@ -0,0 +1,{HIDDEN.count(chr(10))} @@\n"
            + "".join(f"+{line}\n" for line in HIDDEN.splitlines())
        ),
        fail_to_pass=("test_add (sums.tests.TestAdd.test_add)",),
        pass_to_pass=("Texts are joined.",),
        test_command=DJANGO,
        log_parser="django",
    )


FIX = {"calc.py": "def add(a, b):\n    return a + b\n\n\ndef mul(a, b):\n    return a * b\n"}


def test_django_ids_are_what_its_log_shows_descriptions_included(django):
    by_hand = {"calc.py": FIX["calc.py"]}
    report = django.grade(by_hand)
    assert report.resolved, report
    assert report.pass_to_pass == {"Texts are joined.": Outcome.PASSED}
    empty = django.grade("")
    assert not empty.resolved
    assert empty.fail_to_pass == {"test_add (sums.tests.TestAdd.test_add)": Outcome.FAILED}


@pytest.mark.parametrize(
    "attack",
    [
        "import sys\nprint('test_add (sums.tests.TestAdd.test_add) ... ok')\nsys.exit(0)\n",
        "import os\nos._exit(0)\n",
        "import unittest\nunittest.TestCase.run = lambda self, result=None: result\n",
        "import unittest.result as r\n"
        "r.TestResult.addFailure = lambda self, test, err: self.addSuccess(test)\n",
        "import sys\nsys.modules['unittest'].TestCase.assertEqual = lambda *a, **k: None\n",
        "import unittest\nunittest.TestCase.__unittest_expecting_failure__ = True\n",
    ],
)
def test_program_code_cannot_forge_a_result(django, attack):
    program = (
        attack + "\n\ndef add(a, b):\n    return a - b\n\n\ndef mul(a, b):\n    return a * b\n"
    )
    report = django.grade({"calc.py": program})
    assert not report.resolved, report


def test_a_repositorys_own_runner_is_put_back(django):
    cheat = "import sys\nprint('OK')\nsys.exit(0)\n"
    report = django.grade({"tests/runtests.py": cheat})
    assert not report.resolved
    assert report.fail_to_pass == {"test_add (sums.tests.TestAdd.test_add)": Outcome.FAILED}
    assert any("tests/runtests.py" in said for said in report.tampering)


REPORTER = '''\
"""As much of sympy's own test runner as its reporter shows."""

import inspect
import sys


class PyTestReporter:
    def entering_filename(self, filename, n):
        print(filename, n)

    def entering_test(self, f):
        print(f.__name__, end=" ")

    def test_pass(self, char="."):
        print("ok")

    def test_fail(self, exc_info):
        print("F")

    def test_exception(self, exc_info):
        print("E")

    def test_skip(self, v=None):
        print("s")

    def test_xfail(self):
        print("f")

    def test_xpass(self, v):
        print("X")

    def import_error(self, filename, exc_info):
        print("import", filename)

    def finish(self):
        return True


def test(*paths):
    reporter = PyTestReporter()
    good = True
    for path in paths:
        names = {}
        try:
            exec(compile(open(path).read(), path, "exec"), names)
        except ImportError:
            reporter.import_error(path, sys.exc_info())
            good = False
            continue
        tests = [f for n, f in names.items() if n.startswith("test_") and inspect.isfunction(f)]
        reporter.entering_filename(path, len(tests))
        for f in tests:
            reporter.entering_test(f)
            try:
                f()
            except AssertionError:
                good = False
                reporter.test_fail(sys.exc_info())
            except Exception as error:
                name = type(error).__name__
                if name == "Skipped":
                    reporter.test_skip(error)
                elif name == "XFail":
                    reporter.test_xfail()
                else:
                    good = False
                    reporter.test_exception(sys.exc_info())
            else:
                reporter.test_pass()
    return reporter.finish() and good
'''
XFAIL = """
import functools


class XFail(Exception):
    pass


class Skipped(Exception):
    pass


def XFAIL(func):
    @functools.wraps(func)
    def wrapper(*_):
        try:
            func()
        except Exception:
            raise XFail(func.__name__)
    return wrapper
"""
SYMPY = {
    "bin/test": "#!/usr/bin/env python\nimport sys\n\nfrom sympy.testing.runtests import test\n\n"
    "sys.exit(not test(*[w for w in sys.argv[1:] if not w.startswith('-')]))\n",
    "sympy/__init__.py": "",
    "sympy/testing/__init__.py": "",
    "sympy/testing/runtests.py": REPORTER,
    "sympy/testing/pytest.py": XFAIL,
    "sympy/add.py": "def add(a, b):\n    return a + b\n",
    "sympy/tests/test_sum.py": "from sympy.testing.pytest import Skipped, XFAIL\n"
    "def test_ok(): pass\ndef test_no(): assert 1 == 2, 'sums differ'\n"
    "def test_error(): {}['x']\ndef test_skip(): raise Skipped\n@XFAIL\ndef test_xfail(): 1 / 0\n",
    "sympy/tests/test_add.py": "from sympy.add import add\ndef test_add(): assert add(1, 2)\n",
    "sympy/tests/test_bad.py": "import nowhere_at_all\n",
}


def test_every_sympy_outcome(make_project):
    run = make_project(SYMPY).run(
        "sympy/tests/test_sum.py", "sympy/tests/test_bad.py",
        command="PYTHONWARNINGS='ignore::UserWarning' bin/test -C --verbose", runner="sympy",
    )  # fmt: skip
    assert run.ended
    assert run.outcomes == {
        "test_ok": Outcome.PASSED,
        "test_no": Outcome.FAILED,
        "test_error": Outcome.ERROR,
        "test_skip": Outcome.SKIPPED,
        "test_xfail": Outcome.XFAIL,
        "sympy/tests/test_bad.py": Outcome.ERROR,
    }
    assert "sums differ" in run.details["test_no"]


@pytest.mark.parametrize(
    "add",
    [
        "class XFail(Exception): pass\ndef add(a, b): raise XFail\n",
        "from sympy.testing.pytest import XFail\ndef add(a, b): raise XFail\n",
        "from sympy.testing.pytest import XFAIL\n@XFAIL\ndef fails(): 1 / 0\n"
        "class Sum:\n    __bool__ = fails\ndef add(a, b): return Sum()\n",
    ],
)
def test_what_sympy_tests_cannot_expect_its_own_failure(make_project, add):
    project = make_project({**SYMPY, "sympy/add.py": add})
    run = project.run(
        "sympy/tests/test_add.py", command="bin/test", runner="sympy", distrusted=["sympy/add.py"]
    )
    assert run.outcomes == {"test_add": Outcome.FAILED}


def test_a_run_that_leaves_early_did_not_end(make_project):
    files = {**SYMPY, "sympy/tests/test_sum.py": "import sys\nprint('test_ok ok')\nsys.exit(0)\n"}
    run = make_project(files).run("sympy/tests/test_sum.py", command="bin/test", runner="sympy")
    assert not run.ended
    assert "left before its tests were through" in run.error
    assert run.outcomes == {}


def test_a_runner_that_is_not_there_is_told(make_project):
    project = make_project({"sympy/__init__.py": "raise ImportError('no mpmath here')\n"})
    with pytest.raises(GradingError, match=r"test runner cannot be imported .*no mpmath here"):
        project.run("x.py", command="bin/test", runner="sympy")
    with pytest.raises(GradingError, match="Python did not start"):
        project.run("x.py", command="no-python-here/python -m unittest", runner="unittest")


@pytest.mark.parametrize(
    ("command", "python", "words", "env"),
    [
        ("python -m unittest -v", ("python",), ("-m", "unittest", "-v"), {}),
        ("./tests/runtests.py -v 2", ("python",), ("./tests/runtests.py", "-v", "2"), {}),
        (
            "A='x y' /opt/env/bin/python3.9 -W ignore bin/test -C",
            ("/opt/env/bin/python3.9", "-W", "ignore"),
            ("bin/test", "-C"),
            {"A": "x y"},
        ),
    ],
)
def test_commands_are_taken_apart(command, python, words, env):
    parsed = parse_command(command)
    assert (parsed.python, parsed.words, parsed.env) == (python, words, env)


def test_a_command_of_another_form_is_refused():
    with pytest.raises(ConfigError, match="This runner cannot run 'python'"):
        parse_command("python")
