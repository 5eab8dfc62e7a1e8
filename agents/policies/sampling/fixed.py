"""`FixedBatch`: rows being decoded in steps of one shape, as CUDA graphs need them.

A step reads all columns of its buffers, whatever the rows hold; a mask shows each row its own. The
columns are a ring: all rows end at the same column, which moves on by one each step and comes
around, so nothing is moved until a row is longer than the ring. Rows are counted up to the next
power of two; what the rows beyond the real ones compute is never read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicLayer

from agents.policies.sampling.graphs import Runner
from agents.policies.sampling.layout import Layout, put, together
from agents.policies.sampling.prefixes import KeysValues

_SLACK = 128
"""Columns to spare, at least, when buffers are laid out anew."""
_COLUMNS = 512
"""Columns come in multiples of this, or of an eighth of the next power of two if that is more."""


class _Ring(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's share of the batch, in the form transformers' models write to."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, column: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.buffers, self.column = (keys, values), column
        self.keys, self.values = keys, values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self.buffers
        keys.index_copy_(2, self.column, key_states.to(keys.dtype))
        values.index_copy_(2, self.column, value_states.to(values.dtype))
        return self.buffers

    def get_seq_length(self, *_: Any) -> int:
        return self.buffers[0].shape[2] - 1

    def get_mask_sizes(self, *_: Any) -> tuple[int, int]:
        return self.buffers[0].shape[2], 0


class FixedBatch:
    """Rows of token sequences with their keys and values; row i has `lengths[i]` tokens.

    It takes and gives keys and values of all layers in one pair (`prefixes.KeysValues`).
    """

    def __init__(self, layout: Layout, most: int, runner: Runner) -> None:
        """`most` is the number of rows that it holds at most."""
        self.lengths: list[int] = []
        self.runner = runner
        self._layout, self._most = layout, most
        self._end = 0
        self._buffer = layout.zeros(0, 0)
        self._lay_inputs()

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def capacity(self) -> int:
        """Rows that the buffers hold."""
        return self._buffer.shape[2]

    @property
    def width(self) -> int:
        """Columns of the ring."""
        return self._buffer.shape[4]

    def join(self, layers: KeysValues, length: int) -> None:
        """Add a row whose first `length` tokens have these keys and values."""
        row = len(self.lengths)
        far_too_wide = not row and self.width > 4 * _columns(length)
        if row >= self.capacity or length >= self.width or far_too_wide:
            self._lay_out(rows=row + 1, longest=max([length, *self.lengths]))
        self.lengths.append(length)
        for columns, tokens in self._pieces(length):
            part = [tuple(given[..., tokens, :] for given in pair) for pair in layers]
            put(part, self._buffer[:, :, row, :, columns])  # type: ignore[arg-type]

    def leave(self, row: int, *, keep: bool) -> KeysValues:
        """Remove a row, the last one taking its place; its keys and values if `keep`."""
        last = len(self.lengths) - 1
        kept: KeysValues = []
        if keep:
            pieces = [self._buffer[:, :, row, :, at] for at, _ in self._pieces(self.lengths[row])]
            kept = together(torch.cat(pieces, dim=-2))
        if row != last:
            for columns, _ in self._pieces(self.lengths[last]):
                self._buffer[:, :, row, :, columns] = self._buffer[:, :, last, :, columns]
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        return kept

    def step(self, decode: Callable[..., torch.Tensor], tokens: list[int]) -> torch.Tensor:
        """Append one token to every row; logits of what follows it, (rows, vocabulary).

        `decode` is `next_logits` of the model. The logits are valid until the next step, which
        must not be asked for before they were used.
        """
        if max(self.lengths) >= self.width:
            self._lay_out(rows=len(self), longest=max(self.lengths))
        self._stage(tokens)
        rows = min(self.capacity, _power(len(self)))
        logits = self.runner.run(rows, lambda rows: self._forward(decode, rows))
        self._end = (self._end + 1) % self.width
        self.lengths = [length + 1 for length in self.lengths]
        return logits[: len(self)]

    def _forward(self, decode: Callable[..., torch.Tensor], rows: int) -> torch.Tensor:
        """The step itself: shapes and memory depend on `rows` and the buffers alone."""
        column, tokens, lengths = self._inputs[:1], self._tokens[:rows], self._lengths[:rows]
        # How many tokens ago a column was written; a row sees its own tokens and the new one.
        age = torch.remainder(column - self._columns, self.width)
        mask = torch.zeros((rows, self.width), device=self._layout.device)
        mask = mask.masked_fill(age[None] > lengths[:, None], torch.finfo(mask.dtype).min)
        layers = [_Ring(pair[0, :rows], pair[1, :rows], column) for pair in self._buffer]
        return decode(
            input_ids=tokens[:, None],
            attention_mask=mask[:, None, None],
            position_ids=lengths[:, None],
            past_key_values=Cache(layers=list(layers)),
            use_cache=True,
        )

    def _stage(self, tokens: list[int]) -> None:
        """Put a step's inputs where it reads them, in one copy; rows that are none get zeros."""
        staged, rows = self._staged.numpy(), len(tokens)
        staged[:] = 0
        staged[0] = self._end
        staged[1 : 1 + rows] = tokens
        staged[1 + self.capacity : 1 + self.capacity + rows] = self.lengths
        self._inputs.copy_(self._staged, non_blocking=True)

    def _pieces(self, length: int) -> list[tuple[slice, slice]]:
        """Where a row's `length` tokens lie: columns, and which of its tokens are in them."""
        first = self._end - length
        if first >= 0:
            return [(slice(first, self._end), slice(0, length))]
        return [
            (slice(first + self.width, self.width), slice(0, -first)),
            (slice(0, self._end), slice(-first, length)),
        ]

    def _lay_out(self, *, rows: int, longest: int) -> None:
        """New buffers with room for `rows` and for tokens after the longest row."""
        self.runner.clear()
        width, old = _columns(longest), self._buffer
        fresh = self._layout.zeros(self._room(rows, width), width)
        used = max(self.lengths, default=0)
        for columns, tokens in self._pieces(used):
            held = len(self.lengths)
            fresh[:, :, :held, :, tokens] = old[:, :, :held, :, columns]
        self._buffer, self._end = fresh, used
        self._lay_inputs()

    def _lay_inputs(self) -> None:
        """Inputs of a step: the column to write, each row's token, each row's length so far."""
        device, count = self._layout.device, 1 + 2 * self.capacity
        pinned = device.type == "cuda"
        self._staged = torch.from_numpy(np.zeros(count, dtype=np.int64))
        self._staged = self._staged.pin_memory() if pinned else self._staged
        self._inputs = torch.zeros(count, dtype=torch.long, device=device)
        self._tokens = self._inputs[1 : 1 + self.capacity]
        self._lengths = self._inputs[1 + self.capacity :]
        self._columns = torch.arange(self.width, device=device)

    def _room(self, rows: int, width: int) -> int:
        """Rows to make room for: all there may be, where they take at most half of what is free."""
        device = self._layout.device
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
            free -= torch.cuda.memory_allocated(device)
            if 2 * self._layout.size(self._most, width) > free:
                return min(self._most, _power(rows))
        return self._most


def _power(rows: int) -> int:
    """The least power of two that is no less."""
    return 1 << (rows - 1).bit_length()


def _columns(longest: int) -> int:
    """Columns of a ring for rows of up to `longest` tokens and some more."""
    needed = longest + _SLACK
    unit = max(_COLUMNS, _power(needed) // 8)
    return -(-needed // unit) * unit
