"""Limits on a sandbox's memory and processes by cgroup, version 1 or 2, where this user may."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from swe_env.sandbox.keeper.processes import is_helper

_ROOT = Path("/sys/fs/cgroup")
PREFIX = "swe-env-"


class Group:
    """The cgroups of one sandbox, which its keeper has moved itself into before it starts it."""

    def __init__(self, memory: int, processes: int) -> None:
        self.events: dict[str, str] = {}
        """Limit name → the file that counts how often it struck."""
        self._name = f"{PREFIX}{os.getpid()}"
        # Descriptors, because the keeper's mount namespace will soon hide the paths.
        self._made: dict[int, bool] = {}
        """Descriptor of a group's parent → whether the group limits processes."""
        self._inside: set[int] = set()
        """Those of whose groups this process is a member."""
        for parents in _parents():
            if self._join(parents, memory, processes) and len(self.events) == 2:
                break

    def _join(self, parent: Path, memory: int, processes: int) -> bool:
        folder = parent / self._name
        for _ in range(5):
            try:
                folder.mkdir(exist_ok=True)
                found = self._set(folder, memory, processes)
                if found:
                    (folder / "cgroup.procs").write_text(str(os.getpid()))
                    above = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
                    self._made[above] = "processes" in found
                    self._inside.add(above)
                    self.events |= found
                    return True
                break
            except FileNotFoundError:
                continue  # swept by another keeper before we were in it
            except OSError:
                break
        with contextlib.suppress(OSError):
            folder.rmdir()
        return False

    def _set(self, folder: Path, memory: int, processes: int) -> dict[str, str]:
        found = {}
        for name, value in (("memory.max", memory), ("memory.limit_in_bytes", memory)):
            if (folder / name).exists():
                (folder / name).write_text(str(value))
                events = "memory.events" if name == "memory.max" else "memory.oom_control"
                found["memory"] = str(folder / events)
        if (folder / "pids.max").exists():
            (folder / "pids.max").write_text(str(processes))
            found["processes"] = str(folder / "pids.events")
        return found

    def step_out(self) -> None:
        """Move out of what limits processes; those that were started before stay inside.

        A sandbox whose own processes take all the room must still be looked after.
        """
        for parent, limits_processes in self._made.items():
            if limits_processes:
                self._move_out(parent)

    def _move_out(self, parent: int) -> None:
        with contextlib.suppress(OSError):
            procs = os.open("cgroup.procs", os.O_WRONLY, dir_fd=parent)
            os.write(procs, str(os.getpid()).encode())
            os.close(procs)
        self._inside.discard(parent)

    def leave(self) -> None:
        """Move back out and remove the groups, now empty."""
        for parent in self._made:
            if parent in self._inside:
                self._move_out(parent)
            # The last of the killed processes may take a moment to leave.
            for _ in range(1000):
                try:
                    os.rmdir(self._name, dir_fd=parent)
                except FileNotFoundError:
                    break
                except OSError:
                    time.sleep(0.001)
                else:
                    break
            os.close(parent)


def _parents() -> list[Path]:
    """Where groups may be made: beside this process, or (version 2) one level up."""
    found: list[Path] = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        names = controllers.split(",")
        if "memory" in names or "pids" in names:
            found.append(_ROOT / controllers / path.lstrip("/"))
        elif not controllers and not (_ROOT / "memory").exists():
            own = _ROOT / path.lstrip("/")
            found += [own, own.parent] if own != _ROOT else [own]
    usable = [folder for folder in found if os.access(folder, os.W_OK)]
    for folder in usable:
        _sweep(folder)
    return usable


def _sweep(parent: Path) -> None:
    """Remove groups whose keeper was killed before it could, and end what is stuck in them."""
    for folder in parent.glob(f"{PREFIX}*"):
        if Path("/proc", folder.name.removeprefix(PREFIX)).exists():
            continue
        with contextlib.suppress(OSError):
            members = [int(pid) for pid in (folder / "cgroup.procs").read_text().split()]
            # bubblewrap's child waits for ever if its parent is killed before it was let go. A
            # keeper among them is one of a container's, numbered otherwise there.
            if 0 not in members and not any(is_helper(pid) for pid in members):
                for pid in members:
                    os.kill(pid, signal.SIGKILL)
            for _ in range(50 if members else 1):
                with contextlib.suppress(OSError):
                    folder.rmdir()
                    break
                time.sleep(0.001)
