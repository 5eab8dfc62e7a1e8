"""EntroPO-KTO, KTO, and the authors' released variant: losses on single trajectories."""

from __future__ import annotations

import torch
from torch import Tensor

from learners.losses.base import (
    LossOutput,
    batch_mean,
    check_flags,
    check_logps,
    check_positive,
    check_weights,
    means,
)
from swe_env.errors import ConfigError


def entropo_kto(
    policy_logps: Tensor,
    ref_logps: Tensor,
    desirable: Tensor,
    *,
    gamma: float,
    zeta: float,
    z0: Tensor | float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> LossOutput:
    """Entropy-regularised multi-turn KTO (arXiv 2509.12434, Appendix B, Eqs. 10-13).

    ``r = S - (gamma / zeta) S_ref``; desirable ``w+ (1 - sigmoid(zeta (r - z0)))``, undesirable
    ``w- (1 - sigmoid(zeta (z0 - r)))``.

    `z0` estimates ``E[S - (gamma / zeta) S_ref]`` over the policy's own trajectories
    (`learners.losses.z0` has the estimators). It is used as given, without KTO's clamp at zero:
    with zeta > gamma it is negative, and at 5,000 agent tokens the clamp would leave 1e-6 of the
    gradient.

    Args:
        policy_logps: S of each trajectory, shape (batch,), float32 or float64.
        ref_logps: S under the reference policy, (batch,).
        desirable: bool (batch,).
        gamma: Weight of the KL to the reference, above 0.
        zeta: gamma + lambda, above 0; equal to gamma this is KTO with beta = gamma.
        z0: Scalar or (batch,); no gradient flows into it.
        desirable_weight: w+, 0 or above.
        undesirable_weight: w-, 0 or above.

    Returns:
        The mean loss, and ``rewards/*`` (zeta r), ``logps/*`` and ``z0``. ``rewards/accuracies`` is
        the share on the right side of z0.

    Raises:
        ConfigError: an argument has the wrong shape, type or range.
    """
    check_rows(
        policy_logps, ref_logps, desirable, gamma, zeta, desirable_weight, undesirable_weight
    )
    reward = policy_logps - (gamma / zeta) * ref_logps.detach()
    return row_loss(reward, policy_logps, desirable, zeta, z0, desirable_weight, undesirable_weight)


def kto(
    policy_logps: Tensor,
    ref_logps: Tensor,
    desirable: Tensor,
    *,
    beta: float,
    z0: Tensor | float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> LossOutput:
    """KTO (arXiv 2402.01306, Eq. 8): `entropo_kto` with zeta = gamma = beta.

    The KTO paper and TRL take z0 from `learners.losses.z0.mismatched`, with its clamp.
    """
    return entropo_kto(
        policy_logps,
        ref_logps,
        desirable,
        gamma=beta,
        zeta=beta,
        z0=z0,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
    )


def entropo_kto_released(
    policy_logps: Tensor,
    ref_logps: Tensor,
    desirable: Tensor,
    *,
    gamma: float,
    zeta: float,
    z0: Tensor | float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> LossOutput:
    """KTO as the EntroPO authors released it, which differs from their Eqs. 10-13.

    The log-ratio is unweighted (``S - S_ref``) and the weighted z0 is clamped at 0. On long
    trajectories z0 is far below 0, so this is TRL's ``apo_zero_unpaired``. Kept to compare.
    Arguments, result and errors are `entropo_kto`'s.
    """
    check_rows(
        policy_logps, ref_logps, desirable, gamma, zeta, desirable_weight, undesirable_weight
    )
    reward = policy_logps - ref_logps.detach()
    clamped = torch.as_tensor(z0, dtype=reward.dtype, device=reward.device).clamp(min=0)
    return row_loss(
        reward, policy_logps, desirable, zeta, clamped, desirable_weight, undesirable_weight
    )


def check_rows(
    policy_logps: Tensor,
    ref_logps: Tensor,
    desirable: Tensor,
    gamma: float,
    zeta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> None:
    """Check what every loss on rows takes.

    Raises:
        ConfigError: an argument has the wrong shape, type or range.
    """
    check_logps(policy_logps=policy_logps, ref_logps=ref_logps)
    check_flags("desirable", desirable, policy_logps)
    check_positive(gamma=gamma, zeta=zeta)
    check_weights(desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)


def row_loss(
    reward: Tensor,
    policy_logps: Tensor,
    desirable: Tensor,
    zeta: float,
    z0: Tensor | float,
    desirable_weight: float,
    undesirable_weight: float,
) -> LossOutput:
    """KTO's value function over rewards r, and the metrics.

    Args:
        reward: r of each trajectory, (batch,).
        policy_logps: S, (batch,); for the metrics.
        desirable: bool (batch,).
        zeta: Factor of ``r - z0``.
        z0: Scalar or (batch,); detached.
        desirable_weight: w+.
        undesirable_weight: w-.
    """
    z0 = torch.as_tensor(z0, dtype=reward.dtype, device=reward.device).detach()
    if z0.dim() > 1 or (z0.dim() == 1 and z0.shape != reward.shape):
        raise ConfigError(
            f"z0 has shape {tuple(z0.shape)}: expected a scalar or {tuple(reward.shape)}."
        )
    gain = torch.where(desirable, reward - z0, z0 - reward)
    weight = torch.full_like(reward, undesirable_weight).masked_fill(desirable, desirable_weight)
    # 1 - sigmoid(x) = sigmoid(-x), which keeps its digits where sigmoid(x) is near 1.
    losses = weight * torch.sigmoid(-zeta * gain)
    metrics = means(
        rewards__chosen=(zeta * reward, desirable),
        rewards__rejected=(zeta * reward, ~desirable),
        rewards__accuracies=((gain > 0).to(reward.dtype), None),
        logps__chosen=(policy_logps, desirable),
        logps__rejected=(policy_logps, ~desirable),
        z0=(z0.expand_as(reward), None),
    )
    if "rewards/chosen" in metrics and "rewards/rejected" in metrics:
        metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
    return LossOutput(batch_mean(losses), metrics)
