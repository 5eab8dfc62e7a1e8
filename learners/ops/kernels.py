"""Attention over a packed row: the same result by several ways, for several devices.

Each takes query (1, heads, tokens, width), key and value (1, key heads, tokens, width), the
`Layout`, the factor of the scores (None: width ** -0.5), the sliding window and the soft cap (None
where there is none), and gives (1, heads, tokens, width).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from learners.ops.packing import Layout, Span
from swe_env.errors import ConfigError

_QUICKEST = [
    SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH,
]  # fmt: skip
_BLOCK = 512
"""Queries of a span that see a longer path, or a window, computed at once."""
_STEPS = 32
"""On CUDA a run's path is filled up to a multiple of this share of the power of two below it, so
that lengths repeat: cuDNN prepares a kernel for every new one, in 0.06 s (H200)."""
_LONG = 4096
"""Mean tokens of a span from which on a call of SDPA for each is quicker than one `varlen`."""


def segments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scale: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Span by span, each against the keys of its own path: computes nothing that is masked."""
    done = [
        part
        for span in layout.spans
        for part in _span(span, query, key, value, scale, window, softcap)
    ]
    return done[0] if len(done) == 1 else torch.cat(done, 2)


def dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scale: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """With the whole (tokens, tokens) mask: the plainest, for comparison."""
    return masked(query, key, value, layout.mask(window), scale, softcap)


def flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scale: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Torch's flex attention; blocks that nobody sees are skipped. No gradients on a CPU."""
    ends, positions = layout.ends, layout.positions

    def sees(_row: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = (k <= q) & (q < ends[k])
        return seen if window is None else seen & (positions[q] - positions[k] < window)

    return flex_where(sees, query, key, value, layout, scale, window, softcap)


def flex_where(
    sees: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scale: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Flex attention under ``sees(row, head, query, key)``, whose block mask `layout` keeps."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def capped(score: Tensor, *_: Tensor) -> Tensor:
        assert softcap is not None
        return softcap * torch.tanh(score / softcap)

    cuda, sizes = query.is_cuda, (query.shape[2], key.shape[2])

    def make() -> Any:  # compiled, it never holds the whole mask
        return create_block_mask(sees, None, None, *sizes, device=query.device, _compile=cuda)

    kernel: Any = _compiled_flex() if cuda else flex_attention
    found: Tensor = kernel(
        query, key, value,
        score_mod=None if softcap is None else capped,
        block_mask=layout.keep("flex", window, make),
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
        # Not the kernel for decoding, which takes over short rows but not all of what is asked.
        kernel_options={"FORCE_USE_FLEX_ATTENTION": True} if cuda else None,
    )  # fmt: skip
    return found


def varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scale: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Torch's flash attention over runs of different lengths; CUDA and half precision only."""
    from torch.nn.attention.varlen import varlen_attn

    if softcap is not None:
        raise ConfigError("torch's varlen attention has no soft cap.")
    at = layout.keep("varlen", None, layout.varlen)
    groups = query.shape[1] != key.shape[1] and _varlen_asks_for_gqa()
    keys, values = key[0].transpose(0, 1), value[0].transpose(0, 1)
    if at.keys is not None:
        keys, values = keys[at.keys], values[at.keys]
    many: Any = varlen_attn
    found: Tensor = many(
        query[0].transpose(0, 1), keys, values,
        at.queries_until, at.keys_until, at.longest_queries, at.longest_keys,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        **({"enable_gqa": True} if groups else {}),
    )  # fmt: skip
    return found.transpose(0, 1)[None]


def flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scale: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """`varlen`, or for long runs without a window `segments`, for which cuDNN has more speed."""
    tokens, whole = query.shape[2], window is None and softcap is None
    chosen = segments if whole and tokens >= _LONG * len(layout.spans) else varlen
    return chosen(query, key, value, layout, scale, window, softcap)


@functools.cache
def _varlen_asks_for_gqa() -> bool:
    """Grouped heads must be asked for from torch 2.12 on; before, they were taken as they came."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


Kernel = Callable[[Tensor, Tensor, Tensor, Layout, float | None, int | None, float | None], Tensor]
KERNELS: dict[str, Kernel] = {
    "segments": segments, "dense": dense, "flex": flex, "varlen": varlen, "flash": flash,
}  # fmt: skip
"""By name: (query, key, value, layout, scale, window, softcap) -> (1, heads, tokens, width)."""


def _span(
    span: Span,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None,
    window: int | None,
    softcap: float | None,
) -> Iterator[Tensor]:
    new, seen = span.stop - span.start, sum(stop - start for start, stop in span.keys)
    if seen <= 2 * new and softcap is None and (window is None or window >= seen):
        # Quicker with the queries of the beginning again, for nothing, than under a mask.
        fill = -seen % max((1 << seen.bit_length() - 1) // _STEPS, 1) if query.is_cuda else 0
        path, keys, values = (_gathered(part, span.keys, fill) for part in (query, key, value))
        yield masked(path, keys, values, None, scale, None)[:, :, seen - new : seen]
        return
    keys, values = (_gathered(part, span.keys) for part in (key, value))
    mine = query[:, :, span.start : span.stop]
    for first in range(0, new, _BLOCK):
        part = mine[:, :, first : first + _BLOCK]
        last = seen - new + first + part.shape[2]
        begin = 0 if window is None else max(0, last - part.shape[2] - window + 1)
        q = torch.arange(last - part.shape[2], last, device=query.device)[:, None]
        k = torch.arange(begin, last, device=query.device)[None]
        mask = k <= q if window is None else (k <= q) & (q - k < window)
        yield masked(
            part, keys[:, :, begin:last], values[:, :, begin:last], mask, scale, softcap
        )  # fmt: skip


def _gathered(tensor: Tensor, ranges: tuple[tuple[int, int], ...], fill: int = 0) -> Tensor:
    """Tokens of the ranges, and behind them `fill` zeros, which no token before them sees."""
    parts = [tensor[:, :, start:stop] for start, stop in ranges]
    if fill:
        parts.append(tensor.new_zeros(*tensor.shape[:2], fill, tensor.shape[3]))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def masked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float | None,
    softcap: float | None,
) -> Tensor:
    """Under a bool mask; without one, causal. Heads are repeated: torch's grouped path is slow.

    Except on CUDA without a mask, where kernels take groups as they are.
    """
    groups = query.shape[1] // key.shape[1]
    if query.is_cuda and mask is None and softcap is None:
        with sdpa_kernel(_QUICKEST, set_priority=True):
            return scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=scale, enable_gqa=groups > 1
            )
    if groups > 1:
        key, value = (part.repeat_interleave(groups, 1) for part in (key, value))
    if softcap is None:
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale
        )
    assert mask is not None
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * factor / softcap)
    wide = torch.promote_types(torch.float32, query.dtype)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1, dtype=wide)
    return weights.to(query.dtype) @ value


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Any] = torch.compile(flex_attention)
    return compiled
