"""Honest patches get the verdict they deserve, and what went wrong is said."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from swe_env.errors import ConfigError, GradingError
from swe_env.grading import grade
from swe_env.sandbox import get
from swe_env.types import Outcome

FIXED = {"calc.py": "def add(a, b):\n    return a + b\n\n\ndef mul(a, b):\n    return a * b\n"}


def test_the_gold_patch_resolves(project):
    report = project.grade(project.task.patch)
    assert report.resolved
    assert report.fraction == 1.0
    assert set(report.fail_to_pass.values()) == set(report.pass_to_pass.values()) == {"passed"}
    assert report.tampering == ()
    assert report.error == ""


@pytest.mark.skipif(bool(get("local").available()), reason="no namespaces here")
def test_the_same_verdicts_in_an_isolating_sandbox(project):
    binds = {str(path): path for path in {Path(sys.base_prefix), Path(sys.prefix)}}
    inside = replace(project, sandbox="local", spec=replace(project.spec, binds=binds))
    assert inside.grade(project.task.patch).resolved
    assert inside.grade("").fail_to_pass == dict.fromkeys(project.task.FAIL_TO_PASS, "failed")
    left = inside.grade({"calc.py": "import os\nos._exit(0)\n"})
    assert "ended early with exit code 0" in left.error


def test_an_empty_patch_does_not(project):
    report = project.grade("")
    assert not report.resolved
    assert report.patch_applied
    assert report.fraction == 0.0
    assert set(report.fail_to_pass.values()) == {Outcome.FAILED}
    assert set(report.pass_to_pass.values()) == {Outcome.PASSED}


def test_a_fix_of_one_of_two_counts_half(project):
    half = "def add(a, b):\n    return 3\n\n\ndef mul(a, b):\n    return a * b\n"
    report = project.grade({"calc.py": half})
    assert not report.resolved
    assert report.fraction == 0.5


def test_breaking_another_test_costs_everything(project):
    broken = "def add(a, b):\n    return a + b\n\n\ndef mul(a, b):\n    return 6\n"
    report = project.grade({"calc.py": broken})
    assert not report.resolved
    assert report.fraction == 0.0
    assert report.pass_to_pass["tests/test_calc.py::test_mul_by_zero"] == Outcome.FAILED


def test_a_test_that_does_not_exist_is_missing_and_not_passed(make_project):
    ids = ("tests/test_hidden.py::test_add", "tests/test_hidden.py::test_nowhere")
    report = make_project(fail_to_pass=ids).grade(FIXED)
    assert not report.resolved
    assert report.fail_to_pass["tests/test_hidden.py::test_nowhere"] == Outcome.MISSING


def test_a_patch_that_does_not_apply_is_said_so(project):
    report = project.grade("--- a/calc.py\n+++ b/calc.py\n@@ -1 +1 @@\n-nothing\n+else\n")
    assert not report.resolved
    assert not report.patch_applied
    assert "does not apply" in report.error
    assert set(report.fail_to_pass.values()) == {Outcome.MISSING}


def test_a_hanging_test_times_out(project):
    report = project.grade({"calc.py": "import time\ntime.sleep(600)\n"}, timeout=3)
    assert not report.resolved
    assert report.error == "timed out after 3 s"


def test_new_tests_and_fixtures_of_the_patch_do_no_harm(project):
    extra = {"tests/test_more.py": "def test_more():\n    assert True\n"}
    assert project.grade(FIXED | extra).resolved


def test_the_patch_may_bring_its_own_version_of_the_hidden_test_file(project):
    report = project.grade(FIXED | {"tests/test_hidden.py": "def test_mine():\n    assert True\n"})
    assert report.resolved


def test_a_file_whose_name_is_not_utf8_does_no_harm(project):
    with get("process")(project.spec) as box:
        box.files.write("calc.py", FIXED["calc.py"].encode())
        box.exec("echo x > $'caf\\xe9.txt'")
        patch = box.diff()
        box.exec("echo x > $'caf\\xe9.so'")
        named = box.diff()
    report = project.grade(patch)
    assert (report.resolved, report.error, report.tampering) == (True, "", ())
    [note] = project.grade(named).tampering
    assert r"caf\udce9.so" in note


def test_more_names_than_a_commands_output_holds_are_no_reason_to_refuse(project):
    patch = project.patch(FIXED)
    empty = "diff --git a/{0} b/{0}\nnew file mode 100644\nindex 0000000..e69de29\n"
    patch += "".join(empty.format(f"{'d' * 200}/{number}") for number in range(6000))
    assert project.grade(patch).resolved


CHECKS = {
    "checks/check_calc.py": "import calc\n\n\ndef check_mul():\n    assert calc.mul(2, 3) == 6\n",
    "pytest.ini": "[pytest]\npython_files = check_*.py\npython_functions = check_* test_*\n",
}
CHECKED = {
    "fail_to_pass": ("tests/test_hidden.py::test_add",),
    "pass_to_pass": ("checks/check_calc.py::check_mul",),
}


@pytest.mark.parametrize("instead", ["def check_mul():\n    assert True\n", None])
def test_tests_in_a_file_of_another_name_are_the_tasks_own(make_project, instead):
    project = make_project(CHECKS, **CHECKED)
    broken = {"calc.py": FIXED["calc.py"].replace("a * b", "7")}
    report = project.grade(broken | {"checks/check_calc.py": instead})
    assert report.pass_to_pass == {"checks/check_calc.py::check_mul": "failed"}
    assert "checks/check_calc.py; the task's own version was used" in report.tampering[0]


def test_a_program_file_with_doctests_is_the_patchs_and_its_loss_a_verdict(make_project):
    calc = 'def add(a, b):\n    """\n    >>> add(1, 2)\n    3\n    """\n    return a - b\n'
    only = {"fail_to_pass": ("calc.py::calc.add",), "pass_to_pass": (), "test_patch": ""}
    command = "python -m pytest --doctest-modules"
    project = make_project({"calc.py": calc}, test_command=command, patch="", **only)
    assert project.grade({"calc.py": calc.replace("a - b", "a + b")}).resolved
    report = project.grade({"calc.py": None})
    assert (report.resolved, report.error) == (
        False,
        "the patch deletes every file that the tests are in",
    )


def test_a_shared_settings_file_may_change_outside_pytests_section(project):
    changed = project.files["pyproject.toml"].replace('"calc"', '"calc"\nversion = "2"')
    report = project.grade(FIXED | {"pyproject.toml": changed})
    assert report.resolved
    assert report.tampering == ()


def test_a_gold_patch_that_changes_conftest_is_graded_with_its_conftest(make_project):
    files = {"conftest.py": "import pytest\n"}
    gold = {"conftest.py": "import pytest\n\n\n@pytest.fixture\ndef one():\n    return 1\n"}
    hidden = "from calc import add\n\n\ndef test_add(one):\n    assert add(one, 2) == 3\n"
    made = make_project(files, hidden, ("tests/test_hidden.py::test_add",))
    made = replace(made, task=replace(made.task, patch=made.patch(FIXED | gold)))
    assert made.grade(made.task.patch).resolved
    assert made.grade(FIXED).tampering == ()
    assert not made.grade(gold).resolved


def test_missing_pytest_is_an_infrastructure_failure_not_a_verdict(project):
    with pytest.raises(GradingError, match="pytest cannot be imported"):
        _grade_with(project, "/usr/bin/python3 -S -m pytest")


def test_a_missing_interpreter_is_an_infrastructure_failure(project):
    with pytest.raises(GradingError, match="did not start"):
        _grade_with(project, "no-such-python -m pytest")


def test_one_failed_start_is_not_blamed_on_the_patch(project, tmp_path):
    python = tmp_path / "python"
    python.write_text(
        f"#!/bin/sh\n[ -e {tmp_path}/begun ] || {{ touch {tmp_path}/begun; exit 9; }}\n"
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    assert _grade_with(project, f"{python} -m pytest").resolved


def test_a_patch_that_keeps_the_tests_from_starting_is_blamed(project, tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ngrep -q "a + b" calc.py && exit 9\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    report = _grade_with(project, f"{python} -m pytest")
    assert not report.resolved
    assert "the patch breaks the test runner" in report.error


def test_a_broken_test_patch_is_the_tasks_fault(project):
    task = replace(project.task, test_patch="--- a/nowhere\n+++ b/nowhere\n@@ -1 +1 @@\n-a\n+b\n")
    with pytest.raises(GradingError, match="test_patch of calc-1"):
        grade(task, project.task.patch, sandbox="process", spec=project.spec)


def test_another_kind_of_command_is_refused(project):
    with pytest.raises(ConfigError, match="make check"):
        _grade_with(project, "make check")


def _grade_with(project, command):
    task = replace(project.task, test_command=command)
    return grade(task, project.task.patch, sandbox="process", spec=project.spec)
