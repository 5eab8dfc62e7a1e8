"""`attend`: attention over a packed row, as transformers calls it in each layer.

The layout of the row travels as the attention mask, which every family hands to every layer, also
when a layer is computed again for its backward pass (gradient checkpointing). Layers that get an
ordinary mask or none compute as they did before.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from learners.ops.kernels import KERNELS
from learners.ops.packing import Call, Layout
from swe_env.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAMES = {"sdpa": "swe_packed", "eager": "swe_packed_eager"}
"""Ours, by what the model uses for rows that are not packed."""


def attend(
    own: Callable[..., tuple[Tensor, Any]] | None,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **settings: Any,
) -> tuple[Tensor, Any]:
    """What transformers calls in each layer.

    Args:
        own: For rows that are not packed; None for the family's written-out code.
        module: The layer.
        query: (1, heads, tokens, width).
        key: (1, key_heads, tokens, width); `heads` is a multiple of `key_heads`.
        value: As `key`.
        attention_mask: From `carrier`, or any other.
        settings: ``scaling``, ``sliding_window``, ``softcap``, ``dropout`` and whatever else.

    Returns:
        (1, tokens, heads, width), and None in place of the weights.

    Raises:
        ConfigError: the layer's attention does something that no kernel here knows.
    """
    layout: Layout | None = getattr(attention_mask, "swe_layout", None)
    if layout is None:
        if attention_mask is not None and attention_mask.numel() == 0:
            raise ConfigError(f"{type(module).__name__} changes its mask: it cannot be packed.")
        own = own or sys.modules[type(module).__module__].eager_attention_forward
        return own(module, query, key, value, attention_mask, **settings)
    for name in ("s_aux", "position_bias"):
        if settings.get(name) is not None:
            raise ConfigError(f"{type(module).__name__} has {name}: it cannot be packed.")
    if settings.get("dropout"):
        raise ConfigError(f"{type(module).__name__} drops attention out: it cannot be packed.")
    asked = (settings.get("scaling"), settings.get("sliding_window"), settings.get("softcap"))
    shape = (query.shape[1], key.shape[1], query.shape[3], value.shape[3])
    layout.calls.append(Call(*shape, *asked))
    found = KERNELS[layout.kernel](query, key, value, layout, *asked)
    return found.transpose(1, 2), None


def carrier(causal: PreTrainedModel, layout: Layout) -> Tensor:
    """An attention mask without entries that carries the layout to every layer.

    Four dimensions make transformers hand it on as it is; without entries no other attention can
    take it for a mask by mistake.

    Raises:
        ConfigError: the model was not prepared for packed rows.
    """
    if causal not in _prepared:
        raise ConfigError(f"{type(causal).__name__} was not prepared for packed rows.")
    if causal.config._attn_implementation != _prepared[causal]:  # sampled from in an evaluation
        causal.set_attn_implementation(_prepared[causal])
    mask = torch.empty(1, 1, 0, 0, dtype=torch.int32, device=layout.ends.device)
    mask.swe_layout = layout  # type: ignore[attr-defined]
    return mask


_prepared: weakref.WeakKeyDictionary[PreTrainedModel, str] = weakref.WeakKeyDictionary()


def take_over(causal: PreTrainedModel) -> Callable[[], None]:
    """Let a model's layers call `attend`; what it gives back undoes that."""
    _register()
    own = causal.config._attn_implementation
    _prepared[causal] = NAMES.get(own, own)
    causal.set_attn_implementation(_prepared[causal])

    def undo() -> None:
        causal.set_attn_implementation(own)
        if own in NAMES:
            del _prepared[causal]

    return undo


@functools.cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import eager_mask, sdpa_mask

    AttentionInterface.register(NAMES["sdpa"], functools.partial(attend, sdpa_attention_forward))
    AttentionMaskInterface.register(NAMES["sdpa"], sdpa_mask)
    AttentionInterface.register(NAMES["eager"], functools.partial(attend, None))
    AttentionMaskInterface.register(NAMES["eager"], eager_mask)
