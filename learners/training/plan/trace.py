"""What one decoder layer keeps and uses, found by running it on torch's meta device.

A formula would have to know every family's norms, gates and copies, and what adapters add to them
(whole stacks of merged experts; with QLoRA float32 copies of each adapted layer's input, which peft
keeps there and the learner's own LoRA layers do not). Running the layer
itself, with its adapter, on tensors that have shapes and no memory counts exactly what autograd
saves. Attention is the exception: its kernel is replaced by one that allocates what flash
attention does, inputs, output and one float32 a row and head, and no tokens x tokens matrix. Its
heads and their widths are read off what the layer gives it.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from learners.ops import token_logps
from learners.training.plan.counts import decoder_layers, decoder_of

ATTENTION = "swe_plan"
"""Name under which the shapes-only attention is registered with transformers."""
_LENGTHS = (64, 128)
"""Tokens of the two runs that tell what grows with the tokens from what does not."""


@dataclass(frozen=True, slots=True)
class Bytes:
    """A straight line: ``per_token`` x tokens + ``fixed``."""

    per_token: float
    fixed: float

    def __call__(self, tokens: float) -> float:
        """Bytes at so many tokens."""
        return self.per_token * tokens + self.fixed


class Attention(NamedTuple):
    """Widths of one layer's attention; all 0 where a layer has none (linear attention)."""

    heads: int = 0
    scores: int = 0
    """Heads x (width of a query + width of a value): half the operations for a query and a key."""
    out: int = 0
    """Heads x width of a value."""
    keys: int = 0
    """Key heads x (width of a key + width of a value)."""


class LogpsBytes(NamedTuple):
    """Of the log-probability pass."""

    peak: int
    """At its worst moment."""
    forward: int
    """At the worst moment of its forward pass."""


@dataclass(frozen=True, slots=True)
class LayerCosts:
    """One decoder layer, its input left out."""

    kept: Bytes
    """Saved from the forward for the backward pass."""
    backward: Bytes
    """On top of `kept` at the worst moment of the backward pass, gradients of input and output
    included, those of weights not."""
    forward: Bytes
    """At the worst moment of a forward pass that saves nothing."""
    attention: Attention


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages made while it is on, and their peak."""

    def __init__(self, *ignored: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._known: dict[int, int] = {}
        self._ignored = [tensor.untyped_storage() for tensor in ignored]
        for storage in self._ignored:
            self._known[storage._cdata] = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and note what it made."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._known.pop(key, 0)


class _Attention(torch.autograd.Function):
    """Allocates what flash attention does (arXiv 2205.14135)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, tokens, _ = query.shape
        out = query.new_empty(batch, tokens, heads, value.shape[-1])
        norms = query.new_empty(batch, heads, tokens, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, norms)
        return out

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, _, _ = ctx.saved_tensors
        # The query's gradient is added up in float32, then rounded.
        total = torch.empty_like(query, dtype=torch.float32)
        grad_key, grad_value = torch.empty_like(key), torch.empty_like(value)
        return total.to(query.dtype), grad_key, grad_value


_asked: list[Attention] = []
"""What layers asked of attention since this was last emptied."""


def _attention(
    _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    heads, key_heads, width = query.shape[1], key.shape[1], value.shape[3]
    scores, keys = heads * (query.shape[3] + width), key_heads * (key.shape[3] + width)
    _asked.append(Attention(heads, scores, heads * width, keys))
    result: Tensor = _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]
    return result, None


def register_attention() -> None:
    """Make `ATTENTION` known to transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, _attention)


def layer_costs(model: nn.Module, *, cast: bool = False) -> list[LayerCosts]:
    """Costs of every decoder layer of a meta model, in order; layers of one shape run once.

    Args:
        model: From `adapted`.
        cast: Whether autocast casts the inputs of matrix products to bfloat16.
    """
    model.train()
    found: dict[Any, LayerCosts] = {}
    costs = []
    with _autocast_on_meta():
        runs = [_calls(model, tokens) for tokens in _LENGTHS]
        for index, layer in enumerate(decoder_layers(model)):
            shape = tuple((name, tuple(p.shape)) for name, p in layer.named_parameters())
            if shape not in found:
                short, long = (_run(layer, *calls[index], cast=cast) for calls in runs)
                kept, backward, forward = map(_line, short, long)
                found[shape] = LayerCosts(kept, backward, forward, _summed(_asked))
            costs.append(found[shape])
    return costs


def _summed(asked: list[Attention]) -> Attention:
    return Attention(*map(sum, zip(*asked, strict=True))) if asked else Attention()


def logps_bytes(
    head: Tensor, loss_tokens: int, tokens: int, softcap: float | None, *, cast: bool = False
) -> LogpsBytes:
    """Peak of `learners.ops.token_logps`, forward and backward, beside the decoder's output.

    The chosen hidden states, their gradient, and the gradient of all of them, which they are
    written into, grow with the tokens; the logits exist for one chunk at a time. A trained head's
    gradient is added up in float32 and given in the head's type, both of which count here.

    Args:
        head: The output layer's weight, (vocab, dim), on the meta device.
        loss_tokens: Tokens whose log-probability is wanted.
        tokens: All tokens.
        softcap: As `token_logps` takes it.
        cast: Whether head and hidden states, in float32, are cast to bfloat16 for it.
    """
    vocabulary, width, size = head.shape[0], head.shape[1], head.element_size()
    most = 2 * max((1 << 30) // (4 * vocabulary), 16)
    # Rounded up, so that few lengths are traced; more than two chunks take no more than two.
    some = min(1 << (loss_tokens - 1).bit_length(), most)
    rest = max(loss_tokens - some, 0)
    peak, forward = _logps_peak(some, head.shape, head.dtype, softcap, head.requires_grad, cast)
    return LogpsBytes(
        peak + rest * 2 * width * size + tokens * width * size, forward + rest * width * size
    )


@functools.lru_cache
def _logps_peak(
    tokens: int,
    shape: torch.Size,
    dtype: torch.dtype,
    softcap: float | None,
    trained: bool,
    cast: bool,
) -> tuple[int, int]:
    weight = torch.empty(shape, dtype=dtype, device="meta", requires_grad=trained)
    with _autocast_on_meta(), LiveBytes(weight) as live:
        hidden = torch.empty(tokens, shape[1], dtype=dtype, device="meta", requires_grad=True)
        targets = torch.empty(tokens, dtype=torch.long, device="meta")
        states, head = (part.to(torch.bfloat16) if cast else part for part in (hidden, weight))
        logps, _ = token_logps(states, head, targets, softcap=softcap)
        forward = live.peak
        del states, head
        torch.autograd.backward(logps.sum())
    return live.peak, forward


class _OnMeta(TorchFunctionMode):
    """What the meta device has not: grouped products in float32, and autocast to bfloat16."""

    def __init__(self, *, cast: bool) -> None:
        """`cast`: whether the inputs of matrix products (but grouped ones) are cast."""
        super().__init__()
        self._cast = cast

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call it with what it would be given."""
        if func is torch._grouped_mm and args[0].dtype == torch.float32:
            return _GroupedProduct.apply(*args[:2])  # type: ignore[no-untyped-call]
        if self._cast and func in _PRODUCTS:
            args = tree_map(_half, args)
        return func(*args, **(kwargs or {}))


class _GroupedProduct(torch.autograd.Function):
    """Allocates what a grouped product of (tokens, in) and (groups, in, out) does."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, stack: Tensor) -> Tensor:
        of_rows, of_stack = ctx.needs_input_grad
        ctx.save_for_backward(rows if of_stack else None, stack if of_rows else None)
        ctx.shapes = rows.shape, stack.shape
        return rows.new_empty(len(rows), stack.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        wanted = zip(ctx.shapes, ctx.needs_input_grad, strict=True)
        return tuple(grad.new_empty(shape) if need else None for shape, need in wanted)


_PRODUCTS = {
    nn.functional.linear, torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.__matmul__,
}  # fmt: skip


def _half(value: Any) -> Any:
    wide = isinstance(value, Tensor) and value.dtype == torch.float32
    return value.to(torch.bfloat16) if wide else value


@contextlib.contextmanager
def _autocast_on_meta() -> Iterator[None]:
    """While this is on, `torch.autocast` does nothing for the meta device.

    It refuses that device even to be switched off there, as peft and `token_logps` do.
    """
    real: Any = torch.autocast

    def autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
        if device_type == "meta":
            return contextlib.nullcontext()
        return real(device_type, *args, **kwargs)

    torch.autocast = autocast  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        torch.autocast = real  # type: ignore[misc]


def _calls(model: nn.Module, tokens: int) -> list[tuple[Tensor, dict[str, Any]]]:
    """What each layer is called with: its input, and the rest by keyword."""
    decoder: Any = decoder_of(model)
    calls: list[tuple[Tensor, dict[str, Any]]] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        calls.append((states, rest))

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in decoder.layers]
    try:
        with torch.no_grad(), _OnMeta(cast=False):
            device = next(decoder.parameters()).device
            ids = torch.zeros(1, tokens, dtype=torch.long, device=device)
            decoder(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _run(
    layer: nn.Module, states: Tensor, rest: dict[str, Any], *, cast: bool
) -> tuple[int, int, int]:
    """(kept, backward beyond kept, forward alone) in bytes; `_asked` is then the layer's."""
    given = [leaf for leaf in tree_leaves(rest) if isinstance(leaf, Tensor)]
    parameters = list(layer.parameters())
    states = states.detach().requires_grad_()

    def watched(work: Callable[[LiveBytes], int]) -> int:
        with LiveBytes(states, *given, *parameters, *layer.buffers()) as live:
            return work(live)

    def forward() -> Tensor:
        _asked.clear()
        with _OnMeta(cast=cast):
            result: Any = layer(states, **rest)
        out: Tensor = result[0] if isinstance(result, tuple) else result
        return out

    def kept(live: LiveBytes) -> int:
        root = forward().grad_fn  # the output itself is the next layer's input, not ours
        found = live.now
        del root
        return found

    def backward(live: LiveBytes) -> int:
        out = forward()
        live.peak = 0
        torch.autograd.backward(out, torch.empty_like(out))
        states.grad = None
        return live.peak

    def alone(live: LiveBytes) -> int:
        with torch.no_grad():
            forward()
        return live.peak

    # A weight's gradient is counted elsewhere, as a whole: here it vanishes as soon as it is made.
    hooks = [
        p.register_post_accumulate_grad_hook(_forget)  # type: ignore[no-untyped-call]
        for p in parameters
        if p.requires_grad
    ]
    try:
        saved = watched(kept)
        return saved, watched(backward) - saved, watched(alone)
    finally:
        for hook in hooks:
            hook.remove()


def _forget(parameter: Tensor) -> None:
    parameter.grad = None


def _line(short: int, long: int) -> Bytes:
    """Through the bytes at the two lengths."""
    slope = (long - short) / (_LENGTHS[1] - _LENGTHS[0])
    return Bytes(slope, short - slope * _LENGTHS[0])
