"""KTO's mismatched samples: one task's first state with another's turns."""

import dataclasses
import logging

import pytest

from learners.data.dataset import Sample, mismatched_sequence
from learners.data.encode import Encoded, LaterContext
from learners.training.baseline import mismatches
from swe_env.errors import ConfigError


def row(group, prompt, reply):
    """A sample with so many tokens before and of its only turn, all of them its own number."""
    ids = (group,) * prompt + (100 + group,) * reply
    turns = (-1,) * prompt + (0,) * reply
    return Sample((Encoded(ids, tuple(turn == 0 for turn in turns), turns),), group)


def test_the_next_partner_of_another_task_that_fits_is_taken():
    rows = [row(0, 10, 2), row(0, 3, 2), row(1, 3, 9), row(2, 3, 4)]
    whole = mismatches(rows, 1000)
    expected = [(0, 2), (1, 2), (2, 3), (3, 0)]
    joined = [mismatched_sequence(rows[a].sequences[0], rows[b].sequences[0]) for a, b in expected]
    assert whole == joined
    fitting = mismatches(rows, 15)
    assert fitting[0] == mismatched_sequence(rows[0].sequences[0], rows[3].sequences[0])
    assert fitting[1:] == joined[1:]
    assert max(one.longest for one in fitting) <= 15


def test_a_first_state_without_a_partner_stands_with_the_next_sample(caplog):
    """One sequence a row, none of them cut, too long or without learned tokens."""
    rows = [row(0, 3, 4), row(1, 14, 2), row(2, 3, 4)]
    with caplog.at_level(logging.WARNING):
        found = mismatches(rows, 16)
    assert [one.input_ids for one in found] == [
        (0,) * 3 + (101,) * 2,
        (2,) * 3 + (100,) * 4,
        (2,) * 3 + (100,) * 4,
    ]
    assert "first states of 1 of 3 trajectories leave no room" in caplog.text
    caplog.clear()
    mismatches(rows, 18)
    assert not caplog.text


def test_contexts_of_a_partner_count_with_the_other_first_state():
    """A later context is the longest one of the partner's, and decides whether it fits."""
    (sequence,) = row(1, 3, 2).sequences
    later = dataclasses.replace(row(1, 0, 4).sequences[0], turn_ids=(1,) * 4, input_ids=(7,) * 4)
    longer = dataclasses.replace(
        sequence, later=(LaterContext(4, later.input_ids, later.loss_mask, later.turn_ids),)
    )
    rows = [row(0, 5, 1), Sample((longer,), 1), row(2, 3, 1)]
    assert mismatches(rows, 10)[0].longest == 10
    assert mismatches(rows, 9)[0].input_ids == (0,) * 5 + (102,)


def test_where_nothing_fits_a_sentence_says_what_to_do():
    with pytest.raises(ConfigError, match=r"no two fit into max_tokens \(5\)"):
        mismatches([row(0, 4, 2), row(1, 4, 2)], 5)
    with pytest.raises(ConfigError, match="at least two tasks"):
        mismatches([row(0, 1, 1), row(0, 1, 1)], 100)
