"""Reads what came over the result channel, and says what in it cannot be trusted."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Records:
    """The signed records of one run, in order, and what was wrong with the rest."""

    records: list[dict[str, Any]] = field(default_factory=list)
    forged: int = 0
    """Lines that did not carry the run's signature."""
    lost: int = 0
    """Records that were sent (their numbers show it) and did not arrive."""

    def first(self, kind: str) -> dict[str, Any] | None:
        """The first record of a kind, or None."""
        return next((record for record in self.records if record["kind"] == kind), None)

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Every record of a kind."""
        return [record for record in self.records if record["kind"] == kind]


def read_channel(data: bytes, key: bytes) -> Records:
    """Check and decode what a run wrote to the channel.

    A line is the HMAC-SHA256 of its JSON body (64 hexadecimal digits), a blank, the body. Bodies
    are numbered from 0; a number seen twice is a replay and counts as forged.
    """
    found = Records()
    signer = hmac.new(key, digestmod=hashlib.sha256)
    seen: set[int] = set()
    for line in data.split(b"\n"):
        if not line:
            continue
        mac = signer.copy()
        mac.update(line[65:])
        if not hmac.compare_digest(line[:64], mac.hexdigest().encode()):
            found.forged += 1
            continue
        record = json.loads(line[65:])
        if record["line"] in seen:
            found.forged += 1
            continue
        seen.add(record["line"])
        found.records.append(record)
    found.lost = max(seen, default=-1) + 1 - len(seen)
    return found
