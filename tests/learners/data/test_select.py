import dataclasses
import random
from collections import Counter

import pytest
import torch

from learners.data import Unusable, encode, kto_rows, pairs, sft_rows
from learners.data.batching import collate
from learners.data.dataset import pair_samples, row_samples
from learners.data.encode import Encoded
from learners.losses import entropo_dpo
from learners.ops import sequence_logps
from swe_env.replay.trajectory import Agent, Step, StepObservation
from tests.learners.models import byte_tokenizer, tiny_llama
from tests.learners.records import FAILURE, mixed_buffer, sampled, scripted


def ids(found):
    return [(p.chosen.trajectory_id, p.rejected.trajectory_id, p.tie) for p in found]


def test_trap_5_pairs_are_resolved_over_unresolved_of_one_task():
    found, report = pairs(mixed_buffer(), per_task=2)
    assert len(found) == report.kept == 8
    for pair in found:
        assert pair.chosen.resolved
        assert not pair.rejected.resolved
        assert pair.chosen.instance_id == pair.rejected.instance_id


def test_pairs_depend_on_content_and_seed_alone():
    buffer = mixed_buffer(each=6)
    shuffled = buffer.copy()
    random.Random(5).shuffle(shuffled)
    assert ids(pairs(buffer, seed=1, ties=1)[0]) == ids(pairs(shuffled, seed=1, ties=1)[0])
    assert ids(pairs(buffer, seed=1)[0]) != ids(pairs(buffer, seed=2)[0])


def test_pairs_spread_over_the_trajectories():
    found, _ = pairs(mixed_buffer(tasks=1, each=6), per_task=3)
    assert len({p.chosen.trajectory_id for p in found}) == 3
    assert len({p.rejected.trajectory_id for p in found}) == 3


def test_a_quota_is_never_exceeded():
    found, _ = pairs(mixed_buffer(tasks=2, each=8), per_task=100, ties=3)
    assert sum(not p.tie for p in found) == 2 * 16
    for task in ("t-0", "t-1"):
        ties = [p for p in found if p.tie and p.chosen.instance_id == task]
        assert len(ties) == 3
        assert all(p.chosen.resolved == p.rejected.resolved for p in ties)
        assert {p.chosen.resolved for p in ties} == {True, False}


def test_ties_of_one_first_state_take_no_pair_of_another():
    first = [sampled(replies=(f"a{i}",), attempt=i) for i in range(3)]
    system = Step(step_id=1, source="system", message="Else.")
    second = [
        dataclasses.replace(t, steps=(system, *t.steps[1:]))
        for t in (sampled(replies=("b",)), sampled(replies=("c",), resolved=False))
    ]
    for records in ([*first, *second], [*second, *first]):
        found, _ = pairs(records, per_task=1, ties=1)
        assert sorted(pair.tie for pair in found) == [False, True]


def test_a_trajectory_makes_no_tie_with_its_like():
    same = [sampled(attempt=0), sampled(attempt=1)]
    assert same[0].trajectory_id != same[1].trajectory_id
    assert pairs(same, ties=5)[0] == []


@pytest.mark.parametrize(
    "change",
    [{"tools": ()}, {"steps": None}],
    ids=["other tools", "other system prompt"],
)
def test_trap_5_pairs_need_one_first_state(change):
    good, bad = sampled(), sampled(replies=("no",), resolved=False)
    if change == {"steps": None}:
        change = {"steps": (Step(step_id=1, source="system", message="Else."), *bad.steps[1:])}
    found, report = pairs([good, dataclasses.replace(bad, **change)])
    assert found == []
    assert report.dropped == {"other-first-state": 2}


def attempts(*makers, task="t-1"):
    """One attempt for each (model, resolved)."""
    return [
        sampled(
            task, replies=(f"reply {at}",), attempt=at, resolved=resolved,
            agent=Agent(name="p", model_name=model, settings={"temperature": 0.7}),
        )
        for at, (model, resolved) in enumerate(makers)
    ]  # fmt: skip


def models(found):
    return sorted((p.chosen.agent.model_name, p.rejected.agent.model_name, p.tie) for p in found)


def test_trap_5_at_most_one_pair_a_task_and_generator():
    records = attempts(*[(model, bool(i % 2)) for model in "abc" for i in range(4)])
    for seed in range(5):
        found, report = pairs(records, seed=seed)
        assert models(found) == [(m, m, False) for m in "abc"]
        assert report.dropped == {"over-quota": 6}
        assert ids(found) == ids(pairs(records[::-1], seed=seed)[0])
    found, _ = pairs(records, ties=1)
    assert models(found) == [(m, m, tie) for m in "abc" for tie in (False, True)]
    other = dataclasses.replace(records[0].agent, settings={"temperature": 1.0})
    warmer = [dataclasses.replace(t, agent=other) for t in records[:4]]
    assert len(pairs([*records[:4], *warmer])[0]) == 2
    newer = [dataclasses.replace(t, agent=dataclasses.replace(t.agent, adapter="x"))
             for t in records[:4]]  # fmt: skip
    assert len(pairs([*records[:4], *newer])[0]) == 2


def test_the_quota_of_a_generator_is_of_all_first_states():
    records = attempts(*[("a", bool(i % 2)) for i in range(4)])
    system = Step(step_id=1, source="system", message="Else.")
    others = [dataclasses.replace(t, steps=(system, *t.steps[1:])) for t in records]
    found, report = pairs([*records, *others])
    assert len(found) == 1
    assert report.dropped == {"over-quota": 6}
    assert len(pairs([*records, *others], per_task=20)[0]) == 8


def test_generators_are_compared_only_where_a_task_gives_no_other_pair():
    records = attempts(("a", True), ("b", False), ("b", False), ("c", False))
    for seed in range(5):
        found, report = pairs(records, seed=seed)
        assert [one[0] for one in models(found)] == ["a"]  # one a task, not one a generator
        assert report.dropped == {"over-quota": 2}
    own = attempts(("a", False), ("b", True), ("b", False), ("c", False))
    for seed in range(5):
        found, report = pairs(own, seed=seed)
        assert models(found) == [("b", "b", False)]
        assert report.dropped == {"other-generator": 2}
    # Ties by the same rule, on their own.
    found, _ = pairs(records, ties=5)
    assert [one for one in models(found) if one[2]] == [("b", "b", True)]
    found, _ = pairs(attempts(("a", True), ("b", False), ("c", False)), ties=5)
    assert [one[2] for one in models(found)] == [False, True]


def test_a_text_format_that_writes_the_system_message_belongs_to_the_first_state():
    """Of possible partners the one in another format starts from other tokens."""
    formats = ("r2e", "json", "json", "r2e")
    records = [
        scripted(
            actions=[("view", {"path": f"{at}.py"}), ("submit", {})], resolved=at == 0, attempt=at,
            agent=Agent(name="p", model_name=f"m{at}", settings={"format": name}),
        )
        for at, name in enumerate(formats)
    ]  # fmt: skip
    for seed in range(5):
        dataset = pair_samples(records, lambda t: encode(t, byte_tokenizer()), seed=seed)
        assert len(dataset) == 1
        assert dataset.report.dropped == {"other-first-state": 2}
    # A system message of its own, and recorded tokens, are the same in every format.
    for make in (with_system, sampled):
        both = [make(agent=Agent(name="p", settings={"format": one})) for one in formats[:2]]
        both[1] = dataclasses.replace(both[1], resolved=False, steps=(
            *both[1].steps[:-1], dataclasses.replace(both[1].steps[-1], message="Else.")
        ))  # fmt: skip
        assert len(pairs(both)[0]) == 1


def with_system(**changes):
    record = scripted(**changes)
    system = Step(step_id=1, source="system", message="You mend bugs.")
    return dataclasses.replace(record, steps=(system, *record.steps))


def test_partners_with_the_same_steps_make_no_pair_and_are_told_so():
    same = [sampled(), sampled(resolved=False)]
    found, report = pairs(same)
    assert found == []
    assert report.dropped == {"same-steps": 2}
    other = sampled(replies=("else",), resolved=False)
    assert pairs([*same, other])[1].dropped == {"same-steps": 1}


def test_log_probabilities_and_ids_of_calls_make_no_other_steps():
    """A server's ids are random, and rounding depends on the batch: the gradient would be 0."""

    def anew(record):
        steps = [
            dataclasses.replace(
                step,
                tool_calls=tuple(
                    dataclasses.replace(call, tool_call_id=f"call-{random.random()}")
                    for call in step.tool_calls
                ),
                metrics=step.metrics
                and dataclasses.replace(
                    step.metrics, logprobs=tuple(p - 0.01 for p in step.metrics.logprobs)
                ),
            )
            for step in record.steps
        ]
        return dataclasses.replace(record, steps=tuple(steps))

    twin = anew(sampled(attempt=1, resolved=False))
    found, report = pairs([sampled(), twin])
    assert found == []
    assert report.dropped == {"same-steps": 2}
    other = sampled(replies=("look", "else"), resolved=False, attempt=2)
    for seed in range(4):
        (pair,) = pairs([sampled(), twin, other], seed=seed)[0]
        assert pair.rejected is other
        assert pair.shared_steps == 1
    branch = anew(sampled(replies=("look", "else"), attempt=3))
    assert pairs([branch, sampled(resolved=False)])[0][0].shared_steps == 1


def test_reasons_are_of_each_first_state():
    records = [sampled(), sampled(replies=("no",), resolved=False)]
    system = Step(step_id=1, source="system", message="Else.")
    alone = sampled(replies=("alone",), resolved=False)
    alone = dataclasses.replace(alone, steps=(system, *alone.steps[1:]))
    found, report = pairs([*records, alone])
    assert len(found) == 1
    assert report.dropped == {"other-first-state": 1}


def test_ties_spread_over_the_trajectories():
    """With three of them the two of one outcome have no side in common."""
    for seed in range(8):
        found, _ = pairs(mixed_buffer(tasks=1, each=8, seed=seed), ties=3, seed=seed)
        ties = [p for p in found if p.tie]
        assert [p.chosen.resolved for p in ties] == [True, False, True]
        sides = {id(side) for p in ties for side in (p.chosen, p.rejected)}
        assert len(sides) == 6


def test_every_drop_is_counted_with_its_reason():
    buffer = [
        sampled("a"),
        sampled("a", replies=("x",), resolved=False),
        sampled("a", replies=("y",), resolved=False),
        sampled("b"),
        sampled("c", failure=FAILURE),
        sampled("d", finished=False, truncation="steps"),
    ]
    found, report = pairs(buffer)
    assert len(found) == 1
    assert report.seen == 6
    assert report.dropped == {"failure": 1, "unfinished": 1, "no-partner": 1, "over-quota": 1}
    assert str(report).startswith("1 samples from 6 trajectories; left out: 1 failure (an infra")


def test_kto_rows_keep_both_labels_and_sft_rows_the_resolved():
    buffer = [*mixed_buffer(tasks=2, each=4), sampled("z", finished=False)]
    rows, report = kto_rows(buffer)
    assert [row.desirable for row in rows] == [row.trajectory.resolved for row in rows]
    assert len(rows) == 8
    assert report.dropped == {"unfinished": 1}
    rows, report = sft_rows(buffer, per_task=1)
    assert len(rows) == 2
    assert all(row.trajectory.resolved for row in rows)
    assert report.dropped == {"unfinished": 1, "unresolved": 4, "over-quota": 2}


def test_trap_5_a_pair_whose_tokens_start_differently_is_dropped():
    """The same texts, rendered by two templates: not the same first state for the model."""
    starts = iter([(1, 2), (1, 3)])

    def encoder(trajectory):
        return Encoded((*next(starts), 9), (False, False, True), (-1, -1, 0))

    dataset = pair_samples([sampled(), sampled(replies=("n",), resolved=False)], encoder)
    assert len(dataset) == 0
    assert dataset.report.dropped == {"prompts-differ": 1}


def branches(*endings, shared=("look", "edit")):
    """Attempts that begin with the same agent steps; each ending is (replies, resolved)."""
    return [
        sampled(replies=(*shared, *replies), resolved=resolved, attempt=at)
        for at, (replies, resolved) in enumerate(endings)
    ]


def test_branches_give_step_level_pairs():
    """Both sides are in one state after the steps they share: what follows is compared."""
    good, bad = branches((("fix", "done"), True), (("break", "done"), False))
    bad = with_prompts_of(bad, good, turns=3)
    (pair,), _ = pairs([good, bad])
    assert pair.shared_steps == 2
    dataset = pair_samples([good, bad], lambda t: encode(t, None))
    (sample,) = dataset.samples
    assert sample.from_turn == dataset.report.step_level * 2 == 2
    for side, record in zip(sample.sequences, (good, bad), strict=True):
        whole = encode(record, None)
        assert side.input_ids == whole.input_ids
        learned = {t for t in side.turn_ids if t >= 0}
        assert learned == {2, 3}
        assert side.loss_mask == tuple(t >= 2 for t in whole.turn_ids)
    chosen, rejected = sample.sequences
    start = chosen.prompt_length
    assert chosen.input_ids[:start] == rejected.input_ids[:start]
    assert "1 samples (1 step-level) from 2 trajectories" in str(dataset.report)


def with_prompts_of(record, other, *, turns):
    """`record` with the prompt tokens of `other` in its first turns, as a branch has them."""
    agent = list(record.agent_steps)
    for turn in range(turns):
        prompt = other.agent_steps[turn].metrics.prompt_token_ids
        metrics = dataclasses.replace(agent[turn].metrics, prompt_token_ids=prompt)
        agent[turn] = dataclasses.replace(agent[turn], metrics=metrics)
    return dataclasses.replace(record, steps=(*record.steps[:2], *agent))


def test_a_step_whose_observation_differs_is_not_shared():
    good, bad = branches((("fix",), True), (("break",), False))
    bad = with_prompts_of(bad, good, turns=2)
    assert pairs([good, bad])[0][0].shared_steps == 2
    second = bad.agent_steps[1]
    other = dataclasses.replace(second, observation=StepObservation(content="else"))
    bad = dataclasses.replace(bad, steps=(*bad.steps[:3], other, *bad.steps[4:]))
    assert pairs([good, bad])[0][0].shared_steps == 1


def test_a_step_whose_prompt_keeps_another_beginning_is_not_shared():
    """New tokens alike behind other ones that were kept are another state."""
    good, bad = branches((("fix", "done"), True), (("break", "done"), False))
    bad = with_prompts_of(bad, good, turns=3)
    assert pairs([good, bad])[0][0].shared_steps == 2
    second = bad.agent_steps[1]
    metrics = dataclasses.replace(second.metrics, prompt_prefix=second.metrics.prompt_prefix - 1)
    other = dataclasses.replace(second, metrics=metrics)
    bad = dataclasses.replace(bad, steps=(*bad.steps[:3], other, *bad.steps[4:]))
    assert pairs([good, bad])[0][0].shared_steps == 1


def test_a_pair_never_loses_its_last_turn():
    good = sampled(replies=("look", "done"))
    bad = with_prompts_of(sampled(replies=("look", "done", "more"), resolved=False), good, turns=2)
    (pair,), _ = pairs([good, bad])
    assert pair.shared_steps == 1
    (sample,) = pair_samples([good, bad], lambda t: encode(t, None)).samples
    assert all(side.num_loss_tokens for side in sample.sequences)


def test_of_equal_candidates_those_that_share_most_steps_are_paired():
    good, near = branches((("fix",), True), (("break",), False))
    near = with_prompts_of(near, good, turns=2)
    others = [sampled(replies=(f"r{i}", "no"), resolved=False, attempt=i) for i in range(5)]
    for seed in range(4):
        (pair,), _ = pairs([good, *others, near], seed=seed)
        assert pair.rejected == near
    found, _ = pairs([good, *others, near], per_task=6)
    assert len({p.rejected.trajectory_id for p in found}) == 6  # still spread over all


def test_the_steps_that_are_shared_change_no_gradient_of_the_pair():
    """Their log-probabilities cancel in the margin, so leaving them out is exact."""
    good, bad = branches((("fix", "done"), True), (("break it", "done"), False))
    bad = with_prompts_of(bad, good, turns=3)
    (sample,) = pair_samples([good, bad], lambda t: encode(t, None)).samples
    gradients = []
    for sides in (sample.sequences, [encode(t, None) for t in (good, bad)]):
        model = tiny_llama(seed=3).double()
        sums = []
        for side in sides:
            batch = collate([side], torch.device("cpu"))
            sums.append(sequence_logps(model, batch.input_ids, batch.loss_mask).logps)
        flat = torch.tensor([-9.0], dtype=torch.float64)
        entropo_dpo(*sums, flat, flat, gamma=0.1, zeta=0.2).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-5)
    assert gradients[0].abs().max() > 1e-3


def test_what_cannot_be_encoded_leaves_its_place_to_others():
    """A task is not lost because the pair that was chosen first holds a trajectory too long."""
    records = mixed_buffer(tasks=3, each=6)
    whole = pair_samples(records, lambda t: encode(t, None))
    first = {id(p.chosen) for p in pairs(records)[0]}

    def encoder(trajectory):
        if id(trajectory) in first:
            raise Unusable("too-long", "It has too many tokens.")
        return encode(trajectory, None)

    found = pair_samples(records, encoder)
    assert [s.task for s in found.samples] == [s.task for s in whole.samples]
    assert found.report.dropped == whole.report.dropped + Counter({"too-long": 3, "over-quota": -3})
    for kind in ("kto", "sft"):
        rows = row_samples(records, encoder, kind=kind, per_task=1)
        assert {s.task for s in rows.samples if s.desirable} == {"t-0", "t-1", "t-2"}
        assert rows.report.seen == rows.report.kept + sum(rows.report.dropped.values())
