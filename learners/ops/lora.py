"""`lean_lora`: peft's LoRA layers with the same results, of less memory and traffic.

An adapter in float32 on weights in half precision makes peft copy each adapted layer's input to
float32 and keep the copy for the backward pass, once for each projection. Here the input is kept as
it is, once however many projections read it. It is widened a block of rows at a time, or on CUDA
not at all: the adapter is split in two halves of bfloat16 there, once for all passes between two
of its changes (`unchanging`).
"""

from __future__ import annotations

import contextlib
import types
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from learners.ops import fused
from learners.ops.blocks import MM_WIDENS, blocks
from learners.ops.sequence import unwrap

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

    found, made = 0, _made.setdefault(unwrap(model), _Made())
    for module in model.modules():
        if type(module) is Linear and _plain(module):
            untyped: Any = module
            untyped.forward = types.MethodType(_forward, module)
            untyped.swe_made = made
            found += 1
    return found


def lean_weights(model: nn.Module) -> int:
    """Weights of the adapters of the layers that `lean_lora` changed."""
    lean = [module for module in model.modules() if hasattr(module, "swe_made")]
    return sum(
        p.numel() for layer in lean for name, p in layer.named_parameters() if "lora_" in name
    )


SPLIT_BYTES = 6
"""Of each of them on CUDA in bfloat16, within `unchanging`: `Halves`."""


@contextlib.contextmanager
def unchanging(model: nn.Module) -> Iterator[None]:
    """Within it the model's adapters do not change, and what is made of them is kept.

    On CUDA in bfloat16 that is `SPLIT_BYTES` of each weight, and spares two thirds of the small
    kernels that split them, for which a step of a small model waits. Elsewhere it does nothing.
    """
    made = _made.get(unwrap(model), _Made())
    made.halves = {}
    try:
        yield
    finally:
        made.halves = None


class Halves(NamedTuple):
    """An adapter in `fused.stacked_halves`: bfloat16."""

    a: Tensor
    """Of A, (3 rank, inputs)."""
    b: Tensor
    """Of scaling B^T, (3 rank, outputs)."""


class _Made:
    """What was made of a model's adapters since they last changed."""

    def __init__(self) -> None:
        """Keeps nothing."""
        self.halves: dict[tuple[nn.Module, str], Halves | None] | None = None

    def __deepcopy__(self, _: Any) -> _Made:
        """A copied model's layers keep nothing: it is none that `unchanging` knows."""
        return _Made()

    def of(self, layer: nn.Module, name: str, make: Callable[[], Halves | None]) -> Halves | None:
        """One layer's adapter of that name."""
        if self.halves is None:
            return make()
        if (layer, name) not in self.halves:
            self.halves[layer, name] = make()
        return self.halves[layer, name]


_made: weakref.WeakKeyDictionary[nn.Module, _Made] = weakref.WeakKeyDictionary()


def halves_of(x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Halves | None:
    """The adapter's halves where an input like `x` is multiplied by them, else None."""
    if not _halves_do(x, a):
        return None
    return Halves(fused.stacked_halves(a, 1.0), fused.stacked_halves(b.T, scaling))


def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scaling: float,
    halves: Halves | None = None,
) -> Tensor:
    """``x W^T + bias + scaling (x A^T) B^T`` in x's type, the second term in the adapter's.

    Args:
        x: (..., inputs).
        weight: Frozen, (outputs, inputs), of x's type.
        bias: Frozen, (outputs,), or None.
        a: (rank, inputs), of the type in which the adapter is computed (float32).
        b: (outputs, rank), of the same.
        scaling: alpha / rank.
        halves: `halves_of` these, if that is known already.

    Returns:
        (..., outputs); the sum is rounded once. Gradients to `x`, `a` and `b`; differentiable once.
    """
    halves = halves or halves_of(x, a, b, scaling)
    found: Tensor = _LoraLinear.apply(x, weight, bias, a, b, scaling, halves)  # type: ignore[no-untyped-call]
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
        halves: Halves | None,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out = nn.functional.linear(rows, weight, bias)
        if halves is not None:
            low = _few_columns(rows, halves.a)
            out.addmm_(low, halves.b)
            ctx.save_for_backward(x, weight, low)
        else:
            low = torch.empty(len(rows), len(a), dtype=a.dtype, device=x.device)
            for at in blocks(rows):
                torch.mm(rows[at].to(a.dtype), a.T, out=low[at])
            _add_product(out, low, b.T, scaling)
            ctx.save_for_backward(x, weight, low, a, b)
        ctx.scaling, ctx.halves = scaling, halves
        return out.view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, low, *factors = ctx.saved_tensors
        need_x, need_a, need_b = (ctx.needs_input_grad[at] for at in (0, 3, 4))
        grads, rows = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        grad_x = grads @ weight if need_x else None
        wanted, scaling = (grad_x, need_a, need_b), ctx.scaling
        if ctx.halves is not None:
            grad_a, grad_b = _with_halves(grads, rows, low, ctx.halves, wanted, scaling)
        else:
            grad_a, grad_b = _in_blocks(grads, rows, low, (factors[0], factors[1]), wanted, scaling)
        return (
            grad_x.view_as(x) if grad_x is not None else None,
            None, None, grad_a, grad_b.T.contiguous() if grad_b is not None else None, None, None,
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
    halves: Halves,
    wanted: _Wanted,
    scaling: float,
) -> tuple[Tensor | None, Tensor | None]:
    """The same by bfloat16 products with float32 sums, `low` as `fused.joined_halves` made it."""
    grad_x, need_a, need_b = wanted
    back = _few_columns(grads, halves.b)
    if grad_x is not None:
        grad_x.addmm_(back, halves.a)
    grad_a = _few_rows(back, rows) if need_a else None
    grad_b = _few_rows(low, grads).mul_(scaling) if need_b else None
    return grad_a, grad_b


def _few_columns(rows: Tensor, stacked: Tensor) -> Tensor:
    """``rows`` times the transposed matrix whose halves are stacked; joined, (rows, 3 rank)."""
    two = stacked[: len(stacked) // 3 * 2]
    return fused.joined_halves(_wide_product(rows, two.T))


def _few_rows(joined: Tensor, rows: Tensor) -> Tensor:
    """The transposed matrix whose halves are joined times `rows`; (rank, width), float32."""
    rank = joined.shape[1] // 3
    found = _wide_product(joined[:, rank:].T, rows)
    return found[:rank] + found[rank:]


def _wide_product(left: Tensor, right: Tensor) -> Tensor:
    """A product of half precision that is not rounded to it; CUDA only."""
    return torch.mm(left, right, out_dtype=torch.float32)


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
    untyped: Any = self
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
        scaling = self.scaling[names[0]]
        halves = untyped.swe_made.of(self, names[0], lambda: halves_of(x, a, b, scaling))
        own = lora_linear(x, base.weight, base.bias, a, b, scaling, halves)
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
