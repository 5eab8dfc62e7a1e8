"""`run_rollouts`: many episodes at once, resumable, safe to kill or to run twice at once."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any

import gymnasium as gym
import msgspec

from agents.policies.base import Policy
from agents.rollouts.budget import JobBudget, Meter
from agents.rollouts.episode import Budget, Start, Stopped, run_episode
from agents.rollouts.job import JobFolder
from agents.rollouts.leases import Leases
from agents.rollouts.progress import NoProgress, Progress
from agents.rollouts.report import AttemptResult, RolloutReport
from swe_env.cache import digest
from swe_env.errors import ConfigError
from swe_env.replay.buffer import ReplayBuffer
from swe_env.replay.trajectory import Trajectory
from swe_env.types import Action, Observation, Task

log = logging.getLogger(__name__)

POLL = 0.25
"""Seconds between looks at an attempt that another run holds."""
LASTING_FAILURES = frozenset({"task"})
"""Failure kinds that the same run need not try again; the next run tries every failure again."""


def attempt_seed(seed: int, instance_id: str, attempt: int) -> int:
    """The seed of one attempt: the same whichever worker, machine or order it runs in."""
    key = f"{seed}\0{instance_id}\0{attempt}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "big") >> 1


def run_rollouts(
    policy: Policy,
    tasks: str | Sequence[Task],
    *,
    attempts: int | Mapping[str, int] = 1,
    workers: int = 1,
    out: str | os.PathLike[str],
    buffer: ReplayBuffer | str | os.PathLike[str] | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
    budget: Budget | None = None,
    job_budget: JobBudget | None = None,
    retries: int = 2,
    cpu_slots: int | None = None,
    progress: Progress | None = None,
    make_env: Callable[[], gym.Env[Observation, Action]] | None = None,
    stale_after: float = 60.0,
) -> RolloutReport:
    """Run `policy` on `tasks`, `attempts` times each.

    Every finished attempt lies in ``out/<instance_id>/<attempt>/``; calling again with the same
    arguments skips those, tries infrastructure failures again and does the rest. Several runs over
    one folder share the work. The first Ctrl-C lets running episodes end, the second stops them.

    Args:
        policy: who acts; called from `workers` threads.
        tasks: a task source or the tasks themselves.
        attempts: episodes per task, or of each task by its ``instance_id``; may be raised when a
            job is continued.
        workers: episodes in flight.
        out: the job's folder.
        buffer: a replay buffer (or its path) that gets every trajectory once, too.
        env_kwargs: keyword arguments of ``gym.make("SWE-v0", …)``.
        seed: every attempt's seed is derived from it (`attempt_seed`).
        budget: limits of one episode beside the environment's own.
        job_budget: limits of all episodes together; when one is reached no more begin, and a call
            with a larger one goes on.
        retries: how often an attempt is tried again after an infrastructure failure.
        cpu_slots: episodes whose environment works at the same time (default: CPU count).
        progress: told what happens.
        make_env: makes a worker's environment instead of ``gym.make``.
        stale_after: seconds after which a silent run's attempts are taken over.

    Raises:
        ConfigError: the folder holds a job with another configuration; `attempts` names a task
            that is not there, or leaves one out.
    """
    loaded = _load(tasks)
    counts = _counts(attempts, loaded)
    if min(counts.values()) < 1 or workers < 1:
        raise ConfigError("run_rollouts needs at least one attempt and one worker.")
    budget = budget or Budget()
    folder = JobFolder(out)
    config = _config(policy, tasks, loaded, attempts, seed, env_kwargs, budget)
    folder.configure(config, growing=frozenset({"attempts"}))
    store = buffer if isinstance(buffer, ReplayBuffer) or buffer is None else ReplayBuffer(buffer)
    leases = Leases(folder.path, stale_after=stale_after)
    run = Run(
        policy=policy,
        items=[
            (name, k) for k in range(max(counts.values())) for name in counts if k < counts[name]
        ],
        folder=folder,
        leases=leases,
        buffer=store,
        seed=seed,
        budget=budget,
        meter=Meter(job_budget or JobBudget()),
        retries=retries,
        slots=threading.Semaphore(cpu_slots or os.cpu_count() or 1),
        progress=progress or NoProgress(),
        make_env=make_env or _maker(loaded, env_kwargs),
        provenance={"tasks": tasks if isinstance(tasks, str) else "given"},
    )
    try:
        return run.run(workers)
    finally:
        leases.close()
        if store is not None and store is not buffer:
            store.close()


Item = tuple[str, int]
"""(instance_id, attempt)"""


@dataclass(slots=True, kw_only=True)
class Run:
    """One run over a job's folder."""

    policy: Policy
    items: list[Item]
    folder: JobFolder
    leases: Leases
    buffer: ReplayBuffer | None
    seed: int
    budget: Budget
    meter: Meter
    retries: int
    slots: threading.Semaphore
    progress: Progress
    make_env: Callable[[], gym.Env[Observation, Action]]
    provenance: dict[str, Any]
    start: Callable[[], Start] | None = None
    """Where its episodes go on, if not from the beginning (`run_episode`)."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _drain: threading.Event = field(default_factory=threading.Event)
    _kill: threading.Event = field(default_factory=threading.Event)
    _error: BaseException | None = None
    _results: dict[Item, AttemptResult] = field(default_factory=dict)
    _todo: deque[tuple[float, Item]] = field(default_factory=deque)

    def run(self, workers: int) -> RolloutReport:
        """Do what is not done yet, from this many threads."""
        started = time.monotonic()
        self._find_finished()
        self.progress.start(total=len(self.items))
        for item in self.items:
            if item in self._results:
                self.progress.update(self._results[item], skipped=True)
        skipped = len(self._results)
        threads = [
            threading.Thread(target=self._work, name=f"rollout-{k}", daemon=True)
            for k in range(min(workers, len(self._todo)))
        ]
        try:
            with self._signals():
                for thread in threads:
                    thread.start()
                while any(thread.is_alive() for thread in threads):
                    for thread in threads:
                        thread.join(0.1)
        finally:
            self._kill.set()
            self.progress.close()
        if self._error is not None:
            raise self._error
        return RolloutReport(
            out=str(self.folder.path),
            results=tuple(self._results[item] for item in sorted(self._results)),
            skipped=skipped,
            interrupted=len(self._results) < len(self.items),
            spent=self.meter.spent if len(self._results) < len(self.items) else "",
            seconds=time.monotonic() - started,
        )

    def _find_finished(self) -> None:
        stored = set() if self.buffer is None else set(self.buffer.column("id").tolist())
        for item in self.items:
            result = self.folder.result(*item)
            if result is None or result.failure:
                continue
            if self.buffer is None or result.trajectory_id in stored:
                self._results[item] = result
                self.meter.found(result)
                self._sweep(item)
        self._todo.extend((0.0, item) for item in self.items if item not in self._results)

    def _sweep(self, item: Item) -> None:
        """Remove the lease of a run that was killed between its last write and its release."""
        lease = self.folder.attempt(*item) / "lease"
        if lease.exists() and self.leases.claim(lease):
            self.leases.release(lease)

    def _work(self) -> None:
        """A worker's life: take the next attempt until there is none."""
        env: gym.Env[Observation, Action] | None = None
        try:
            while not self._drain.is_set() and not self.meter.spent:
                with self._lock:
                    if not self._todo:
                        return
                    due, item = self._todo.popleft()
                self._kill.wait(max(0.0, due - time.monotonic()))
                env = env or self.make_env()
                result = self._attempt(env, item)
                with self._lock:
                    if result is None:
                        self._todo.append((time.monotonic() + POLL, item))
                        continue
                    self._results[item] = result
                    self.progress.update(result, skipped=False)
        except Stopped:
            pass
        except BaseException as error:  # must reach the caller's thread
            self._error = self._error or error
            self._drain.set()
        finally:
            if env is not None:
                env.close()

    def _attempt(self, env: gym.Env[Observation, Action], item: Item) -> AttemptResult | None:
        """The attempt's result, or None while another run works on it."""
        lease = self.folder.attempt(*item) / "lease"
        if not self.leases.claim(lease):
            return None
        try:
            result = self.folder.result(*item)
            if result is not None and not result.failure:
                self._store(self.folder.trajectory(*item), result.trajectory_id)
                self.meter.found(result)
                return result
            lines: list[str] = []
            trajectory = self._episodes(env, item, lines)
            with self.leases.committing(lease) as ours:
                if not ours:
                    log.warning("Another run took %s over; this run's result is dropped.", lease)
                    return None
                result = self.folder.save(trajectory, "".join(f"{line}\n" for line in lines))
                self._store(trajectory, result.trajectory_id)
            return result
        finally:
            self.leases.release(lease)

    def _episodes(
        self, env: gym.Env[Observation, Action], item: Item, lines: list[str]
    ) -> Trajectory:
        """The attempt's trajectory, tried again after infrastructure failures."""
        seed = attempt_seed(self.seed, *item)
        for trial in range(self.retries + 1):
            lines.append(f"{item[0]} attempt {item[1]} seed {seed} trial {trial}")
            trajectory = run_episode(
                env,
                self.policy,
                instance_id=item[0],
                attempt=item[1],
                seed=seed,
                budget=self.budget,
                gate=self.slots,
                log=lines.append,
                stop=self._kill.is_set,
                provenance=self.provenance,
                start=self.start,
                meter=self.meter,
            )
            failure = trajectory.failure
            if failure is None or failure.kind in LASTING_FAILURES or trial == self.retries:
                return trajectory
            log.warning("%s: %s; trying again.", item[0], failure.message)
            if self._kill.wait(0.5 * 2**trial):
                raise Stopped
        raise AssertionError("unreachable")

    def _store(self, trajectory: Trajectory, identity: str) -> None:
        """Put a record into the buffer, unless a run that was killed already had."""
        if self.buffer is None:
            return
        self.buffer.refresh()
        if not self.buffer.has(identity):
            self.buffer.append(trajectory)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """First Ctrl-C: no new episodes; second: stop the running ones at their next step."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def interrupt(_number: int, _frame: FrameType | None) -> None:
            if self._drain.is_set():
                self._kill.set()
                raise KeyboardInterrupt
            self._drain.set()
            self.progress.draining()

        before = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def _load(tasks: str | Sequence[Task]) -> list[Task]:
    if not isinstance(tasks, str):
        loaded = list(tasks)
    else:
        from swe_env import tasks as sources

        loaded = sources.load(tasks)
    if not loaded:
        raise ConfigError(f"There is no task to run in {tasks!r}.")
    return loaded


def _counts(attempts: int | Mapping[str, int], tasks: list[Task]) -> dict[str, int]:
    """instance_id → attempts, in the order of the tasks."""
    names = [task.instance_id for task in tasks]
    if isinstance(attempts, int):
        return dict.fromkeys(names, attempts)
    if wrong := sorted(set(names) ^ set(attempts)):
        raise ConfigError(
            f"attempts must give a number for each task and no other; {wrong[0]!r} is "
            f"{'missing' if wrong[0] in names else 'not among the tasks'}."
        )
    return {name: attempts[name] for name in names}


def _maker(
    tasks: list[Task], env_kwargs: Mapping[str, Any] | None
) -> Callable[[], gym.Env[Observation, Action]]:
    import swe_env  # noqa: F401 - registers SWE-v0

    kwargs = dict(env_kwargs or {})
    return lambda: gym.make("SWE-v0", tasks=tasks, disable_env_checker=True, **kwargs)


def _config(
    policy: Policy,
    spec: str | Sequence[Task],
    tasks: list[Task],
    attempts: int | Mapping[str, int],
    seed: int,
    env_kwargs: Mapping[str, Any] | None,
    budget: Budget,
) -> dict[str, Any]:
    """What identifies a job, as plain data."""
    config: dict[str, Any] = {
        "attempts": attempts if isinstance(attempts, int) else dict(attempts),
        "seed": seed,
        "policy": asdict(policy.agent),
        "tasks": {
            "source": spec if isinstance(spec, str) else "given",
            "count": len(tasks),
            "digest": digest(tasks),
        },
        "env": dict(env_kwargs or {}),
        "budget": limits(budget),
    }
    plain: dict[str, Any] = msgspec.to_builtins(config)
    return plain


def limits(budget: Budget) -> dict[str, Any]:
    """An episode's budget as a job's configuration has it."""
    found = asdict(budget)
    if not found["cost"]:
        del found["cost"]  # as in jobs that were begun before there was one
    return found
