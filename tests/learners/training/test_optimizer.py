"""The optimizer's settings reach the weights, seen from outside of a run."""

import pytest
import torch
from safetensors.torch import load_file

from learners import TrainConfig, read_metrics, train
from learners.losses import LossOutput

RATE = 5e-3


def after_a_step(settings, out, **changes):
    """The matrices A and B after a single step from B = 0, and the step's figures.

    A has no gradient there. Adam's first step moves by the learning rate wherever the gradient is
    well above its epsilon.
    """
    changes = {"loss": "sft", "max_steps": 1, "learning_rate": RATE, "out": str(out), **changes}
    found = train(TrainConfig(**{**settings, **changes})).out
    weights = load_file(found / "adapter_model.safetensors")
    sides = [torch.cat([v.flatten() for n, v in weights.items() if f"lora_{s}" in n]) for s in "AB"]
    return *sides, read_metrics(found)[0]


def test_weight_decay_shrinks_what_has_no_gradient(settings, tmp_path):
    plain, moved, _ = after_a_step(settings, tmp_path / "plain")
    decayed, moved_too, _ = after_a_step(settings, tmp_path / "decayed", weight_decay=0.5)
    assert plain.abs().max() > 0.1
    torch.testing.assert_close(decayed, plain * (1 - RATE * 0.5), atol=1e-7, rtol=1e-6)
    assert torch.equal(moved, moved_too)  # from 0, of which nothing decays


def test_max_grad_norm_clips_the_gradient_and_not_its_figure(settings, tmp_path):
    """Clipped far below Adam's epsilon of 1e-8, a gradient moves next to nothing."""
    _, plain, figures = after_a_step(settings, tmp_path / "plain")
    _, clipped, same = after_a_step(settings, tmp_path / "clipped", max_grad_norm=1e-12)
    assert plain.abs().max().item() == pytest.approx(RATE, rel=1e-3)
    assert 0 < clipped.abs().max().item() < 1e-3 * RATE
    assert figures["grad_norm"] == same["grad_norm"] > 1e-3


def test_a_run_warms_up_and_follows_the_cosine(settings):
    """Steps 1 to 3 of 6 rise; cos(pi k / 3) then. The first is the one that Adam takes."""
    moved = []

    def on_eval(model, step):
        moved.append(
            max(p.abs().max().item() for n, p in model.named_parameters() if "lora_B" in n)
        )
        return {}

    settings |= {"loss": "sft", "learning_rate": RATE, "warmup": 0.5, "eval_every": 1}
    out = train(TrainConfig(**settings), on_eval=on_eval).out
    rates = [record["learning_rate"] for record in read_metrics(out)]
    assert rates == pytest.approx([RATE * share for share in (1 / 3, 2 / 3, 1, 1, 0.75, 0.25)])
    assert moved[0] == pytest.approx(RATE / 3, rel=1e-3)


def with_tensors(policy_logps, num_tokens):
    half = (-policy_logps / num_tokens).mean()
    return LossOutput(half, {"my/loss": half, "my/count": torch.tensor(3), "my/one": 1})


def test_tensors_among_a_losss_metrics_are_written_as_numbers(settings, tmp_path):
    settings |= {"loss": "tests.learners.training.test_optimizer:with_tensors", "max_steps": 2}
    records = read_metrics(train(TrainConfig(**settings)).out)
    assert [r["my/loss"] for r in records] == [r["loss"] for r in records]
    assert [(r["my/count"], r["my/one"]) for r in records] == [(3.0, 1.0)] * 2
