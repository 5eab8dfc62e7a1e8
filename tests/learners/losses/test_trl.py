"""λ = 0 against TRL's own code: figures by `benchmarks/trl_losses.py`, which ran it."""

import json
from pathlib import Path

import pytest
import torch

from learners.losses import dpo, entropo_dpo, entropo_kto, entropo_kto_released, kto
from learners.losses.z0 import mismatched

TRL = json.loads((Path(__file__).parents[2] / "data" / "trl_losses.json").read_text())


def vector(values):
    return torch.tensor(values)


@pytest.mark.parametrize("case", TRL["dpo"], ids=lambda case: f"beta={case['beta']}")
def test_dpo_is_trls_sigmoid(case):
    logps = vector(case["logps"]).requires_grad_()
    ref_chosen, ref_rejected = vector(case["ref_logps"]).chunk(2)
    for loss, settings in (
        (dpo, {"beta": case["beta"]}),
        (entropo_dpo, {"gamma": case["beta"], "zeta": case["beta"]}),
    ):
        out = loss(*logps.chunk(2), ref_chosen, ref_rejected, **settings)
        (gradient,) = torch.autograd.grad(out.loss, logps)
        assert out.loss.item() == pytest.approx(case["loss"], abs=1e-5)
        torch.testing.assert_close(gradient, vector(case["gradient"]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", TRL["kto"], ids=lambda c: f"{c['kind']}, beta={c['beta']}")
def test_kto_is_trls(case):
    """Its ``kto`` with the clamped mismatched z0, and its ``apo_zero_unpaired`` as released."""
    logps = vector(case["logps"]).requires_grad_()
    beta, weights = case["beta"], {"undesirable_weight": case["undesirable_weight"]}
    rows = (logps, vector(case["ref_logps"]), vector(case["label"]))
    z0 = mismatched(vector(case["mismatched"]), vector(case["ref_mismatched"]))
    assert z0 > 0
    if case["kind"] == "kto":
        outs = [
            kto(*rows, beta=beta, z0=z0, **weights),
            entropo_kto(*rows, gamma=beta, zeta=beta, z0=z0, **weights),
        ]
    else:
        outs = [entropo_kto_released(*rows, gamma=0.9 * beta, zeta=beta, z0=-5.0, **weights)]
    for out in outs:
        (gradient,) = torch.autograd.grad(out.loss, logps)
        assert out.loss.item() == pytest.approx(case["loss"], abs=1e-5)
        torch.testing.assert_close(gradient, vector(case["gradient"]), atol=1e-5, rtol=1e-5)
