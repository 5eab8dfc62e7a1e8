"""`add`: imported trajectories into a buffer, each episode once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace

from swe_env.replay.buffer import ReplayBuffer
from swe_env.replay.frames import Row, pack
from swe_env.replay.trajectory import Trajectory
from swe_env.replay.upkeep import Merged
from swe_env.replay.view import View


def add(into: ReplayBuffer, trajectories: Iterable[Trajectory]) -> Merged:
    """Append imported trajectories; a task's attempts are numbered on from those in the buffer.

    One that is there already, under whatever number, is left out: a folder that has grown can be
    imported again. One that is there with another verdict is appended under its old number.
    """
    done = Merged()
    into.extend_packed(_new(into, trajectories, done))
    return done


def _new(
    into: ReplayBuffer, trajectories: Iterable[Trajectory], done: Merged
) -> Iterator[tuple[Row, bytes]]:
    stored = into.group_by_task()
    tasks: dict[str, _Attempts] = {}
    for trajectory in trajectories:
        name = trajectory.instance_id
        if name not in tasks:
            tasks[name] = _Attempts(stored.get(name))
        attempt = tasks[name].number(trajectory)
        if attempt is None:
            done.duplicates += 1
            continue
        done.copied += 1
        yield pack(replace(trajectory, attempt=attempt))


class _Attempts:
    """The attempts at one task that a buffer holds; each is met once in an import."""

    def __init__(self, stored: View | None) -> None:
        self._stored: defaultdict[tuple[str, bool | None], list[int]] = defaultdict(list)
        self._next = 0
        if stored is not None:
            self._next = int(stored.column("attempt").max()) + 1
            for record in stored:
                self._stored[_episode(record), _verdict(record)].append(record.attempt)

    def number(self, trajectory: Trajectory) -> int | None:
        """The number of an imported attempt; None where the buffer has it."""
        episode, verdict = _episode(trajectory), _verdict(trajectory)
        if same := self._stored[episode, verdict]:
            same.pop(0)
            return None
        for other in (None, False, True):
            if graded_otherwise := self._stored[episode, other]:
                return graded_otherwise.pop(0)
        self._next += 1
        return self._next - 1


def _episode(trajectory: Trajectory) -> str:
    """What it is known by: its content without its number and verdict."""
    bare = replace(trajectory, attempt=0, report=None, reward=0.0, resolved=False)
    return bare.trajectory_id


def _verdict(trajectory: Trajectory) -> bool | None:
    return trajectory.resolved if trajectory.report is not None else None
