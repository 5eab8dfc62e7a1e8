"""From logits to tokens: temperature, top-k, top-p, one given uniform number a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from swe_env.errors import ConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn; temperature first, then top-k, then top-p of what is left."""

    temperature: float = 0.7
    """0 takes the most probable token."""
    top_k: int = 20
    """Keep this many of the most probable tokens; 0 keeps all."""
    top_p: float = 0.8
    """Keep the fewest tokens whose probabilities reach this sum; 1 keeps all."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ConfigError(f"The temperature {self.temperature} is negative: use 0 or more.")
        if self.top_k < 0:
            raise ConfigError(f"top_k is {self.top_k}: use 0 (off) or more.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}: use a number above 0, up to 1 (off).")


def draw(
    logits: torch.Tensor, uniforms: torch.Tensor, sampling: Sampling
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token a row by inverse CDF: a row's token depends on its own logits and number only.

    Args:
        logits: (rows, vocabulary), of any float type.
        uniforms: (rows,), float64, in [0, 1); unused at temperature 0.
        sampling: How to draw.

    Returns:
        Token ids (rows,), int64, and their natural-log probabilities (rows,), float32, under the
        unmodified distribution (temperature 1, nothing cut off).
    """
    logits = logits.float()
    if sampling.temperature == 0:
        tokens = logits.argmax(-1)
    else:
        tokens = _inverse_cdf(logits / sampling.temperature, uniforms.to(logits.device), sampling)
    logprobs = logits.gather(-1, tokens[:, None]).squeeze(-1) - logits.logsumexp(-1)
    return tokens, logprobs


def _inverse_cdf(logits: torch.Tensor, uniforms: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    order = None
    if 0 < sampling.top_k < logits.shape[-1]:
        logits, order = logits.topk(sampling.top_k, dim=-1)
    elif sampling.top_p < 1:
        logits, order = logits.sort(dim=-1, descending=True)
    # float64: the sum of a large vocabulary in float32 is off by more than a rare token's share.
    probabilities = logits.double().softmax(-1)
    if order is not None and sampling.top_p < 1:
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= sampling.top_p, 0.0)
    cumulative = probabilities.cumsum(-1)
    target = uniforms.double()[:, None] * cumulative[:, -1:]
    # `right` skips tokens of probability zero even when the number drawn is exactly 0.
    index = (cumulative <= target).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    chosen = index if order is None else order.gather(-1, index)
    return chosen.squeeze(-1)
