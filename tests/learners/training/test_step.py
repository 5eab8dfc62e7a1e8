"""The gradient of an optimizer batch does not depend on how it is cut."""

import re
from pathlib import Path

import pytest
import torch

from learners.data.dataset import Sample
from learners.losses import Loss, LossOutput, get_loss
from learners.training.passes import Passes
from learners.training.score import PolicySums, Scorer
from learners.training.step import Objective, run_batch, try_loss
from learners.training.workers import Workers
from tests.learners.models import tiny_llama
from tests.learners.training.test_passes import CPU, pair, sequence

SETTINGS = {
    "gamma": 0.1, "zeta": 0.11, "beta": 0.1, "label_smoothing": 0.1,
    "desirable_weight": 1.0, "undesirable_weight": 1.0,
}  # fmt: skip
PAIRS = [pair(20, 6, 9), pair(12, 30, 5, task=1), pair(20, 4, 2)]
ROWS = [
    Sample((sequence(9, reply, task=task),), task, desirable=reply > 9, mean_tokens=12.0)
    for task, reply in ((0, 3), (0, 25), (1, 7), (2, 14))
]


def length_normalized(policy_logps, num_tokens):
    """A mean over samples of a figure a token."""
    return LossOutput(-(policy_logps / num_tokens).mean())


def gradient(loss, micro_batch_tokens):
    """Of all parameters, by way of as many passes as the samples need."""
    model, found = tiny_llama(), get_loss(loss)
    passes = Passes(model, CPU, together=True)
    scorer = Scorer(PolicySums(model), passes, Workers())
    samples = PAIRS if found.kind == "pairs" else ROWS
    cut = passes.microbatches(samples, micro_batch_tokens)
    assert len(cut) == (len(samples) if micro_batch_tokens == 1 else 1)
    references = torch.full((len(samples), len(samples[0].sequences)), -20.0, dtype=torch.float64)
    z0 = torch.full((len(samples),), 0.3, dtype=torch.float64)
    objective = Objective(found, SETTINGS, scorer, micro_batch_tokens)
    run_batch(objective, samples, references, z0)
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


OWN = "tests.learners.training.test_step:length_normalized"


@pytest.mark.parametrize("loss", ["sft", "dpo", "entropo-dpo", "kto", "entropo-kto", OWN])
def test_gradients_do_not_depend_on_how_the_batch_is_cut(loss):
    whole = gradient(loss, 10_000)
    assert whole.abs().max() > 1e-3
    torch.testing.assert_close(gradient(loss, 1), whole, atol=1e-6, rtol=1e-4)


def keeps_what_it_is_given(kind, kept):
    """A loss of that kind which takes whatever it is offered."""

    def loss(**offered):
        kept.update(offered)
        return LossOutput(sum(v.sum() for n, v in offered.items() if n.startswith("policy_")))

    class Everything(frozenset):
        def __contains__(self, name):
            return True

    return Loss("own", loss, kind, Everything({"ref_logps"}))


@pytest.mark.parametrize("kind", ["pairs", "kto", "sft"])
def test_the_page_names_all_that_a_loss_may_ask_for(kind):
    """With its shape: a vector as long as the batch, or a number."""
    offered = {}
    try_loss(keeps_what_it_is_given(kind, offered), SETTINGS)
    page = (Path(__file__).parents[3] / "docs" / "losses.md").read_text()
    table = page.split("What a loss may name")[1].split("\n\n")[1]
    data = "pairs" if kind == "pairs" else "rows"
    rows = re.findall(rf"^\| (`.*?`) \| (?:{data}|all) \|(.*)", table, re.MULTILINE)
    named = {name: said for names, said in rows for name in re.findall(r"`(\w+)`", names)}
    assert set(offered) == set(named)
    for name, value in offered.items():
        assert value.shape == (2,) if "number" not in named[name] else isinstance(value, float)
