"""`sequence_logps`: the policy's log-probability of what it sampled, for whole trajectories."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from learners.ops.logps import token_logps
from swe_env.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class SequenceLogps(NamedTuple):
    """Sums over the loss tokens of each sequence of a batch."""

    logps: Tensor
    """Sum of log-probabilities, shape (batch,), added up in float64, differentiable (a sequence
    without loss tokens gives a differentiable zero)."""
    entropies: Tensor
    """Sum of the exact entropies of the policy's distribution at each loss token, (batch,),
    differentiable."""
    num_tokens: Tensor
    """Loss tokens of each sequence, (batch,), int64."""


def sequence_logps(
    model: nn.Module,
    input_ids: Tensor,
    loss_mask: Tensor,
    *,
    attention_mask: Tensor | None = None,
    chunk_size: int | None = None,
) -> SequenceLogps:
    """Run the decoder, and the LM head only where a loss token is predicted.

    Args:
        model: A causal language model of transformers, bare or wrapped by peft.
        input_ids: (batch, tokens), int64, padded on the right if at all.
        loss_mask: bool (batch, tokens): True at the tokens the policy sampled. A first token is
            predicted by nothing and must be False.
        attention_mask: (batch, tokens), False at padding; None when there is none (which lets
            the attention kernel run in its quick causal mode).
        chunk_size: See `token_logps`.

    Raises:
        ConfigError: the masks do not fit, or the model's output layer is not a plain linear one.
    """
    if loss_mask.shape != input_ids.shape or loss_mask.dtype != torch.bool:
        raise ConfigError(
            f"loss_mask is {loss_mask.dtype} of shape {tuple(loss_mask.shape)}: "
            f"expected bool of shape {tuple(input_ids.shape)}."
        )
    if bool(loss_mask[:, 0].any()):
        raise ConfigError("A loss token stands first in its sequence: nothing predicts it.")
    causal = unwrap(model)
    hidden = causal.base_model(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False
    ).last_hidden_state
    return _sums(causal, hidden[:, :-1], input_ids[:, 1:], loss_mask[:, 1:], chunk_size)


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside; peft's adapters live in its layers, so they stay in effect."""
    wrapped: Any = model
    causal: PreTrainedModel = getattr(wrapped, "get_base_model", lambda: wrapped)()
    return causal


def output_layer(causal: PreTrainedModel) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
    """Weight, bias, and the soft cap and scale of the model's logits.

    Raises:
        ConfigError: the output layer is not a plain linear layer.
    """
    head: Any = causal.get_output_embeddings()  # type: ignore[no-untyped-call]
    if not isinstance(head, nn.Linear):
        raise ConfigError(
            f"The output layer of {type(causal).__name__} is a {type(head).__name__}: the learner "
            "needs a plain linear one (leave lm_head out of the adapter's targets)."
        )
    config = causal.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    softcap = getattr(config, "final_logit_softcapping", None)
    return head.weight, head.bias, {"softcap": softcap, "scale": scale / divisor}


def check_logits(model: nn.Module, input_ids: Tensor) -> None:
    """Prove on a few tokens that `sequence_logps` sees the model's own distribution.

    A family may scale or cap its logits in a way this module does not know; one short forward
    pass finds out before training does.

    Args:
        model: As for `sequence_logps`.
        input_ids: (tokens,), a handful.

    Raises:
        ConfigError: the log-probabilities are not the model's.
    """
    causal = unwrap(model)
    with evaluating(causal), torch.no_grad():
        ours = plain_logps(causal, input_ids)
        logits = causal(input_ids=input_ids[None], use_cache=False).logits[0, :-1].float()
        theirs = logits.log_softmax(-1).gather(1, input_ids[1:, None]).squeeze(1)
    tolerance = 1e-3 if output_layer(causal)[0].dtype == torch.float32 else 0.25
    worst = float((ours - theirs).abs().max())
    if not worst <= tolerance:
        raise ConfigError(
            f"{type(causal).__name__} does something to its logits that the learner does not know "
            f"(log-probabilities differ by {worst:.3g} nats): this family is not supported yet."
        )


def plain_logps(causal: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """Log-probability of each token of one sequence but the first, (tokens - 1,)."""
    hidden = causal.base_model(input_ids=input_ids[None], use_cache=False).last_hidden_state
    weight, bias, shape = output_layer(causal)
    return token_logps(hidden[0, :-1], weight, input_ids[1:], bias=bias, **shape)[0]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, each module back in its own afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _sums(
    causal: PreTrainedModel,
    hidden: Tensor,
    targets: Tensor,
    mask: Tensor,
    chunk_size: int | None,
) -> SequenceLogps:
    weight, bias, shape = output_layer(causal)
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):  # as autocast would have it, were the layer called
        weight = weight.to(torch.get_autocast_dtype(kind))
        bias = bias.to(weight.dtype) if bias is not None else None
    counts = mask.sum(1)
    chosen = hidden[mask].to(weight.dtype)
    logps, entropies = token_logps(
        chosen, weight, targets[mask], bias=bias, chunk_size=chunk_size, **shape
    )
    rows = torch.arange(len(mask), device=mask.device).repeat_interleave(counts)
    # float32 would lose 0.01 nat over 10k tokens, which lambda multiplies in every margin.
    zeros = torch.zeros(len(mask), dtype=torch.float64, device=logps.device)
    return SequenceLogps(
        zeros.index_add(0, rows, logps.double()),
        zeros.index_add(0, rows, entropies.double()),
        counts,
    )
