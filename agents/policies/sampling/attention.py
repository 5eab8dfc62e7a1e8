"""`attend`: attention for sampling on a CPU, where PyTorch's own is built for long queries.

A decoding step asks one query a row. With 900 keys and 3 x 3 heads of 64, PyTorch's CPU kernel
took 7.8 ms in bfloat16 and 4.0 ms in float32 for 8 rows, 14.8 and 2.7 ms for 32; two matrix
products over the grouped heads in float32 took 0.5 and 2.7 ms (least of 8 calls, 2 busy cores with
AVX-512). So the gain over float32 goes as the caches outgrow the processor's; over bfloat16 it
stays. Keys and values are kept in float32 there, which rounds less than the model's own type. A
prompt has long queries: 200 tokens behind 1,000 took PyTorch's kernel 4 ms and products over all
scores 12.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import eager_mask

NAME = "swe_env_cpu"
_PROBED = "swe_env_probe"
_PROBE = 24
"""Tokens on which `use` compares the two ways."""
_TOLERANCE = 1e-4
"""Most that they may differ there, as a share of the largest value."""

Attend = Callable[..., tuple[torch.Tensor, Any]]
"""An attention function in the form transformers' models call it."""


def attend(
    _module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_other: Any,
) -> tuple[torch.Tensor, None]:
    """Softmax attention with grouped heads, computed in the type of the keys, without gradients.

    Args:
        _module: the layer that asks; unused.
        query: (rows, heads, new, width).
        key: (rows, key_heads, seen, width); `heads` is a multiple of `key_heads`.
        value: as `key`.
        attention_mask: added to the scores, (rows, 1, new, at least `seen`), or None.
        scaling: factor of the scores; None for width ** -0.5.

    Returns:
        (rows, new, heads, width) in the query's type, and None in place of the weights.
    """
    rows, heads, new, width = query.shape
    key_heads, seen = key.shape[1], key.shape[2]
    factor = width**-0.5 if scaling is None else scaling
    mask = None if attention_mask is None else attention_mask[..., :seen].to(key.dtype)
    if new > 1:
        found = scaled_dot_product_attention(
            query.to(key.dtype), key, value, attn_mask=mask, scale=factor, enable_gqa=True
        )
        return found.transpose(1, 2).to(query.dtype), None
    grouped = (query.to(key.dtype) * factor).view(rows, key_heads, -1, width)
    scores = torch.matmul(grouped, key.transpose(2, 3))
    if mask is not None:
        scores += mask
    out = torch.matmul(scores.softmax(-1), value)
    return out.view(rows, 1, heads, width).to(query.dtype), None


class Float32Layer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's keys and values of one sequence, kept in float32."""

    def __init__(self, keys: torch.Tensor | None = None, values: torch.Tensor | None = None):
        super().__init__()  # type: ignore[no-untyped-call]
        if keys is not None and values is not None:
            self.update(keys, values)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append, as transformers' layers do."""
        found: tuple[torch.Tensor, torch.Tensor] = super().update(
            key_states.float(), value_states.float()
        )
        return found


def use_attend(model: Any) -> bool:
    """Let a model on the CPU use `attend`, if that gives what its own code written out gives."""
    if torch.device(model.device).type != "cpu":
        return False
    return use(model, NAME, attend, eager_mask)


def use(model: Any, name: str, function: Attend, masks: Any) -> bool:
    """Let a model use the attention `function`, if it is the model's own; whether it does now.

    Families whose attention does more (caps, sinks) keep what they had. Compared is what each
    layer's attention gives for the same numbers in float32; the logits of a whole model in half
    precision tell nothing, since another order of rounding alone moves them far.

    Args:
        model: A transformers causal language model, with or without a PEFT adapter.
        name: What transformers calls the function from now on.
        function: Takes what `attend` takes.
        masks: Makes its masks, as transformers' `eager_mask` does.
    """
    causal = getattr(model, "get_base_model", lambda: model)()
    own = causal.config._attn_implementation
    apart: list[float] = []

    def probe(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **settings: Any,
    ) -> tuple[torch.Tensor, Any]:
        mask = attention_mask.float() if attention_mask is not None else None
        wide = (query.float(), key.float(), value.float())
        written_out = sys.modules[type(module).__module__].eager_attention_forward
        theirs, weights = written_out(module, *wide, mask, **settings)
        last = (wide[0][:, :, -1:], *wide[1:], mask[:, :, -1:] if mask is not None else None)
        for ours, part in ((function(module, *wide, mask, **settings)[0], theirs),
                           (function(module, *last, **settings)[0], theirs[:, -1:])):  # fmt: skip
            apart.append(float((ours - part).abs().max() / part.abs().max().clamp_min(1e-6)))
        return theirs.to(query.dtype), weights

    register(name, function, masks)
    register(_PROBED, probe, eager_mask)
    size = causal.config.get_text_config(decoder=True).vocab_size
    ids = torch.arange(_PROBE, device=model.device)[None] % size
    causal.set_attn_implementation(_PROBED)
    try:
        with torch.inference_mode():
            model(input_ids=ids, use_cache=False)
    except (AttributeError, ValueError):  # it has no such code, or `function` refuses its settings
        apart.clear()
    same = bool(apart) and max(apart) <= _TOLERANCE
    causal.set_attn_implementation(name if same else own)
    return same


def register(name: str, function: Attend, masks: Any) -> None:
    """Let transformers' models be told to use `function`, with masks made by `masks`."""
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, masks)
