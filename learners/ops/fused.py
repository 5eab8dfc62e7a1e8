"""Triton kernels for CUDA: what eager PyTorch sends through memory a dozen times goes once.

`learners.ops.lean`, `logps`, `lora` and `rotary` call these where `usable` says so; elsewhere they
compute the same with PyTorch. Rounding is that of the plain code: each value that it would store in
half precision is rounded there.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from torch import Tensor

from learners.ops import triton_kernels

log = logging.getLogger(__name__)

_TYPES = (torch.float32, torch.bfloat16, torch.float16)


@functools.cache
def _work(device: torch.device) -> bool:
    """Whether the kernels can be made for a GPU: one of Ampere's kind or later, a C compiler."""
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False
    ones = torch.ones(2, 16, device=device)
    try:
        found, _ = rms_norm(ones, ones[0], 0.0)
    except Exception as error:  # whatever a compiler says
        log.warning("Slower without Triton's kernels: %s", str(error).strip().splitlines()[:1])
        return False
    return torch.allclose(found, ones, atol=1e-3)


def usable(tensor: Tensor) -> bool:
    """Whether the kernels run where the tensor is, for its type."""
    if not triton_kernels.AVAILABLE or not tensor.is_cuda or tensor.dtype not in _TYPES:
        return False
    return _work(tensor.device)


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
    tile, programs = _tile(rows)
    _launch(triton_kernels.norm, programs, rows, weight, out, factors, eps, *rows.shape, **tile)
    return out, factors


def rms_norm_backward(grads: Tensor, rows: Tensor, weight: Tensor, factors: Tensor) -> Tensor:
    """Gradient of the rows, (rows, dim), in their type."""
    grads, rows = grads.contiguous(), rows.contiguous()
    out = torch.empty_like(rows)
    tile, programs = _tile(rows)
    _launch(
        triton_kernels.norm_backward,
        programs,
        grads,
        rows,
        weight,
        factors,
        out,
        *rows.shape,
        **tile,
    )
    return out


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up`` of two tensors of one shape."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    size = gate.numel()
    _launch(triton_kernels.gated, _parts(size, _FLAT), gate, up, out, size, block=_FLAT)
    return out


def gated_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `gate` and of `up`."""
    grad, gate, up = grad.contiguous(), gate.contiguous(), up.contiguous()
    to_gate, to_up = torch.empty_like(gate), torch.empty_like(up)
    size = gate.numel()
    _launch(
        triton_kernels.gated_backward, _parts(size, _FLAT),
        grad, gate, up, to_gate, to_up, size, block=_FLAT,
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
    _launch(
        triton_kernels.logit_sums, len(logits),
        logits, norms, entropies, logits.shape[1], block=_WORDS, num_warps=8,
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
    _launch(
        triton_kernels.logit_grads, len(logits),
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
    columns = _power(half)
    count = max(_FLAT // columns, 1)
    rows = tokens * heads
    _launch(
        triton_kernels.rotated, _parts(rows, count),
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
    _launch(
        triton_kernels.stacked_halves, _parts(wide.numel(), _SMALL),
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
    _launch(
        triton_kernels.joined_halves,
        _parts(size, _SMALL),
        parts,
        out,
        size,
        rank,
        block=_SMALL,
    )
    return out


_SMALL = 1024
"""Elements of a program of the kernels on an adapter's narrow matrices."""
_FLAT = 4096
"""Elements of a program of the elementwise kernels."""
_WORDS = 4096
"""Words of a row that a program holds at once."""
_CELLS = 4096
"""Elements of a program of the norms: many short rows, or one long one."""


def _launch(kernel: Any, programs: int, first: Tensor, *others: Any, **settings: Any) -> None:
    """On the device of the first tensor, which need not be the current one."""
    if first.is_cuda and first.device.index != torch.cuda.current_device():
        with torch.cuda.device(first.device):
            kernel[(programs,)](first, *others, **settings)
    else:
        kernel[(programs,)](first, *others, **settings)


def _parts(total: int, size: int) -> int:
    """How many of `size` hold `total`."""
    return -(-total // size)


def _power(size: int) -> int:
    """The least power of two that is no less."""
    return 1 << (size - 1).bit_length()


def _tile(rows: Tensor) -> tuple[dict[str, int], int]:
    """Rows and columns of one program, and how many programs there are."""
    columns = _power(rows.shape[1])
    count = max(_CELLS // columns, 1)
    warps = 8 if columns <= 2 * _CELLS else 16
    tile = {"count": count, "columns": columns, "num_warps": warps}
    return tile, _parts(len(rows), count)
