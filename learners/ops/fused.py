"""Triton kernels for CUDA: what eager PyTorch sends through memory a dozen times goes once.

`learners.ops.lean` and `learners.ops.logps` call these where `usable` says so; elsewhere they
compute the same with PyTorch. Rounding is that of the plain code: each value that it would store in
half precision is rounded there.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor

if importlib.util.find_spec("triton") is not None:
    import triton
    import triton.language as tl
else:  # pragma: no cover - CPU builds of torch come without it
    triton = None


_TYPES = (torch.float32, torch.bfloat16, torch.float16)


@functools.cache
def _can_compile(device: int) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


def usable(tensor: Tensor) -> bool:
    """Whether the kernels run where the tensor is, for its type."""
    if triton is None or not tensor.is_cuda or tensor.dtype not in _TYPES:
        return False
    return _can_compile(tensor.device.index or 0)


def rms_norm(rows: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``weight * (x / rms(x))`` of each row, and the factors 1 / rms.

    Args:
        rows: (rows, dim).
        weight: (dim,).
        eps: Added to the mean square.

    Returns:
        (rows, dim) in the wider of the two types, and (rows,) float32.
    """
    rows = rows.contiguous()
    wide = torch.promote_types(rows.dtype, weight.dtype)
    out = torch.empty(rows.shape, dtype=wide, device=rows.device)
    factors = torch.empty(len(rows), dtype=torch.float32, device=rows.device)
    tile, grid = _tile(rows)
    _norm[grid](rows, weight, out, factors, eps, *rows.shape, **tile)
    return out, factors


def rms_norm_backward(grads: Tensor, rows: Tensor, weight: Tensor, factors: Tensor) -> Tensor:
    """Gradient of the rows, (rows, dim), in their type."""
    grads, rows = grads.contiguous(), rows.contiguous()
    out = torch.empty_like(rows)
    tile, grid = _tile(rows)
    _norm_backward[grid](grads, rows, weight, factors, out, *rows.shape, **tile)
    return out


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up`` of two tensors of one shape."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    size = gate.numel()
    _gated[(triton.cdiv(size, _FLAT),)](gate, up, out, size, block=_FLAT)
    return out


def gated_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `gate` and of `up`."""
    grad, gate, up = grad.contiguous(), gate.contiguous(), up.contiguous()
    to_gate, to_up = torch.empty_like(gate), torch.empty_like(up)
    size = gate.numel()
    _gated_backward[(triton.cdiv(size, _FLAT),)](
        grad, gate, up, to_gate, to_up, size, block=_FLAT
    )  # fmt: skip
    return to_gate, to_up


def logit_sums(logits: Tensor) -> tuple[Tensor, Tensor]:
    """``log sum exp`` and entropy of each row of logits, read once.

    Args:
        logits: (rows, vocab), float32, contiguous.

    Returns:
        Two of (rows,), float32.
    """
    norms = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    entropies = torch.empty_like(norms)
    _logit_sums[(len(logits),)](
        logits, norms, entropies, logits.shape[1], block=_WORDS, num_warps=8
    )  # fmt: skip
    return norms, entropies


def logit_grads(
    logits: Tensor,
    targets: Tensor,
    norms: Tensor,
    grad_logps: Tensor,
    entropy: tuple[Tensor, Tensor] | None,
    dtype: torch.dtype,
    *,
    softcap: float | None,
    scale: float,
) -> Tensor:
    """Gradient of the logits before cap and scale, see `learners.ops.logps`; (rows, vocab).

    Args:
        logits: (rows, vocab), float32, contiguous, after cap and scale.
        targets: (rows,), int64.
        norms: Their ``log sum exp``, (rows,).
        grad_logps: (rows,).
        entropy: Entropies and their gradients, each (rows,), or None where these are zero.
        dtype: Of the result.
        softcap: The cap on the logits.
        scale: The factor on the logits before the cap.
    """
    out = torch.empty(logits.shape, dtype=dtype, device=logits.device)
    entropies, grad_entropies = entropy if entropy is not None else (norms, norms)
    _logit_grads[(len(logits),)](
        logits, targets, norms, grad_logps.contiguous(), entropies.contiguous(),
        grad_entropies.contiguous(), out, logits.shape[1], scale, softcap or 1.0,
        block=_WORDS, with_entropy=entropy is not None, with_cap=softcap is not None, num_warps=8,
    )  # fmt: skip
    return out


def rotated(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> Tensor:
    """``x cos + rotate_half(x) sin``, or the gradient of x for the gradient `x` of that.

    Args:
        x: (1, heads, tokens, width) of dense memory in the order (tokens, heads, width).
        cos: (1, tokens, width).
        sin: As `cos`.
        back: Whether to go back.

    Returns:
        As `x`.
    """
    _, heads, tokens, width = x.shape
    memory = x.transpose(1, 2).contiguous()
    out = torch.empty_like(memory)
    half = width // 2
    columns = triton.next_power_of_2(half)
    count = max(_FLAT // columns, 1)
    rows = tokens * heads
    _rotated[(triton.cdiv(rows, count),)](
        memory, cos.contiguous(), sin.contiguous(), out, rows, heads, half,
        back=back, count=count, columns=columns, num_warps=8,
    )  # fmt: skip
    return out.transpose(1, 2)


def stacked_halves(wide: Tensor, factor: float) -> Tensor:
    """``factor * wide`` as a sum of two bfloat16 matrices, stacked: high, rest, high.

    Each element is high + rest up to 2^-17 of it.

    Args:
        wide: (rank, columns), float32, of any strides.
        factor: On every element.

    Returns:
        (3 rank, columns), bfloat16.
    """
    rank, columns = wide.shape
    out = torch.empty(3 * rank, columns, dtype=torch.bfloat16, device=wide.device)
    _stacked_halves[(triton.cdiv(wide.numel(), _SMALL),)](
        wide, out, rank, columns, *wide.stride(), factor, block=_SMALL
    )  # fmt: skip
    return out


def joined_halves(parts: Tensor) -> Tensor:
    """Sums of a matrix's left and right half, as bfloat16 beside each other: high, high, rest.

    Args:
        parts: (rows, 2 rank), float32, contiguous.

    Returns:
        (rows, 3 rank), bfloat16; times `stacked_halves` it is a product of float32's precision.
    """
    rank = parts.shape[1] // 2
    out = torch.empty(len(parts), 3 * rank, dtype=torch.bfloat16, device=parts.device)
    size = len(parts) * rank
    _joined_halves[(triton.cdiv(size, _SMALL),)](parts, out, size, rank, block=_SMALL)
    return out


_SMALL = 1024
"""Elements of a program of the kernels on an adapter's narrow matrices."""
_FLAT = 4096
"""Elements of a program of the elementwise kernels."""
_WORDS = 4096
"""Words of a row that a program holds at once."""
_CELLS = 4096
"""Elements of a program of the norms: many short rows, or one long one."""


def _tile(rows: Tensor) -> tuple[dict[str, int], tuple[int]]:
    """Rows and columns of one program, and how many programs there are."""
    columns = triton.next_power_of_2(rows.shape[1])
    count = max(_CELLS // columns, 1)
    warps = 8 if columns <= 2 * _CELLS else 16
    tile = {"count": count, "columns": columns, "num_warps": warps}
    return tile, (triton.cdiv(len(rows), count),)


def _kernel(function: Any) -> Any:
    return function if triton is None else triton.jit(function)


@_kernel
def _norm(  # type: ignore[no-untyped-def]
    x, weight, out, factors, eps, total, dim, count: tl.constexpr, columns: tl.constexpr
):
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


@_kernel
def _norm_backward(  # type: ignore[no-untyped-def]
    grad, x, weight, factors, out, total, dim, count: tl.constexpr, columns: tl.constexpr
):
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


@_kernel
def _gated(gate, up, out, size, block: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    g = tl.load(gate + at, at < size, 0.0)
    wide = g.to(tl.float32)
    opened = (wide / (1 + tl.exp(-wide))).to(g.dtype).to(tl.float32)
    found = opened * tl.load(up + at, at < size, 0.0).to(tl.float32)
    tl.store(out + at, found.to(g.dtype), at < size)


@_kernel
def _gated_backward(  # type: ignore[no-untyped-def]
    grad, gate, up, to_gate, to_up, size, block: tl.constexpr
):
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


@_kernel
def _rotated(  # type: ignore[no-untyped-def]
    x, cos, sin, out, rows, heads, half,
    back: tl.constexpr, count: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
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


@_kernel
def _stacked_halves(  # type: ignore[no-untyped-def]
    wide, out, rank, columns, down, right, factor, block: tl.constexpr
):
    at = tl.program_id(0) * block + tl.arange(0, block)
    row, column = at // columns, at % columns
    inside = row < rank
    value = tl.load(wide + row * down + column * right, inside, 0.0) * factor
    high = value.to(tl.bfloat16)
    rest = (value - high.to(tl.float32)).to(tl.bfloat16)
    tl.store(out + at, high, inside)
    tl.store(out + rank * columns + at, rest, inside)
    tl.store(out + 2 * rank * columns + at, high, inside)


@_kernel
def _joined_halves(parts, out, size, rank, block: tl.constexpr):  # type: ignore[no-untyped-def]
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


@_kernel
def _logit_sums(  # type: ignore[no-untyped-def]
    logits, norms, entropies, words: tl.constexpr, block: tl.constexpr
):
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


@_kernel
def _logit_grads(  # type: ignore[no-untyped-def]
    logits, targets, norms, grad_logps, entropies, grad_entropies, out, words: tl.constexpr,
    scale, softcap, block: tl.constexpr, with_entropy: tl.constexpr, with_cap: tl.constexpr,
):  # fmt: skip
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
