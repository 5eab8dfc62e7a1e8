"""Gymnasium spaces for text and for tool calls, batched and shared between processes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, overload

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Tuple
from gymnasium.vector.utils import (
    batch_space,
    create_shared_memory,
    read_from_shared_memory,
    write_to_shared_memory,
)

_ALPHABET = np.array(
    [*"abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789\n", "é", "λ"]
)
_UTF8_WIDTH = 4


class UnicodeText(gym.Space[str]):
    """Any string of at most `max_length` characters (`gymnasium.spaces.Text` is ASCII letters)."""

    def __init__(self, max_length: int, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(dtype=str, seed=seed)
        self.max_length = max_length

    @property
    def is_np_flattenable(self) -> bool:
        """Text has no numeric form."""
        return False

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """A short random string; masks have no meaning here and must be None."""
        if mask is not None or probability is not None:
            raise ValueError("UnicodeText.sample takes neither a mask nor probabilities.")
        length = int(self.np_random.integers(0, min(self.max_length, 32) + 1))
        return "".join(self.np_random.choice(_ALPHABET, size=length))

    def contains(self, x: object) -> bool:
        """Whether `x` is a string that is short enough."""
        return isinstance(x, str) and len(x) <= self.max_length

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnicodeText) and other.max_length == self.max_length

    def __hash__(self) -> int:
        return hash((UnicodeText, self.max_length))

    def __repr__(self) -> str:
        return f"UnicodeText({self.max_length})"


class ToolCallSpace(gym.Space[dict[str, Any]]):
    """Actions ``{"tool": name, "arguments": {…}}``; `sample` gives harmless calls only.

    Every mapping of that form is contained, unknown tools and wrong arguments too: those are
    answered by an observation that says how to do it right.
    """

    def __init__(
        self,
        schemas: Sequence[Mapping[str, Any]],
        harmless: Sequence[Mapping[str, Any]],
        seed: int | np.random.Generator | None = None,
    ) -> None:
        """`schemas` are the tools offered; `harmless` the calls that `sample` draws from."""
        super().__init__(seed=seed)
        self.schemas = tuple(dict(schema) for schema in schemas)
        self.harmless = tuple(dict(call) for call in harmless)

    @property
    def is_np_flattenable(self) -> bool:
        """A tool call has no numeric form."""
        return False

    def sample(self, mask: Any = None, probability: Any = None) -> dict[str, Any]:
        """One of the harmless calls; masks have no meaning here and must be None."""
        if mask is not None or probability is not None:
            raise ValueError("ToolCallSpace.sample takes neither a mask nor probabilities.")
        return copy.deepcopy(self.harmless[int(self.np_random.integers(len(self.harmless)))])

    def contains(self, x: object) -> bool:
        """Whether `x` has a tool name and a mapping of arguments."""
        return (
            isinstance(x, Mapping)
            and isinstance(x.get("tool"), str)
            and isinstance(x.get("arguments"), Mapping)
        )

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ToolCallSpace)
            and other.schemas == self.schemas
            and other.harmless == self.harmless
        )

    def __hash__(self) -> int:
        return hash((ToolCallSpace, len(self.schemas), len(self.harmless)))

    def __repr__(self) -> str:
        names = ", ".join(schema["function"]["name"] for schema in self.schemas)
        return f"ToolCallSpace({names})"


# Gymnasium's vector utilities dispatch on the space's type. With these four, `gym.make_vec` works
# with its defaults (shared memory included).


@batch_space.register(UnicodeText)
@batch_space.register(ToolCallSpace)
def _batch(space: gym.Space[Any], n: int = 1) -> Tuple[Any]:
    return Tuple(tuple(copy.deepcopy(space) for _ in range(n)))


@create_shared_memory.register(UnicodeText)
def _create(space: UnicodeText, n: int = 1, ctx: Any = None) -> tuple[Any, Any]:
    if ctx is None:
        import multiprocessing as ctx
    return ctx.Array("q", n), ctx.Array("B", n * space.max_length * _UTF8_WIDTH)


@write_to_shared_memory.register(UnicodeText)
def _write(space: UnicodeText, index: int, value: str, shared_memory: tuple[Any, Any]) -> None:
    lengths, buffer = shared_memory
    data = value.encode("utf-8", "surrogatepass")
    start = index * space.max_length * _UTF8_WIDTH
    lengths[index] = len(data)
    np.frombuffer(buffer.get_obj(), np.uint8)[start : start + len(data)] = np.frombuffer(
        data, np.uint8
    )


class _SharedTexts(Sequence[str]):
    """The texts in shared memory as they are when looked at; a deep copy is a plain tuple.

    `AsyncVectorEnv` reads its buffers once and expects a view that changes with them, as NumPy
    arrays do, then deep-copies it for the caller.
    """

    def __init__(self, lengths: Any, buffer: Any, width: int) -> None:
        self._lengths = lengths
        self._buffer = buffer
        self._width = width

    def __len__(self) -> int:
        return len(self._lengths)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        index = range(len(self))[index]
        view = np.frombuffer(self._buffer.get_obj(), np.uint8)
        start = index * self._width
        data = view[start : start + self._lengths[index]].tobytes()
        return data.decode("utf-8", "surrogatepass")

    def __deepcopy__(self, memo: dict[int, Any]) -> tuple[str, ...]:
        return tuple(self)


@read_from_shared_memory.register(UnicodeText)
def _read(
    space: UnicodeText,
    shared_memory: tuple[Any, Any],
    n: int = 1,  # noqa: ARG001 - the buffer knows its length
) -> _SharedTexts:
    lengths, buffer = shared_memory
    return _SharedTexts(lengths, buffer, space.max_length * _UTF8_WIDTH)
