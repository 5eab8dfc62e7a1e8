"""The kernels of `learners.ops.fused`, one for each of its functions, in Triton.

Where a value would be stored in half precision by plain code, it is rounded here too.
"""

from __future__ import annotations

import importlib.util
from typing import Any

if importlib.util.find_spec("triton") is not None:
    import triton
    import triton.language as tl
else:  # pragma: no cover - CPU builds of torch come without it
    triton = None

AVAILABLE = triton is not None
"""Whether Triton is installed."""


def kernel(function: Any) -> Any:
    """Compiled when it is first launched."""
    return function if triton is None else triton.jit(function)


@kernel
def norm(  # type: ignore[no-untyped-def]
    x, weight, out, factors, eps, total, dim, count: tl.constexpr, columns: tl.constexpr
):
    """Of `fused.rms_norm`."""
    row = tl.program_id(0).to(tl.int64) * count + tl.arange(0, count)
    column = tl.arange(0, columns)
    inside = (row < total)[:, None] & (column < dim)[None]
    at = row[:, None] * dim + column[None]
    part = tl.load(x + at, inside, 0.0)
    wide = part.to(tl.float32)
    factor = 1 / tl.sqrt(tl.sum(wide * wide, 1) / dim + eps)
    scale = tl.load(weight + column, column < dim, 0.0).to(tl.float32)
    normed = (wide * factor[:, None]).to(part.dtype).to(tl.float32)
    tl.store(out + at, (normed * scale[None]).to(out.dtype.element_ty), inside)
    tl.store(factors + row, factor, row < total)


@kernel
def norm_backward(  # type: ignore[no-untyped-def]
    grad, x, weight, factors, out, total, dim, count: tl.constexpr, columns: tl.constexpr
):
    """Of `fused.rms_norm_backward`."""
    row = tl.program_id(0).to(tl.int64) * count + tl.arange(0, count)
    column = tl.arange(0, columns)
    inside = (row < total)[:, None] & (column < dim)[None]
    at = row[:, None] * dim + column[None]
    factor = tl.load(factors + row, row < total, 0.0)[:, None]
    part = tl.load(x + at, inside, 0.0).to(tl.float32) * factor
    scale = tl.load(weight + column, column < dim, 0.0).to(tl.float32)[None]
    inner = tl.load(grad + at, inside, 0.0).to(tl.float32) * scale
    along = tl.sum(inner * part, 1)[:, None] / dim
    tl.store(out + at, ((inner - part * along) * factor).to(out.dtype.element_ty), inside)


@kernel
def gated(gate, up, out, size, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of `fused.gated`."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    g = tl.load(gate + at, at < size, 0.0)
    wide = g.to(tl.float32)
    opened = (wide / (1 + tl.exp(-wide))).to(g.dtype).to(tl.float32)
    found = opened * tl.load(up + at, at < size, 0.0).to(tl.float32)
    tl.store(out + at, found.to(g.dtype), at < size)


@kernel
def gated_backward(  # type: ignore[no-untyped-def]
    grad, gate, up, to_gate, to_up, size, block: tl.constexpr
):
    """Of `fused.gated_backward`."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    g = tl.load(gate + at, at < size, 0.0)
    wide = g.to(tl.float32)
    u = tl.load(up + at, at < size, 0.0).to(tl.float32)
    d = tl.load(grad + at, at < size, 0.0).to(tl.float32)
    share = 1 / (1 + tl.exp(-wide))
    opened = (wide * share).to(g.dtype).to(tl.float32)
    tl.store(to_up + at, (d * opened).to(g.dtype), at < size)
    inner = (d * u).to(g.dtype).to(tl.float32)
    slope = share * (1 + wide * (1 - share))
    tl.store(to_gate + at, (inner * slope).to(g.dtype), at < size)


@kernel
def rotated(  # type: ignore[no-untyped-def]
    x, cos, sin, out, rows, heads, half,
    back: tl.constexpr, count: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """Of `fused.rotated`."""
    row = tl.program_id(0).to(tl.int64) * count + tl.arange(0, count)
    column = tl.arange(0, columns)
    inside = (row < rows)[:, None] & (column < half)[None]
    at = row[:, None] * 2 * half + column[None]
    angle = (row // heads)[:, None] * 2 * half + column[None]
    left, right = tl.load(x + at, inside, 0.0), tl.load(x + at + half, inside, 0.0)
    kind = left.dtype
    one, two = left.to(tl.float32), right.to(tl.float32)
    sin_one = tl.load(sin + angle, inside, 0.0).to(tl.float32)
    sin_two = tl.load(sin + angle + half, inside, 0.0).to(tl.float32)
    turned_one, turned_two = -two * sin_one, one * sin_two
    if back:
        turned_one, turned_two = two * sin_two, -one * sin_one
    first = one * tl.load(cos + angle, inside, 0.0).to(tl.float32)
    second = two * tl.load(cos + angle + half, inside, 0.0).to(tl.float32)
    first = first.to(kind).to(tl.float32) + turned_one.to(kind).to(tl.float32)
    second = second.to(kind).to(tl.float32) + turned_two.to(kind).to(tl.float32)
    tl.store(out + at, first.to(kind), inside)
    tl.store(out + at + half, second.to(kind), inside)


@kernel
def stacked_halves(  # type: ignore[no-untyped-def]
    wide, out, rank, columns, down, right, factor, block: tl.constexpr
):
    """Of `fused.stacked_halves`."""
    at = tl.program_id(0) * block + tl.arange(0, block)
    row, column = at // columns, at % columns
    inside = row < rank
    value = tl.load(wide + row * down + column * right, inside, 0.0) * factor
    high = value.to(tl.bfloat16)
    rest = (value - high.to(tl.float32)).to(tl.bfloat16)
    tl.store(out + at, high, inside)
    tl.store(out + rank * columns + at, rest, inside)
    tl.store(out + 2 * rank * columns + at, high, inside)


@kernel
def joined_halves(parts, out, size, rank, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of `fused.joined_halves`."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    row, column = at // rank, at % rank
    first = parts + row * 2 * rank + column
    value = tl.load(first, at < size, 0.0) + tl.load(first + rank, at < size, 0.0)
    high = value.to(tl.bfloat16)
    rest = (value - high.to(tl.float32)).to(tl.bfloat16)
    place = out + row * 3 * rank + column
    tl.store(place, high, at < size)
    tl.store(place + rank, high, at < size)
    tl.store(place + 2 * rank, rest, at < size)


@kernel
def logit_sums(  # type: ignore[no-untyped-def]
    logits, norms, entropies, words: tl.constexpr, block: tl.constexpr
):
    """Of `fused.logit_sums`."""
    row = tl.program_id(0).to(tl.int64)
    most = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    weighted = tl.full((), 0.0, tl.float32)  # of exp(logit - most) (logit - most)
    for start in range(0, words, block):
        at = start + tl.arange(0, block)
        logit = tl.load(logits + row * words + at, at < words, float("-inf"))
        higher = tl.maximum(most, tl.max(logit, 0))
        less = tl.where(most == higher, 0.0, most - higher)  # -inf before the first block
        shrink = tl.exp(less)
        weighted = tl.where(total == 0.0, 0.0, shrink * (weighted + total * less))
        below = tl.where(at < words, logit - higher, 0.0)
        share = tl.where(at < words, tl.exp(below), 0.0)
        total = total * shrink + tl.sum(share, 0)
        weighted += tl.sum(share * below, 0)
        most = higher
    tl.store(norms + row, most + tl.log(total))
    tl.store(entropies + row, tl.log(total) - weighted / total)


@kernel
def logit_grads(  # type: ignore[no-untyped-def]
    logits, targets, norms, grad_logps, entropies, grad_entropies, out, words: tl.constexpr,
    scale, softcap, block: tl.constexpr, with_entropy: tl.constexpr, with_cap: tl.constexpr,
):  # fmt: skip
    """Of `fused.logit_grads`."""
    row = tl.program_id(0).to(tl.int64)
    target, norm = tl.load(targets + row), tl.load(norms + row)
    g = tl.load(grad_logps + row)
    for start in range(0, words, block):
        at = start + tl.arange(0, block)
        logit = tl.load(logits + row * words + at, at < words, 0.0)
        logp = logit - norm
        factor = g
        if with_entropy:
            slope = tl.load(grad_entropies + row)
            factor = g + slope * (logp + tl.load(entropies + row))
        found = tl.where(at == target, g, 0.0) - factor * tl.exp(logp)
        if with_cap:
            capped = logit / softcap
            found = found * (1 - capped * capped)
        tl.store(out + row * words + at, (found * scale).to(out.dtype.element_ty), at < words)
