"""Context parallelism: one packed row spread over several processes, exactly.

Each process computes a part of the row's tokens; everything but attention works on a token at a
time. In every attention layer the keys and values of all are gathered, as in Llama 3's training
(arXiv 2407.21783, section 3.3.2): with few key heads they are small beside the activations that are
spread, and any mask will do, which ring attention has none of. In the backward pass their gradients
are added up where they came from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup

from learners.ops.kernels import KERNELS, flex_where, masked
from learners.ops.packed import packed_logps
from learners.ops.packing import Call, Layout, Packed
from learners.ops.sequence import SequenceLogps


@dataclass(frozen=True, slots=True)
class Context:
    """The processes that share a row."""

    count: int
    index: int
    """This one's place among them."""
    group: ProcessGroup | None = None
    """Theirs; None for all there are."""


def context_logps(
    model: nn.Module, packed: Packed, context: Context, *, chunk_size: int | None = None
) -> SequenceLogps:
    """As `packed_logps`, by all processes of `context` together, each with the same row.

    The sums are those of the whole row on every process; what flows back through them is this
    process's part of the gradient, and the parts of all add up to it.

    Args:
        model: A causal language model that `prepare` found fit for packed rows.
        packed: From `pack`.
        context: Who shares it.
        chunk_size: See `token_logps`.
    """
    mine = packed_logps(model, part_of(packed, context), "context", chunk_size=chunk_size)
    both: Tensor = _Sum.apply(torch.stack(mine[:2]), context.group)  # type: ignore[no-untyped-call]
    return SequenceLogps(both[0], both[1], packed.counts)


class PartLayout(Layout):
    """Who sees whom, for some tokens of a row against all of them."""

    def __init__(self, ends: Tensor, positions: Tensor, mine: Tensor, context: Context) -> None:
        """Of a row that was filled up to equal parts.

        Args:
            ends: As `Layout.ends`, (tokens,).
            positions: As `Layout.positions`, (tokens,).
            mine: The tokens of this process, (part,).
            context: Who shares the row.
        """
        self.spans = []
        self.ends, self.all_positions = ends, positions
        self.positions = positions[mine]
        self.mine, self.context = mine, context
        every = [_mine(len(ends), context.count, index) for index in range(context.count)]
        self.order = torch.cat(every).argsort().to(ends.device)
        """Where each token of the row is in what is gathered."""
        self.calls: list[Call] = []
        self.kernel = ""
        self._kept: dict[tuple[str, int | None], Any] = {}

    def mask(self, window: int | None) -> Tensor:
        """(part, tokens), bool: True where this process's token sees the row's."""
        at, queries = torch.arange(len(self.ends), device=self.ends.device), self.mine[:, None]
        seen = (at[None] <= queries) & (queries < self.ends[None])
        if window is not None:
            seen &= self.positions[:, None] - self.all_positions[None] < window
        return seen


def part_of(packed: Packed, context: Context) -> Packed:
    """One process's part of a row: a piece from the front and its mirror image from the back.

    The later a token of a sequence, the more it attends to: so all have equally much to do with a
    long one. Tokens that see nothing but themselves fill the row up to equal parts.
    """
    size = packed.input_ids.shape[1]
    device = packed.input_ids.device
    whole = -(-size // (2 * context.count)) * 2 * context.count
    fill = torch.arange(size, whole, device=device)
    ends = torch.cat([packed.layout.ends, fill + 1])
    positions = torch.cat([packed.layout.positions, 0 * fill])
    ids = torch.cat([packed.input_ids[0], 0 * fill])
    mine = _mine(whole, context.count, context.index).to(device)
    place = torch.full((whole,), -1, device=device)
    place[mine] = torch.arange(len(mine), device=device)
    predicts = place[packed.sources] >= 0
    number = predicts.cumsum(0) - 1
    counted = predicts[packed.entries]
    return replace(
        packed,
        input_ids=ids[mine][None],
        layout=PartLayout(ends, positions, mine, context),
        sources=place[packed.sources[predicts]],
        targets=packed.targets[predicts],
        entries=number[packed.entries[counted]],
        rows=packed.rows[counted],
    )


def _mine(size: int, count: int, index: int) -> Tensor:
    piece = size // (2 * count)
    starts = (index * piece, (2 * count - 1 - index) * piece)
    return torch.cat([torch.arange(start, start + piece) for start in starts])


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scale: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """This process's queries against the keys of the whole row."""
    assert isinstance(layout, PartLayout)
    gathered = _Gather.apply(torch.stack((key, value)), layout.context)  # type: ignore[no-untyped-call]
    keys, values = gathered.index_select(3, layout.order)
    if query.is_cuda:
        return flex_part(query, keys, values, layout, scale, window, softcap)
    mask = layout.keep("mask", window, lambda: layout.mask(window))
    return masked(query, keys, values, mask, scale, softcap)


def flex_part(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: PartLayout,
    scale: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """The same by flex attention, which never holds the mask; keys and values of the whole row."""
    ends, mine, positions = layout.ends, layout.mine, layout.all_positions

    def sees(_row: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = (k <= mine[q]) & (mine[q] < ends[k])
        return seen if window is None else seen & (positions[mine[q]] - positions[k] < window)

    return flex_where(sees, query, key, value, layout, scale, window, softcap)


KERNELS["context"] = _attend


class _Gather(torch.autograd.Function):
    """(2, 1, heads, part, width) of each process → the same with the tokens of all."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, context: Context) -> Tensor:
        ctx.context = context
        parts = [torch.empty_like(mine) for _ in range(context.count)]
        distributed.all_gather(parts, mine.contiguous(), group=context.group)
        return torch.cat(parts, 3)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        context: Context = ctx.context
        total = gradient.contiguous()
        distributed.all_reduce(total, group=context.group)
        return total.chunk(context.count, 3)[context.index].contiguous(), None


class _Sum(torch.autograd.Function):
    """The sum over the processes; each is given back what it would be given alone."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, group: ProcessGroup | None) -> Tensor:  # noqa: ARG004
        total = mine.clone()
        distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return gradients[0], None
