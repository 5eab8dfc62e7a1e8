"""`LentAttention`: a callback may set the model's attention; training goes on with its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from learners.ops.sequence import unwrap


class LentAttention:
    """Gives the model back as it was, and the callback what it had set before.

    A sampler sets an attention of its own, and one that is kept from one evaluation to the next
    expects to find it; without gradients as it is, training must never compute with it.
    """

    def __init__(self, model: nn.Module) -> None:
        """`model` is bare or wrapped by peft."""
        self._causal = unwrap(model)
        self._theirs: str | None = None

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Around the callback."""
        own = self._attention
        self._set(self._theirs or own)
        try:
            yield
        finally:
            self._theirs = self._attention
            self._set(own)

    @property
    def _attention(self) -> str:
        found: str = self._causal.config._attn_implementation
        return found

    def _set(self, name: str) -> None:
        if name != self._attention:
            self._causal.set_attn_implementation(name)
