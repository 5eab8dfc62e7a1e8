from __future__ import annotations

import itertools
from collections import Counter

import pytest

from agents.selection import candidates, choose, selectors
from agents.selection.rivals import r2e
from swe_env.errors import ConfigError
from tests.agents.made import attempt, diff


def test_the_published_names():
    assert set(selectors.names()) >= {
        "fewest-steps",
        "first",
        "hybrid",
        "hybrid-fewest",
        "majority",
        "most-steps",
        "oracle",
        "r2e",
        "random",
        "verifier",
    }


def test_simple_rules():
    attempts = [attempt(0, steps=4), attempt(1, steps=7), attempt(2, steps=2, resolved=True)]
    scores = {t.trajectory_id: p for t, p in zip(attempts, (0.2, 0.1, 0.6), strict=True)}
    picked = {
        name: choose(name, attempts, verifier_scores=scores).chosen.attempt
        for name in ("first", "most-steps", "fewest-steps", "verifier", "oracle", "hybrid")
    }
    assert picked == {
        "first": 0,
        "most-steps": 1,
        "fewest-steps": 2,
        "verifier": 2,
        "oracle": 2,
        "hybrid": 1,
    }


def test_every_selector_survives_nothing_and_ignores_order():
    attempts = [attempt(n, steps=n % 2, patch=diff("a = 0", f"a = {n % 2}")) for n in range(4)]
    for name in selectors.names():
        assert choose(name, [attempt(0, failed=True)]).chosen is None, name
        ids = {choose(name, order).chosen_id for order in itertools.permutations(attempts)}
        assert len(ids) == 1, name


def test_random_is_seeded_and_uniform():
    found = candidates([attempt(n) for n in range(4)])
    drawn = [selectors.get("random")(found, seed).chosen.attempt for seed in range(400)]
    assert drawn == [selectors.get("random")(found, seed).chosen.attempt for seed in range(400)]
    assert all(70 < count < 130 for count in Counter(drawn).values())
    assert set(drawn) == {0, 1, 2, 3}


def test_majority_counts_patches_that_differ_in_looks_only_as_one():
    attempts = [
        attempt(0, patch=diff("    return a", "    return c")),
        attempt(1, patch=diff("    return a", "    return  b  # fixed")),
        attempt(2, patch=diff("    return a", "    return b")),
        attempt(3),
        attempt(4),
        attempt(5),
    ]
    assert choose("majority", attempts).chosen.attempt == 1


def test_r2e_is_lexicographic_and_can_shortlist():
    attempts = [attempt(n) for n in range(3)]
    ids = [t.trajectory_id for t in attempts]
    evidence = {
        "verifier_scores": dict(zip(ids, (0.8, 0.8, 0.7), strict=True)),
        "regression_passes": dict(zip(ids, (10, 10, 12), strict=True)),
        "reproduction": dict(zip(ids, (0.0, 1.0, 1.0), strict=True)),
    }
    assert choose("r2e", attempts, **evidence).chosen is attempts[1]
    shortlist = r2e(candidates(attempts, **evidence), top=3)
    assert shortlist.chosen is attempts[2]
    assert [s.skipped for s in choose("r2e", attempts).stages] == [
        "no verifier scores",
        "no pass counts",
        "no reproduction scores",
    ]


def test_oracle_takes_the_first_when_nothing_is_resolved():
    selection = choose("oracle", [attempt(1), attempt(0)])
    assert selection.chosen.attempt == 0
    assert selection.stages[0].skipped == "would leave nothing"


def test_an_unknown_selector_is_answered_with_what_was_near():
    with pytest.raises(ConfigError, match="hybrid"):
        choose("hybrd", [attempt(0)])
