"""The columns of a buffer in memory: one NumPy table, and how it is filtered, saved and loaded."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import zstandard

from swe_env.errors import ConfigError
from swe_env.replay.frames import Damage, Row

_TEXT = ("shard", "instance_id", "failure", "truncation", "agent", "model", "adapter", "parent")
"""Columns kept as numbers of a shared list of strings."""

_DTYPE = np.dtype(
    [("offset", "<i8"), ("length", "<i8"), ("id", "S32"), ("attempt", "<i8"), ("reward", "<f8")]
    + [(name, "?") for name in ("resolved", "finished", "graded")]
    + [(name, "<i4") for name in _TEXT]
    + [(name, "<i8") for name in ("n_agent_steps", "n_tokens", "schema_version")]
)
COLUMNS = tuple(_DTYPE.names or ())
_FORMAT = 2

Positions = npt.NDArray[np.intp]
Condition = Any
"""A value, a collection of values, or a function of one value that says whether it fits."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the index: the row and where its record lies."""

    row: Row
    shard: str
    offset: int
    length: int


class Index:
    """Rows of all known records in (shard, offset) order; never changes once made."""

    def __init__(self, table: npt.NDArray[Any], texts: tuple[str, ...]) -> None:
        self.table = table
        self.texts = texts
        self._codes = {text: code for code, text in enumerate(texts)}
        self._by_id: Positions | None = None

    @classmethod
    def empty(cls) -> Index:
        """An index of nothing."""
        return cls(np.zeros(0, _DTYPE), ())

    def __len__(self) -> int:
        return len(self.table)

    def extended(self, entries: Iterable[Entry]) -> Index:
        """A new index with more entries."""
        codes = dict(self._codes)
        lines = [_line(entry, codes) for entry in entries]
        if not lines:
            return self
        table = np.concatenate([self.table, np.array(lines, _DTYPE)])
        texts = tuple(codes)
        # Order by the texts' ranks, not the texts: sorting numbers is many times quicker.
        ranks = np.empty(len(texts), np.int64)
        ranks[sorted(range(len(texts)), key=texts.__getitem__)] = np.arange(len(texts))
        shards, offsets = ranks[table["shard"]], table["offset"]
        ahead, same = shards[1:] > shards[:-1], shards[1:] == shards[:-1]
        if not (ahead | (same & (offsets[1:] > offsets[:-1]))).all():
            table = table[np.lexsort((offsets, shards))]
        return Index(table, texts)

    def without(self, shards: Collection[str]) -> Index:
        """A new index with the records of some shards left out."""
        codes = [self._codes[shard] for shard in shards if shard in self._codes]
        return Index(self.table[~np.isin(self.table["shard"], codes)], self.texts)

    def entry(self, position: int) -> Entry:
        """One line."""
        line = dict(zip(COLUMNS, self.table[position].item(), strict=True))
        line.update({name: self.texts[line[name]] for name in _TEXT})
        place = {name: line.pop(name) for name in _PLACE}
        line["id"] = line["id"].decode()
        return Entry(Row(**line), **place)

    def column(self, name: str, positions: Positions | None = None) -> npt.NDArray[Any]:
        """One column's values, as an array.

        Raises:
            ConfigError: there is no such column.
        """
        values = self.codes(name) if positions is None else self.codes(name)[positions]
        if name in _TEXT:
            return (
                np.array(self.texts, dtype=object)[values] if self.texts else values.astype(object)
            )
        return values.astype("U32") if name == "id" else values

    def codes(self, name: str) -> npt.NDArray[Any]:
        """One column as it is kept: texts as numbers, equal for equal texts.

        Raises:
            ConfigError: there is no such column.
        """
        if name not in COLUMNS:
            near = difflib.get_close_matches(name, COLUMNS, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(COLUMNS)}."
            raise ConfigError(f"A replay buffer has no column {name!r}. {hint}")
        found: npt.NDArray[Any] = self.table[name]
        return found

    def select(self, positions: Positions, conditions: Mapping[str, Condition]) -> Positions:
        """Those of `positions` that meet every condition."""
        for name, condition in conditions.items():
            positions = positions[self._mask(name, positions, condition)]
        return positions

    def _mask(self, name: str, positions: Positions, condition: Condition) -> npt.NDArray[np.bool_]:
        """Conditions are asked once for each distinct value, not for each record."""
        values, inverse = np.unique(self.codes(name)[positions], return_inverse=True)
        fits = _test(condition)
        plain = [self._plain(name, value) for value in values.tolist()]
        return np.array([fits(value) for value in plain], bool)[inverse]

    def _plain(self, name: str, value: Any) -> Any:
        if name in _TEXT:
            return self.texts[value]
        return value.decode() if name == "id" else value

    def by_id(self) -> Positions:
        """Positions sorted by trajectory id: an order that no writer's timing changes."""
        if self._by_id is None:
            ids = np.ascontiguousarray(self.table["id"])
            # The first half tells almost all ids apart; equal ones are compared in full.
            heads = ids.view(">u8").reshape(len(ids), 4)[:, 0].astype(np.uint64)
            order = np.argsort(heads)
            if (heads[order][1:] == heads[order][:-1]).any():
                order = np.lexsort((self.table["offset"], ids))
            self._by_id = order
        return self._by_id

    def find(self, identity: str) -> Entry | None:
        """The first line with that trajectory id."""
        found = np.flatnonzero(self.table["id"] == identity.encode())
        return self.entry(int(found[0])) if len(found) else None


@dataclass(frozen=True, slots=True)
class Saved:
    """What an index file holds: the index, how far each shard was read, what was damaged."""

    index: Index
    scanned: dict[str, int]
    damages: tuple[Damage, ...]
    replaced: frozenset[str] = frozenset()
    """Shards whose records lie in another one now, though they are not deleted yet."""


def dump(saved: Saved) -> bytes:
    """An index as bytes."""
    document = {
        "format": _FORMAT,
        "columns": COLUMNS,
        "texts": saved.index.texts,
        "scanned": saved.scanned,
        "damages": saved.damages,
        "replaced": sorted(saved.replaced),
        "table": saved.index.table.tobytes(),
    }
    data = zstandard.ZstdCompressor(level=1).compress(msgspec.msgpack.encode(document))
    return hashlib.blake2b(data, digest_size=16).digest() + data


def load(data: bytes) -> Saved | None:
    """The index in these bytes, or None when they are damaged or of another format."""
    if hashlib.blake2b(data[16:], digest_size=16).digest() != data[:16]:
        return None
    document = msgspec.msgpack.decode(zstandard.ZstdDecompressor().decompress(data[16:]))
    if document["format"] != _FORMAT or tuple(document["columns"]) != COLUMNS:
        return None
    index = Index(np.frombuffer(document["table"], _DTYPE), tuple(document["texts"]))
    damages = tuple(Damage(**damage) for damage in document["damages"])
    return Saved(index, document["scanned"], damages, frozenset(document["replaced"]))


_PLACE = ("shard", "offset", "length")
_FIELDS = attrgetter(*(name if name in _PLACE else f"row.{name}" for name in COLUMNS))
_TEXT_AT = tuple(COLUMNS.index(name) for name in _TEXT)


def _line(entry: Entry, codes: dict[str, int]) -> tuple[Any, ...]:
    values = list(_FIELDS(entry))
    for at in _TEXT_AT:
        values[at] = codes.setdefault(values[at], len(codes))
    return tuple(values)


def _test(condition: Condition) -> Callable[[Any], bool]:
    if callable(condition):
        return lambda value: bool(condition(value))
    if isinstance(condition, Collection) and not isinstance(condition, (str, bytes)):
        return lambda value: value in condition
    wanted = "" if condition is None else condition
    return lambda value: bool(value == wanted)
