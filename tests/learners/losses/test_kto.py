import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learners.losses import entropo_kto, entropo_kto_released, kto
from swe_env.errors import ConfigError

LOGPS = st.floats(-200, -1)
ROW = st.tuples(LOGPS, LOGPS, st.booleans(), st.floats(-20, 5))
SETTINGS = {"gamma": 0.1, "zeta": 0.11}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def tensors(rows):
    policy, ref, desirable, z0 = zip(*rows, strict=True)
    return (
        torch.tensor(policy, dtype=torch.float64, requires_grad=True),
        torch.tensor(ref, dtype=torch.float64),
        torch.tensor(desirable),
        torch.tensor(z0, dtype=torch.float64, requires_grad=True),
    )


@given(
    rows=st.lists(ROW, min_size=1, max_size=5), gamma=st.floats(0.02, 1), zeta=st.floats(0.02, 1)
)
def test_value_and_gradient_are_the_papers(rows, gamma, zeta):
    policy, ref, desirable, z0 = tensors(rows)
    out = entropo_kto(
        policy, ref, desirable, gamma=gamma, zeta=zeta, z0=z0,
        desirable_weight=1.5, undesirable_weight=0.5,
    )  # fmt: skip
    out.loss.backward()
    loss = 0.0
    for i, (s, s_ref, good, reference) in enumerate(rows):
        reward = s - gamma / zeta * s_ref
        sign, weight = (1, 1.5) if good else (-1, 0.5)
        value = sigmoid(sign * zeta * (reward - reference))
        loss += weight * (1 - value) / len(rows)
        slope = -sign * weight * zeta * value * sigmoid(-sign * zeta * (reward - reference))
        assert policy.grad[i].item() == pytest.approx(slope / len(rows), rel=1e-7, abs=1e-13)
    assert out.loss.item() == pytest.approx(loss, rel=1e-9, abs=1e-13)
    assert z0.grad is None  # detached


@given(rows=st.lists(ROW, min_size=1, max_size=5), beta=st.floats(0.02, 1))
def test_lambda_zero_is_kto(rows, beta):
    policy, ref, desirable, z0 = tensors(rows)
    log_ratio = policy - ref
    ethayarajh = torch.where(
        desirable,
        1 - torch.sigmoid(beta * (log_ratio - z0)),
        1 - torch.sigmoid(beta * (z0 - log_ratio)),
    ).mean()
    out = entropo_kto(policy, ref, desirable, gamma=beta, zeta=beta, z0=z0)
    assert out.loss.item() == pytest.approx(ethayarajh.item(), rel=1e-9, abs=1e-12)
    assert kto(policy, ref, desirable, beta=beta, z0=z0).loss.item() == out.loss.item()


def test_unclamped_z0_keeps_the_gradient_on_long_trajectories():
    """At 5,000 tokens and -0.3 nat, micro-batch 1: the clamp would leave 1.2e-6 of the gradient."""
    grads = {}
    for name, z0 in (("unclamped", -1500 * (1 - 0.1 / 0.11)), ("clamped", 0.0)):
        policy = torch.tensor([-1500.0], requires_grad=True)
        ref = torch.tensor([-1500.0])
        out = entropo_kto(policy, ref, torch.tensor([False]), z0=z0, **SETTINGS)
        out.loss.backward()
        grads[name] = policy.grad.item()
    assert grads["unclamped"] == pytest.approx(0.11 / 4, rel=1e-4)
    assert grads["clamped"] / grads["unclamped"] == pytest.approx(1.2e-6, rel=0.05)


def test_step_zero_loss_has_its_closed_form():
    """With r = z0 every sigmoid is 1/2."""
    logps = torch.tensor([-700.0, -500.0])
    z0 = logps * (1 - 0.1 / 0.3)
    out = entropo_kto(
        logps, logps, torch.tensor([True, False]), gamma=0.1, zeta=0.3, z0=z0,
        desirable_weight=2.0,
    )  # fmt: skip
    assert out.loss.item() == pytest.approx((2 * 0.5 + 0.5) / 2, rel=1e-5)
    assert out.metrics["rewards/chosen"] == pytest.approx(0.3 * -700 * 2 / 3, rel=1e-5)
    assert out.metrics["z0"] == pytest.approx(-400, rel=1e-5)


def test_lambda_below_zero_sharpens_and_works():
    policy = torch.tensor([-10.0, -12.0], requires_grad=True)
    out = entropo_kto(
        policy, policy.detach(), torch.tensor([True, False]), gamma=0.2, zeta=0.1, z0=11.0
    )
    out.loss.backward()
    assert policy.grad[0] < 0 < policy.grad[1]


def test_released_variant_is_apo_zero_on_long_trajectories():
    policy = torch.tensor([-1500.0, -1400.0], dtype=torch.float64)
    ref = torch.tensor([-1510.0, -1395.0], dtype=torch.float64)
    desirable = torch.tensor([True, False])
    out = entropo_kto_released(policy, ref, desirable, z0=-136.0, **SETTINGS)
    apo_zero = (1 - sigmoid(0.11 * 10) + sigmoid(0.11 * -5)) / 2
    assert out.loss.item() == pytest.approx(apo_zero, rel=1e-9)
    assert out.metrics["z0"] == 0
    assert out.loss.item() != pytest.approx(
        entropo_kto(policy, ref, desirable, z0=-136.0, **SETTINGS).loss.item(), rel=1e-3
    )


def test_metrics_of_one_label_leave_the_other_out():
    logps = torch.tensor([-3.0])
    out = entropo_kto(logps, logps, torch.tensor([True]), z0=0.0, **SETTINGS)
    assert "rewards/rejected" not in out.metrics
    assert "rewards/margins" not in out.metrics


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": -1.0}, "gamma is -1.0"),
        ({"z0": torch.zeros(3)}, r"z0 has shape \(3,\)"),
        ({"desirable_weight": -1.0}, "desirable_weight is -1.0"),
        ({"desirable": torch.tensor([1, 0])}, "desirable is torch.int64"),
    ],
)
def test_wrong_settings_are_one_sentence(change, message):
    arguments = {"desirable": torch.tensor([True, False]), "z0": 0.0, **SETTINGS, **change}
    with pytest.raises(ConfigError, match=message):
        entropo_kto(torch.tensor([-1.0, -2.0]), torch.tensor([-1.0, -2.0]), **arguments)
