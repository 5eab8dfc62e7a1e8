"""The gradient of an optimizer batch does not depend on how it is cut."""

import pytest
import torch

from learners.data.dataset import Sample
from learners.losses import LossOutput, get_loss
from learners.training.passes import Passes
from learners.training.score import PolicySums, Scorer
from learners.training.step import Objective, run_batch
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
