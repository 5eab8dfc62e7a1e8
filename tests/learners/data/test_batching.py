import torch
from hypothesis import given
from hypothesis import strategies as st

from learners.data.batching import collate, microbatches
from learners.data.dataset import Sample, mismatched_sequence
from learners.data.encode import Encoded

CPU = torch.device("cpu")


def sequence(prompt, reply, rest=0, first=1):
    length = prompt + reply + rest
    mask = (False,) * prompt + (True,) * reply + (False,) * rest
    turns = tuple(0 if m else -1 for m in mask)
    return Encoded(tuple(range(first, first + length)), mask, turns)


def test_what_follows_the_last_loss_token_is_not_computed():
    batch = collate([sequence(4, 2, rest=50)], CPU)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6]]
    assert batch.loss_mask.sum() == 2
    assert batch.attention_mask is None


def test_padding_is_on_the_right_and_masked():
    batch = collate([sequence(2, 1), sequence(4, 2)], CPU)
    assert batch.input_ids[0].tolist() == [1, 2, 3, 0, 0, 0]
    assert batch.attention_mask[0].tolist() == [True] * 3 + [False] * 3
    assert not batch.loss_mask[0, 3:].any()


@given(
    lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=12),
    budget=st.integers(1, 300),
)
def test_microbatches_hold_every_sample_once_within_the_budget(lengths, budget):
    samples = [Sample((sequence(a, 1), sequence(b, 1)), 0) for a, b in lengths]
    groups = microbatches(samples, budget)
    assert sorted(i for group in groups for i in group) == list(range(len(samples)))
    for group in groups:
        widest = max(len(s) for i in group for s in samples[i].sequences)
        assert len(group) == 1 or 2 * len(group) * widest <= budget


def test_a_mismatched_sequence_is_one_prompt_with_anothers_turns():
    mixed = mismatched_sequence(sequence(3, 2, first=10), sequence(2, 4, first=50))
    assert mixed.input_ids == (10, 11, 12, 52, 53, 54, 55)
    assert mixed.loss_mask == (False,) * 3 + (True,) * 4
