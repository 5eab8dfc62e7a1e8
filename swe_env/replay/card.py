"""The dataset card of a buffer, generated from what is in it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np

from swe_env.replay.frames import Damage
from swe_env.replay.index import COLUMNS
from swe_env.replay.trajectory import SCHEMA_VERSION, Trajectory
from swe_env.replay.view import Records

_LOOKED_AT = 64
"""Records whose bodies are read for the facts that no column has."""


def card(records: Records, *, title: str, damages: Iterable[Damage] = ()) -> str:
    """A dataset card in Markdown, with the head that dataset hubs read.

    The numbers come from the columns of all records. Tools, versions and settings stand in the
    bodies: they come from a sample of 64, and the card says so.

    Args:
        records: a buffer or view.
        title: its heading.
        damages: what `verify` found.
    """
    stats = records.stats()
    size = _size_category(stats.records)
    parts = [
        f"---\npretty_name: {title!r}\ntask_categories: [text-generation]\n"
        f"tags: [swe-env, trajectories, coding-agents]\nsize_categories: [{size}]\n---",
        f"# {title}",
        f"{stats.records} trajectories of coding agents on {stats.tasks} tasks, "
        f"{_bytes(stats.bytes)} compressed. Contents (SHA-256 over the sorted record ids): "
        f"`{digest(records)}`.",
        _verdicts(records),
        _per_agent(records),
        _spread(records),
        _ends(records),
        _bodies(list(islice(_readable(records), _LOOKED_AT))),
        _reading(records, list(damages)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def digest(records: Records) -> str:
    """Content address of a set of records, whatever their order and shards."""
    ids = np.sort(records.column("id"))
    return hashlib.sha256("\n".join(ids.tolist()).encode()).hexdigest()[:32]


def _verdicts(records: Records) -> str:
    graded = records.filter(graded=True, failure="")
    if not len(graded):
        return "No record has a verdict."
    resolved = graded.column("resolved").astype(float)
    tasks = np.unique(graded.column("instance_id").astype(str), return_inverse=True)[1]
    rates = np.bincount(tasks, weights=resolved) / np.bincount(tasks)
    both = int(((rates > 0) & (rates < 1)).sum())
    return (
        f"## Verdicts\n\n{len(graded)} records have one: {int(resolved.sum())} resolved "
        f"({resolved.mean():.1%}; {rates.mean():.1%} as the mean over tasks). Of {len(rates)} "
        f"tasks, {int((rates == 1).sum())} were resolved always, {int((rates == 0).sum())} never, "
        f"{both} sometimes: those make preference pairs."
    )


def _per_agent(records: Records) -> str:
    names = [records.column(name) for name in ("agent", "model", "adapter")]
    groups: dict[tuple[str, ...], list[int]] = {}
    for at, key in enumerate(zip(*names, strict=True)):
        groups.setdefault(key, []).append(at)
    resolved, graded = records.column("resolved"), records.column("graded")
    tasks = records.column("instance_id")
    rows = [
        [
            *(f"`{name}`" if name else "" for name in key),
            len(at),
            len(set(tasks[at])),
            f"{resolved[at].sum() / graded[at].sum():.1%}" if graded[at].any() else "",
        ]
        for key, at in sorted(groups.items())
    ]
    head = ["agent", "model", "adapter", "records", "tasks", "resolved"]
    return "## Who acted\n\n" + _table(head, rows)


def _spread(records: Records) -> str:
    if not len(records):
        return ""
    counts = np.unique(records.column("instance_id").astype(str), return_counts=True)[1]
    columns = {
        "attempts per task": counts,
        "agent steps": records.column("n_agent_steps"),
        "sampled tokens": records.column("n_tokens"),
    }
    rows = [
        [name, *(int(q) for q in np.quantile(values, [0, 0.5, 0.9, 1], method="nearest"))]
        for name, values in columns.items()
    ]
    known = int((records.column("n_tokens") > 0).sum())
    return (
        "## Sizes\n\n"
        + _table(["", "least", "median", "90%", "most"], rows)
        + f"\n\n{known} records carry the sampled token ids."
    )


def _ends(records: Records) -> str:
    stats = records.stats()
    lines = [f"## Ends\n\n{stats.finished} agents submitted by themselves."]
    if stats.truncations:
        lines.append(f"Cut off by: {_listed(stats.truncations)}.")
    if stats.failures:
        lines.append(
            f"Infrastructure failures, no evidence about the agent: {_listed(stats.failures)}."
        )
    return " ".join(lines)


def _bodies(sample: Sequence[Trajectory]) -> str:
    if not sample:
        return ""
    tools = Counter(
        call.function_name for t in sample for s in t.agent_steps for call in s.tool_calls
    )
    versions = Counter(
        f"{name} {version}"
        for t in sample
        for name, version in _mapping(t.provenance.get("versions")).items()
    )
    settings = Counter(
        f"{name}={value}"
        for t in sample
        for name, value in _mapping(t.provenance.get("env")).items()
    )
    found = {"Calls": tools, "Versions": versions, "Environment": settings}
    lines = [
        f"- {name}: {_listed(dict(counts.most_common(20)))}"
        for name, counts in found.items()
        if counts
    ]
    return f"## Inside\n\nOf {len(sample)} records that were opened:\n\n" + "\n".join(lines)


def _reading(records: Records, damages: Sequence[Damage]) -> str:
    versions = records.stats().schemas
    lines = [
        "## Reading it",
        "```python\nfrom swe_env.replay import ReplayBuffer\n\n"
        'for trajectory in ReplayBuffer("PATH").filter(resolved=True):\n    ...\n```',
        "Without swe-env: `zstd -dc *.jsonl.zst` prints one JSON object a line. Columns that "
        "filter and weight: " + ", ".join(f"`{name}`" for name in COLUMNS) + ".",
        f"Schema versions: {_listed({str(k): n for k, n in versions.items()})}; this card was "
        f"written by a swe-env that reads {SCHEMA_VERSION}.",
    ]
    if damages:
        lines.append("Damaged and left out:\n\n" + "\n".join(f"- {damage}" for damage in damages))
    return "\n\n".join(lines)


def _readable(records: Records) -> Iterable[Trajectory]:
    """Records spread over the whole, as far as they can be read."""
    step = max(1, len(records) // _LOOKED_AT)
    return iter(records[::step])


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def _size_category(records: int) -> str:
    for limit, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K")):
        if records < limit:
            return name
    return "100K<n<1M" if records < 1_000_000 else "n>1M"
