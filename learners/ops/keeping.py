"""`KeptAttention`: gradient checkpointing that keeps what attention gave, where memory allows it.

A checkpointed layer is computed again for its backward pass. Of all that it computes, attention
over a long sequence takes most of the time, and its result the memory of one hidden state.
"""

from __future__ import annotations

import contextlib
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from learners.ops.lora import SPLIT_BYTES, lean_weights
from learners.ops.packing import Layout
from learners.ops.sequence import unwrap

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_WORTH = 1e12
"""Operations of one layer's attention from which on keeping pays: choosing what to keep costs each
operation of the layer some microseconds of Python."""
_SPARE = 3 << 30
"""Bytes left for logits and what else a pass needs."""
_BUFFERS = 10
"""Hidden states, and of them units' inner ones, that a layer's backward pass holds at once."""


class KeptAttention:
    """A `context_fn` for `torch.utils.checkpoint`."""

    def __init__(self) -> None:
        """Keeps nothing until `weigh` finds that it pays."""
        self.keeps = False

    def __call__(self) -> tuple[Any, Any]:
        """Contexts of a layer's first pass and of the second."""
        if not self.keeps:
            return contextlib.nullcontext(), contextlib.nullcontext()
        contexts: tuple[Any, Any] = create_selective_checkpoint_contexts(_policy)  # type: ignore[no-untyped-call]
        return contexts

    def weigh(self, model: nn.Module, layout: Layout) -> None:
        """Decide for the pass that comes: on CUDA, for long runs, if they fit what is free.

        Nothing is kept of a row that several processes share: a part of it has no spans.
        """
        device = layout.ends.device
        self.keeps = False
        if device.type != "cuda" or not layout.spans or not torch.is_grad_enabled():
            return
        config = unwrap(model).config.get_text_config()
        if _attention_work(config, layout) < _WORTH:
            return
        free = torch.cuda.mem_get_info(device)[0]
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        needed = needed_bytes(config, len(layout.ends)) + SPLIT_BYTES * lean_weights(unwrap(model))
        self.keeps = needed + _SPARE < free


def checkpoint_settings(model: nn.Module) -> dict[str, Any]:
    """For `gradient_checkpointing_enable` of a model, bare or wrapped by peft."""
    kept = _kept.setdefault(unwrap(model), KeptAttention())
    return {"use_reentrant": False, "context_fn": kept}


def weigh(model: nn.Module, layout: Layout) -> None:
    """Let a model that has `checkpoint_settings` decide for the pass that comes."""
    kept = _kept.get(unwrap(model))
    if kept is not None:
        kept.weigh(model, layout)


_kept: weakref.WeakKeyDictionary[nn.Module, KeptAttention] = weakref.WeakKeyDictionary()


def needed_bytes(config: PretrainedConfig, tokens: int) -> int:
    """A pass's most memory beyond weights if attention is kept, bfloat16, on the safe side."""
    hidden: int = config.hidden_size
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or hidden // heads)
    experts = getattr(config, "num_experts_per_tok", None)
    inner = (experts or 1) * (
        (experts and getattr(config, "moe_intermediate_size", 0)) or config.intermediate_size
    )
    kept = config.num_hidden_layers * (2 * hidden + 2 * width + 4 * heads)
    return int(tokens * (kept + 2 * _BUFFERS * (hidden + width + inner)))


def _attention_work(config: PretrainedConfig, layout: Layout) -> float:
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    work = 0.0
    for span in layout.spans:
        new, seen = span.stop - span.start, sum(stop - start for start, stop in span.keys)
        work += 4.0 * width * new * (seen - new / 2)
    return work


def _policy(_context: Any, operation: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    kept = str(operation).removesuffix(".default") in _ATTENTION
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


_ATTENTION = {
    "aten._scaled_dot_product_cudnn_attention",
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_efficient_attention",
    "torch_attn._varlen_attn",
}
