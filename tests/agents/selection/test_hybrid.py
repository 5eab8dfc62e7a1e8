from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from agents.selection import regression_from_run_tests, select
from swe_env.errors import ConfigError
from swe_env.replay.trajectory import StepObservation
from tests.agents.made import attempt, run_of


def test_every_stage_narrows_in_the_papers_order():
    cut = attempt(0, steps=9, finished=False)
    breaks = attempt(1, steps=8)
    doubted = attempt(2, steps=7)
    short = attempt(3, steps=2)
    long = attempt(4, steps=5)
    lost = attempt(5, steps=20, failed=True)
    ids = {t.attempt: t.trajectory_id for t in (cut, breaks, doubted, short, long)}
    scores = {ids[0]: 0.9, ids[1]: 0.9, ids[2]: 0.009, ids[3]: 0.01, ids[4]: 0.5}

    selection = select(
        [lost, long, cut, doubted, breaks, short],
        verifier_scores=scores,
        regression={ids[1]: False, ids[3]: True},
    )

    assert selection.chosen is long
    assert selection.chosen_id == ids[4]
    assert [(s.name, s.survivors, s.skipped) for s in selection.stages] == [
        ("finished", (ids[1], ids[2], ids[3], ids[4]), ""),
        ("breaks no regression test", (ids[2], ids[3], ids[4]), ""),
        ("verifier ≥ 0.01", (ids[3], ids[4]), ""),
        ("most steps", (ids[4],), ""),
    ]


def test_fewest_steps_for_a_vague_specification():
    attempts = [attempt(0, steps=5), attempt(1, steps=2)]
    assert select(attempts, steps="fewest").chosen is attempts[1]


def test_a_stage_that_would_leave_nothing_is_skipped_and_said_so():
    attempts = [attempt(0, steps=2, finished=False), attempt(1, steps=4, finished=False)]
    ids = [t.trajectory_id for t in attempts]
    selection = select(
        attempts,
        verifier_scores=dict.fromkeys(ids, 0.001),
        regression=dict.fromkeys(ids, False),
    )
    assert [s.skipped for s in selection.stages] == ["would leave nothing"] * 3 + [""]
    assert all(len(s.survivors) == 2 for s in selection.stages[:3])
    assert selection.chosen is attempts[1]


def test_stages_without_evidence_say_so():
    selection = select([attempt(0)])
    assert [s.skipped for s in selection.stages[1:3]] == [
        "no regression results",
        "no verifier scores",
    ]


def test_ties_do_not_depend_on_the_order_of_the_list():
    attempts = [attempt(n, steps=3) for n in (2, 0, 1)]
    chosen = {select(order).chosen.attempt for order in itertools.permutations(attempts)}
    assert chosen == {0}
    twins = [attempt(0, patch="a"), attempt(0, patch="b")]
    assert select(twins).chosen_id == select(twins[::-1]).chosen_id
    assert select(twins).chosen_id == min(t.trajectory_id for t in twins)


def test_the_verdict_plays_no_part():
    wrong, right = attempt(0, steps=4), attempt(1, steps=3, resolved=True)
    assert select([wrong, right]).chosen is wrong


def test_nothing_to_choose_from():
    assert select([]).chosen is None
    assert select([attempt(0, failed=True)]).chosen_id == ""


def test_attempts_of_different_tasks_are_refused():
    with pytest.raises(ConfigError, match="one task"):
        select([attempt(0, task="a"), attempt(0, task="b")])


@pytest.mark.parametrize("score", [float("nan"), 1.5, -0.1])
def test_a_score_that_is_no_probability_is_refused(score):
    one = attempt(0)
    with pytest.raises(ConfigError, match="not in"):
        select([one], verifier_scores={one.trajectory_id: score})


def test_a_missing_verifier_score_is_an_error_not_a_zero():
    one, other = attempt(0), attempt(1)
    with pytest.raises(ConfigError, match=other.trajectory_id):
        select([one, other], verifier_scores={one.trajectory_id: 0.5})


EDIT = ("edit", 0, {"path": "m.py"})
TESTS = ("run_tests", 0, {})
FAILING = ("run_tests", 1, {})
INVALID = ("invalid", 1, {"reason": "The reply holds no tool call."})


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([EDIT, TESTS], True),
        ([EDIT, TESTS, ("submit", 0, {})], True),
        ([EDIT, TESTS, ("view", 0, {"path": "m.py"})], True),
        ([EDIT, FAILING], False),
        ([EDIT, FAILING, TESTS], True),
        ([EDIT], None),
        ([TESTS, EDIT], None),
        ([EDIT, TESTS, ("bash", 0, {"command": "rm m.py"})], None),
        ([EDIT, TESTS, ("edit", 1, {"path": "m.py"})], True),
        ([EDIT, TESTS, ("file_editor", 0, {"command": "view"})], True),
        ([EDIT, TESTS, ("file_editor", 0, {"command": "insert"})], None),
        ([EDIT, ("run_tests", 0, {"targets": ["tests/test_a.py"]})], None),
        ([EDIT, ("run_tests", 1, {"targets": ["tests/test_a.py"]})], False),
        ([EDIT, TESTS, ("run_tests", 0, {"targets": "tests/test_a.py"})], True),
        ([EDIT, FAILING, ("run_tests", 0, {"targets": "failed"})], False),
        ([EDIT, TESTS, ("apply_diff", 1, {}), ("undo", 1, {})], True),
        ([EDIT, ("run_tests", -1, {})], False),
        ([FAILING, EDIT, FAILING], None),
        ([FAILING, EDIT, TESTS], True),
        ([("view", 0, {}), FAILING, EDIT, FAILING], None),
        ([("bash", 0, {"command": "ls"}), FAILING, EDIT, FAILING], None),
        ([INVALID, FAILING, EDIT, FAILING], None),
        ([EDIT, TESTS, INVALID], True),
        ([EDIT, TESTS, ("outline", 0, {})], True),
        ([EDIT, TESTS, ("mystery", 0, {})], None),
        ([EDIT, ("bash", 0, {"command": "ls"}), FAILING], False),
        ([], None),
    ],
)
def test_regression_from_the_agents_own_test_runs(calls, expected):
    assert regression_from_run_tests(run_of(*calls)) is expected


UNFINISHED = "412 passed\n\nThe run did not finish: timed out after 60 s.\n\n1 failed attempt"


@pytest.mark.parametrize(
    ("last", "answer", "expected"),
    [
        ("run_tests", "1 failed, 2 passed", False),
        ("run_tests", "1 error, 2 passed\n\nThe run did not finish: timed out after 60 s.", False),
        ("run_tests", UNFINISHED, True),
        ("run_tests", "No tests ran.", True),
        ("run_tests", "Error: there is no test file 'x.py'.", True),
        ("bash", "Error: timeout must be more than 0 seconds.", True),
        ("bash", "Error: Cannot find module 'x'\n[exit code 1]", None),
        ("mystery", "Error: there is no tool 'mystery'. Tools: view.", True),
    ],
)
def test_what_an_answer_says_about_the_tests_that_passed_before(last, answer, expected):
    done = run_of(EDIT, TESTS, (last, 1, {}))
    answered = replace(done.steps[-1], observation=StepObservation(content=answer, exit_code=1))
    steps = (*done.steps[:-1], answered)
    assert regression_from_run_tests(replace(done, steps=steps)) is expected


def test_a_test_run_that_was_cut_off_says_nothing():
    done = run_of(EDIT, FAILING)
    cut = replace(done.steps[-1], observation=StepObservation(content=UNFINISHED, exit_code=1))
    assert regression_from_run_tests(replace(done, steps=(done.steps[0], cut))) is None


def test_regression_may_be_a_function():
    broken = run_of(EDIT, ("view", 0, {}), FAILING)
    fine = run_of(EDIT, TESTS)
    assert select([broken, fine]).chosen is broken
    assert select([broken, fine], regression=regression_from_run_tests).chosen is fine
