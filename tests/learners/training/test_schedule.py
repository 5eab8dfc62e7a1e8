from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learners.training.schedule import batch_at, learning_rate, total_steps


def test_warm_up_and_cosine():
    rates = [learning_rate(s, 100, peak=1.0, warmup=0.1) for s in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[99] < 1e-3
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_no_warm_up_starts_at_the_peak():
    assert learning_rate(0, 1, peak=0.3, warmup=0.0) == 0.3


@given(samples=st.integers(1, 40), size=st.integers(1, 9), seed=st.integers(0, 5))
def test_every_sample_once_an_epoch(samples, size, seed):
    steps = total_steps(samples, size, epochs=2, max_steps=None)
    drawn = [batch_at(step, samples, size, seed) for step in range(steps)]
    seen = sorted(row for rows in drawn for row in rows)
    assert seen == sorted([*range(samples), *range(samples)])


def test_epochs_differ_in_order():
    first = [batch_at(s, 20, 5, 0) for s in range(4)]
    second = [batch_at(s, 20, 5, 0) for s in range(4, 8)]
    assert first != second
    assert first == [batch_at(s, 20, 5, 0) for s in range(4)]
