"""`attend_grouped`: attention of a decoding step on a GPU, without keys repeated for their heads.

Where a mask is given, transformers' `sdpa` repeats keys and values for every query head before
PyTorch's kernel: with 16 heads over 4 the cache is read once and written and read again four times
as large, for each new token. Here a key head's queries are the rows of one matrix product over the
keys as they lie in the buffers, in the model's own type, with sums and softmax in float32.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from agents.policies.sampling.attention import register, use

NAME = "swe_env_grouped"
_RECORDED = "swe_env_recorded"
_OURS = ("sdpa", "eager", NAME)
"""Attention that nobody chose on purpose; another (flash attention …) is left in place."""


def attend_grouped(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **other: Any,
) -> tuple[torch.Tensor, None]:
    """Softmax attention of one query a row; more queries go to transformers' `sdpa`.

    Args:
        module: the layer that asks.
        query: (rows, heads, new, width).
        key: (rows, key_heads, seen, width); `heads` is a multiple of `key_heads`.
        value: as `key`.
        attention_mask: (rows, 1, new, at least `seen`): true where a key is seen, or added to
            the scores; or None.
        scaling: factor of the scores; None for width ** -0.5.
        **other: for `sdpa` alone.

    Returns:
        (rows, new, heads, width) in the query's type, and None in place of the weights.
    """
    if query.shape[2] > 1:
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **other
        )
        return found
    rows, heads, _, width = query.shape
    key_heads, seen = key.shape[1], key.shape[2]
    factor = width**-0.5 if scaling is None else scaling
    grouped = query.reshape(rows * key_heads, heads // key_heads, width)
    scores = _scores(grouped, key.flatten(0, 1)).view(rows, key_heads, -1, seen) * factor
    if attention_mask is not None:
        mask = attention_mask[..., :seen]
        if mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        else:
            scores = scores + mask
    weights = scores.softmax(-1).to(value.dtype).view(rows * key_heads, -1, seen)
    out = torch.bmm(weights, value.flatten(0, 1))
    return out.view(rows, 1, heads, value.shape[-1]).to(query.dtype), None


def use_grouped(model: Any) -> bool:
    """Let a model use `attend_grouped`, if that gives what its own code written out gives.

    A model whose attention was chosen on purpose (flash attention …) keeps it.
    """
    causal = getattr(model, "get_base_model", lambda: model)()
    if causal.config._attn_implementation not in _OURS:
        return False
    if torch.device(model.device).type == "cuda":
        _widens(model.dtype)  # asked now, not first while a graph is captured
    return use(model, NAME, attend_grouped, sdpa_mask)


def hands_masks_on(model: Any) -> bool:
    """Whether every layer's attention gets a mask of four dimensions as the model was given it."""
    causal = getattr(model, "get_base_model", lambda: model)()
    own = causal.config._attn_implementation
    mask = torch.full((1, 1, 1, 1), 0.25, device=model.device)
    handed: list[bool] = []

    def record(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **settings: Any,
    ) -> tuple[torch.Tensor, None]:
        handed.append(attention_mask is not None and torch.equal(attention_mask, mask))
        return attend_grouped(module, query, key, value, attention_mask, **settings)

    register(_RECORDED, record, sdpa_mask)
    causal.set_attn_implementation(_RECORDED)
    token = torch.zeros((1, 1), dtype=torch.long, device=model.device)
    try:
        with torch.inference_mode():
            model(input_ids=token, attention_mask=mask, position_ids=token, use_cache=False)
    except (RuntimeError, TypeError, ValueError):  # it takes masks of two dimensions only
        return False
    finally:
        causal.set_attn_implementation(own)
    return bool(handed) and all(handed)


def _scores(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Products of (pairs, group, width) and (pairs, seen, width): (pairs, group, seen), float32."""
    if keys.is_cuda and _widens(keys.dtype):
        return torch.bmm(queries, keys.transpose(1, 2), out_dtype=torch.float32)
    return torch.bmm(queries, keys.transpose(1, 2)).float()


@functools.cache
def _widens(dtype: torch.dtype) -> bool:
    """Whether CUDA multiplies matrices of this type into float32, as PyTorch does since 2.8."""
    if dtype not in (torch.bfloat16, torch.float16):
        return False
    ones = torch.ones((2, 8, 8), dtype=dtype, device="cuda")
    try:
        torch.bmm(ones, ones.transpose(1, 2), out_dtype=torch.float32)
    except (RuntimeError, TypeError):
        return False
    return True
