"""Rewriting a buffer's shards: repair, compact, and the merging of buffers.

Records are moved as the bytes they were appended as, never decoded, so records of any schema
version keep. A new shard is written beside the old ones and named once it is whole; it says itself
whose place it takes, so a process killed at any moment leaves the old shards or the new one in
force, never both and never neither. Shards that a writer has open are left alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from swe_env.errors import ReplayError
from swe_env.replay.buffer import ReplayBuffer, new_shard
from swe_env.replay.frames import Damage, Row, check, preface, scan
from swe_env.replay.storage import Claim
from swe_env.replay.view import Records

log = logging.getLogger(__name__)

SHARD_BYTES = 1 << 30
"""`compact` joins shards up to this size."""
_LARGE = 64 << 20
_GROUP = 128
"""Shards joined at once: each is held open, and a process may have 256 files open (macOS) or more.
"""


@dataclass(slots=True)
class Rewritten:
    """What `repair` or `compact` did."""

    kept: int = 0
    """Records moved to a new shard."""
    duplicates: int = 0
    """Records dropped because one of the same id was kept."""
    damages: list[Damage] = field(default_factory=list)
    """What was no record: set aside in files of their own (see `repair`)."""
    replaced: list[str] = field(default_factory=list)
    """Shards that are gone."""
    made: list[str] = field(default_factory=list)
    """Shards that took their place."""
    in_use: list[str] = field(default_factory=list)
    """Shards left alone: a writer has them open."""


@dataclass(slots=True)
class Merged:
    """What `merge` or `add` did."""

    copied: int = 0
    duplicates: int = 0
    """Records left out because the target has one of the same id."""
    damages: list[str] = field(default_factory=list)
    """Records that could not be copied, each by shard and offset."""


def repair(buffer: ReplayBuffer) -> Rewritten:
    """Rewrite the shards that hold damage without it, and rebuild the index.

    What is damaged is not thrown away: it goes to ``damaged-<shard>-<offset>.bin`` in the buffer.
    A tail that is being written is no damage, its shard is in use.

    Raises:
        ReplayError: a shard could not be rewritten; the old ones are then still in force.
    """
    done = Rewritten()
    buffer.finish_replacing()
    hurt = sorted({damage.shard for damage in buffer.verify()})
    for shard in hurt:
        _rewrite(buffer, [shard], done, seen=None)
    buffer.forget()
    return done


def compact(
    buffer: ReplayBuffer, *, deduplicate: bool = False, shard_bytes: int = SHARD_BYTES
) -> Rewritten:
    """Join small shards into large ones, in order.

    Many writers leave many small shards, each of which costs a file and, on an object store, a
    request. Up to 128 make one. Shards known to hold damage are left to `repair`; damage that is
    only met while a shard is copied is set aside as `repair` does it.

    Args:
        buffer: the buffer; other processes may read it and append to it meanwhile.
        deduplicate: keep only the first of the records of one id.
        shard_bytes: join up to this size.

    Raises:
        ReplayError: a shard could not be rewritten; the old ones are then still in force.
    """
    done = Rewritten()
    buffer.finish_replacing()
    buffer.storage.sweep()
    buffer.refresh()
    # A doubled record must not be dropped for a damaged one: before that every body is read.
    hurt = {d.shard for d in (buffer.verify() if deduplicate else buffer.damages)}
    doubled = _doubled(buffer) if deduplicate else set()
    seen: set[str] | None = set() if deduplicate else None
    sizes = {s: n for s, n in buffer.shards().items() if s not in hurt}
    for whole in _groups(sizes, shard_bytes):
        group = _worthwhile(whole, sizes, doubled)
        if len(group) == 1 and group[0] not in doubled and sizes[group[0]]:
            group = []
        if seen is not None and (left := set(whole).difference(group)):
            # None of them is doubled, so no earlier place holds what they hold.
            seen.update(buffer.filter(shard=left).column("id").tolist())
        if group:
            _rewrite(buffer, group, done, seen=seen)
    buffer.refresh()
    return done


def merge(into: ReplayBuffer, sources: Iterable[Records], *, deduplicate: bool = True) -> Merged:
    """Append the records of other buffers or views, byte for byte.

    Args:
        into: the buffer that grows.
        sources: buffers or views; they stay as they are.
        deduplicate: leave out a record whose id is there already.
    """
    done = Merged()
    seen = set(into.column("id").tolist()) if deduplicate else None
    for source in sources:
        into.extend_packed(_copies(source, seen, done))
    return done


def _copies(source: Records, seen: set[str] | None, done: Merged) -> Iterator[tuple[Row, bytes]]:
    for entry in source.entries():
        if seen is not None and entry.row.id in seen:
            done.duplicates += 1
            continue
        try:
            data = source.raw(entry)
        except ReplayError as error:
            log.warning("Skipped: %s", error)
            done.damages.append(str(error))
            continue
        if seen is not None:
            seen.add(entry.row.id)
        done.copied += 1
        yield entry.row, data


def _doubled(buffer: ReplayBuffer) -> set[str]:
    """Shards that hold a record which an earlier place holds too."""
    first = {(e.shard, e.offset) for e in buffer.unique().entries()}
    return {e.shard for e in buffer.entries() if (e.shard, e.offset) not in first}


def _groups(sizes: dict[str, int], limit: int) -> Iterator[list[str]]:
    """Neighbouring shards, at most `_GROUP`, whose sizes sum to at most `limit`."""
    group: list[str] = []
    total = 0
    for shard, size in sizes.items():
        if group and (total + size > limit or len(group) == _GROUP):
            yield group
            group, total = [], 0
        group.append(shard)
        total += size
    if group:
        yield group


def _worthwhile(group: list[str], sizes: dict[str, int], doubled: set[str]) -> list[str]:
    """The group without a large shard that would be copied for the sake of a few small ones.

    Compacting again and again then copies each record only a few times.
    """
    large = max(group, key=sizes.__getitem__)
    rest = [shard for shard in group if shard != large]
    if sizes[large] <= max(_LARGE, sum(sizes[shard] for shard in rest)) or large in doubled:
        return group
    return rest or group


def _rewrite(
    buffer: ReplayBuffer, shards: Sequence[str], done: Rewritten, *, seen: set[str] | None
) -> None:
    """Put one new shard in the place of those of `shards` that nobody is writing to."""
    claims: dict[str, Claim] = {}
    try:
        for shard in shards:
            claim = buffer.storage.claim(shard)
            if claim is None:
                done.in_use.append(shard)
            else:
                claims[shard] = claim
        if claims:
            _replace(buffer, list(claims), done, seen)
    except OSError as error:
        raise ReplayError(
            f"Shards of {buffer.path} could not be rewritten: {error}; the old ones are kept."
        ) from error
    finally:
        for claim in claims.values():
            claim.close()


def _replace(
    buffer: ReplayBuffer, shards: Sequence[str], done: Rewritten, seen: set[str] | None
) -> None:
    storage = buffer.storage
    current = buffer.shards()  # after the claim: a writer may have grown one until then
    path, kept = storage.scratch(), 0
    try:
        with open(path, "wb") as file:  # noqa: PTH123
            file.write(preface(shards))
            for shard in shards:
                for row, data in _records(buffer, shard, current.get(shard, 0), done):
                    if seen is not None:
                        if row.id in seen:
                            done.duplicates += 1
                            continue
                        seen.add(row.id)
                    file.write(data)
                    kept += 1
        if kept:
            name = new_shard()
            storage.publish(name, path)
            done.made.append(name)
    finally:
        if os.path.exists(path):  # noqa: PTH110
            os.unlink(path)  # noqa: PTH108
    for shard in shards:
        storage.remove(shard)
    done.kept += kept
    done.replaced += shards


def _records(
    buffer: ReplayBuffer, shard: str, size: int, done: Rewritten
) -> Iterator[tuple[Row, bytes]]:
    """The good records of a shard; what is between them is set aside."""
    for found in scan(shard, buffer.reader(shard), 0, size):
        if isinstance(found, Damage):
            damage, data = found, buffer.storage.read(shard, found.offset, found.length)
        else:
            data = buffer.storage.read(shard, found.offset, found.length)
            try:
                yield check(data), data
                continue
            except ReplayError as error:
                damage = Damage(shard, found.offset, str(error), found.length)
        buffer.storage.replace(f"damaged-{shard.partition('.')[0]}-{damage.offset}.bin", data)
        log.warning("Set aside from %s: %s.", buffer.path, damage)
        done.damages.append(damage)
