import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learners.losses import (
    entropo_dpo,
    entropo_dpo_normalized,
    entropo_kto,
    entropo_kto_normalized,
    get_loss,
    h_dpo,
    spl,
)
from learners.losses.variants import normalized_reward
from swe_env.errors import ConfigError
from tests.learners.losses.test_dpo import log_sigmoid

LOGPS = st.floats(-300, -1)
ROW = st.tuples(LOGPS, LOGPS, LOGPS, LOGPS, st.integers(1, 400), st.integers(1, 400), st.booleans())
RATIO = st.floats(0.3, 4)


def tensors(rows):
    columns = [torch.tensor(c, dtype=torch.float64) for c in list(zip(*rows, strict=True))[:4]]
    columns[0].requires_grad_()
    columns[1].requires_grad_()
    lengths = [torch.tensor(c) for c in list(zip(*rows, strict=True))[4:6]]
    return columns, lengths, torch.tensor([row[6] for row in rows])


@given(rows=st.lists(ROW, min_size=1, max_size=5), gamma=st.floats(0.01, 1), ratio=RATIO)
def test_normalized_value_and_gradient_are_as_written_out(rows, gamma, ratio):
    columns, (n_w, n_l), tie = tensors(rows)
    lam = gamma * ratio - gamma
    out = entropo_dpo_normalized(
        *columns, chosen_num_tokens=n_w, rejected_num_tokens=n_l, gamma=gamma,
        zeta=gamma * ratio, label_smoothing=0.1, tie=tie,
    )  # fmt: skip
    out.loss.backward()
    loss = 0.0
    for i, (w, x, rw, rx, tokens_w, tokens_l, even) in enumerate(rows):
        mean = (tokens_w + tokens_l) / 2
        u = gamma * ((w - rw) - (x - rx)) + lam * mean * (w / tokens_w - x / tokens_l)
        flip = 0.5 if even else 0.1
        loss += -(1 - flip) * log_sigmoid(u) - flip * log_sigmoid(-u)
        slope = -(1 - flip) * math.exp(log_sigmoid(-u)) + flip * math.exp(log_sigmoid(u))
        wanted = (gamma + lam * mean / tokens_w, -(gamma + lam * mean / tokens_l))
        for column, factor in zip(columns, wanted, strict=False):
            assert column.grad[i].item() == pytest.approx(
                slope * factor / len(rows), rel=1e-7, abs=1e-12
            )
    assert out.loss.item() == pytest.approx(loss / len(rows), rel=1e-9, abs=1e-12)


@given(rows=st.lists(ROW, min_size=1, max_size=5), gamma=st.floats(0.01, 1), ratio=RATIO)
def test_normalized_at_equal_lengths_is_the_papers_loss(rows, gamma, ratio):
    columns, (n_w, _), tie = tensors(rows)
    both = {"gamma": gamma, "zeta": gamma * ratio, "label_smoothing": 0.1, "tie": tie}
    mine = entropo_dpo_normalized(*columns, chosen_num_tokens=n_w, rejected_num_tokens=n_w, **both)
    assert mine.loss.item() == pytest.approx(entropo_dpo(*columns, **both).loss.item(), rel=1e-9)


def test_normalized_has_no_offset_from_length_at_step_zero():
    """The pair of trap 1: 6,000 over 5,000 tokens at -0.3 nat, where Eq. 7 starts at -30."""
    chosen, rejected = torch.tensor([-1800.0]), torch.tensor([-1500.0])
    lengths = {
        "chosen_num_tokens": torch.tensor([6000]), "rejected_num_tokens": torch.tensor([5000]),
    }  # fmt: skip
    out = entropo_dpo_normalized(chosen, rejected, chosen, rejected, **lengths, gamma=0.1, zeta=0.2)
    assert out.metrics["rewards/margins"] == pytest.approx(0, abs=1e-3)


def test_trap_4_normalized_keeps_the_margin_of_long_trajectories_in_float32():
    """Sums of 30,000 nats: rewards subtracted as they are would be off by 3e-3."""
    exact = [-30000.25, -29999.5, -30000.5, -30000.0]
    for lengths in ((100_000, 100_000), (100_000, 99_990)):
        n_w, n_l = (torch.tensor([n]) for n in lengths)
        out = entropo_dpo_normalized(
            *(torch.tensor([v]) for v in exact), chosen_num_tokens=n_w, rejected_num_tokens=n_l,
            gamma=0.1, zeta=0.2,
        )  # fmt: skip
        mean = sum(lengths) / 2
        per_token = exact[0] / lengths[0] - exact[1] / lengths[1]
        expected = 0.1 * ((exact[0] - exact[1]) - (exact[2] - exact[3])) + 0.1 * mean * per_token
        assert out.metrics["rewards/margins"] == pytest.approx(expected, abs=2e-6)


def test_normalized_takes_a_fully_masked_sample():
    """Trap 4: no token, sum 0, and still a gradient for the other side and none that is NaN."""
    chosen = torch.zeros(1, requires_grad=True)
    rejected = torch.tensor([-5.0], requires_grad=True)
    entropo_dpo_normalized(
        chosen, rejected, torch.zeros(1), torch.tensor([-5.0]), gamma=0.1, zeta=0.2,
        chosen_num_tokens=torch.tensor([0]), rejected_num_tokens=torch.tensor([9]),
    ).loss.backward()  # fmt: skip
    assert torch.isfinite(chosen.grad).all()
    assert rejected.grad.item() > 0


def test_normalized_asks_for_integer_lengths():
    one = torch.tensor([-1.0])
    with pytest.raises(ConfigError, match=r"rejected_num_tokens is torch\.float32"):
        entropo_dpo_normalized(
            one, one, one, one, gamma=0.1, zeta=0.1,
            chosen_num_tokens=torch.tensor([1]), rejected_num_tokens=one,
        )  # fmt: skip


def test_spl_is_its_papers_loss_in_our_letters():
    """-log sigmoid(α log π(y)/π(y') - β log π_ref(y)/π_ref(y')), α = zeta and β = gamma."""
    logps = [torch.tensor([v], dtype=torch.float64) for v in (-3.0, -7.0, -4.0, -5.0)]
    alpha, beta = 0.5, 0.2
    expected = -log_sigmoid(alpha * (-3 + 7) - beta * (-4 + 5))
    assert spl(*logps, gamma=beta, zeta=alpha).loss.item() == pytest.approx(expected, rel=1e-12)
    with_ties = spl(*logps, gamma=beta, zeta=alpha, tie=torch.tensor([True])).loss.item()
    assert with_ties != pytest.approx(expected, rel=1e-3)


def test_h_dpo_is_its_papers_loss_and_sharpens_only():
    """-log sigmoid(α β log π(y)/π(y') - β log π_ref(y)/π_ref(y')) with α below 1."""
    logps = [torch.tensor([v], dtype=torch.float64) for v in (-3.0, -7.0, -4.0, -5.0)]
    alpha, beta = 0.8, 0.2
    expected = -log_sigmoid(alpha * beta * (-3 + 7) - beta * (-4 + 5))
    out = h_dpo(*logps, gamma=beta, zeta=alpha * beta)
    assert out.loss.item() == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ConfigError, match="h-dpo sharpens, so its zeta"):
        h_dpo(*logps, gamma=0.1, zeta=0.11)


@pytest.mark.parametrize("name", ["entropo-dpo", "entropo-dpo-normalized", "spl", "h-dpo", "dpo"])
def test_pair_losses_pass_gradcheck_and_take_lambda_below_zero(name):
    loss = get_loss(name)
    generator = torch.Generator().manual_seed(0)
    columns = -20 * torch.rand(4, 6, generator=generator, dtype=torch.float64) - 1
    chosen, rejected = columns[0].requires_grad_(), columns[1].clone().requires_grad_()
    lengths = torch.randint(5, 50, (2, 6), generator=generator)

    def value(w, x):
        return loss(
            policy_chosen_logps=w, policy_rejected_logps=x, ref_chosen_logps=columns[2],
            ref_rejected_logps=columns[3], chosen_num_tokens=lengths[0],
            rejected_num_tokens=lengths[1], gamma=0.2, zeta=0.15, beta=0.15,
            label_smoothing=0.1, tie=torch.arange(6) < 2,
        ).loss  # fmt: skip

    assert torch.autograd.gradcheck(value, (chosen.detach().requires_grad_(), rejected))


KTO_ROW = st.tuples(
    LOGPS, LOGPS, st.integers(1, 400), st.booleans(), st.floats(-20, 5), st.floats(1, 400)
)


@given(rows=st.lists(KTO_ROW, min_size=1, max_size=5), gamma=st.floats(0.02, 1), ratio=RATIO)
def test_normalized_kto_value_and_gradient_are_as_written_out(rows, gamma, ratio):
    policy, ref, tokens, desirable, z0, mean = zip(*rows, strict=True)
    zeta, policy = gamma * ratio, torch.tensor(policy, dtype=torch.float64, requires_grad=True)
    out = entropo_kto_normalized(
        policy, torch.tensor(ref, dtype=torch.float64), torch.tensor(desirable),
        num_tokens=torch.tensor(tokens), mean_tokens=torch.tensor(mean, dtype=torch.float64),
        gamma=gamma, zeta=zeta, z0=torch.tensor(z0, dtype=torch.float64), desirable_weight=1.5,
    )  # fmt: skip
    out.loss.backward()
    loss = 0.0
    for i, (s, s_ref, n_i, good, reference, n) in enumerate(rows):
        scaled = gamma * (s - s_ref) + (zeta - gamma) * n * s / n_i
        sign, weight = (1, 1.5) if good else (-1, 1.0)
        right = math.exp(log_sigmoid(sign * (scaled - zeta * reference)))
        loss += weight * (1 - right) / len(rows)
        slope = gamma + (zeta - gamma) * n / n_i
        wrong = math.exp(log_sigmoid(-sign * (scaled - zeta * reference)))
        expected = -sign * weight * right * wrong * slope / len(rows)
        assert policy.grad[i].item() == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert out.loss.item() == pytest.approx(loss, rel=1e-8, abs=1e-12)


def test_normalized_kto_at_equal_lengths_is_the_papers_loss_and_has_no_offset_from_length():
    ref, tokens = torch.tensor([-1800.0, -1500.0]), torch.tensor([6000, 5000])
    labels, settings = torch.tensor([True, False]), {"gamma": 0.1, "zeta": 0.2, "z0": -400.0}
    same = entropo_kto_normalized(
        ref + 1, ref, labels, num_tokens=tokens, mean_tokens=tokens.float(), **settings
    )
    assert same == entropo_kto(ref + 1, ref, labels, **settings)
    mean = torch.full((2,), 5500.0)
    rewards = normalized_reward(ref, ref, tokens, mean, gamma=0.1, zeta=0.2)
    assert rewards.tolist() == pytest.approx([-825.0, -825.0])  # Eq. 10: -900 and -750
    nothing = torch.zeros(2, requires_grad=True)
    out = entropo_kto_normalized(
        nothing, nothing.detach(), labels, num_tokens=0 * tokens, mean_tokens=mean, **settings
    )
    out.loss.backward()
    assert torch.isfinite(nothing.grad).all()
    with pytest.raises(ConfigError, match="mean_tokens has shape"):
        entropo_kto_normalized(
            ref, ref, labels, num_tokens=tokens, mean_tokens=mean[:1], **settings
        )


@pytest.mark.parametrize(
    "name", ["entropo-kto", "entropo-kto-normalized", "entropo-kto-released", "kto"]
)
def test_kto_losses_pass_gradcheck_and_take_lambda_below_zero(name):
    loss = get_loss(name)
    generator = torch.Generator().manual_seed(0)
    policy, ref = -20 * torch.rand(2, 6, generator=generator, dtype=torch.float64) - 1

    def value(s):
        return loss(
            policy_logps=s, ref_logps=ref, desirable=torch.arange(6) < 3, gamma=0.2, zeta=0.15,
            beta=0.15, num_tokens=torch.arange(5, 11), mean_tokens=torch.full((6,), 7.5),
            z0=torch.linspace(-3, 3, 6, dtype=torch.float64),
        ).loss  # fmt: skip

    assert torch.autograd.gradcheck(value, (policy.detach().requires_grad_(),))
