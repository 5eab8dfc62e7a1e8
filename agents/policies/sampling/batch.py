"""`Batch`: the rows being decoded, their keys and values in buffers written in place.

Rows are right-aligned: all end at the same column, shorter ones are padded on the left, so a
decoding step writes one column for everyone and the model's own masks (causal, sliding window)
stay right, distances between columns being distances between positions. Rows join and leave
between steps; only their own columns are copied.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from agents.policies.sampling.prefixes import KeysValues

_SLACK = 256
"""Columns to spare when buffers are laid out anew."""


class _Layer(DynamicLayer):
    """One layer's share of the batch, in the form transformers' models write to."""

    def __init__(self, batch: Batch, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.batch, self.keys, self.values = batch, keys, values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, column = key_states.shape[0], self.batch.end
        assert self.keys is not None and self.values is not None
        self.keys[:rows, :, column] = key_states[:, :, 0]
        self.values[:rows, :, column] = value_states[:, :, 0]
        seen = slice(self.batch.start, column + 1)
        return self.keys[:rows, :, seen], self.values[:rows, :, seen]

    def get_seq_length(self, *_: Any) -> int:
        return self.batch.end - self.batch.start

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        # Releases before 5.2 pass the positions of the new tokens instead of their number.
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
        if not row:
            self.end = max(length, min(self.end, self._width - _SLACK))
        capacity = self._layers[0].keys.shape[0] if self._layers else 0  # type: ignore[union-attr]
        if row >= capacity or length > self.end or self.end >= self._width:
            self._lay_out(layers, rows=row + 1, longest=max([length, *self.lengths]))
        self.lengths.append(length)
        for mine, (keys, values) in zip(self._layers, layers, strict=True):
            for buffer, given in ((mine.keys, keys), (mine.values, values)):
                assert buffer is not None
                buffer[row, :, self.end - length : self.end] = given[:, :length]

    def leave(self, row: int, keep: bool) -> KeysValues:
        """Remove a row, the last one taking its place; its keys and values if `keep`."""
        first, last = self.end - self.lengths[row], len(self.lengths) - 1
        kept: KeysValues = []
        for layer in self._layers:
            assert layer.keys is not None and layer.values is not None
            if keep:
                seen = slice(first, self.end)
                kept.append((layer.keys[row, :, seen].clone(), layer.values[row, :, seen].clone()))
            if row != last:
                seen = slice(self.end - self.lengths[last], self.end)
                layer.keys[row, :, seen] = layer.keys[last, :, seen]
                layer.values[row, :, seen] = layer.values[last, :, seen]
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        return kept

    def step(self, model: Any, tokens: list[int]) -> torch.Tensor:
        """Append one token to every row; logits of what follows it, (rows, vocabulary)."""
        if self.end >= self._width:
            self._lay_out([], rows=len(self), longest=max(self.lengths))
        lengths = torch.tensor(self.lengths, device=self.device)
        width = self.end - self.start + 1
        columns = torch.arange(width, device=self.device)
        output = model(
            input_ids=torch.tensor(tokens, device=self.device)[:, None],
            attention_mask=(columns[None] >= width - 1 - lengths[:, None]).long(),
            position_ids=lengths[:, None],
            past_key_values=Cache(layers=list(self._layers)),
            use_cache=True,
        )
        self.end += 1
        self.lengths = [length + 1 for length in self.lengths]
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _lay_out(self, like: KeysValues, *, rows: int, longest: int) -> None:
        """New buffers: room for `rows`, every row moved so that `_SLACK` columns are free."""
        old, old_end = self._layers, self.end
        heads = [layer.keys[0] for layer in old if layer.keys is not None] or [k for k, _ in like]
        tails = [layer.values[0] for layer in old if layer.values is not None] or [
            v for _, v in like
        ]
        capacity = old[0].keys.shape[0] if old and old[0].keys is not None else 0
        capacity = capacity if rows <= capacity else max(rows, min(2 * capacity, capacity + 16))
        # A longer row joins without a new layout as long as there are columns before the rows.
        self.end = longest + _SLACK
        self._width = self.end + _SLACK
        self._layers = []
        for index, (key, value) in enumerate(zip(heads, tails, strict=True)):
            buffers = [
                part.new_zeros((capacity, part.shape[0], self._width, part.shape[2]))
                for part in (key, value)
            ]
            if old:
                before = old[index]
                for row, length in enumerate(self.lengths):
                    now = slice(self.end - length, self.end)
                    then = slice(old_end - length, old_end)
                    assert before.keys is not None and before.values is not None
                    buffers[0][row, :, now] = before.keys[row, :, then]
                    buffers[1][row, :, now] = before.values[row, :, then]
            self._layers.append(_Layer(self, *buffers))
            if old:
                old[index].keys = old[index].values = None
