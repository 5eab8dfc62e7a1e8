"""`token_logps` where tensor parallelism has cut the LM head: each process holds some of the words.

Hidden states are the same on every process; maxima, sums and the targets' logits are put together
for each chunk of tokens, so that no process ever holds a row of logits of the whole vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor, Shard

from learners.ops.logps import _BUDGET, _chunks, _grad_logits, _Head, _logits, _times
from swe_env.errors import ConfigError


def parallel_token_logps(
    hidden: Tensor,
    weight_shard: Tensor,
    targets: Tensor,
    *,
    first: int,
    group: ProcessGroup | None = None,
    bias_shard: Tensor | None = None,
    chunk_size: int | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """As `token_logps`, by all processes of `group` together.

    Args:
        hidden: (tokens, dim), the same on every process.
        weight_shard: This process's rows of the LM head, (words, dim).
        targets: Token ids of the whole vocabulary, (tokens,), the same on every process.
        first: The word its first row is for.
        group: Who holds the rest; None for all processes.
        bias_shard: (words,) or None.
        chunk_size: Tokens whose logits exist at once, the same on every process.
        softcap: As for `token_logps`.
        scale: As for `token_logps`.

    Returns:
        ``(logps, entropies)``, each (tokens,), equal on every process and differentiable once.
        The gradient of `hidden` is whole on every process, those of weight and bias its own.
    """
    if chunk_size is None:
        budget = _BUDGET.get(hidden.device.type, _BUDGET["cuda"])
        widest = torch.tensor([weight_shard.shape[0]], device=hidden.device)
        distributed.all_reduce(widest, distributed.ReduceOp.MAX, group=group)
        chunk_size = max(budget // (4 * int(widest)), 16)
    with torch.autocast(hidden.device.type, enabled=False):
        result: tuple[Tensor, Tensor] = _ParallelLogps.apply(  # type: ignore[no-untyped-call]
            hidden, weight_shard, bias_shard, targets, (first, group, chunk_size, softcap, scale)
        )
    return result


def cut_token_logps(
    hidden: Tensor, weight: DTensor, targets: Tensor, bias: Tensor | None, **settings: Any
) -> tuple[Tensor, Tensor]:
    """`parallel_token_logps` of a head as torch's tensor parallelism leaves it.

    Args:
        hidden: (tokens, dim), the same on every process.
        weight: (vocab, dim), cut by words.
        targets: (tokens,).
        bias: (vocab,), cut as the weight or whole, or None.
        settings: As for `token_logps`.

    Raises:
        ConfigError: the head is cut otherwise.
    """
    if weight.placements != (Shard(0),):
        raise ConfigError(
            f"The LM head is spread as {weight.placements}: tensor parallelism must cut it by "
            "words (Shard(0)) over one dimension of processes."
        )
    mesh, local = weight.device_mesh, weight.to_local()
    first = -(-weight.shape[0] // mesh.size()) * mesh.get_local_rank()
    if isinstance(bias, DTensor):
        bias = bias.to_local()
    elif bias is not None:
        bias = bias[first : first + len(local)]
    return parallel_token_logps(
        hidden, local, targets, first=first, group=mesh.get_group(), bias_shard=bias, **settings
    )


class _ParallelLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        settings: tuple[int, ProcessGroup | None, int, float | None, float],
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        first, group, chunk_size, softcap, scale = settings
        head = _Head(weight, bias, softcap, scale)
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        logps = torch.empty(len(targets), dtype=dtype, device=hidden.device)
        norms, entropies = torch.empty_like(logps), torch.empty_like(logps)
        local, mine = _local(targets, first, len(weight))
        for at in _chunks(len(targets), chunk_size):
            logits = _logits(hidden[at], head)
            highest = logits.new_full((len(logits),), float("-inf"))
            if len(weight):
                highest = logits.amax(-1)
            distributed.all_reduce(highest, distributed.ReduceOp.MAX, group=group)
            powers = (logits - highest[:, None]).exp_()
            said = logits.new_zeros(len(logits))
            if len(weight):
                said = logits.gather(1, local[at, None]).squeeze(1).masked_fill(~mine[at], 0)
            sums = torch.stack((powers.sum(-1), powers.mul_(logits).sum(-1), said))
            distributed.all_reduce(sums, group=group)
            norms[at] = highest + sums[0].log()
            logps[at] = sums[2] - norms[at]
            entropies[at] = norms[at] - sums[1] / sums[0]
        ctx.save_for_backward(hidden, weight, bias, targets, norms, entropies)
        ctx.settings = settings
        return logps, entropies

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logps: Tensor | None, grad_entropies: Tensor | None
    ) -> tuple[Any, ...]:
        hidden, weight, bias, targets, norms, entropies = ctx.saved_tensors
        first, group, chunk_size, softcap, scale = ctx.settings
        head = _Head(weight, bias, softcap, scale)
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden, dtype=norms.dtype) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=norms.dtype) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=norms.dtype) if need_bias else None
        if grad_logps is None:
            grad_logps = torch.zeros_like(norms)
        local, mine = _local(targets, first, len(weight))
        for at in _chunks(len(targets), chunk_size) if len(weight) else ():
            logits = _logits(hidden[at], head)
            entropy = (entropies[at], grad_entropies[at]) if grad_entropies is not None else None
            grad = _grad_logits(logits, local[at], norms[at], grad_logps[at], entropy)
            # Targets of another process stand at a word of ours, which they must not push.
            rows = (~mine[at]).nonzero().squeeze(1)
            grad[rows, local[at][rows]] -= grad_logps[at][rows]
            if softcap is not None:
                grad.mul_(1 - (logits / softcap).square_())
            grad.mul_(scale)
            if grad_hidden is not None:
                grad_hidden[at] = _times(grad, weight)
            if grad_weight is not None:
                grad_weight.addmm_(grad.T, hidden[at].to(grad.dtype))
            if grad_bias is not None:
                grad_bias += grad.sum(0)
        if grad_hidden is not None:
            distributed.all_reduce(grad_hidden, group=group)
        return (
            grad_hidden.to(hidden.dtype) if grad_hidden is not None else None,
            grad_weight.to(weight.dtype) if grad_weight is not None else None,
            grad_bias.to(bias.dtype) if grad_bias is not None else None,
            None, None,
        )  # fmt: skip


def _local(targets: Tensor, first: int, words: int) -> tuple[Tensor, Tensor]:
    """Targets as words of this process, and which of them are."""
    local = targets - first
    return local.clamp(0, max(words - 1, 0)), (local >= 0) & (local < words)
