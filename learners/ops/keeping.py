"""`Kept`: gradient checkpointing that computes again only what memory does not hold.

A checkpointed layer is computed again for its backward pass: a quarter of a step's work, and more
of what the step of a small model waits for. Where the card has room for all that the last layers
keep, these are not checkpointed. Of the others attention over long sequences is kept: of all that a
layer computes it takes most of the time, and its result the memory of one hidden state. On a CPU
training asks for that alone.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from learners.ops.experts import chosen_experts
from learners.ops.lora import SPLIT_BYTES, lean_weights
from learners.ops.packing import Layout
from learners.ops.rotary import moving_rotary
from learners.ops.sequence import unwrap

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

WORTH = 1e12
"""Operations of one layer's attention from which on keeping it pays: choosing what to keep costs
each operation of the layer some microseconds of Python."""
WORTH_ON_CPU = 2e9
"""The same on a CPU, which computes a thousand times slower."""
_SPARE = 3 << 30
"""Bytes left for logits and what else a pass needs."""
SHARE = 0.8
"""Of what is free beyond that: blocks of other sizes, of passes before, lie in the allocator's
way."""
_BUFFERS = 10
"""Hidden states, and of them units' inner ones, that a layer's backward pass holds at once."""


class Sizes(NamedTuple):
    """A model's widths, whatever its family calls them."""

    layers: int
    hidden: int
    heads: int
    width: int
    """Of all heads together, of queries or of values where those are wider."""
    inner: int
    """Of all units that a token meets in a layer."""

    @classmethod
    def of(cls, config: PretrainedConfig) -> Sizes | None:
        """Read from a text model's configuration; None where it is of an unknown kind."""
        found: Any = config
        try:
            hidden, heads = int(found.hidden_size), int(found.num_attention_heads)
            experts: Any = chosen_experts(found)
            inner = (experts and getattr(found, "moe_intermediate_size", None)) or next(
                (size for name in _INNER if (size := getattr(found, name, None))), 4 * hidden
            )
            inner = max(inner) if isinstance(inner, Sequence) else inner
            # Where keys are compressed, `head_dim` is that of their rotated part.
            names = ("qk_head_dim", "head_dim")
            own = next((size for name in names if (size := getattr(found, name, None))), None)
            head = max(int(own or hidden // heads), int(getattr(found, "v_head_dim", None) or 0))
            layers = int(found.num_hidden_layers)
            return cls(layers, hidden, heads, heads * head, (experts or 1) * int(inner))
        except (AttributeError, TypeError, ValueError):
            return None

    def needed_bytes(self, tokens: int, size: int) -> int:
        """A pass's most memory beyond weights if nothing is kept, on the safe side.

        Args:
            tokens: Of the pass.
            size: Bytes of a value.
        """
        held = self.layers * self.hidden + _BUFFERS * (self.hidden + self.width + self.inner)
        return size * tokens * held

    def attention_bytes(self, tokens: int, size: int) -> int:
        """What attention gave, in all layers, and its sums in float32."""
        return tokens * self.layers * (size * self.width + 4 * self.heads)

    def attention_work(self, input_ids: Tensor, layout: Layout | None) -> float:
        """Operations of one layer's attention, forward."""
        if layout is None:
            return 2.0 * self.width * input_ids.numel() * input_ids.shape[-1]
        work = 0.0
        for span in layout.spans:
            new, seen = span.stop - span.start, sum(stop - start for start, stop in span.keys)
            work += 4.0 * self.width * new * (seen - new / 2)
        return work

    def copied_bytes(self, layout: Layout | None, size: int) -> int:
        """Queries, keys and values that a layer copies of paths that are not one range."""
        if layout is None or all(len(span.keys) == 1 for span in layout.spans):
            return 0
        seen = sum(stop - start for span in layout.spans for start, stop in span.keys)
        return size * 3 * self.width * seen


_INNER = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")


class _Parts(NamedTuple):
    """What `Kept` asks of a model before every pass."""

    sizes: Sizes | None
    size: int
    """Bytes of a value of hidden states."""
    layers: list[Any]
    """Those that can be checkpointed or not in every pass."""
    kinds: list[int]
    """Of them, the last of each kind: those whose weights have the same shapes."""
    trained: list[nn.Parameter]
    halves: int
    """Bytes of the adapters' halves, whether they are made or not."""
    casts: int
    """Bytes of all weights in half precision, which autocast makes and holds through a pass."""

    def owed(self) -> int:
        """Bytes of gradients that are still to be made, of halves and of casts."""
        new = sum(_local(p).numel() * p.element_size() for p in self.trained if p.grad is None)
        cast = self.trained and torch.is_autocast_enabled(self.trained[0].device.type)
        return new + self.halves + (self.casts if cast else 0)


def _parts(causal: PreTrainedModel, *, selective: bool) -> _Parts:
    """Of a model as it is trained, sharded if it will be."""
    weights = list(causal.parameters())
    sharded = any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in weights)
    layers = keepable_layers(causal) if selective and not sharded else []
    shapes = [tuple(p.shape for p in layer.parameters()) for layer in layers]
    wide = sum(2 * _local(p).numel() for p in weights if p.dtype == torch.float32)
    return _Parts(
        Sizes.of(causal.config.get_text_config()),
        causal.dtype.itemsize,
        layers,
        sorted(dict(zip(shapes, range(len(layers)), strict=True)).values()),
        [p for p in weights if p.requires_grad],
        SPLIT_BYTES * lean_weights(causal),
        wide,
    )


def keepable_layers(causal: PreTrainedModel) -> list[Any]:
    """The decoder's layers, if a pass may have any of them checkpointed and others not.

    They are none where frequencies depend on length: several passes then wait for one backward.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    untyped: Any = causal
    try:
        found = list(getattr(untyped.get_decoder(), "layers", None) or ())
    except (AttributeError, TypeError):
        return []
    plain = all(isinstance(layer, GradientCheckpointingLayer) for layer in found)
    return found if plain and not moving_rotary(causal) else []


class Kept:
    """What a checkpointed model keeps all the same; a `context_fn` for `torch.utils.checkpoint`.

    Layers are not kept whole where a model is sharded: that was not run on several GPUs, and with
    DeepSpeed processes that differed in it would gather weights different numbers of times.
    """

    def __init__(self, *, selective: bool) -> None:
        """Keeps nothing until `weigh` finds that it pays.

        Args:
            selective: Whether layers may be kept whole, or attention only.
        """
        self.selective = selective
        self.attention = False
        self.layers = 0
        """How many, the last ones, are not checkpointed in the pass that comes."""
        self.measured = 0, 0
        """Tokens of a pass, and the bytes that a layer kept: of the longest so far."""
        self._share, self._took, self._attends = SHARE, 0.0, True
        self._parts: _Parts | None = None
        self._undo: list[Callable[[], None]] = []

    def give_way(self) -> bool:
        """Keep at most half the layers from now on, then no attention; False if nothing was kept.

        Told after a pass that ran out of memory.
        """
        gave = self.layers > 0 or self.attention
        if self.layers:
            self._share = self._took / 2 if self.layers > 1 else 0.0
        elif self.attention:
            self._attends = False
        return gave

    def __call__(self) -> tuple[Any, Any]:
        """Contexts of a layer's first pass and of the second."""
        if not self.attention:
            return contextlib.nullcontext(), contextlib.nullcontext()
        contexts: tuple[Any, Any] = create_selective_checkpoint_contexts(_policy)  # type: ignore[no-untyped-call]
        return contexts

    def weigh(self, model: nn.Module, input_ids: Tensor, layout: Layout | None) -> None:
        """Decide for the pass that comes, by what memory is free.

        Attention is kept for long runs of a packed row, on a CPU for a long row of its own too;
        layers as a whole if the model is `selective`, as it is trained on CUDA. Nothing is kept of
        a row that several processes share: a part of it has no spans.

        Args:
            model: The model.
            input_ids: Of the pass.
            layout: Of a packed row; None for rows side by side.
        """
        for undo in self._undo:  # of a pass that did not come to its last layer
            undo()
        self._undo = []
        causal, grows = unwrap(model), torch.is_grad_enabled()
        parts = self._parts = self._parts or _parts(causal, selective=self.selective)
        self.attention, self.layers = False, 0
        free = _free(input_ids.device) if grows else None
        kept: set[int] = set()
        if free is not None and parts.sizes is not None and (layout is None or layout.spans):
            kept = self._choose(parts, parts.sizes, input_ids, layout, free)
        for number, layer in enumerate(parts.layers):
            layer.gradient_checkpointing = grows and number not in kept

    def _choose(
        self, parts: _Parts, sizes: Sizes, input_ids: Tensor, layout: Layout | None, free: int
    ) -> set[int]:
        """Numbers of the layers that are kept whole."""
        count, kinds, tokens = len(parts.layers), parts.kinds, input_ids.numel()
        attention = sizes.attention_bytes(tokens, parts.size)
        room = free - _SPARE - parts.owed() - sizes.needed_bytes(tokens, parts.size)
        on_cpu = input_ids.device.type == "cpu"
        least = WORTH_ON_CPU if on_cpu else WORTH
        known = layout is not None or (on_cpu and len(input_ids) == 1)
        worth = known and sizes.attention_work(input_ids, layout) >= least
        self.attention = worth and self._attends and attention < SHARE * room
        if self.attention:
            room -= attention
        if not count or room <= 0 or not self._share:
            return set()
        longest, found = self.measured
        if not longest:  # one of each kind, which a checkpointed layer's backward pass holds too
            self.layers, self._took = len(kinds), 0.0
            self._measure([parts.layers[number] for number in kinds], tokens)
            return set(kinds)
        mine = found * tokens / longest + sizes.copied_bytes(layout, parts.size)
        mine = max(mine - (attention / sizes.layers if self.attention else 0), 1.0)
        self.layers = min(int(self._share * room / mine), count)
        self._took = self.layers * mine / room
        self.attention = self.attention and self.layers < count
        kept = set(range(count - self.layers, count))
        if tokens > longest and kept.issuperset(kinds):
            self._measure([parts.layers[number] for number in kinds], tokens)
        return kept

    def _measure(self, layers: Sequence[nn.Module], tokens: int) -> None:
        """Count what these layers save for their backward passes, in the pass that comes."""
        sizes: list[int] = []

        def done(size: int) -> None:
            sizes.append(size)
            if len(sizes) == len(layers):
                self.measured = tokens, max(sizes)

        self._undo = [_watch(layer, done) for layer in layers]


def _watch(layer: nn.Module, done: Callable[[int], None]) -> Callable[[], None]:
    """Let `done` be told what the next forward pass of a layer saves; gives what stops that."""
    seen: dict[int, int] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # itself, if it is a result, would hold on to the graph it is in

    hooks = saved_tensors_hooks(save, lambda tensor: tensor)

    def begin(*_: Any) -> None:
        hooks.__enter__()

    def end(_module: nn.Module, _args: Any, output: Any) -> None:
        hooks.__exit__()
        stop()
        weights = {p.untyped_storage().data_ptr() for p in [*layer.parameters(), *layer.buffers()]}
        if output is not None:  # there is none after an error
            done(sum(size for at, size in seen.items() if at not in weights))

    handles = [
        layer.register_forward_pre_hook(begin),
        layer.register_forward_hook(end, always_call=True),
    ]

    def stop() -> None:
        for handle in handles:
            handle.remove()

    return stop


def checkpoint_settings(model: nn.Module, *, selective: bool = False) -> dict[str, Any]:
    """For `gradient_checkpointing_enable` of a model, bare or wrapped by peft; see `Kept`."""
    kept = _kept.setdefault(unwrap(model), Kept(selective=selective))
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


def _local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _free(device: torch.device) -> int | None:
    """Bytes that a pass can have; None where that is not to be known."""
    if device.type == "cpu":
        return _available()
    if device.type != "cuda":
        return None
    own = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + own


_GROUP = Path("/sys/fs/cgroup")
"""Where a container sees its own control group."""


def _available() -> int:
    """Bytes of memory that are left to this process: of this machine, or its control group."""
    import psutil

    free = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):  # there is no limit, or no such group
        limit = int((_GROUP / "memory.max").read_text())
        used = int((_GROUP / "memory.current").read_text())
        said = dict(line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
        # Files that were read and can be read again give way.
        free = min(free, limit - used + int(said.get("inactive_file", 0)))
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _policy(_context: Any, operation: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    kept = str(operation).removesuffix(".default") in _ATTENTION
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


_ATTENTION = {
    "aten._scaled_dot_product_cudnn_attention",
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_efficient_attention",
    "torch_attn._varlen_attn",
}
