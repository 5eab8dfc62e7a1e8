"""How a record lies in a shard: a header that zstd tools skip, then the record's own zstd frame.

A shard is a concatenation of such records, so ``zstd -dc shard.jsonl.zst`` prints it as JSONL. The
header is a *skippable frame* (RFC 8878, 3.1.2) holding the body's length and BLAKE2 digest and the
record's index row: an index is rebuilt without decompressing anything, a damaged record is known
by its digest, and the next one is found by its header.

header: magic 4 | payload size 4 | tag 4 | body length 4 | body digest 16 | row | check 8 (bytes)

A shard made from others (by `repair` or `compact`) starts with one more skippable frame that names
them: from the moment it is there its sources no longer count, whether or not they are deleted yet.

preface: magic 4 | payload size 4 | tag 4 | names of the replaced shards as JSON | check 8 (bytes)
"""

from __future__ import annotations

import hashlib
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import zstandard

from swe_env.errors import ReplayError
from swe_env.replay.trajectory import SCHEMA_VERSION, Trajectory

_MAGIC = (0x184D2A5E).to_bytes(4, "little")
_TAG = b"swe1"
_PREFACE_TAG = b"sweR"
_PREFIX = struct.Struct("<4sI4sI16s")
_CHECK = 8
_CHUNK = 1 << 20
_LEVEL = 1
"""Of zstd: level 3 takes 60% longer for files 4% smaller."""
_HEAD = 1024
"""Bytes read to find a header; a longer one takes a second read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What an index knows of a record: every field is a column of `ReplayBuffer.filter`."""

    id: str
    """`Trajectory.trajectory_id`."""
    instance_id: str
    attempt: int = 0
    reward: float = 0.0
    resolved: bool = False
    finished: bool = False
    graded: bool = False
    """The record has a test report: without one it says nothing about the agent's success."""
    failure: str = ""
    """Kind of the infrastructure failure, or empty."""
    truncation: str = ""
    agent: str = ""
    model: str = ""
    adapter: str = ""
    n_agent_steps: int = 0
    n_tokens: int = 0
    """Tokens the policy sampled in this episode (a branch's own), 0 when it does not know them."""
    schema_version: int = SCHEMA_VERSION
    parent: str = ""
    """Id of the record that it was branched from (`Trajectory.branch`), or empty."""


@dataclass(frozen=True, slots=True)
class Located:
    """A record's row and where it lies; `length` covers header and body."""

    row: Row
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Damage:
    """A stretch of a shard that is no record; `verify` lists them."""

    shard: str
    offset: int
    reason: str
    length: int = 0
    """Bytes, as far as they are known to be no record."""

    def __str__(self) -> str:
        return f"{self.shard} at byte {self.offset}: {self.reason}"


Read = Callable[[int, int], bytes]
"""``read(offset, length)`` of one shard; fewer bytes at its end."""

_PREFACE = struct.Struct("<4sI4s")
_local = threading.local()


def _compressor() -> zstandard.ZstdCompressor:
    if not hasattr(_local, "compressor"):
        _local.compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
        _local.decompressor = zstandard.ZstdDecompressor()
    found: zstandard.ZstdCompressor = _local.compressor
    return found


def row_of(trajectory: Trajectory) -> Row:
    """The index row of a trajectory."""
    steps = trajectory.agent_steps
    return Row(
        id=trajectory.trajectory_id,
        instance_id=trajectory.instance_id,
        attempt=trajectory.attempt,
        reward=trajectory.reward,
        resolved=trajectory.resolved,
        finished=trajectory.finished,
        graded=trajectory.report is not None,
        failure=trajectory.failure.kind if trajectory.failure else "",
        truncation=trajectory.truncation,
        agent=trajectory.agent.name,
        model=trajectory.agent.model_name,
        adapter=trajectory.agent.adapter,
        n_agent_steps=len(steps),
        n_tokens=sum(
            len(step.metrics.completion_token_ids) for step in trajectory.own_steps if step.metrics
        ),
        schema_version=trajectory.schema_version,
        parent=trajectory.branch.parent if trajectory.branch else "",
    )


def pack(trajectory: Trajectory) -> tuple[Row, bytes]:
    """A record's row and its bytes, header included.

    Raises:
        ReplayError: the trajectory would not read back (a NaN, a value of the wrong type).
    """
    try:
        text = msgspec.json.encode(trajectory)
        # The id is that of the record as it reads back: an integer reward must not change it.
        row = row_of(_TRAJECTORY.decode(text))
    except (msgspec.MsgspecError, TypeError) as error:
        raise ReplayError(
            f"The trajectory of {trajectory.instance_id!r} cannot be stored: {error}."
        ) from error
    body = _compressor().compress(text + b"\n")
    columns = msgspec.json.encode(row)
    payload = _PREFIX.size - 8 + len(columns) + _CHECK
    head = _PREFIX.pack(_MAGIC, payload, _TAG, len(body), _digest(body, 16)) + columns
    return row, head + _digest(head, _CHECK) + body


def check(data: bytes) -> Row:
    """The row of a record whose bytes are what was written, whatever its schema.

    Raises:
        ReplayError: the bytes are damaged.
    """
    return _checked(data)[0]


def unpack(data: bytes) -> Trajectory:
    """The trajectory in a record's bytes.

    Raises:
        ReplayError: the bytes are damaged, or of a schema this version does not read.
    """
    return decode(*unpack_text(data))


def unpack_text(data: bytes) -> tuple[Row, bytes]:
    """The row and the JSON text in a record's bytes: the part of `unpack` that threads can share.

    Raises:
        ReplayError: the bytes are damaged.
    """
    row, body = _checked(data)
    _compressor()
    try:
        return row, _local.decompressor.decompress(body)
    except zstandard.ZstdError as error:
        raise ReplayError(f"the record does not decompress: {error}") from error


def decode(row: Row, text: bytes) -> Trajectory:
    """The trajectory in a record's JSON text.

    Raises:
        ReplayError: it is of a schema this version does not read.
    """
    try:
        if row.schema_version == SCHEMA_VERSION:
            return _TRAJECTORY.decode(text)
        return Trajectory.from_dict(msgspec.json.decode(text))
    except msgspec.MsgspecError as error:
        raise ReplayError(f"the record does not decode: {error}") from error


def preface(shards: Sequence[str]) -> bytes:
    """The first frame of a shard that takes the place of others.

    Raises:
        ReplayError: it would be larger than what is read back.
    """
    names = msgspec.json.encode(shards)
    payload = 4 + len(names) + _CHECK
    if payload > _CHUNK:
        raise ReplayError(
            f"One shard cannot take the place of {len(shards)}: their names take {payload} bytes, "
            f"over the {_CHUNK} that a reader looks at. Join fewer at once."
        )
    head = _PREFACE.pack(_MAGIC, payload, _PREFACE_TAG) + names
    return head + _digest(head, _CHECK)


def replaced(read: Read) -> tuple[str, ...]:
    """The shards whose place this one takes."""
    found = _preface_at(read, 0)
    return found[0] if found else ()


def scan(shard: str, read: Read, start: int, size: int) -> Iterator[Located | Damage]:
    """Records of a shard from `start` on, by their headers; bodies are not read.

    What is not a record is passed over to the next header and reported. An unfinished record at
    the end comes last, as `Damage` with the reason `UNFINISHED`: it is being written, or its writer
    was killed.
    """
    offset = start
    if offset == 0 and (opening := _preface_at(read, 0)) is not None:
        offset = opening[1]
    while offset < size:
        header = _header_at(read, offset)
        if header is not None:
            row, head, length, _ = header
            if offset + head + length <= size:
                yield Located(row, offset, head + length)
                offset += head + length
                continue
            yield Damage(shard, offset, UNFINISHED, size - offset)
            return
        following = _next_header(read, offset + 1, size)
        if following is None:
            reason = UNFINISHED if _is_torn(read, offset, size) else NO_HEADER
            yield Damage(shard, offset, reason, size - offset)
            return
        gap = following - offset
        yield Damage(shard, offset, f"{gap} bytes that are not a record", gap)
        offset = following


def damaged(shard: str, read: Read, size: int) -> Iterator[Damage]:
    """What of a shard cannot be read, headers and bodies; a record of another schema can."""
    for found in scan(shard, read, 0, size):
        if isinstance(found, Damage):
            yield found
            continue
        data = read(found.offset, found.length)
        try:
            if check(data).schema_version == SCHEMA_VERSION:
                unpack(data)
        except ReplayError as error:
            yield Damage(shard, found.offset, str(error), found.length)


UNFINISHED = "an unfinished record (being written, or its writer was killed)"
NO_HEADER = "bytes that are not a record, to the end of the shard"

_ROW = msgspec.json.Decoder(Row)
_TRAJECTORY = msgspec.json.Decoder(Trajectory)


def _digest(data: bytes, size: int) -> bytes:
    return hashlib.blake2b(data, digest_size=size).digest()


def _checked(data: bytes) -> tuple[Row, bytes]:
    """A record's row and its body, which matches its digest."""
    header = _header(data)
    if header is None:
        raise ReplayError("the record's header is damaged")
    row, size, length, digest = header
    body = data[size : size + length]
    if len(body) != length or _digest(body, 16) != digest:
        raise ReplayError("the record's bytes do not match their checksum")
    return row, body


def _preface_at(read: Read, offset: int) -> tuple[tuple[str, ...], int] | None:
    """(the shards named, where the preface ends), or None when there is none."""
    data = read(offset, _HEAD)
    if len(data) < _PREFACE.size:
        return None
    magic, payload, tag = _PREFACE.unpack_from(data)
    if magic != _MAGIC or tag != _PREFACE_TAG or payload > _CHUNK:
        return None
    if 8 + payload > len(data):
        data = read(offset, 8 + payload)
    head, digest = data[: payload + 8 - _CHECK], data[payload + 8 - _CHECK : payload + 8]
    if _digest(head, _CHECK) != digest:
        return None
    return msgspec.json.decode(head[_PREFACE.size :], type=tuple[str, ...]), offset + 8 + payload


def _header(data: bytes) -> tuple[Row, int, int, bytes] | None:
    """(row, header's size, body's length, body's digest), or None when `data` starts with none."""
    if len(data) < _PREFIX.size:
        return None
    magic, payload, tag, length, digest = _PREFIX.unpack_from(data)
    end = 8 + payload
    if magic != _MAGIC or tag != _TAG or len(data) < end or end < _PREFIX.size + _CHECK:
        return None
    head = data[: end - _CHECK]
    if _digest(head, _CHECK) != data[end - _CHECK : end]:
        return None
    try:
        return _ROW.decode(head[_PREFIX.size :]), end, length, digest
    except msgspec.MsgspecError:
        return None


def _header_at(read: Read, offset: int) -> tuple[Row, int, int, bytes] | None:
    data = read(offset, _HEAD)
    if len(data) >= _PREFIX.size and data.startswith(_MAGIC):
        end = 8 + int.from_bytes(data[4:8], "little")
        if _HEAD < end < _CHUNK:
            data = read(offset, end)
    return _header(data)


def _next_header(read: Read, offset: int, size: int) -> int | None:
    """Offset of the next valid header at or after `offset`."""
    while offset < size:
        chunk = read(offset, _CHUNK)
        found = chunk.find(_MAGIC)
        while found >= 0:
            if _header_at(read, offset + found) is not None:
                return offset + found
            found = chunk.find(_MAGIC, found + 1)
        offset += max(len(chunk) - len(_MAGIC) + 1, 1)
    return None


def _is_torn(read: Read, offset: int, size: int) -> bool:
    """Whether the last bytes look like the start of a header that goes on after the end."""
    data = read(offset, _PREFIX.size)
    if len(data) < _PREFIX.size:
        return _MAGIC.startswith(data[:4])
    return data.startswith(_MAGIC) and 8 + int.from_bytes(data[4:8], "little") > size - offset
