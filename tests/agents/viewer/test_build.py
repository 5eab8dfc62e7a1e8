from __future__ import annotations

import math
from dataclasses import replace

import pytest

from agents.selection import select
from agents.viewer import report_from_buffers
from agents.viewer.build import attempt_of
from swe_env.errors import ConfigError
from swe_env.replay import Branch, ReplayBuffer
from swe_env.replay.trajectory import Metrics
from tests.agents.made import attempt, diff


def arm(solved: int, tasks: int = 4, n: int = 4) -> list:
    return [
        attempt(i, task=f"pkg__{t}", steps=2 + i, resolved=i < solved)
        for t in range(tasks)
        for i in range(n)
    ]


def test_estimates_per_arm_and_the_paired_gain():
    report = report_from_buffers({"base": arm(0), "trained": arm(1)}, title="t")
    base, trained = report.arms
    assert [e.k for e in trained.pass_at] == [1, 2, 4]
    assert [e.value for e in trained.pass_at] == pytest.approx([0.25, 0.5, 1.0])
    assert base.gain is None
    assert trained.gain[0] == pytest.approx(0.25)
    assert "trained: 4 of 16 attempts resolved, 4 of 4 tasks at least once." in report.summary


def test_selection_uses_the_named_selectors_on_each_task():
    trajectories = arm(1)
    report = report_from_buffers(
        {"a": trajectories}, title="t", selector_names=("hybrid", "first", "oracle")
    )
    hybrid, first, oracle = report.arms[0].selected
    assert (hybrid.estimate.value, first.estimate.value, oracle.estimate.value) == (0.0, 1.0, 1.0)
    for task in {t.instance_id for t in trajectories}:
        attempts = [t for t in trajectories if t.instance_id == task]
        assert hybrid.chosen[task] == select(attempts).chosen_id
    with pytest.raises(ConfigError, match="no selector named"):
        report_from_buffers({"a": trajectories}, title="t", selector_names=("nope",))


def test_a_selector_without_its_evidence_is_told():
    names = ("hybrid", "first", "majority", "verifier", "r2e")
    without = report_from_buffers({"a": arm(1)}, title="t", selector_names=names)
    assert [note.split(" to choose")[0] for note in without.notes] == [
        "a: the selector verifier had no evidence",
        "a: the selector r2e had no evidence",
    ]
    assert "4 of 4 tasks" in without.notes[0]
    scores = {t.trajectory_id: 0.5 for t in arm(1)}
    informed = report_from_buffers(
        {"a": arm(1)}, title="t", selector_names=names, verifier_scores=scores
    )
    assert informed.notes == ()


def test_failures_count_nowhere_and_are_named():
    lost = [attempt(9, task="pkg__0", failed=True, resolved=True)]
    report = report_from_buffers({"a": [*arm(0), *lost]}, title="t")
    built = report.arms[0]
    assert built.pass_at[0].value == 0.0
    assert built.pass_at[0].excluded == 1
    assert built.attempts[-1].outcome == "infrastructure: sandbox"
    assert "0 of 16 attempts" in report.summary


def test_branches_count_nowhere_and_are_told():
    branch = replace(attempt(9, task="pkg__0", resolved=True), branch=Branch(parent="p", at_step=1))
    report = report_from_buffers({"a": [*arm(0), branch]}, title="t")
    assert "0 of 16 attempts" in report.summary
    assert report.notes == ("1 branches left out: they start inside other attempts.",)


def test_a_task_that_only_failed_is_left_out_of_the_selection():
    report = report_from_buffers({"a": [attempt(0, failed=True)]}, title="t")
    chosen = report.arms[0].selected[0]
    assert math.isnan(chosen.estimate.value)
    assert (chosen.estimate.tasks, chosen.estimate.left_out) == (0, 1)


def test_a_resolved_and_an_unresolved_attempt_of_the_last_arm_are_shown():
    report = report_from_buffers({"base": arm(0), "trained": arm(1)}, title="t", show=3)
    assert [(s.arm, s.trajectory.resolved) for s in report.shown] == [
        ("trained", True),
        ("trained", False),
        ("base", False),
    ]


def test_tokens_and_surprisal_of_an_attempt():
    plain = attempt(0, steps=2)
    assert attempt_of(plain).tokens == 0
    assert math.isnan(attempt_of(plain).surprisal)
    metrics = Metrics(completion_token_ids=(1, 2), logprobs=(-1.0, -0.5))
    steps = tuple(replace(s, metrics=metrics) if s.source == "agent" else s for s in plain.steps)
    row = attempt_of(replace(plain, steps=steps))
    assert (row.tokens, row.surprisal) == (4, 0.75)


def test_a_buffer_is_an_arm(tmp_path):
    buffer = ReplayBuffer(tmp_path / "buffer")
    buffer.extend(arm(1, tasks=2))
    report = report_from_buffers({"a": buffer}, title="t")
    assert report.arms[0].pass_at[0].value == 0.25
    assert {a.trajectory_id for a in report.arms[0].attempts} == {
        t.trajectory_id for t in arm(1, tasks=2)
    }


def test_diversity_is_over_solved_tasks():
    def fix(n: int, name: str, resolved: bool):
        return attempt(n, resolved=resolved, patch=diff("    a", f"    {name}"))

    solved = [fix(0, "b", True), fix(1, "c", True), fix(2, "d", False)]
    other = [attempt(0, task="other")]
    found = report_from_buffers({"a": [*solved, *other]}, title="t").arms[0].diversity
    assert found.distinct_correct == 2
    assert found.effective_correct == pytest.approx(2.0)
    assert found.distinct_patches == 1.5
