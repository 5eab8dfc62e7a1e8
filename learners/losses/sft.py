"""Supervised fine-tuning: the mean negative log-probability of the agent's tokens."""

from __future__ import annotations

from torch import Tensor

from learners.losses.base import LossOutput, check_logps
from swe_env.errors import ConfigError


def sft(policy_logps: Tensor, num_tokens: Tensor) -> LossOutput:
    """Negative log-likelihood per agent token.

    Args:
        policy_logps: Sum of log-probabilities over agent tokens, shape (batch,).
        num_tokens: How many tokens each sum has, (batch,), integers.

    Returns:
        ``-sum(S) / sum(num_tokens)``: every token of the batch weighs the same; zero, and still
        differentiable, when there is none.

    Raises:
        ConfigError: an argument has the wrong shape or type.
    """
    check_logps(policy_logps=policy_logps)
    if num_tokens.shape != policy_logps.shape or num_tokens.is_floating_point():
        raise ConfigError(
            f"num_tokens is {num_tokens.dtype} of shape {tuple(num_tokens.shape)}: "
            f"expected integers of shape {tuple(policy_logps.shape)}."
        )
    loss = -policy_logps.sum() / num_tokens.sum().clamp(min=1)
    return LossOutput(loss, {"logps/mean": -float(loss.detach())})
