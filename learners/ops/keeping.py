"""`Kept`: gradient checkpointing that computes again only what memory does not hold.

A checkpointed layer is computed again for its backward pass: a quarter of a step's work, and more
of what the step of a small model waits for. Where the card has room for all that the last layers
keep, these are not checkpointed. Of the others attention over long sequences is kept: of all that a
layer computes it takes most of the time, and its result the memory of one hidden state.
"""

from __future__ import annotations

import contextlib
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from learners.ops.lora import SPLIT_BYTES, lean_weights
from learners.ops.packing import Layout
from learners.ops.rotary import moving_rotary
from learners.ops.sequence import unwrap

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_WORTH = 1e12
"""Operations of one layer's attention from which on keeping it pays: choosing what to keep costs
each operation of the layer some microseconds of Python."""
_SPARE = 3 << 30
"""Bytes left for logits and what else a pass needs."""
SHARE = 0.8
"""Of what is free beyond that, for whole layers: blocks of other sizes, of passes before, lie in
the allocator's way."""
_BUFFERS = 10
"""Hidden states, and of them units' inner ones, that a layer's backward pass holds at once."""


class _Parts(NamedTuple):
    """What `Kept` asks of a model before every pass."""

    config: PretrainedConfig
    layers: list[Any]
    """Those that can be checkpointed or not in every pass."""
    trained: list[nn.Parameter]
    halves: int
    """Bytes of the adapters' halves."""

    def owed(self) -> int:
        """Bytes of gradients and halves that are still to be made."""
        new = (p.numel() * p.element_size() for p in self.trained if p.grad is None)
        return sum(new) + self.halves

    def cast(self, layer: nn.Module) -> int:
        """Bytes of a layer's weights in half precision, which autocast makes and keeps."""
        if not self.trained or not torch.is_autocast_enabled(self.trained[0].device.type):
            return 0
        return sum(2 * p.numel() for p in layer.parameters())


def _parts(causal: PreTrainedModel, *, whole: bool) -> _Parts:
    """Of a model as it is trained, sharded if it will be.

    DeepSpeed gathers a layer's weights once more where it is computed again, and processes that
    differed in that would wait for each other forever: there no layer is kept whole.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    untyped: Any = causal
    layers = list(getattr(untyped.get_decoder(), "layers", ())) if whole else []
    plain = all(isinstance(layer, GradientCheckpointingLayer) for layer in layers)
    weights = list(causal.parameters())
    return _Parts(
        causal.config.get_text_config(),
        layers if plain and not any(hasattr(p, "ds_id") for p in weights) else [],
        [p for p in weights if p.requires_grad],
        SPLIT_BYTES * lean_weights(causal),
    )


class Kept:
    """What a checkpointed model keeps all the same; a `context_fn` for `torch.utils.checkpoint`."""

    def __init__(self, *, whole: bool) -> None:
        """Keeps nothing until `weigh` finds that it pays.

        Args:
            whole: Whether layers may be kept whole, or attention only.
        """
        self.whole = whole
        self.attention = False
        self.layers = 0
        """How many, the last ones, are not checkpointed in the pass that comes."""
        self.measured = 0, 0
        """Tokens of a pass, and the bytes that its last layer kept: of the longest so far."""
        self._share, self._took = SHARE, 0.0
        self._parts: _Parts | None = None

    def give_way(self) -> bool:
        """Keep at most half as much from now on; False if no layer was kept in the last pass."""
        if self.layers:
            self._share = self._took / 2 if self.layers > 1 else 0.0
        return self.layers > 0

    def __call__(self) -> tuple[Any, Any]:
        """Contexts of a layer's first pass and of the second."""
        if not self.attention:
            return contextlib.nullcontext(), contextlib.nullcontext()
        contexts: tuple[Any, Any] = create_selective_checkpoint_contexts(_policy)  # type: ignore[no-untyped-call]
        return contexts

    def weigh(self, model: nn.Module, input_ids: Tensor, layout: Layout | None) -> None:
        """Decide for the pass that comes, by what memory is free: on CUDA only.

        Attention is kept for long runs of a packed row. Nothing is kept of a row that several
        processes share: a part of it has no spans.

        Args:
            model: The model.
            input_ids: Of the pass.
            layout: Of a packed row; None for rows side by side.
        """
        causal = unwrap(model)
        parts = self._parts = self._parts or _parts(causal, whole=self.whole)
        self.attention, self.layers = False, 0
        tokens = input_ids.numel()
        free = _free(input_ids.device) if torch.is_grad_enabled() else None
        if free is not None and (layout is None or layout.spans):
            room = free - _SPARE - parts.owed() - needed_bytes(parts.config, tokens)
            self._choose(parts, tokens, layout, room)
        for number, layer in enumerate(parts.layers):
            layer.gradient_checkpointing = number < len(parts.layers) - self.layers

    def _choose(self, parts: _Parts, tokens: int, layout: Layout | None, room: int) -> None:
        config, layers = parts.config, parts.layers
        attention = attention_bytes(config, tokens)
        if layout is not None and attention_work(config, layout) >= _WORTH:
            self.attention = attention < room
        if self.attention:
            room -= attention
        if not layers or room <= 0:
            return
        longest, found = self.measured
        if longest:
            mine = found * tokens / longest + _copies(config, layout) + parts.cast(layers[-1])
            mine -= attention / len(layers) if self.attention else 0
            self.layers = min(int(self._share * room / max(mine, 1.0)), len(layers))
            self._took = self.layers * mine / room
        elif self._share:
            self.layers = 1  # which any checkpointed layer's backward pass holds
        if self.layers and tokens > longest:
            self._measure(layers[-1], tokens)
        self.attention = self.attention and self.layers < len(layers)

    def _measure(self, layer: nn.Module, tokens: int) -> None:
        """Count what the layer saves for its backward pass, in the pass that comes."""
        weights = [*layer.parameters(), *layer.buffers()]
        seen: dict[int, int] = {}

        def save(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        hooks = saved_tensors_hooks(save, lambda tensor: tensor)

        def begin(*_: Any) -> None:
            hooks.__enter__()

        def end(*_: Any) -> None:
            hooks.__exit__()
            for handle in handles:
                handle.remove()
            own = {weight.untyped_storage().data_ptr() for weight in weights}
            self.measured = tokens, sum(size for at, size in seen.items() if at not in own)

        handles = [
            layer.register_forward_pre_hook(begin),
            layer.register_forward_hook(end, always_call=True),
        ]


def checkpoint_settings(model: nn.Module, *, whole: bool = False) -> dict[str, Any]:
    """For `gradient_checkpointing_enable` of a model, bare or wrapped by peft; see `Kept`.

    Layers are kept whole only where one pass is all that is held for the backward pass, which
    rotary frequencies that depend on length prevent.
    """
    causal = unwrap(model)
    kept = _kept.setdefault(causal, Kept(whole=whole and not moving_rotary(causal)))
    return {"use_reentrant": False, "context_fn": kept}


def weigh(model: nn.Module, input_ids: Tensor, layout: Layout | None) -> None:
    """Let a model that has `checkpoint_settings` decide for the pass that comes."""
    kept = _kept.get(unwrap(model))
    if kept is not None:
        kept.weigh(model, input_ids, layout)


def give_way(model: nn.Module) -> bool:
    """Let a model whose pass ran out of memory keep less; False if that changes nothing."""
    kept = _kept.get(unwrap(model))
    return kept is not None and kept.give_way()


_kept: weakref.WeakKeyDictionary[nn.Module, Kept] = weakref.WeakKeyDictionary()


def needed_bytes(config: PretrainedConfig, tokens: int) -> int:
    """A pass's most memory beyond weights if nothing is kept, bfloat16, on the safe side."""
    hidden: int = config.hidden_size
    experts = getattr(config, "num_experts_per_tok", None)
    inner = (experts or 1) * (
        (experts and getattr(config, "moe_intermediate_size", 0)) or config.intermediate_size
    )
    held = config.num_hidden_layers * hidden + _BUFFERS * (hidden + _width(config) + inner)
    return 2 * int(tokens * held)


def attention_bytes(config: PretrainedConfig, tokens: int) -> int:
    """What attention gave, in all layers, and its sums: bfloat16 and float32."""
    heads: int = config.num_attention_heads
    return tokens * int(config.num_hidden_layers) * (2 * _width(config) + 4 * heads)


def attention_work(config: PretrainedConfig, layout: Layout) -> float:
    """Operations of one layer's attention, forward."""
    work = 0.0
    for span in layout.spans:
        new, seen = span.stop - span.start, sum(stop - start for start, stop in span.keys)
        work += 4.0 * _width(config) * new * (seen - new / 2)
    return work


def _copies(config: PretrainedConfig, layout: Layout | None) -> int:
    """Bytes of queries, keys and values that a layer copies of paths that are not one range."""
    if layout is None or all(len(span.keys) == 1 for span in layout.spans):
        return 0
    seen = sum(stop - start for span in layout.spans for start, stop in span.keys)
    return 2 * 3 * _width(config) * seen


def _width(config: PretrainedConfig) -> int:
    heads: int = config.num_attention_heads
    return heads * int(getattr(config, "head_dim", None) or config.hidden_size // heads)


def _free(device: torch.device) -> int | None:
    """Bytes that a pass can have; None where that is not to be known."""
    if device.type != "cuda":
        return None
    own = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + own


def _policy(_context: Any, operation: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    kept = str(operation).removesuffix(".default") in _ATTENTION
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


_ATTENTION = {
    "aten._scaled_dot_product_cudnn_attention",
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_efficient_attention",
    "torch_attn._varlen_attn",
}
