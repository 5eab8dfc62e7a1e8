"""`Batch`: the rows being decoded, their keys and values in buffers written in place.

Rows are right-aligned: all end at the same column, shorter ones are padded on the left, so a
decoding step writes one column for everyone and the model's own masks (causal, sliding window)
stay right, distances between columns being distances between positions. Rows join and leave
between steps; only their own columns are copied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from agents.policies.sampling.prefixes import KeysValues

_SLACK = 256
"""Columns to spare when buffers are laid out anew."""


class _Layer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's share of the batch, in the form transformers' models write to."""

    def __init__(self, batch: Batch, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.batch = batch
        self.buffers = (keys, values)
        self.keys, self.values = keys, values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, column = key_states.shape[0], self.batch.end
        seen = slice(self.batch.start, column + 1)
        keys, values = self.buffers
        keys[:rows, :, column] = key_states[:, :, 0]
        values[:rows, :, column] = value_states[:, :, 0]
        return keys[:rows, :, seen], values[:rows, :, seen]

    def get_seq_length(self, *_: Any) -> int:
        return self.batch.end - self.batch.start

    def get_mask_sizes(self, query_length: Any, *_: Any) -> tuple[int, int]:
        # Early releases pass the positions of the new tokens instead of their number.
        new = query_length if isinstance(query_length, int) else query_length.shape[0]
        return self.get_seq_length() + new, 0


class Batch:
    """Rows of token sequences with their keys and values; row i has `lengths[i]` tokens."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.lengths: list[int] = []
        self.end = 0
        """Column after the last token of every row."""
        self._layers: list[_Layer] = []
        self._capacity = 0
        self._width = 0

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def start(self) -> int:
        """First column that some row uses."""
        return self.end - max(self.lengths, default=0)

    def join(self, layers: KeysValues, length: int) -> None:
        """Add a row whose first `length` tokens have these keys and values."""
        row = len(self.lengths)
        if not row and length + _SLACK <= self._width:
            self.end = self._width - _SLACK
        if row >= self._capacity or length > self.end or self.end >= self._width:
            self._lay_out(layers, rows=row + 1, longest=max([length, *self.lengths]))
        self.lengths.append(length)
        for mine, given in zip(self._layers, layers, strict=True):
            for buffer, part in zip(mine.buffers, given, strict=True):
                buffer[row, :, self.end - length : self.end] = part[:, :length]

    def leave(self, row: int, *, keep: bool) -> KeysValues:
        """Remove a row, the last one taking its place; its keys and values if `keep`."""
        last = len(self.lengths) - 1
        own = slice(self.end - self.lengths[row], self.end)
        moved = slice(self.end - self.lengths[last], self.end)
        kept: KeysValues = []
        for layer in self._layers:
            keys, values = layer.buffers
            if keep:
                kept.append((keys[row, :, own].clone(), values[row, :, own].clone()))
            if row != last:
                keys[row, :, moved] = keys[last, :, moved]
                values[row, :, moved] = values[last, :, moved]
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        return kept

    def step(self, decode: Callable[..., torch.Tensor], tokens: list[int]) -> torch.Tensor:
        """Append one token to every row; logits of what follows it, (rows, vocabulary).

        `decode` is `next_logits` of the model.
        """
        if self.end >= self._width:
            self._lay_out([], rows=len(self), longest=max(self.lengths))
        lengths = torch.tensor(self.lengths, device=self.device)
        before = self.end - self.start
        columns = torch.arange(before + 1, device=self.device)
        logits = decode(
            input_ids=torch.tensor(tokens, device=self.device)[:, None],
            attention_mask=(columns[None] >= before - lengths[:, None]).long(),
            position_ids=lengths[:, None],
            past_key_values=Cache(layers=list(self._layers)),
            use_cache=True,
        )
        self.end += 1
        self.lengths = [length + 1 for length in self.lengths]
        return logits

    def _lay_out(self, like: KeysValues, *, rows: int, longest: int) -> None:
        """New buffers with room for `rows`; `_SLACK` columns are free on either side of them."""
        shapes = [layer.buffers for layer in self._layers] or [
            (keys[None], values[None]) for keys, values in like
        ]
        if rows > self._capacity:
            self._capacity = max(rows, min(2 * self._capacity, self._capacity + 16))
        # Columns before the rows let a longer one join, columns after them are for new tokens.
        end = longest + _SLACK
        self._width = end + _SLACK
        fresh: list[_Layer] = []
        for pair in shapes:
            keys, values = (
                part.new_zeros((self._capacity, part.shape[1], self._width, part.shape[3]))
                for part in pair
            )
            for row, length in enumerate(self.lengths):
                now, then = slice(end - length, end), slice(self.end - length, self.end)
                keys[row, :, now] = pair[0][row, :, then]
                values[row, :, now] = pair[1][row, :, then]
            fresh.append(_Layer(self, keys, values))
        self._layers, self.end = fresh, end
