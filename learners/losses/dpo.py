"""EntroPO-DPO and DPO: losses on pairs of trajectories of one task."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from learners.losses.base import (
    LossOutput,
    batch_mean,
    check_flags,
    check_logps,
    check_positive,
    means,
)
from swe_env.errors import ConfigError


def entropo_dpo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    gamma: float,
    zeta: float,
    label_smoothing: float = 0.0,
    tie: Tensor | None = None,
) -> LossOutput:
    """Entropy-regularised multi-turn DPO (arXiv 2509.12434, Theorem 3.2, Eq. 7).

    ``u = zeta (S_w - S_l) - gamma (S_ref,w - S_ref,l)``; ``L = -log sigmoid(u)``, where S is the
    sum of log-probabilities over the tokens the policy sampled. ``zeta = gamma + lambda``:
    ``zeta == gamma`` is (M-)DPO with beta = gamma, ``zeta > gamma`` rewards entropy,
    ``zeta < gamma`` (lambda < 0) sharpens, as H-DPO does (`learners.losses.h_dpo`).

    With smoothing ε, ``L = -(1 - ε) log sigmoid(u) - ε log sigmoid(-u)``: hard labels (ε = 0) have
    no finite optimum, smoothed ones have that of Eq. 9 with reward log((1 - ε) / ε).

    Args:
        policy_chosen_logps: S of the chosen trajectories, shape (batch,), float32 or float64.
        policy_rejected_logps: S of the rejected ones, (batch,).
        ref_chosen_logps: S under the reference policy, (batch,).
        ref_rejected_logps: the same for the rejected ones, (batch,).
        gamma: Weight of the KL to the reference, above 0.
        zeta: gamma + lambda, above 0.
        label_smoothing: ε in [0, 0.5].
        tie: bool (batch,): True where both trajectories are equally good; target 1/2.

    Returns:
        The mean loss, and ``rewards/*`` (the implicit reward zeta S - gamma S_ref of Lemma 3.1),
        ``logps/*``; ``rewards/accuracies`` and ``rewards/margins`` leave ties out.

    Raises:
        ConfigError: an argument has the wrong shape, type or range.
    """
    tie = check_pairs(
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps,
        gamma=gamma, zeta=zeta, label_smoothing=label_smoothing, tie=tie,
    )  # fmt: skip
    chosen = zeta * policy_chosen_logps - gamma * ref_chosen_logps.detach()
    rejected = zeta * policy_rejected_logps - gamma * ref_rejected_logps.detach()
    # Differences first: the two rewards are large and nearly equal, and float32 would keep only
    # their common digits.
    margin = (
        zeta * (policy_chosen_logps - policy_rejected_logps)
        - gamma * (ref_chosen_logps - ref_rejected_logps).detach()
    )
    return pair_loss(
        margin, chosen, rejected, policy_chosen_logps, policy_rejected_logps,
        label_smoothing=label_smoothing, tie=tie,
    )  # fmt: skip


def dpo(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    tie: Tensor | None = None,
) -> LossOutput:
    """DPO (arXiv 2305.18290, Eq. 7; smoothing as in cDPO): `entropo_dpo` with zeta = gamma = beta.

    Over a whole trajectory's agent tokens this is M-DPO, the paper's lambda = 0 twin.
    """
    return entropo_dpo(
        policy_chosen_logps,
        policy_rejected_logps,
        ref_chosen_logps,
        ref_rejected_logps,
        gamma=beta,
        zeta=beta,
        label_smoothing=label_smoothing,
        tie=tie,
    )


def check_pairs(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    gamma: float,
    zeta: float,
    label_smoothing: float,
    tie: Tensor | None,
) -> Tensor:
    """Check what every loss on pairs takes; the ties, none of them where none were given.

    Raises:
        ConfigError: an argument has the wrong shape, type or range.
    """
    check_logps(
        policy_chosen_logps=policy_chosen_logps,
        policy_rejected_logps=policy_rejected_logps,
        ref_chosen_logps=ref_chosen_logps,
        ref_rejected_logps=ref_rejected_logps,
    )
    check_positive(gamma=gamma, zeta=zeta)
    if not 0 <= label_smoothing <= 0.5:
        raise ConfigError(f"label_smoothing is {label_smoothing}: it must lie in [0, 0.5].")
    if tie is None:
        tie = torch.zeros_like(policy_chosen_logps, dtype=torch.bool)
    check_flags("tie", tie, policy_chosen_logps)
    return tie


def pair_loss(
    margin: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    *,
    label_smoothing: float,
    tie: Tensor,
) -> LossOutput:
    """Cross-entropy of ``sigmoid(margin)`` with target 1 - ε, or 1/2 for ties; and the metrics.

    Args:
        margin: u, the difference of the implicit rewards, (batch,).
        chosen: Implicit reward of the chosen trajectories, (batch,); for the metrics.
        rejected: The same for the rejected ones.
        chosen_logps: S of the chosen ones, (batch,); for the metrics.
        rejected_logps: The same for the rejected ones.
        label_smoothing: ε.
        tie: bool (batch,).
    """
    flip = torch.full_like(margin, label_smoothing).masked_fill(tie, 0.5)
    losses = -(1 - flip) * F.logsigmoid(margin) - flip * F.logsigmoid(-margin)
    return LossOutput(
        batch_mean(losses),
        means(
            rewards__chosen=(chosen, ~tie),
            rewards__rejected=(rejected, ~tie),
            rewards__margins=(margin, ~tie),
            rewards__accuracies=((margin > 0).to(margin.dtype), ~tie),
            logps__chosen=(chosen_logps, ~tie),
            logps__rejected=(rejected_logps, ~tie),
            ties=(tie.to(margin.dtype), None),
        ),
    )
