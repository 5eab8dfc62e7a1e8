from __future__ import annotations

import math

import pytest

from agents.selection import build_prompt, find_answer, probability, score_trajectories
from swe_env.errors import ModelError
from swe_env.replay.trajectory import Trajectory
from tests.agents.made import attempt, diff


def test_prompt_holds_issue_steps_and_patch_but_not_the_verdict():
    wrong = attempt(0, patch=diff("    return a", "    return b"))
    right = Trajectory.from_dict({**wrong.to_dict(), "resolved": True, "reward": 1.0})
    prompt = build_prompt(right)
    assert prompt == build_prompt(wrong)
    text = prompt[-1]["content"]
    assert "It returns the wrong value." in text
    assert '→ view {"path":"f0.py"}' in text
    assert "+    return b" in text
    assert [m["role"] for m in prompt] == ["system", "user"]


def test_long_trajectories_are_condensed_and_say_what_is_missing():
    long = attempt(0, steps=400, patch="+" + "x" * 50_000)
    text = build_prompt(long, max_chars=9_000)[-1]["content"]
    assert len(text) < 9_500
    assert "steps left out" in text
    assert "characters left out" in text
    assert '"f0.py"' in text
    assert '"f399.py"' in text


def test_scores_stay_with_their_trajectories():
    attempts = [attempt(n, steps=n) for n in range(5)] + [attempt(9, failed=True)]
    asked = []

    def by_length(prompts):
        asked.extend(prompts)
        return [(-1.0, -1.0 - p[-1]["content"].count("→ view")) for p in prompts]

    scores = score_trajectories(attempts, by_length, batch_size=2)
    assert set(scores) == {t.trajectory_id for t in attempts[:5]}
    assert len(asked) == 5
    for n, trajectory in enumerate(attempts[:5]):
        assert scores[trajectory.trajectory_id] == pytest.approx(1 / (1 + math.exp(-n)))


def test_a_scorer_that_loses_an_answer_is_refused():
    with pytest.raises(ModelError, match="1 of 2"):
        score_trajectories([attempt(0), attempt(1)], lambda prompts: [(0.0, 0.0)])


def test_probability_survives_tiny_numbers_and_refuses_none():
    assert probability(-2000.0, -2000.0) == 0.5
    assert probability(-5.0, -math.inf) == 1.0
    with pytest.raises(ModelError, match="no usable answer"):
        probability(-math.inf, -math.inf)
    with pytest.raises(ModelError, match="no usable answer"):
        probability(math.nan, 0.0)


def test_the_answer_is_searched_and_spellings_add_up():
    tokens = ["<", "judgement", ">", " Yes", "</"]
    top = [{}, {"YES": -9.0}, {}, {" Yes": math.log(0.4), "YES": math.log(0.2), "NO": -2.0}, {}]
    yes, no = find_answer(tokens, top)
    assert yes == pytest.approx(math.log(0.6))
    assert no == pytest.approx(-2.0)
    assert find_answer(["NO"], [{"NO": -0.1}])[0] == -math.inf
    with pytest.raises(ModelError, match="no YES or NO"):
        find_answer(["maybe"], [{}])
