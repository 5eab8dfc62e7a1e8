"""The closed-form optimum by enumeration, and how far a policy is from it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

PASS_AT = (1, 4, 16)


def optimum(
    reference: Tensor, correct: Tensor, *, gamma: float, zeta: float, reward: float
) -> Tensor:
    """Eq. 9 of arXiv 2509.12434: ``π* ∝ π_ref^(gamma / zeta) exp(r / zeta)``, as log-probabilities.

    Args:
        reference: log π_ref of every trajectory, (tasks, trajectories).
        correct: bool, (tasks, trajectories); the reward is `reward` there and 0 elsewhere.
        gamma: Weight of the KL to the reference.
        zeta: gamma + λ.
        reward: What a correct trajectory earns; see `implied_reward`.
    """
    logits = (gamma * reference + reward * correct.to(reference.dtype)) / zeta
    return logits.log_softmax(-1)


def implied_reward(smoothing: float) -> float:
    """``log((1 - ε) / ε)``: the difference in reward at which the smoothed pair loss is least."""
    return math.log((1 - smoothing) / smoothing)


def figures(policy: Tensor, best: Tensor, correct: Tensor, lengths: Tensor) -> dict[str, float]:
    """What is reported of a policy, each a mean over the tasks.

    Args:
        policy: log π of every trajectory, (tasks, trajectories), normalised.
        best: log π*, the same shape.
        correct: bool, the same shape.
        lengths: Turns of each trajectory, (trajectories,).

    Returns:
        ``tv`` and ``kl`` (nats, KL(π ‖ π*)) to π*; ``correct`` = P(correct); ``effective`` =
        exp of the entropy over correct trajectories; ``pass@k``, of k independent samples; which
        depends on P(correct) alone; ``distinct@16``, the expected number of different correct
        trajectories among 16 samples; ``turns``, the mean length of correct ones.
    """
    p, q = policy.double().exp(), best.double().exp()
    log_ratio = torch.where(p > 0, policy.double() - best.double(), 0.0)
    solved = (p * correct).sum(-1)
    within = (p * correct) / solved[:, None].clamp(min=1e-300)
    entropy = -torch.special.xlogy(within, within).sum(-1)
    found = {
        "tv": 0.5 * (p - q).abs().sum(-1),
        "kl": (p * log_ratio).sum(-1).clamp(min=0),
        "correct": solved,
        "effective": entropy.exp(),
        **{f"pass@{k}": 1 - (1 - solved).clamp(min=0) ** k for k in PASS_AT},
        "distinct@16": ((1 - (1 - p).clamp(min=0) ** 16) * correct).sum(-1),
        "turns": (within * lengths).sum(-1),
    }
    return {name: float(value.mean()) for name, value in found.items()}
