"""Trajectories whose prompts rewrite earlier turns: condensed, or without earlier reasoning."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.policies import hub
from agents.policies.transformers import TransformersPolicy
from learners.data import Unusable, encode
from learners.data.batching import trimmed
from learners.data.dataset import mismatched_sequence, pair_samples, row_samples
from learners.training.passes import Passes
from learners.training.score import PolicySums, Scorer
from learners.training.workers import Workers
from swe_env.prefix import common_prefix
from swe_env.replay.trajectory import Branch, Metrics, Step, Trajectory
from tests.agents.models import save_tiny
from tests.agents.policies.test_transformers import after, episode
from tests.learners.models import byte_tokenizer
from tests.learners.records import rewritten, sampled

TOKENIZER = byte_tokenizer()
REPLIES = ("look at it", "edit", "test it", "done")


def made(trajectory):
    return encode(trajectory, TOKENIZER)


def first_prompt(trajectory):
    return trajectory.agent_steps[0].metrics.prompt_token_ids


def condensed(*turns, **changes):
    """The prompts of those turns are the first one and something else behind it."""
    plain = sampled(replies=REPLIES, **changes)
    prompts = {turn: (*first_prompt(plain), 90 + turn, 91, 92) for turn in turns}
    return rewritten(plain, prompts)


@settings(max_examples=60, deadline=None)
@given(
    prompts=st.dictionaries(
        st.integers(1, 3), st.lists(st.integers(0, 3), min_size=1, max_size=40).map(tuple)
    )
)
def test_each_turn_is_learned_once_in_the_context_it_was_sampled_in(prompts):
    trajectory = rewritten(sampled(replies=REPLIES), prompts)
    contexts = made(trajectory).contexts
    found = {}
    for context in contexts:
        for turn in sorted(set(context.turn_ids) - {-1}):
            assert turn not in found
            at = context.turn_ids.index(turn)
            length = context.turn_ids.count(turn)
            assert context.turn_ids[at : at + length] == (turn,) * length
            found[turn] = (context.input_ids[:at], context.input_ids[at : at + length])
        assert context.loss_mask == tuple(turn >= 0 for turn in context.turn_ids)
        assert not context.later
    sampled_from = [
        (prompt, step.metrics.completion_token_ids) for step, prompt in trajectory.prompt_ids()
    ]
    assert found == dict(enumerate(sampled_from))


def test_counts_are_those_of_all_contexts():
    trajectory = condensed(2)
    encoded = made(trajectory)
    first, second = encoded.contexts
    assert encoded.num_loss_tokens == sum(len(reply) for reply in REPLIES)
    assert len(encoded) == len(first) + len(second) - encoded.later[0].kept
    assert encoded.longest == max(len(first), len(second))
    assert encoded.first_state == first_prompt(trajectory)
    assert second.input_ids[: encoded.prompt_length] == encoded.first_state
    assert made(sampled()).contexts == [made(sampled())]


def test_what_is_the_same_in_two_contexts_is_kept_once():
    """A hundred contexts of a long trajectory would fill memory otherwise."""
    long = tuple(range(200)) * 50
    encoded = made(rewritten(sampled(replies=REPLIES), {0: long, 2: (*long, 7), 3: (*long, 8)}))
    assert [one.kept for one in encoded.later] == [len(long), len(long)]
    assert len(encoded.later[1].input_ids) == 1 + len("done")


@pytest.mark.parametrize("too_long", ["drop", "cut"])
def test_what_its_contexts_compute_decides_whether_a_trajectory_is_too_long(too_long):
    """Which bounds the memory of a pass, and the longest context with it; nothing of it is cut."""
    trajectory = condensed(2)
    encoded = made(trajectory)
    assert encode(trajectory, TOKENIZER, max_tokens=len(encoded), too_long=too_long) == encoded
    assert encoded.longest < len(encoded)
    refused = rf"has {len(encoded)} tokens, .* \(in 2 contexts, which are not cut\)"
    with pytest.raises(Unusable, match=refused) as caught:
        encode(trajectory, TOKENIZER, max_tokens=len(encoded) - 1, too_long=too_long)
    assert caught.value.reason == "too-long"


def test_several_contexts_are_no_single_sequence():
    with pytest.raises(ValueError, match="no single sequence"):
        trimmed(made(condensed(2)))


def test_they_make_pairs_and_are_counted():
    both = [condensed(1, 3), condensed(2, resolved=False, attempt=1)]
    dataset = pair_samples(both, made)
    (sample,) = dataset.samples
    assert sample.sequences == tuple(map(made, both))
    assert len(sample.contexts) == 5
    assert sample.num_tokens == sum(len(made(one)) for one in both)
    assert dataset.report.dropped == {}
    assert "1 samples from 2 trajectories; 2 sequences in 5 contexts" in str(dataset.report)
    assert dataset.digest != pair_samples([condensed(1), both[1]], made).digest
    assert len(row_samples(both, made, kind="kto")) == 2


def test_branches_of_a_rewritten_episode_learn_only_what_is_theirs():
    """Their first learned token stands in a later context; those before it are left out."""
    parent = condensed(2)
    *before, last = parent.steps
    said = sampled(replies=("else",)).agent_steps[0].metrics.completion_token_ids
    metrics = dataclasses.replace(last.metrics, completion_token_ids=said)
    branch = dataclasses.replace(
        parent,
        steps=(*before, dataclasses.replace(last, message="else", metrics=metrics)),
        branch=Branch(parent=parent.trajectory_id, at_step=3),
        resolved=False,
        attempt=1,
    )
    dataset = pair_samples([parent, branch], made)
    (sample,) = dataset.samples
    assert sample.from_turn == 3
    assert len(sample.contexts) == 2
    assert (dataset.report.rewritten, dataset.report.contexts) == (2, 2)
    for context, reply in zip(sample.contexts, ("done", "else"), strict=True):
        learned = itertools.compress(context.input_ids, context.loss_mask)
        own = sampled(replies=(reply,)).agent_steps[0].metrics.completion_token_ids
        assert tuple(learned) == own
        assert set(context.turn_ids) == {-1, 3}


def test_a_mismatched_sample_has_the_other_first_state_in_every_context():
    one, other = made(sampled("t-2")), made(condensed(1, 2))
    found = mismatched_sequence(one, other)
    assert len(found.contexts) == 3
    start = other.prompt_length
    for ours, theirs in zip(found.contexts, other.contexts, strict=True):
        assert ours.input_ids == one.first_state + theirs.input_ids[start:]
        assert ours.num_loss_tokens == theirs.num_loss_tokens
    # No place for it where even the first state was rewritten.
    plain = sampled(replies=REPLIES)
    lost = rewritten(plain, {1: (*first_prompt(plain), 9), 2: (1, 2, 3)})
    assert len(made(lost).contexts) == 3
    assert len(mismatched_sequence(one, made(lost)).contexts) == 2


def test_log_probabilities_of_a_condensed_episode_are_those_its_policy_recorded(tmp_path):
    """Sampled by the engine, recorded as increments, computed again in contexts: the same."""
    settings = {"dtype": "float32", "device": "cpu", "max_new_tokens": 12, "temperature": 1}
    settings |= {"top_k": 0, "top_p": 0, "context": 2600, "condense": 0.5}
    state, steps, context = episode(), [], ()
    with TransformersPolicy(save_tiny(tmp_path / "model"), **settings) as policy:
        for turn in range(8):
            action = policy.act(state)
            said = action["completion"]
            prompt = tuple(said["prompt_token_ids"])
            kept = common_prefix(context, prompt)
            context = prompt + tuple(said["token_ids"])
            metrics = Metrics(
                prompt_prefix=kept,
                prompt_token_ids=prompt[kept:],
                completion_token_ids=tuple(said["token_ids"]),
                logprobs=tuple(said["logprobs"]),
            )
            steps.append(Step(step_id=turn + 2, source="agent", metrics=metrics))
            state = after(state, action, f"file {turn}: " + "some words " * 40)
        first = Step(step_id=1, source="user", message="issue")
        encoded = made(Trajectory(instance_id="t", agent=policy.agent, steps=(first, *steps)))
        assert len(encoded.contexts) > 1
        model = hub.load(tmp_path / "model", dtype="float32", device="cpu")[0]
    scorer = Scorer(PolicySums(model), Passes(model, torch.device("cpu")), Workers())
    with torch.no_grad():
        found = scorer([encoded])
    recorded = sum(value for step in steps for value in step.metrics.logprobs)
    assert scorer.shared_tokens > 0
    assert found.num_tokens.tolist() == [sum(len(s.metrics.logprobs) for s in steps)]
    assert found.logps.item() == pytest.approx(recorded, abs=1e-3)
