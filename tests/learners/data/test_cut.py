"""Over-long samples: cut in the middle of observations, every sampled token kept."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learners.data import Unusable, encode
from learners.data.cut import LEAST, cut_observations
from learners.data.dataset import pair_samples
from learners.data.encode import Encoded
from tests.learners.models import byte_tokenizer
from tests.learners.records import scripted

TOKENIZER = byte_tokenizer()


def sequence(prompt, *turns):
    """A prompt, then by turns (sampled, observation) lengths; tokens are all different."""
    owners = [-1] * prompt
    for turn, (said, seen) in enumerate(turns):
        owners += [turn] * said + [-1] * seen
    return Encoded(tuple(range(len(owners))), tuple(turn >= 0 for turn in owners), tuple(owners))


def note(dropped):
    return [-dropped] * 5


LENGTHS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 500)), min_size=1, max_size=5)


@given(turns=LENGTHS, last=st.integers(1, 40), limit=st.integers(10, 2000))
def test_what_was_sampled_and_the_first_state_stay_whole(turns, last, limit):
    whole = dataclasses.replace(sequence(30, *turns, (last, 0)), templated=True, unused_ids=True)
    found = cut_observations(whole, limit, note)
    said = sum(whole.loss_mask)
    if found is None:
        # Not even observations of the least length would fit.
        assert 30 + said + sum(min(seen, LEAST) for _, seen in turns) > limit
        return
    assert len(found) <= limit or found == whole
    assert found.cut_tokens == len(whole) - len(found)
    assert (found.templated, found.unused_ids) == (True, True)
    assert found.loss_mask == tuple(turn >= 0 for turn in found.turn_ids)

    def learned(e):
        return [(i, t) for i, t in zip(e.input_ids, e.turn_ids, strict=True) if t >= 0]

    assert learned(found) == learned(whole)
    assert found.input_ids[:30] == whole.input_ids[:30]
    assert found.input_ids[-last:] == whole.input_ids[-last:]  # the submission
    kept = [i for i in found.input_ids if i >= 0]
    assert kept == sorted(kept)
    if found.cut_tokens:  # as much as fits: the notes leave a token free here and there
        assert len(found) > limit - len(turns) - 1


def test_the_longest_are_cut_to_one_length_and_short_ones_stay():
    found = cut_observations(sequence(10, (5, 400), (5, 80), (5, 1000), (5, 0)), 510, note)
    masked = [i for i, turn in zip(found.input_ids, found.turn_ids, strict=True) if turn < 0]
    observations = masked[10:]
    # 510 - 10 - 20 sampled = 480 for three: 80 stays, the others have 200 each.
    assert len(observations) == 480
    first = observations[:200]
    assert first[:98] == list(range(15, 113))  # head
    assert first[98:103] == [-205] * 5  # what the note says is what is missing
    assert first[103:] == list(range(415 - 97, 415))  # tail
    assert observations[200:280] == list(range(420, 500))


def long_record(**changes):
    """A scripted trajectory with 1,800 characters seen between its two turns."""
    record = scripted(**changes)
    step = record.steps[1]
    seen = dataclasses.replace(step.observation, content="x" * 900 + "y" * 900)
    steps = (record.steps[0], dataclasses.replace(step, observation=seen), record.steps[2])
    return dataclasses.replace(record, steps=steps)


def test_a_long_trajectory_keeps_its_submission_and_says_what_is_missing():
    whole = encode(long_record(), TOKENIZER)
    limit = len(whole) - 1000
    found = encode(long_record(), TOKENIZER, max_tokens=limit, too_long="cut")
    assert len(found) == limit
    text, before = (TOKENIZER.decode(e.input_ids) for e in (found, whole))
    head, _, rest = text.partition("[... ")
    number, _, tail = rest.partition(" tokens left out ...]\n")
    assert before.startswith(head.removesuffix("\n"))
    assert before.endswith(tail)  # the end of the observation, the frame, the submission
    assert "<function=submit>" in tail
    assert len(before) - len(head.removesuffix("\n")) - len(tail) == int(number)
    with pytest.raises(Unusable, match=rf"max_tokens is {limit}\.$"):
        encode(long_record(), TOKENIZER, max_tokens=limit)
    with pytest.raises(Unusable, match="even with every observation cut to 64 tokens") as caught:
        encode(long_record(), TOKENIZER, max_tokens=50, too_long="cut")
    assert caught.value.reason == "too-long"


def test_what_was_cut_is_counted_and_shown():
    pair = [long_record(), long_record(resolved=False, actions=[("view", {}), ("submit", {})])]
    limit = len(encode(pair[0], TOKENIZER)) - 500
    dropped = pair_samples(pair, lambda t: encode(t, TOKENIZER, max_tokens=limit))
    assert dropped.report.dropped == {"too-long": 2}
    cut = pair_samples(pair, lambda t: encode(t, TOKENIZER, max_tokens=limit, too_long="cut"))
    assert len(cut) == 1
    assert cut.report.cut == 2
    lost = [len(encode(t, TOKENIZER)) - limit for t in pair]
    assert f"2 sequences cut in observations by {sum(lost)} tokens" in str(cut.report)
