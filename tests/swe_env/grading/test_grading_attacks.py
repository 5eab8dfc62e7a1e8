"""Patches that go for the grading instead of the bug: unresolved, and named where it shows."""

from __future__ import annotations

import json
import subprocess
import warnings
from dataclasses import replace

import pytest

from swe_env.grading.attacks import ATTACKS, HONEST
from swe_env.grading.attacks.__main__ import is_named, main
from swe_env.grading.attacks.forging import FORGING
from swe_env.grading.attacks.project import FIXED, HIDDEN, make_project, write
from swe_env.sandbox import get

BY_NAME = {attempt.name: attempt for attempt in (*ATTACKS, *HONEST)}
IN_PROCESS = [attempt.name for attempt in FORGING[::3]]
"""A sample, because both sandboxes run the same pytest; `local` gets them all."""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


@pytest.fixture(scope="module")
def isolating():
    """`local`; where it does not work the attacks on grading run in `process`."""
    return "process" if get("local").available() else "local"


def _said(report):
    return tuple(filter(None, (*report.tampering, report.error)))


@pytest.mark.parametrize("name", [attempt.name for attempt in ATTACKS])
def test_an_attack_does_not_resolve_and_is_named(project, isolating, name):
    report = project.grade(BY_NAME[name], isolating)
    assert not report.resolved
    assert is_named(BY_NAME[name], _said(report)), _said(report)


@pytest.mark.parametrize("name", IN_PROCESS)
def test_nor_does_it_without_isolation(project, name):
    report = project.grade(BY_NAME[name], "process")
    assert not report.resolved
    assert is_named(BY_NAME[name], _said(report)), _said(report)


PUT_BACK = ("conftest", "visible test")
"""Honest changes to these are put back, and the report says that they were."""


@pytest.mark.parametrize("name", [attempt.name for attempt in HONEST])
def test_an_honest_solution_resolves_and_nothing_is_said_against_it(project, isolating, name):
    report = project.grade(BY_NAME[name], isolating)
    assert report.resolved
    named = any(what in name for what in PUT_BACK)
    assert bool(report.tampering) == named
    assert all("the task's" in sentence for sentence in report.tampering)


WORKS_ON_PLAIN_PYTEST = (
    "conftest rewrites reports",
    "conftest deselects",
    "pytest.ini --co",
    "plug-in through egg-info",
    "sitecustomize",
    "a pytest of its own",
    "os._exit(0) at import",
    "os._exit(0) at exit",
    "pytest replaced, in disguise",
    "a hook through the garbage collector",
    "hidden tests from sys.modules",
    "hidden tests from a false file system",
    "objects equal to everything",
)


@pytest.mark.parametrize("name", WORKS_ON_PLAIN_PYTEST)
def test_the_attack_fools_an_exit_code(project, tmp_path, name):
    """The control: what is refused above would pass where only the exit code is looked at."""
    env = {k: v.replace("{workdir}", str(tmp_path)) for k, v in project.spec.env.items()}
    env.pop("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    subprocess.run(["cp", "-a", f"{project.base}/.", tmp_path], check=True)
    write(tmp_path, {"tests/test_hidden.py": HIDDEN, **BY_NAME[name].changes})
    command = ["python", "-m", "pytest", "-p", "no:hypothesispytest"]
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, check=False)
    assert ran.returncode in (0, 5), ran.stdout.decode()


NEUTRALISED = ("conftest rewrites reports", "pytest.ini --co", "forged .pyc of the helper")


@pytest.mark.parametrize("name", NEUTRALISED)
def test_a_real_fix_still_counts_when_what_came_with_it_is_put_right(project, name):
    attempt = BY_NAME[name]
    both = replace(attempt, changes={**attempt.changes, "calc.py": FIXED})
    report = project.grade(both, "process")
    assert report.resolved
    assert is_named(attempt, _said(report))


def test_the_table_is_printed_and_written(monkeypatch, tmp_path, capsys):
    module = "swe_env.grading.attacks.__main__"
    monkeypatch.setattr(f"{module}.ATTACKS", (BY_NAME["sitecustomize"], BY_NAME["the gold patch"]))
    monkeypatch.setattr(f"{module}.HONEST", (BY_NAME["the gold patch"],))
    out = tmp_path / "attacks.json"
    assert (
        main(["--sandbox", "process", "--out", str(out)]) == 1
    )  # gold is not an attack that fails
    printed = capsys.readouterr().out
    assert "3 attempts, 1 not as they must be." in printed
    rows = json.loads(out.read_text())["results"]
    assert [row["good"] for row in rows] == [True, False, True]
    assert "sitecustomize.py" in rows[0]["named"][0]
