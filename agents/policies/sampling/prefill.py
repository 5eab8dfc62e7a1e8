"""`prefill`: the new parts of several prompts in one forward pass.

What is known of a prompt ends where its new part begins, so known parts are padded on the left and
new parts on the right, all new parts beginning at one column. Distances between columns are
distances between positions then, so the model's own masks (causal, sliding window) stay right, and
what pads a row on the right comes after everything that is wanted of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicLayer

from agents.policies.sampling.layout import Layout, put
from agents.policies.sampling.prefixes import KeysValues

_TOKENS = 16_384
"""Most new tokens, padding included, of one group."""
_COLUMNS = 32_768
"""Most tokens of keys and values of one group of several, padding included."""
_CHUNK = 1024
"""Columns computed at once behind others: bounds the memory of masks over a long prompt."""
_SHARED = 256
"""Tokens that two prompts share beyond what is known, for one of them to wait for the other."""


@dataclass(frozen=True, slots=True)
class Part:
    """A sequence of which the first `known` tokens were computed before."""

    ids: list[int]
    known: int
    layers: KeysValues
    """Keys and values of the known tokens; empty if none are."""

    @property
    def new(self) -> int:
        """Tokens to compute."""
        return len(self.ids) - self.known


class _Filled(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's keys and values of a group, written from left to right."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, filled: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.buffers, self.filled = (keys, values), filled
        self.keys, self.values = keys[:, :, :filled], values[:, :, :filled]
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        first, self.filled = self.filled, self.filled + key_states.shape[2]
        keys, values = self.buffers
        keys[:, :, first : self.filled] = key_states
        values[:, :, first : self.filled] = value_states
        self.keys, self.values = keys[:, :, : self.filled], values[:, :, : self.filled]
        return self.keys, self.values

    def get_seq_length(self, *_: Any) -> int:
        return self.filled

    def get_mask_sizes(self, query_length: Any, *_: Any) -> tuple[int, int]:
        # Early releases pass the positions of the new tokens instead of their number.
        new = query_length if isinstance(query_length, int) else query_length.shape[0]
        return self.filled + new, 0


def prefill(
    backbone: Callable[..., Any], layout: Layout, parts: Sequence[Part]
) -> list[torch.Tensor]:
    """Keys and values of whole sequences, known tokens included.

    Args:
        backbone: The model without its output layer.
        layout: How it keeps keys and values.
        parts: What to compute, each with at least one new token.

    Returns:
        For each part (layers, 2, heads, tokens, width), in memory of its own.
    """
    rows, past = len(parts), max(part.known for part in parts)
    new = max(part.new for part in parts)
    buffer = layout.zeros(rows, past + new)
    ids = np.zeros((rows, new), dtype=np.int64)
    for row, part in enumerate(parts):
        ids[row, : part.new] = part.ids[part.known :]
        if part.known:
            put(part.layers, buffer[:, :, row, :, past - part.known : past])
    known = np.array([[part.known] for part in parts])
    # Padding repeats the last position: there may be none after it.
    last = np.array([[len(part.ids) - 1] for part in parts])
    positions = np.minimum(known + np.arange(new), last)
    mask = None
    if (known < past).any():
        mask = torch.from_numpy(np.arange(past + new) >= past - known).to(layout.device)
    _compute(
        backbone,
        Cache(layers=[_Filled(layer[0], layer[1], past) for layer in buffer]),
        torch.from_numpy(ids).to(layout.device),
        torch.from_numpy(positions).to(layout.device),
        mask,
    )
    return [
        buffer[:, :, row, :, past - part.known : past + part.new].contiguous()
        for row, part in enumerate(parts)
    ]


def _compute(
    backbone: Callable[..., Any],
    cache: Cache,
    ids: torch.Tensor,
    positions: torch.Tensor,
    mask: torch.Tensor | None,
) -> None:
    """Fill `cache` with new tokens `ids` (rows, new); `mask` is (rows, past + new) or None."""
    rows, new = ids.shape
    past, first = cache.get_seq_length(), 0
    while first < new:
        # The first tokens of all need no mask, and PyTorch has kernels for that in little memory.
        chunk = _CHUNK if past + first else max(_CHUNK, _TOKENS // rows)
        last = min(new, first + chunk)
        backbone(
            input_ids=ids[:, first:last],
            attention_mask=None if mask is None else mask[:, : past + last].long(),
            position_ids=positions[:, first:last],
            past_key_values=cache,
            use_cache=True,
        )
        first = last


def apart_from(parts: Sequence[Part], capacity: int) -> list[int]:
    """Which parts to compute now: of those that begin alike the first, the others know it then.

    `capacity` is the prefix store's, in tokens: who waits must find there what it waited for.
    """
    now: list[int] = []
    for index, part in enumerate(parts):
        head = part.ids[: part.known + _SHARED]
        waits = len(head) == part.known + _SHARED and any(
            len(parts[other].ids) <= capacity and parts[other].ids[: len(head)] == head
            for other in now
        )
        if not waits:
            now.append(index)
    return now


def groups(parts: Sequence[Part], among: Sequence[int]) -> list[list[int]]:
    """Split the parts `among` into groups for one forward pass each, or none if nothing is new.

    Within a group the shortest new part is at least half of the longest.
    """
    found: list[list[int]] = []
    for index in sorted(among, key=lambda index: -parts[index].new):
        group = [*(found[-1] if found else []), index]
        longest, shortest = parts[group[0]].new, parts[index].new
        past = max(parts[member].known for member in group)
        fits = len(group) * longest <= _TOKENS and len(group) * (past + longest) <= _COLUMNS
        if found and ((fits and 2 * shortest >= longest > 0) or not longest):
            found[-1] = group
        else:
            found.append([index])
    return found
