"""`lean_rotary`: rotary position embeddings by one kernel on CUDA.

Every family calls `apply_rotary_pos_emb` of its own module. Where that computes the usual rotation,
it is replaced by `_Rotation`, which does the same in one pass over memory on CUDA and calls the
family's function everywhere else. `moving_rotary` and `learned_positions` tell models apart by what
their positions are; `forget_lengths` frees a pass from those before it.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from learners.ops import fused

_NAME = "apply_rotary_pos_emb"


def lean_rotary(model: nn.Module) -> int:
    """Take over the rotation of each family in a model; gives how many are taken over.

    They stay so for the process: results are the same to the last rounding.
    """
    homes = {sys.modules[type(module).__module__] for module in model.modules()}
    return sum(_take_over(home) for home in homes if hasattr(home, _NAME))


def moving_rotary(model: nn.Module) -> str:
    """The kind of rotary embedding whose frequencies depend on a pass's longest sequence, if any.

    transformers takes them from the highest position of all rows, so a short sequence beside a
    long one would get the long one's.
    """
    for module in model.modules():
        for kind in _kinds(module).values():
            if kind == "longrope" or "dynamic" in kind:
                return kind
    return ""


def forget_lengths(model: nn.Module) -> None:
    """Make the next pass's ``dynamic`` frequencies those of its own longest sequence.

    transformers keeps those of the longest one so far, until a sequence within the model's own
    length sets them back: so does one token here.
    """
    for module in model.modules():
        for layers, kind in _kinds(module).items():
            if "dynamic" in kind:
                device = next(module.buffers()).device
                position = torch.zeros(1, 1, dtype=torch.long, device=device)
                which = {"layer_type": layers} if layers else {}
                module(torch.zeros(1, device=device), position, **which)


def _kinds(module: nn.Module) -> dict[str, str]:
    """Kinds of rotary embedding by the layers that use them; "" where all use one."""
    found = getattr(module, "rope_type", None)
    kinds = found if isinstance(found, dict) else {"": found}
    return {layers: kind for layers, kind in kinds.items() if isinstance(kind, str)}


def learned_positions(decoder: nn.Module, limit: int) -> bool:
    """Whether a decoder looks positions up in a table that ends at `limit`, as GPT-2 does.

    The table is an embedding beside that of the words, or a buffer (GPT-J's), of so many rows or
    two more (OPT's). Rotary embeddings that are modules compute any position, and so do ALiBi's.
    """
    modules = list(decoder.modules())
    if any("rotary" in type(module).__name__.lower() for module in modules):
        return False
    words: Any = decoder
    words = set(words.get_input_embeddings().modules())
    rows = [
        module.num_embeddings
        for module in modules if isinstance(module, nn.Embedding) and module not in words
    ]  # fmt: skip
    rows += [len(table) for table in decoder.buffers() if table.dim() == 2]
    return any(limit <= count <= limit + 2 for count in rows)


class _Rotation:
    """In place of a family's function."""

    def __init__(self, own: Any) -> None:
        self.own = own

    def __call__(
        self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        usual = not args and not kwargs and q.dim() == 4 and len(q) == 1
        if usual and fused.usable(q) and cos.dtype == q.dtype and cos.shape[-1] == q.shape[-1]:
            return _rotate(q, cos, sin), _rotate(k, cos, sin)
        found: tuple[Tensor, Tensor] = self.own(q, k, cos, sin, *args, **kwargs)
        return found


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return fused.rotated(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return fused.rotated(grad, *ctx.saved_tensors, back=True), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    found: Tensor = _Rotate.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return found


def _take_over(home: Any) -> bool:
    own = getattr(home, _NAME)
    if isinstance(own, _Rotation):
        return True
    if not _usual(own):
        return False
    setattr(home, _NAME, _Rotation(own))
    return True


def _usual(function: Any) -> bool:
    """Whether it rotates each head's first half against its second, to the last bit."""
    with torch.device("cpu"):
        values = torch.linspace(-3, 4, 5 * 5 * 8).sin()
        q, k = values[:120].view(1, 3, 5, 8), values[120:160].view(1, 1, 5, 8)
        cos, sin = values[160:200].view(1, 5, 8), values[20:60].view(1, 5, 8)
    try:
        found = function(q, k, cos, sin)
    except (TypeError, RuntimeError, ValueError, AttributeError):
        return False
    if not isinstance(found, tuple) or len(found) != 2:
        return False
    pairs = zip(found, (_plainly(q, cos, sin), _plainly(k, cos, sin)), strict=True)
    return all(isinstance(one, Tensor) and torch.equal(one, other) for one, other in pairs)


def _plainly(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat((-second, first), -1) * sin[:, None]
