"""What one decoder layer keeps and uses, found by running it on torch's meta device.

A formula would have to know every family's norms, gates and copies, and what peft adds to them
(float32 copies of each adapted layer's input, whole stacks of merged experts). Running the layer
itself, with its adapter, on tensors that have shapes and no memory counts exactly what autograd
saves. Attention is the exception: its kernel is replaced by one that allocates what flash
attention does, inputs, output and one float32 a row and head, and no tokens x tokens matrix.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


def _attention(
    _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    result: Tensor = _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]
    return result, None


def register_attention() -> None:
    """Make `ATTENTION` known to transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, _attention)


def layer_costs(model: nn.Module) -> list[LayerCosts]:
    """Costs of every decoder layer of a meta model, in order; layers of one shape run once."""
    model.train()
    found: dict[Any, LayerCosts] = {}
    costs = []
    with _autocast_on_meta():
        runs = [_calls(model, tokens) for tokens in _LENGTHS]
        for index, layer in enumerate(decoder_layers(model)):
            shape = tuple((name, tuple(p.shape)) for name, p in layer.named_parameters())
            if shape not in found:
                short, long = (_run(layer, *calls[index]) for calls in runs)
                found[shape] = LayerCosts(*map(_line, short, long))
            costs.append(found[shape])
    return costs


def logps_bytes(head: Tensor, loss_tokens: int, tokens: int, softcap: float | None) -> int:
    """Peak of `learners.ops.token_logps`, forward and backward, beside the decoder's output.

    The chosen hidden states, their gradient, and the gradient of all of them, which they are
    written into, grow with the tokens; the logits exist for one chunk at a time.

    Args:
        head: The output layer's weight, (vocab, dim), on the meta device.
        loss_tokens: Tokens whose log-probability is wanted.
        tokens: All tokens.
        softcap: As `token_logps` takes it.
    """
    vocabulary, width, size = head.shape[0], head.shape[1], head.element_size()
    most = 2 * max((1 << 30) // (4 * vocabulary), 16)
    # Rounded up, so that few lengths are traced; more than two chunks take no more than two.
    some = min(1 << (loss_tokens - 1).bit_length(), most)
    rest = max(loss_tokens - some, 0)
    peak: int = _logps_peak(some, vocabulary, width, head.dtype, softcap)
    return peak + rest * 2 * width * size + tokens * width * size


@functools.lru_cache
def _logps_peak(
    tokens: int, vocabulary: int, width: int, dtype: torch.dtype, softcap: float | None
) -> int:
    weight = torch.empty(vocabulary, width, dtype=dtype, device="meta")
    with _autocast_on_meta(), LiveBytes(weight) as live:
        hidden = torch.empty(tokens, width, dtype=dtype, device="meta", requires_grad=True)
        targets = torch.empty(tokens, dtype=torch.long, device="meta")
        logps, _ = token_logps(hidden, weight, targets, softcap=softcap)
        torch.autograd.backward(logps.sum())
    return int(live.peak)


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
        with torch.no_grad():
            device = next(decoder.parameters()).device
            ids = torch.zeros(1, tokens, dtype=torch.long, device=device)
            decoder(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _run(layer: nn.Module, states: Tensor, rest: dict[str, Any]) -> tuple[int, int, int]:
    """(kept, backward beyond kept, forward alone) in bytes."""
    given = [leaf for leaf in tree_leaves(rest) if isinstance(leaf, Tensor)]
    parameters = list(layer.parameters())
    states = states.detach().requires_grad_()

    def watched(work: Callable[[LiveBytes], int]) -> int:
        with LiveBytes(states, *given, *parameters, *layer.buffers()) as live:
            return work(live)

    def forward() -> Tensor:
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
