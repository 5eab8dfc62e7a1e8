"""`lean_lora`: peft's LoRA layers with the same results, of less memory and traffic.

An adapter in float32 on weights in half precision makes peft copy each adapted layer's input to
float32 and keep the copy for the backward pass, once for each projection. Here the input is kept as
it is, once however many projections read it. It is widened a block of rows at a time, or on CUDA
not at all: the adapter is split in two halves of bfloat16 there.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from learners.ops import fused
from learners.ops.blocks import MM_WIDENS, blocks

if TYPE_CHECKING:
    from peft.tuners.lora.layer import Linear


def lean_lora(model: nn.Module) -> int:
    """Let every plain LoRA layer of a model compute with `lora_linear`; gives their number.

    A layer is plain where peft's own computes ``W x + s B A x`` on an ordinary linear layer and
    nothing else (no DoRA or other variant, no dropout, no bias of its own). Others stay peft's, and
    so does any call with the adapter off, merged or mixed, with a layer whose own weight or bias is
    trained, and all under autocast.
    """
    from peft.tuners.lora.layer import Linear

    found = 0
    for module in model.modules():
        if type(module) is Linear and _plain(module):
            untyped: Any = module
            untyped.forward = types.MethodType(_forward, module)
            found += 1
    return found


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
) -> Tensor:
    """``x W^T + bias + scaling (x A^T) B^T`` in x's type, the second term in the adapter's.

    Args:
        x: (..., inputs).
        weight: Frozen, (outputs, inputs), of x's type.
        bias: Frozen, (outputs,), or None.
        a: (rank, inputs), of the type in which the adapter is computed (float32).
        b: (outputs, rank), of the same.
        scaling: alpha / rank.

    Returns:
        (..., outputs); the sum is rounded once. Gradients to `x`, `a` and `b`; differentiable once.
    """
    found: Tensor = _LoraLinear.apply(x, weight, bias, a, b, scaling)  # type: ignore[no-untyped-call]
    return found


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out = nn.functional.linear(rows, weight, bias)
        if _halves_do(rows, a):
            low = _few_columns(rows, fused.stacked_halves(a, 1.0))
            out.addmm_(low, fused.stacked_halves(b.T, scaling))
        else:
            low = torch.empty(len(rows), len(a), dtype=a.dtype, device=x.device)
            for at in blocks(rows):
                torch.mm(rows[at].to(a.dtype), a.T, out=low[at])
            _add_product(out, low, b.T, scaling)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scaling = scaling
        return out.view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, low = ctx.saved_tensors
        need_x, need_a, need_b = (ctx.needs_input_grad[at] for at in (0, 3, 4))
        grads, rows = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        grad_x = grads @ weight if need_x else None
        adapter = _with_halves if _halves_do(rows, a) else _in_blocks
        grad_a, grad_b = adapter(
            grads, rows, low, (a, b), (grad_x, need_a, need_b), ctx.scaling
        )  # fmt: skip
        return (
            grad_x.view_as(x) if grad_x is not None else None,
            None, None, grad_a, grad_b.T.contiguous() if grad_b is not None else None, None,
        )  # fmt: skip


_Wanted = tuple[Tensor | None, bool, bool]
"""The gradient of the input, to which the adapter's part is added; whether A's, B's are wanted."""


def _in_blocks(
    grads: Tensor,
    rows: Tensor,
    low: Tensor,
    factors: tuple[Tensor, Tensor],
    wanted: _Wanted,
    scaling: float,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of A and of B^T, of `low` = (rows, rank) in the adapter's type."""
    (a, b), (grad_x, need_a, need_b) = factors, wanted
    grad_a = torch.zeros_like(a) if need_a else None
    grad_b = b.new_zeros(b.shape[::-1]) if need_b else None  # the few rows first: far quicker
    back = torch.empty_like(low)
    for at in blocks(rows):
        wide = grads[at].to(a.dtype)
        torch.mm(wide, b, out=back[at])
        if grad_b is not None:
            grad_b.addmm_(low[at].T, wide, alpha=scaling)
        if grad_a is not None:
            grad_a.addmm_(back[at].T, rows[at].to(a.dtype), alpha=scaling)
    if grad_x is not None:
        _add_product(grad_x, back, a, scaling)
    return grad_a, grad_b


def _with_halves(
    grads: Tensor,
    rows: Tensor,
    low: Tensor,
    factors: tuple[Tensor, Tensor],
    wanted: _Wanted,
    scaling: float,
) -> tuple[Tensor | None, Tensor | None]:
    """The same by bfloat16 products with float32 sums, `low` as `fused.joined_halves` made it."""
    (a, b), (grad_x, need_a, need_b) = factors, wanted
    back = _few_columns(grads, fused.stacked_halves(b.T, scaling))
    if grad_x is not None:
        grad_x.addmm_(back, fused.stacked_halves(a, 1.0))
    grad_a = _few_rows(back, rows) if need_a else None
    grad_b = _few_rows(low, grads).mul_(scaling) if need_b else None
    return grad_a, grad_b


def _few_columns(rows: Tensor, stacked: Tensor) -> Tensor:
    """``rows`` times the transposed matrix whose halves are stacked; joined, (rows, 3 rank)."""
    two = stacked[: len(stacked) // 3 * 2]
    return fused.joined_halves(torch.mm(rows, two.T, out_dtype=torch.float32))


def _few_rows(joined: Tensor, rows: Tensor) -> Tensor:
    """The transposed matrix whose halves are joined times `rows`; (rank, width), float32."""
    rank = joined.shape[1] // 3
    found = torch.mm(joined[:, rank:].T, rows, out_dtype=torch.float32)
    return found[:rank] + found[rank:]


def _halves_do(rows: Tensor, wide: Tensor) -> bool:
    """Whether bfloat16 products with float32 sums serve, of halves: nothing need be widened."""
    return (
        MM_WIDENS
        and (rows.dtype, wide.dtype) == (torch.bfloat16, torch.float32)
        and fused.usable(rows)
    )


def _add_product(out: Tensor, left: Tensor, right: Tensor, factor: float) -> None:
    """``out += factor * left @ right``, of `left`'s precision, rounded once to `out`'s type."""
    if out.dtype == left.dtype:
        out.addmm_(left, right, alpha=factor)
    elif out.dtype == torch.bfloat16 and out.device.type == "cpu":
        # A CPU multiplies bfloat16 many times faster than it widens a matrix and narrows it again.
        # Each factor is the sum of two bfloat16 up to 2^-17 of it, far below `out`'s rounding.
        (high, rest), (top, below) = _halves(left), _halves(right * factor)
        out.addmm_(torch.cat([high, high, rest], 1), torch.cat([top, below, top], 0))
    else:
        for at in blocks(out):
            out[at] = torch.addmm(out[at].to(left.dtype), left[at], right, alpha=factor)


def _halves(wide: Tensor) -> tuple[Tensor, Tensor]:
    high = wide.to(torch.bfloat16)
    return high, (wide - high).to(torch.bfloat16)


def _forward(self: Linear, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """In place of peft's."""
    off = self.disable_adapters or self.merged or args or kwargs
    base: Any = self.base_layer
    factors_a: Any = self.lora_A
    factors_b: Any = self.lora_B
    names = [name for name in self.active_adapters if name in self.lora_A]
    if off or len(names) != 1 or (not x.is_meta and torch.is_autocast_enabled(x.device.type)):
        own: Tensor = type(self).forward(self, x, *args, **kwargs)
        return own
    a, b = factors_a[names[0]].weight, factors_b[names[0]].weight
    trained = any(own is not None and own.requires_grad for own in (base.weight, base.bias))
    if x.dtype != base.weight.dtype or trained or a.dtype != b.dtype:
        own = type(self).forward(self, x)
    else:
        own = lora_linear(x, base.weight, base.bias, a, b, self.scaling[names[0]])
    return own


def _plain(layer: Linear) -> bool:
    untyped: Any = layer
    return (
        type(layer.base_layer) is nn.Linear
        and not untyped.lora_variant
        and not untyped.fan_in_fan_out
        and all(isinstance(dropout, nn.Identity) for dropout in untyped.lora_dropout.values())
        and not any(part.bias is not None for part in untyped.lora_B.values())
    )
