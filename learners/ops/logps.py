"""`token_logps`: log-probabilities and entropies of targets, without keeping the logits.

The (tokens, vocab) matrix of a 32k-token pair at a 152k vocabulary is 93 GiB as DPO code usually
builds it. Here it exists only one chunk of tokens at a time, in the forward pass and again in the
backward pass, which recomputes it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor

from learners.ops import fused
from learners.ops.blocks import MM_WIDENS
from swe_env.errors import ConfigError

_BUDGET = {"cuda": 1 << 30, "cpu": 1 << 26}
"""Bytes one chunk of logits may take, by device: enough rows to keep the matrix product busy."""

_VOCAB_BLOCK = 8192
"""Rows of a half-precision head that are widened to float32 at once where the hardware's own
product would round the logits to half precision."""


class _Head(NamedTuple):
    """How hidden states become logits: ``cap * tanh(scale * (h W^T + b) / cap)``."""

    weight: Tensor
    bias: Tensor | None
    softcap: float | None
    scale: float


def token_logps(
    hidden: Tensor,
    lm_head_weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    chunk_size: int | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of each distribution, in nats.

    Memory beyond the arguments and their gradients does not grow with the number of tokens.

    Args:
        hidden: Hidden states that predict the targets, shape (tokens, dim).
        lm_head_weight: (vocab, dim), of hidden's type. A head that tensor parallelism has cut by
            words (a DTensor) stays cut: see `learners.ops.vocab_parallel`.
        targets: Token ids, (tokens,), integers in [0, vocab).
        bias: (vocab,) or None.
        chunk_size: Tokens whose logits exist at once; by default as many as fit a budget
            (64 MiB on a CPU, 1 GiB on a GPU).
        softcap: Gemma's soft cap: logits become ``softcap * tanh(logits / softcap)``.
        scale: Factor on the logits before the cap (Cohere, Granite).

    Returns:
        ``(logps, entropies)``, each (tokens,), float32 (float64 for float64 input), both
        differentiable once: with respect to `hidden`, and to `lm_head_weight` and `bias` where
        they require it. Products accumulate in float32 whatever the type of the arguments.

    Raises:
        ConfigError: shapes or types do not fit.
    """
    _check(hidden, lm_head_weight, targets, bias, chunk_size)
    if isinstance(lm_head_weight, DTensor):
        from learners.ops.vocab_parallel import cut_token_logps

        return cut_token_logps(
            hidden,
            lm_head_weight,
            targets,
            bias,
            chunk_size=chunk_size,
            softcap=softcap,
            scale=scale,
        )  # fmt: skip
    if chunk_size is None:
        budget = _BUDGET.get(hidden.device.type, _BUDGET["cuda"])
        chunk_size = max(budget // (4 * lm_head_weight.shape[0]), 16)
    # Autocast would turn the float32 products back into half precision.
    with torch.autocast(hidden.device.type, enabled=False):
        result: tuple[Tensor, Tensor] = _TokenLogps.apply(  # type: ignore[no-untyped-call]
            hidden, lm_head_weight, bias, targets, chunk_size, softcap, scale
        )
    return result


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        chunk_size: int,
        softcap: float | None,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        head = _Head(weight, bias, softcap, scale)
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        logps = torch.empty(len(targets), dtype=dtype, device=hidden.device)
        norms, entropies = torch.empty_like(logps), torch.empty_like(logps)
        for at in _chunks(len(targets), chunk_size):
            logits = _logits(hidden[at], head)
            norms[at], entropies[at] = _sums(logits)
            logps[at] = logits.gather(1, targets[at, None]).squeeze(1) - norms[at]
        ctx.save_for_backward(hidden, weight, bias, targets, norms, entropies)
        ctx.settings = (chunk_size, softcap, scale)
        return logps, entropies

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logps: Tensor | None, grad_entropies: Tensor | None
    ) -> tuple[Any, ...]:
        hidden, weight, bias, targets, norms, entropies = ctx.saved_tensors
        chunk_size, softcap, scale = ctx.settings
        head = _Head(weight, bias, softcap, scale)
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=norms.dtype) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=norms.dtype) if need_bias else None
        if grad_logps is None:
            grad_logps = torch.zeros_like(norms)
        for at in _chunks(len(targets), chunk_size):
            logits = _logits(hidden[at], head)
            entropy = None if grad_entropies is None else (entropies[at], grad_entropies[at])
            grad = _grad_before_cap(
                logits, targets[at], norms[at], grad_logps[at], entropy, head,
                norms.dtype if need_weight or need_bias else weight.dtype,
            )  # fmt: skip
            if grad_hidden is not None:
                grad_hidden[at] = _times(grad, weight).to(hidden.dtype)
            if grad_weight is not None:
                grad_weight.addmm_(grad.T, hidden[at].to(grad.dtype))
            if grad_bias is not None:
                grad_bias += grad.sum(0)
        return (
            grad_hidden,
            grad_weight.to(weight.dtype) if grad_weight is not None else None,
            grad_bias.to(bias.dtype) if grad_bias is not None else None,
            None, None, None, None,
        )  # fmt: skip


def _sums(logits: Tensor) -> tuple[Tensor, Tensor]:
    """``log Z`` and the entropy of each row; H = log Z - E[logit]."""
    if fused.usable(logits):
        return fused.logit_sums(logits)
    norms = logits.logsumexp(-1)
    weighted = torch.softmax(logits, -1).mul_(logits)
    return norms, norms - weighted.sum(-1)


def _grad_before_cap(
    logits: Tensor,
    targets: Tensor,
    norms: Tensor,
    grad_logps: Tensor,
    entropy: tuple[Tensor, Tensor] | None,
    head: _Head,
    dtype: torch.dtype,
) -> Tensor:
    """Gradient of ``h W^T + b``; in `dtype` where a kernel makes it, else of the logits' type."""
    softcap, scale = head.softcap, head.scale
    if fused.usable(logits):
        return fused.logit_grads(
            logits, targets, norms, grad_logps, entropy, dtype, softcap=softcap, scale=scale
        )
    grad = _grad_logits(logits, targets, norms, grad_logps, entropy)
    if softcap is not None:
        grad.mul_(1 - (logits / softcap).square_())
    return grad.mul_(scale)


def _grad_logits(
    logits: Tensor,
    targets: Tensor,
    norms: Tensor,
    grad_logps: Tensor,
    entropy: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """d/d logits: ``g (1[target] - p) - g_H p (log p + H)``; overwrites nothing."""
    logp = logits - norms[:, None]
    if entropy is None:
        grad = logp.exp_().mul_(-grad_logps[:, None])
    else:
        entropies, grad_entropies = entropy
        factor = (logp + entropies[:, None]).mul_(grad_entropies[:, None])
        grad = factor.add_(grad_logps[:, None]).mul_(logp.exp_()).neg_()
    rows = torch.arange(len(targets), device=targets.device)
    grad[rows, targets] += grad_logps
    return grad


def _logits(hidden: Tensor, head: _Head) -> Tensor:
    logits = _product(hidden, head.weight)
    if head.bias is not None:
        logits += head.bias
    if head.scale != 1.0:
        logits *= head.scale
    if head.softcap is not None:
        logits.div_(head.softcap).tanh_().mul_(head.softcap)
    return logits


def _product(hidden: Tensor, weight: Tensor) -> Tensor:
    """``hidden @ weight.T`` in float32 (or float64), never rounded to half precision."""
    if weight.dtype in (torch.float32, torch.float64):
        return hidden @ weight.T
    if hidden.is_cuda and MM_WIDENS:
        return torch.mm(hidden, weight.T, out_dtype=torch.float32)
    wide = hidden.float()
    out = torch.empty(len(hidden), len(weight), dtype=torch.float32, device=hidden.device)
    for rows in _chunks(len(weight), _VOCAB_BLOCK):
        torch.mm(wide, weight[rows].float().T, out=out[:, rows])
    return out


def _times(grad: Tensor, weight: Tensor) -> Tensor:
    """``grad @ weight`` with float32 accumulation."""
    if weight.dtype == grad.dtype:
        return grad @ weight
    if grad.is_cuda:
        return grad.to(weight.dtype) @ weight
    out = torch.zeros(len(grad), weight.shape[1], dtype=grad.dtype, device=grad.device)
    for rows in _chunks(len(weight), _VOCAB_BLOCK):
        out.addmm_(grad[:, rows], weight[rows].to(grad.dtype))
    return out


def _chunks(total: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def _check(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, chunk_size: int | None
) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ConfigError(
            f"hidden has shape {tuple(hidden.shape)} and lm_head_weight {tuple(weight.shape)}: "
            "expected (tokens, dim) and (vocab, dim)."
        )
    if hidden.dtype != weight.dtype:
        raise ConfigError(
            f"hidden is {hidden.dtype} and lm_head_weight {weight.dtype}: cast one to the other."
        )
    if targets.shape != hidden.shape[:1] or targets.dtype != torch.long:
        raise ConfigError(
            f"targets is {targets.dtype} of shape {tuple(targets.shape)}: "
            f"expected int64 of shape ({hidden.shape[0]},)."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ConfigError(f"bias has shape {tuple(bias.shape)}: expected ({weight.shape[0]},).")
    if chunk_size is not None and chunk_size < 1:
        raise ConfigError(f"chunk_size is {chunk_size}: it must be at least 1.")
