"""`lean_layers`: norms and gated units that keep less for the backward pass, with the same results.

A root-mean-square norm as transformers writes it keeps its input in float32 and half a dozen
intermediate results; a gated unit keeps its activation beside what goes in and what comes out. Both
take little to compute again from their inputs, which are kept anyway. Done in blocks of rows, or by
a kernel of `learners.ops.fused`, they go through memory once instead of once for every operation.

A module is taken over only where its class is proven to compute the same, to the last bit, on a few
numbers; every other family stays as it is.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from learners.ops import fused
from learners.ops.blocks import blocks


def lean_layers(model: nn.Module) -> tuple[int, int]:
    """Take norms and gated units over where they are of the usual kind; gives how many of each.

    For weights that are frozen: a norm whose weight is trained computes as before.
    """
    norms = units = 0
    for module in model.modules():
        untyped: Any = module
        if _is_norm(untyped.__class__) and isinstance(untyped.weight, Tensor):
            untyped.forward = types.MethodType(_norm_forward, module)
            norms += 1
        elif _is_unit(untyped.__class__) and _is_silu(untyped.act_fn):
            untyped.forward = types.MethodType(_unit_forward, module)
            units += 1
    return norms, units


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``weight * (x / rms(x))``: the quotient in float32, rounded to x's type before the product.

    Args:
        x: (..., dim).
        weight: Frozen, (dim,).
        eps: Added to the mean square.
    """
    found: Tensor = _RmsNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return found


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up`` of two tensors of one shape; keeps these two."""
    found: Tensor = _Gated.apply(gate, up)  # type: ignore[no-untyped-call]
    return found


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if fused.usable(x):
            out, factors = fused.rms_norm(rows, weight, eps)
            ctx.save_for_backward(x, weight, factors)
            return out.view(x.shape)
        out = torch.empty(
            rows.shape, dtype=torch.promote_types(x.dtype, weight.dtype), device=x.device
        )
        factors = torch.empty(len(rows), 1, dtype=torch.float32, device=x.device)
        for at in blocks(rows):
            part = rows[at].to(torch.float32)
            factor = torch.rsqrt(part.pow(2).mean(-1, keepdim=True) + eps)
            factors[at] = factor
            out[at] = weight * (part * factor).to(x.dtype)
        ctx.save_for_backward(x, weight, factors)
        return out.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, weight, factors = ctx.saved_tensors
        rows, grads = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        if fused.usable(x):
            found = fused.rms_norm_backward(grads, rows, weight, factors)
            return found.view(x.shape), None, None
        out = torch.empty_like(rows)
        scale = weight.to(torch.float32)
        for at in blocks(rows):
            part, factor = rows[at].to(torch.float32) * factors[at], factors[at]
            inner = grads[at].to(torch.float32) * scale
            along = (inner * part).mean(-1, keepdim=True)
            out[at] = inner.sub_(part.mul_(along)).mul_(factor)
        return out.view(x.shape), None, None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        if fused.usable(gate):
            return fused.gated(gate, up)
        out = torch.empty_like(gate, memory_format=torch.contiguous_format)
        width = gate.shape[-1]
        rows = [part.reshape(-1, width) for part in (gate, up, out)]
        for at in blocks(rows[0]):
            torch.mul(silu(rows[0][at]), rows[1][at], out=rows[2][at])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        if fused.usable(gate):
            return fused.gated_backward(grad, gate, up)
        width = gate.shape[-1]
        found = [torch.empty_like(p, memory_format=torch.contiguous_format) for p in (gate, up)]
        rows = [part.reshape(-1, width) for part in (gate, up, grad, *found)]
        for at in blocks(rows[0]):
            g, u, d, to_gate, to_up = (part[at] for part in rows)
            torch.mul(d, silu(g), out=to_up)
            to_gate.copy_(torch.ops.aten.silu_backward(d * u, g))
        return found[0], found[1]


def _norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
    """In place of transformers' own."""
    if self.weight.requires_grad or hidden_states.dtype == torch.float64:
        own: Tensor = type(self).forward(self, hidden_states)
        return own
    return rms_norm(hidden_states, self.weight, self.variance_epsilon)


def _unit_forward(self: Any, x: Tensor) -> Tensor:
    found: Tensor = self.down_proj(gated(self.gate_proj(x), self.up_proj(x)))
    return found


_WIDTH = 24


def _probe(dtype: torch.dtype) -> Tensor:
    return torch.linspace(-3, 4, 7 * _WIDTH, dtype=torch.float32).sin().view(7, _WIDTH).to(dtype)


@functools.cache
def _is_norm(kind: type) -> bool:
    """Whether the class's forward is `rms_norm`, on a stand-in that has nothing else to offer."""
    if not kind.__name__.endswith("RMSNorm"):
        return False
    with torch.device("cpu"):  # a plan's models are built on the meta device
        return all(_agree(kind, dtype, norm=True) for dtype in (torch.float32, torch.bfloat16))


@functools.cache
def _is_unit(kind: type) -> bool:
    """The same for ``down_proj(silu(gate_proj(x)) * up_proj(x))``."""
    if not kind.__name__.endswith("MLP"):
        return False
    with torch.device("cpu"):
        return all(_agree(kind, dtype, norm=False) for dtype in (torch.float32, torch.bfloat16))


def _agree(kind: Any, dtype: torch.dtype, *, norm: bool) -> bool:
    x = _probe(dtype)
    weight = (_probe(torch.float32)[3] + 1).to(dtype)
    stand_in: Any = types.SimpleNamespace(weight=weight, variance_epsilon=1e-4)
    if not norm:
        stand_in = types.SimpleNamespace(
            gate_proj=lambda t: t * 2, up_proj=lambda t: t - 1, down_proj=lambda t: t * 3,
            act_fn=silu,
        )  # fmt: skip
    try:
        theirs = kind.forward(stand_in, x)
    except (AttributeError, TypeError, RuntimeError, ValueError):
        return False
    ours = rms_norm(x, weight, 1e-4) if norm else _unit_forward(stand_in, x)
    return isinstance(theirs, Tensor) and theirs.dtype == ours.dtype and torch.equal(theirs, ours)


def _is_silu(activation: Any) -> bool:
    try:
        with torch.device("cpu"):
            x = _probe(torch.float32)
            return torch.equal(activation(x), silu(x))
    except (AttributeError, TypeError, RuntimeError, ValueError):
        return False
