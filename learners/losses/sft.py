"""Supervised fine-tuning: the mean negative log-probability of the agent's tokens."""

from __future__ import annotations

from torch import Tensor

from learners.losses.base import LossOutput, check_lengths, check_logps


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
    check_lengths("num_tokens", num_tokens, policy_logps)
    loss = -policy_logps.sum() / num_tokens.sum().clamp(min=1)
    return LossOutput(loss, {"logps/mean": -float(loss.detach())}, per_token=True)
