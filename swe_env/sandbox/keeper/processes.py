"""Which processes belong to a sandbox, and killing them without leaving one behind."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection
from pathlib import Path


def descendants(root: int) -> set[int]:
    """Every process below `root`, itself left out."""
    try:
        found: set[int] = set()
        waiting = [root]
        while waiting:
            pid = waiting.pop()
            try:
                threads = os.listdir(f"/proc/{pid}/task") if pid != root else [str(root)]
                for thread in threads:
                    children = Path(f"/proc/{pid}/task/{thread}/children").read_text().split()
                    fresh = {int(child) for child in children} - found
                    found |= fresh
                    waiting += fresh
            except (FileNotFoundError, ProcessLookupError):
                if pid == root:
                    raise
        return found
    except FileNotFoundError:
        # A kernel without the `children` files.
        parents = {pid: parent for pid, (parent, _) in table().items()}
        return {pid for pid in parents if root in _ancestors(pid, parents)}


def table() -> dict[int, tuple[int, str]]:
    """Each visible process with its parent and state letter."""
    rows = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                stat = Path(f"/proc/{name}/stat").read_bytes()
                fields = stat[stat.rindex(b")") + 2 :].split(None, 2)
                rows[int(name)] = (int(fields[1]), fields[0].decode())
    return rows


def _ancestors(pid: int, parents: dict[int, int]) -> set[int]:
    seen: set[int] = set()
    while (pid := parents.get(pid, 0)) and pid not in seen:
        seen.add(pid)
    return seen


def kill_all(spared: Collection[int], *, under: int | None, seconds: float = 10.0) -> bool:
    """Kill every process but `spared` and theirs; True when none is left.

    With `under` only its descendants are meant, else the whole pid namespace. All are stopped
    before any is killed: what is stopped cannot fork a successor.
    """
    keep = set(spared) | {os.getpid(), 1}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        rows = table()
        victims = _victims(rows, keep, under)
        if not victims:
            return True
        running = {pid for pid in victims if rows[pid][1] not in "Tt"}
        for pid in running or victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        rows = table()
        fresh = _victims(rows, keep, under) - victims
        if not fresh:
            for pid in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.0005)
    return False


def _victims(rows: dict[int, tuple[int, str]], keep: set[int], under: int | None) -> set[int]:
    parents = {pid: parent for pid, (parent, _) in rows.items()}
    victims = set()
    for pid, (_, state) in rows.items():
        if pid in keep or state in "ZX":
            continue
        above = _ancestors(pid, parents)
        if under is not None and under not in above:
            continue
        if not (above & keep) - {1, os.getpid()}:
            victims.add(pid)
    return victims
