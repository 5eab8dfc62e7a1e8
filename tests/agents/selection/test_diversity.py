from __future__ import annotations

import math

import pytest

from agents.selection import diversity, effective_correct, mean_call_cosine
from tests.agents.made import attempt, diff


def fix(value: str) -> str:
    return diff("    return a", f"    return {value}")


def test_only_correct_solutions_count_as_solutions():
    found = diversity(
        [
            attempt(0, resolved=True, patch=fix("b")),
            attempt(1, resolved=True, patch=fix("b  # same")),
            attempt(2, resolved=True, patch=fix("c")),
            attempt(3, patch=fix("d")),
            attempt(4, patch=fix("e")),
            attempt(5, patch=""),
            attempt(6, resolved=True, failed=True, patch=fix("f")),
        ]
    )
    assert (found.attempts, found.resolved) == (6, 3)
    assert (found.distinct_patches, found.distinct_correct) == (4, 2)
    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert found.effective_correct == pytest.approx(math.exp(entropy))


def test_effective_number_of_equally_frequent_solutions_is_their_number():
    attempts = [attempt(n, resolved=True, patch=fix(f"v{n % 4}")) for n in range(8)]
    assert effective_correct(attempts) == pytest.approx(4.0)
    assert effective_correct([attempt(0)]) == 0.0


def test_a_resolved_attempt_that_changed_nothing_is_no_solution():
    found = diversity([attempt(0, resolved=True), attempt(1, resolved=True, patch=fix("b"))])
    assert (found.distinct_correct, found.effective_correct) == (1, 1.0)


def test_cosine_of_calls():
    same = [attempt(n, patch=fix("b")) for n in range(3)]
    assert mean_call_cosine(same) == pytest.approx(1.0)
    mixed = [attempt(0, steps=0, patch="alpha beta"), attempt(1, steps=0, patch="alpha gamma")]
    assert mean_call_cosine(mixed) == pytest.approx(0.5)
    apart = [attempt(0, steps=0, patch="alpha"), attempt(1, steps=0, patch="gamma")]
    assert mean_call_cosine(apart) == 0.0
    assert math.isnan(mean_call_cosine(same[:1]))
    assert mean_call_cosine([attempt(0, steps=0), attempt(1, steps=0)]) == 1.0
