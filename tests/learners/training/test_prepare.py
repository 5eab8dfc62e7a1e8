"""What the settings and the loss say about the samples, in training and in its plan."""

import dataclasses

import pytest

from agents.policies.hub import fingerprint
from learners.data.encode import encode, without_ids
from learners.losses import get_loss
from learners.training.config import TrainConfig
from learners.training.plan import Assumptions
from learners.training.plan.samples import workload
from learners.training.prepare import build_dataset
from swe_env.replay.trajectory import Agent
from tests.learners.models import byte_tokenizer
from tests.learners.records import mixed_buffer, sampled, scripted


def branches():
    """Two attempts that share their first turn and its tokens."""
    good = sampled(replies=("look", "done"))
    last = good.steps[-1]
    metrics = dataclasses.replace(last.metrics, completion_token_ids=(7,) * 9)
    other = dataclasses.replace(last, message="else", metrics=metrics)
    return [good, dataclasses.replace(good, steps=(*good.steps[:-1], other), resolved=False)]


def built(records, loss, **changes):
    config = TrainConfig(model="m", buffer="b", out="o", packing="none", **changes)
    dataset = build_dataset(records, byte_tokenizer(), config, get_loss(loss))
    planned = workload(records, config, get_loss(loss), Assumptions())
    return dataset, planned


def shared_apart(policy_chosen_logps, policy_rejected_logps, *, zeta, chosen_num_tokens):
    raise NotImplementedError


@pytest.mark.parametrize(
    ("loss", "step_level"),
    [("entropo-dpo", 1), ("spl", 1), ("entropo-dpo-normalized", 0),
     (f"{__name__}:{shared_apart.__name__}", 0)],
)  # fmt: skip
def test_a_loss_that_counts_tokens_is_given_whole_trajectories(loss, step_level):
    """Shared turns cancel only in functions of S_w - S_l; lengths would be wrong without them."""
    dataset, planned = built(branches(), loss)
    (sample,) = dataset.samples
    tokens = len("done") + 9 + (0 if step_level else 2 * len("look"))
    assert sample.num_loss_tokens == tokens
    assert sample.from_turn == dataset.report.step_level == step_level
    assert sum(batch.loss_tokens for batch in planned.steps[0][0]) == tokens


def test_one_text_format_for_all_makes_one_first_state():
    """Without it each record is written in its own, and different ones make no pair."""
    agents = [Agent(name="a", settings={"format": name}) for name in ("r2e", "json")]
    good = scripted(agent=agents[0])
    bad = scripted(actions=[("submit", {})], resolved=False, agent=agents[1])
    dataset, _ = built([good, bad], "entropo-dpo", text_format="json")
    assert len(dataset) == 1
    found = built([good, bad, scripted("t-2"), *_other_task()], "entropo-dpo")[0]
    assert [sample.task for sample in found.samples] == ["t-2"]
    assert found.report.dropped == {"other-first-state": 2}


def _other_task():
    return [scripted("t-2", actions=[("submit", {})], resolved=False)]


def by(who, record, *, tokenizer=None, format=None, ids=lambda token: token):
    """The record as sampled by `who`, with what that policy tells of its tokens."""
    known = {"tokenizer": tokenizer, "format": format}
    agent = Agent(
        name="p", model_name=who, settings={k: v for k, v in known.items() if v is not None}
    )
    steps = []
    for step in record.steps:
        if step.metrics is not None:
            other = tuple(map(ids, step.metrics.completion_token_ids))
            metrics = dataclasses.replace(step.metrics, completion_token_ids=other)
            step = dataclasses.replace(step, metrics=metrics)
        steps.append(step)
    return dataclasses.replace(record, agent=agent, steps=tuple(steps))


@pytest.mark.parametrize("tokenizer", ["0123456789abcdef", None])
@pytest.mark.parametrize("format", [None, "tools"])
def test_a_teachers_records_beside_a_students_are_learned_as_text(tokenizer, format):
    """As if they had no ids, be they told by the tokenizer's name or read back."""

    def shifted(token):
        return (token + 1) % 200

    student = by("student", sampled("t-1"), tokenizer=fingerprint(byte_tokenizer()))
    teacher = by("teacher", sampled("t-2"), tokenizer=tokenizer, format=format, ids=shifted)
    silent = by("teacher", scripted("t-3"), tokenizer=tokenizer, format=format)
    dataset, _ = built([student, teacher, silent], "sft")
    own, theirs, text = (sample.sequences[0] for sample in dataset.samples)
    assert own == encode(student, byte_tokenizer())
    assert not own.templated
    assert theirs == encode(without_ids(teacher), byte_tokenizer())
    assert theirs.templated
    said = byte_tokenizer().decode(theirs.input_ids)
    assert ("You mend bugs." in said) == (format is None)  # else it left the calls to the server
    assert said.count("<function=view>") >= 2
    assert text.templated
    report = dataset.report
    assert (report.templated, report.partly, report.set_aside) == (2, 0, 1)
    assert "2 sequences written by the chat template; token ids of 1 trajectories" in str(report)


def test_another_models_ids_neither_part_nor_join_pairs():
    """Records of one first state are paired by what they say, whatever their prompts' ids are."""
    student = by("student", sampled("t-2"), tokenizer=fingerprint(byte_tokenizer()))
    good, bad = (
        by("teacher", one, tokenizer="0123456789abcdef")
        for one in (sampled(), sampled(replies=("look", "guess"), resolved=False))
    )
    first = bad.steps[2]
    metrics = dataclasses.replace(first.metrics, prompt_token_ids=(1, 2, 3))
    steps = (*bad.steps[:2], dataclasses.replace(first, metrics=metrics), *bad.steps[3:])
    records = [student, good, dataclasses.replace(bad, steps=steps)]
    config = TrainConfig(model="m", buffer="b", out="o")
    dataset = build_dataset(records, byte_tokenizer(), config, get_loss("entropo-dpo"))
    (pair,) = dataset.samples
    assert [side.templated for side in pair.sequences] == [True, True]
    assert pair.from_turn == 1


@pytest.mark.parametrize("loss", ["sft", "entropo-kto", "entropo-dpo"])
def test_recorded_ids_false_uses_none_in_training_and_in_its_plan(loss):
    records = [by("teacher", one, tokenizer="0123456789abcdef") for one in mixed_buffer()]
    records[0] = by("student", records[0], tokenizer=fingerprint(byte_tokenizer()))
    dataset, planned = built(records, loss, recorded_ids=False)
    plain = [without_ids(one) for one in records]
    assert dataset.samples == built(plain, loss)[0].samples
    assert dataset.report.set_aside == len(records)
    assert planned.samples == len(dataset)
    assert planned.estimated == len({t for s in dataset.samples for t in s.sequences})
    assert "token ids of 16 trajectories not used" in planned.report
    assert planned.steps == built(plain, loss)[1].steps
