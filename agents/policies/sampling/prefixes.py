"""`PrefixStore`: keys and values of token sequences seen before, found by longest prefix."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

KeysValues = list[tuple["torch.Tensor", "torch.Tensor"]]
"""Of every layer: keys and values, each (heads, tokens, head_dim).

Or of all layers together, in a list of one pair: each (layers, heads, tokens, head_dim).
"""

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Entry:
    ids: Ids
    layers: KeysValues


class PrefixStore:
    """A bounded store; the sequences not used for longest are dropped first.

    A policy is stateless, so an episode's cache is found by its tokens: the next turn's prompt
    starts with everything of the turn before, another attempt's with the same system prompt and
    issue. An entry that is a prefix of another is never kept beside it.
    """

    def __init__(self, capacity: int) -> None:
        """`capacity` is in tokens, summed over entries; 0 keeps nothing."""
        self.capacity = capacity
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._next = 0

    @property
    def tokens(self) -> int:
        """Tokens held now."""
        return sum(len(entry.ids) for entry in self._entries.values())

    def find(self, ids: Sequence[int]) -> tuple[int, KeysValues]:
        """The longest known prefix of `ids`: its length and its keys and values (views)."""
        wanted = np.asarray(ids, dtype=np.int64)
        best, found = 0, None
        for key, entry in self._entries.items():
            length = _common(entry.ids, wanted)
            if length > best:
                best, found = length, key
        if found is None:
            return 0, []
        self._entries.move_to_end(found)
        layers = self._entries[found].layers
        return best, [(keys[..., :best, :], values[..., :best, :]) for keys, values in layers]

    def put(self, ids: Sequence[int], layers: KeysValues) -> None:
        """Keep the keys and values of `ids`; the tensors are the store's from now on."""
        new = np.asarray(ids, dtype=np.int64)
        if not 0 < len(new) <= self.capacity:
            return
        for key, entry in list(self._entries.items()):
            common = _common(entry.ids, new)
            if common == len(new):
                self._entries.move_to_end(key)
                return
            if common == len(entry.ids):
                del self._entries[key]
        self._entries[self._next] = _Entry(new, layers)
        self._next += 1
        while self.tokens > self.capacity:
            self._entries.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()


def _common(one: Ids, other: Ids) -> int:
    """Length of the common prefix."""
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    first = int(differs.argmax()) if length else 0
    return first if length and differs[first] else length
