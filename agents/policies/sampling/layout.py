"""`Layout`: what a model's keys and values look like, and what its attention allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from agents.policies.sampling.grouped import hands_masks_on
from agents.policies.sampling.prefixes import KeysValues
from swe_env.errors import ConfigError

_WINDOWS = ("sliding_window", "attention_chunk_size")
"""Settings of families whose layers do not see everything, where no list of layers says so."""
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Settings of families whose work depends on what the router says."""
_MOVING = ("dynamic", "longrope")
"""Kinds of rotary positions that are computed anew from the longest row of a step."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Keys and values of a model whose layers all keep the same: (heads, tokens, width)."""

    layers: int
    heads: int
    width: int
    dtype: torch.dtype
    device: torch.device

    def zeros(self, rows: int, columns: int) -> torch.Tensor:
        """Buffers of keys and values, (layers, 2, rows, heads, columns, width)."""
        shape = (self.layers, 2, rows, self.heads, columns, self.width)
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def size(self, rows: int, columns: int) -> int:
        """Bytes of such buffers."""
        return 2 * self.layers * rows * self.heads * columns * self.width * self.dtype.itemsize


def find_layout(model: Any) -> Layout | None:
    """How the model keeps keys and values; None if its layers differ in it."""
    backbone = getattr(model, "get_base_model", lambda: model)().base_model
    cache = DynamicCache()
    token = torch.zeros((1, 1), dtype=torch.long, device=model.device)
    with torch.inference_mode():
        backbone(input_ids=token, past_key_values=cache, use_cache=True)
    kept: list[Any] = cache.layers
    forms = {(part.shape, part.dtype, part.device) for it in kept for part in (it.keys, it.values)}
    if len(forms) != 1:
        return None
    shape, dtype, device = forms.pop()
    if len(shape) != 4 or shape[0] != 1 or shape[2] != 1:
        return None
    return Layout(len(kept), shape[1], shape[3], dtype, device)


def put(given: KeysValues, target: torch.Tensor) -> None:
    """Copy keys and values into `target`, (layers, 2, heads, tokens, width)."""
    if len(given) == 1 and given[0][0].ndim == 4:
        target[:, 0], target[:, 1] = given[0]
        return
    for layer, (keys, values) in zip(target, given, strict=True):
        layer[0], layer[1] = keys, values


def together(stacked: torch.Tensor) -> KeysValues:
    """Of (layers, 2, heads, tokens, width): the views that hold all layers in one pair."""
    return [(stacked[:, 0], stacked[:, 1])]


def apart(stacked: torch.Tensor) -> KeysValues:
    """Of (layers, 2, heads, tokens, width): the views of each layer."""
    return [(layer[0], layer[1]) for layer in stacked]


def steps_alike(model: Any) -> bool:
    """Whether a decoding step can have one shape, whatever the rows hold.

    Every layer must see the mask that the model is given, and nothing may depend on the numbers:
    no windows, no experts, no rotary positions that change with length, plain weights on one
    device. Asked of a model that `use_grouped` accepted.
    """
    config = text_config(model)
    kinds = set(getattr(config, "layer_types", None) or [])
    if kinds - {"full_attention"} or (not kinds and _any(config, _WINDOWS)):
        return False
    rope = str(getattr(config, "rope_parameters", None) or "")
    if _any(config, _EXPERTS) or any(kind in rope for kind in _MOVING):
        return False
    causal = getattr(model, "get_base_model", lambda: model)()
    if getattr(causal, "is_quantized", False) or getattr(causal, "hf_quantizer", None) is not None:
        return False
    if len({weight.device for weight in model.parameters()}) != 1:
        return False
    return hands_masks_on(model)


def check_attention_only(model: Any) -> None:
    """Refuse a model with a state that cannot be cut at a prefix.

    Raises:
        ConfigError: it keeps something other than keys and values.
    """
    config = text_config(model)
    kinds = set(getattr(config, "layer_types", None) or [])
    odd = sorted(kind for kind in kinds if "attention" not in kind or kind == "linear_attention")
    if odd or not getattr(config, "num_attention_heads", 0):
        raise ConfigError(
            f"The model {config.model_type!r} keeps a state that is not keys and values "
            f"({', '.join(odd) or 'no attention'}): serve it, and use the 'openai' policy."
        )


def bytes_per_token(model: Any, itemsize: int) -> int:
    """Bytes of one token's keys and values over all layers, `itemsize` bytes a number."""
    config = text_config(model)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * itemsize)


def text_config(model: Any) -> Any:
    """The configuration of the part that reads and writes text."""
    return model.config.get_text_config(decoder=True)


def _any(config: Any, names: tuple[str, ...]) -> bool:
    return any(getattr(config, name, None) for name in names)
