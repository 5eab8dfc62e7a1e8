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
                for thread in Path(f"/proc/{pid}/task").iterdir():
                    children = (thread / "children").read_text().split()
                    fresh = {int(child) for child in children} - found
                    found |= fresh
                    waiting += fresh
            except (FileNotFoundError, ProcessLookupError):
                if pid == root:
                    raise
        return found
    except FileNotFoundError:
        # A kernel without the `children` files.
        parents = {pid: parent for pid, (parent, _) in table(visible()).items()}
        return {pid for pid in parents if root in _ancestors(pid, parents)}


def is_helper(pid: int) -> bool:
    """Whether this is a launcher, a keeper, or a door or watcher of one."""
    try:
        return b"swe_env.sandbox.keeper" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def kill_strays(folder: Path) -> None:
    """Kill processes that work in `folder`, or were started with a home in it, unless helpers."""
    for _ in range(20):
        found = [pid for pid in visible() if works_in(folder, pid) and not is_helper(pid)]
        if not found:
            return
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def works_in(folder: Path, pid: int) -> bool:
    """Whether the process's working folder, or the home it was given, lies in `folder`."""
    mark = os.fsencode(folder) + b"/"
    try:
        place = os.fsencode(Path(f"/proc/{pid}/cwd").readlink())
        return (
            place.startswith(mark) or b"HOME=" + mark in Path(f"/proc/{pid}/environ").read_bytes()
        )
    except OSError:
        return False


def visible() -> set[int]:
    """Every process that /proc shows."""
    return {int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()}


def table(pids: Collection[int]) -> dict[int, tuple[int, str]]:
    """Those of the processes that exist, with parent and state letter."""
    rows = {}
    for pid in pids:
        with contextlib.suppress(OSError, IndexError, ValueError):
            stat = Path(f"/proc/{pid}/stat").read_bytes()
            fields = stat[stat.rindex(b")") + 2 :].split(None, 2)
            rows[pid] = (int(fields[1]), fields[0].decode())
    return rows


def _ancestors(pid: int, parents: dict[int, int]) -> set[int]:
    seen: set[int] = set()
    while (pid := parents.get(pid, 0)) and pid not in seen:
        seen.add(pid)
    return seen


def kill_all(spared: Collection[int], *, under: int | None, seconds: float = 10.0) -> None:
    """Kill every process but `spared` and theirs, within `seconds`.

    With `under` only its descendants are meant, else the whole pid namespace. All are stopped
    before any is killed: what is stopped cannot fork a successor. They are looked for until
    nothing changes: one whose parent dies during a look moves to where was looked already.
    """
    keep = set(spared) | {os.getpid(), 1}
    deadline = time.monotonic() + seconds
    stopped: set[int] = set()
    before: set[int] | None = None
    while time.monotonic() < deadline:
        victims, seen = _victims(keep, under)
        if not victims and seen == before:
            return
        before = seen
        fresh = victims - stopped
        for pid in fresh or victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP if fresh else signal.SIGKILL)
        stopped |= fresh
        if victims and not fresh:
            time.sleep(0.0005)


def interrupt_all(spared: Collection[int], *, under: int | None) -> None:
    """Send SIGINT once to every process but `spared` and theirs; `under` as in `kill_all`."""
    for pid in _victims(set(spared) | {os.getpid(), 1}, under)[0]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)


def _victims(keep: set[int], under: int | None) -> tuple[set[int], set[int]]:
    """What is to be killed, and every process that was seen."""
    rows = table(visible() if under is None else descendants(under))
    parents = {pid: parent for pid, (parent, _) in rows.items()}
    shelter = keep - {1, os.getpid()}
    victims = {
        pid
        for pid, (_, state) in rows.items()
        if pid not in keep and state not in "ZX" and not _ancestors(pid, parents) & shelter
    }
    return victims, set(rows)
