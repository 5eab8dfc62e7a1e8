import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learners.losses import dpo, entropo_dpo
from swe_env.errors import ConfigError

LOGPS = st.floats(-300, -1)
BATCH = st.lists(st.tuples(LOGPS, LOGPS, LOGPS, LOGPS, st.booleans()), min_size=1, max_size=5)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > -30 else x - math.log1p(math.exp(x))


def written_out(rows, gamma, zeta, smoothing):
    """Eq. 7 with smoothing and ties, one pair at a time: (mean loss, d loss / d S_w, S_l)."""
    loss, grads = 0.0, []
    for w, x, rw, rx, tie in rows:
        u = zeta * (w - x) - gamma * (rw - rx)
        flip = 0.5 if tie else smoothing
        loss += -(1 - flip) * log_sigmoid(u) - flip * log_sigmoid(-u)
        slope = -(1 - flip) * math.exp(log_sigmoid(-u)) + flip * math.exp(log_sigmoid(u))
        grads.append((slope * zeta / len(rows), -slope * zeta / len(rows)))
    return loss / len(rows), grads


def tensors(rows):
    columns = [
        torch.tensor(column, dtype=torch.float64) for column in list(zip(*rows, strict=True))[:4]
    ]
    columns[0].requires_grad_()
    columns[1].requires_grad_()
    return columns, torch.tensor([row[4] for row in rows])


@given(
    rows=BATCH,
    gamma=st.floats(0.01, 1),
    zeta=st.floats(0.01, 1),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
)
def test_value_and_gradient_are_the_papers(rows, gamma, zeta, smoothing):
    columns, tie = tensors(rows)
    out = entropo_dpo(*columns, gamma=gamma, zeta=zeta, label_smoothing=smoothing, tie=tie)
    out.loss.backward()
    loss, grads = written_out(rows, gamma, zeta, smoothing)
    assert out.loss.item() == pytest.approx(loss, rel=1e-10, abs=1e-12)
    for i, (chosen, rejected) in enumerate(grads):
        assert columns[0].grad[i].item() == pytest.approx(chosen, rel=1e-8, abs=1e-14)
        assert columns[1].grad[i].item() == pytest.approx(rejected, rel=1e-8, abs=1e-14)


@given(rows=BATCH, beta=st.floats(0.01, 1))
def test_lambda_zero_is_dpo(rows, beta):
    (w, x, rw, rx), _ = tensors(rows)
    entropo = entropo_dpo(w, x, rw, rx, gamma=beta, zeta=beta)
    rafailov = -torch.nn.functional.logsigmoid(beta * ((w - rw) - (x - rx))).mean()
    assert entropo.loss.item() == pytest.approx(rafailov.item(), rel=1e-9, abs=1e-12)
    assert dpo(w, x, rw, rx, beta=beta).loss.item() == entropo.loss.item()


def test_trap_1_length_moves_the_step_zero_logit_by_a_closed_form():
    """At step 0 the margin is lambda (S_ref,w - S_ref,l), not 0."""
    chosen, rejected = torch.tensor([-1800.0]), torch.tensor([-1500.0])
    for lam, margin in ((0.0, 0.0), (0.01, -3.0), (0.1, -30.0), (-0.05, 15.0)):
        out = entropo_dpo(chosen, rejected, chosen, rejected, gamma=0.1, zeta=0.1 + lam)
        assert out.metrics["rewards/margins"] == pytest.approx(margin, abs=1e-3)
        assert out.loss.item() == pytest.approx(-log_sigmoid(margin), rel=1e-4, abs=1e-6)


def test_trap_3_entropy_only_reweights_pairs():
    """The gradient keeps DPO's direction, dS_w = -dS_l, whatever lambda."""
    columns, _ = tensors([(-10.0, -12.0, -11.0, -9.0, False)])
    entropo_dpo(*columns, gamma=0.1, zeta=0.3).loss.backward()
    u = 0.3 * 2 - 0.1 * -2
    assert columns[0].grad.item() == pytest.approx(-0.3 / (1 + math.exp(u)), rel=1e-12)
    assert columns[1].grad.item() == -columns[0].grad.item()


def test_a_tie_pulls_to_equal_rewards_and_stays_out_of_the_accuracy():
    columns, tie = tensors([(-10.0, -20.0, -10.0, -20.0, True), (-5.0, -9.0, -7.0, -7.0, False)])
    out = entropo_dpo(*columns, gamma=0.1, zeta=0.2, tie=tie)
    out.loss.backward()
    assert columns[0].grad[0] > 0 > columns[1].grad[0]  # margin was positive: pushed back
    assert out.metrics["rewards/accuracies"] == 1.0
    assert out.metrics["logps/chosen"] == -5.0
    assert out.metrics["ties"] == 0.5


def test_trap_4_float32_keeps_the_margin_of_long_trajectories():
    """Sums of 30,000 nats that differ by less than one: the difference is taken first."""
    exact = [-30000.25, -29999.5, -30000.5, -30000.0]
    out = entropo_dpo(*(torch.tensor([v]) for v in exact), gamma=0.1, zeta=0.11)
    assert out.metrics["rewards/margins"] == pytest.approx(0.11 * -0.75 - 0.1 * -0.5, abs=1e-7)
    half = [torch.tensor([v]).bfloat16() for v in exact]
    with pytest.raises(ConfigError, match="half precision loses whole nats"):
        entropo_dpo(*half, gamma=0.1, zeta=0.11)


def test_trap_4_policy_and_reference_alike_have_margin_zero():
    chosen, rejected = torch.tensor([-1234.567]), torch.tensor([-2345.678])
    out = entropo_dpo(chosen, rejected, chosen, rejected, gamma=0.1, zeta=0.1)
    assert out.metrics["rewards/margins"] == 0


def test_trap_4_a_fully_masked_batch_gives_a_differentiable_loss():
    """Sums over no token are zeros: the loss is log 2, its gradient finite."""
    nothing = torch.zeros(2, requires_grad=True)
    out = entropo_dpo(nothing, nothing * 1, nothing, nothing, gamma=0.1, zeta=0.2)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(math.log(2))
    assert torch.isfinite(nothing.grad).all()


def test_an_extreme_margin_gives_a_finite_gradient():
    chosen = torch.tensor([-90000.0], requires_grad=True)
    far = torch.tensor([-10.0])
    out = entropo_dpo(chosen, far, far, far, gamma=0.1, zeta=1.0)
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert chosen.grad.item() == pytest.approx(-1.0)


def test_trap_4_an_empty_batch_gives_a_differentiable_zero():
    empty = torch.zeros(0, requires_grad=True)
    out = entropo_dpo(empty, empty, empty, empty, gamma=0.1, zeta=0.11)
    out.loss.backward()
    assert out.loss.item() == 0
    assert out.metrics == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": 0.0}, "gamma is 0.0"),
        ({"zeta": -0.1}, "zeta is -0.1"),
        ({"zeta": float("nan")}, "zeta is nan"),
        ({"label_smoothing": 0.6}, r"label_smoothing is 0.6: it must lie in \[0, 0.5\]"),
        ({"tie": torch.tensor([1])}, "tie is torch.int64"),
        ({"tie": torch.tensor([True, False])}, "tie is torch.bool of shape \\(2,\\)"),
    ],
)
def test_wrong_settings_are_one_sentence(change, message):
    logps = [torch.tensor([-1.0])] * 4
    with pytest.raises(ConfigError, match=message):
        entropo_dpo(*logps, **{"gamma": 0.1, "zeta": 0.11, **change})


@pytest.mark.parametrize(
    "bad", [torch.tensor([-1.0, -2.0]), torch.tensor(-1.0), torch.tensor([-1.0]).bfloat16()]
)
def test_wrong_tensors_are_one_sentence(bad):
    logps = [torch.tensor([-1.0])] * 3
    with pytest.raises(ConfigError, match="ref_rejected_logps"):
        entropo_dpo(*logps, bad, gamma=0.1, zeta=0.11)
