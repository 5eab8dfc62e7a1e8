"""What the settings and the loss say about the samples, in training and in its plan."""

import dataclasses

import pytest

from learners.losses import get_loss
from learners.training.config import TrainConfig
from learners.training.plan import Assumptions
from learners.training.plan.samples import workload
from learners.training.prepare import build_dataset
from swe_env.replay.trajectory import Agent
from tests.learners.models import byte_tokenizer
from tests.learners.records import sampled, scripted


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
