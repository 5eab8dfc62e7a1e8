from __future__ import annotations

import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.selection import (
    Counts,
    best_at_k,
    bootstrap,
    bootstrap_difference,
    candidates,
    count,
    mean_pass_at_k,
    pass_at_k,
    selectors,
)
from swe_env.errors import ConfigError
from tests.agents.made import attempt


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_success(size, data):
    n, c = size
    k = data.draw(st.integers(1, n))
    outcomes = [True] * c + [False] * (n - c)
    subsets = list(combinations(outcomes, k))
    share = sum(any(s) for s in subsets) / len(subsets)
    assert pass_at_k(n, c, k) == pytest.approx(share, abs=1e-12)


def test_pass_at_k_does_not_overflow():
    exact = 1 - math.comb(99_999, 5_000) / math.comb(100_000, 5_000)
    assert pass_at_k(100_000, 1, 5_000) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(("n", "c", "k"), [(3, 1, 4), (3, 4, 1), (3, 1, 0), (0, 0, 1)])
def test_impossible_counts_are_refused(n, c, k):
    with pytest.raises(ConfigError, match="pass@k"):
        pass_at_k(n, c, k)


def test_infrastructure_failures_are_counted_apart():
    found = count(
        [
            attempt(0, resolved=True),
            attempt(1),
            attempt(2, failed=True),
            attempt(0, task="other", failed=True),
        ]
    )
    assert found == {
        "pkg__1": Counts(n=2, resolved=1, excluded=1),
        "other": Counts(n=0, resolved=0, excluded=1),
    }


def test_tasks_of_different_size_weigh_the_same_and_short_ones_are_named():
    counts = {
        "a": Counts(n=8, resolved=8),
        "b": Counts(n=2, resolved=0),
        "c": Counts(n=0, resolved=0, excluded=4),
    }
    one = mean_pass_at_k(counts, 1)
    assert (one.value, one.tasks, one.left_out, one.excluded) == (0.5, 2, 1, 4)
    four = mean_pass_at_k(counts, 4)
    assert (four.value, four.tasks, four.left_out) == (1.0, 1, 2)
    none = mean_pass_at_k(counts, 9)
    assert math.isnan(none.value)
    assert none.tasks == 0


def test_bootstrap_covers_the_mean_and_repeats_with_its_seed():
    values = [0.0] * 30 + [1.0] * 30
    low, high = bootstrap(values, seed=3)
    assert (low, high) == bootstrap(values, seed=3)
    # The normal approximation gives 0.5 ± 1.96 * 0.5 / sqrt(60) = 0.5 ± 0.1265.
    assert low == pytest.approx(0.3735, abs=0.02)
    assert high == pytest.approx(0.6265, abs=0.02)


def test_no_success_at_all_still_has_an_interval():
    low, high = bootstrap([0.0] * 20)
    assert low == 0.0
    assert high == pytest.approx(0.1684, abs=1e-4)  # Clopper-Pearson, 0 of 20
    assert bootstrap([1.0] * 20) == pytest.approx((1 - 0.1684, 1.0), abs=1e-4)


@pytest.mark.parametrize("values", [[0.375], [0.25] * 8, [0.3, 0.1 + 0.2]])
def test_equal_shares_in_between_have_no_interval(values):
    assert all(map(math.isnan, bootstrap(values)))


def test_paired_difference_is_tighter_than_the_arms():
    before = {f"t{i}": float(i % 2) for i in range(40)}
    after = {key: min(1.0, value + 0.25) for key, value in before.items()} | {"extra": 0.0}
    mean, low, high = bootstrap_difference(before, after)
    assert mean == pytest.approx(0.125)
    assert 0.05 < low < 0.125 < high < 0.2
    same = bootstrap_difference({"a": 0.0, "b": 0.0}, {"a": 0.0, "b": 0.0})
    assert same[0] == 0.0
    assert all(map(math.isnan, same[1:]))
    rounded = bootstrap_difference({"a": 0.0, "b": 0.1}, {"a": 0.2, "b": 0.3})
    assert all(map(math.isnan, rounded[1:]))
    with pytest.raises(ConfigError, match="share no task"):
        bootstrap_difference({"a": 1.0}, {"b": 1.0})


def test_best_at_k_of_the_oracle_is_pass_at_k():
    found = candidates([attempt(n, resolved=n < 2) for n in range(6)])
    for k in (1, 3, 6):
        best = best_at_k(found, selectors.get("oracle"), k)
        assert best.exact
        assert best.error == 0.0
        assert best.subsets == math.comb(6, k)
        assert best.value == pytest.approx(pass_at_k(6, 2, k))


def test_best_at_k_of_most_steps_by_hand():
    # Attempt n takes n steps; the only correct one is second longest of four.
    found = candidates([attempt(n, steps=n, resolved=n == 2) for n in range(4)])
    best = best_at_k(found, selectors.get("most-steps"), 2)
    assert best.value == pytest.approx(2 / 6)  # chosen in {0, 2} and {1, 2}


def test_monte_carlo_agrees_with_the_exact_value_within_its_error():
    found = candidates([attempt(n, steps=n, resolved=n % 3 == 0) for n in range(10)])
    exact = best_at_k(found, selectors.get("hybrid"), 5)
    drawn = best_at_k(found, selectors.get("hybrid"), 5, exact_up_to=10, samples=1500, seed=1)
    assert not drawn.exact
    assert 0 < drawn.error < 0.02
    assert abs(drawn.value - exact.value) < 4 * drawn.error
    with pytest.raises(ConfigError, match="best@k"):
        best_at_k(found, selectors.get("hybrid"), 11)
