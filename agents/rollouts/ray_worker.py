"""`Worker`: the Ray actor that does attempts on a machine of a cluster, several at once."""

from __future__ import annotations

import pickle
import socket
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym

from agents.policies import PolicySpec
from agents.rollouts.attempts import Attempts, Item, MakeEnv, Plan
from agents.rollouts.budget import JobBudget, Meter, Usage
from agents.rollouts.job import IDENTITY, JobFolder
from agents.rollouts.leases import Leases
from agents.rollouts.report import AttemptResult
from swe_env.errors import ConfigError
from swe_env.replay.frames import Row, pack
from swe_env.replay.trajectory import Agent, Trajectory
from swe_env.types import Action, Failure, Observation


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a worker needs to know; the same for all workers of a job."""

    plan: Plan
    policy: PolicySpec | bytes
    """How the policy is made here, or a pickled one."""
    make_env: bytes
    """Pickled."""
    out: str
    """The job's folder."""
    identity: str
    """What `JobFolder.identity` says of it."""
    cpu_slots: int
    """Environments of this worker that work at the same time."""
    stale_after: float
    record: bool
    """Send the trajectories back, for the replay buffer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came of an attempt."""

    result: AttemptResult | None
    """None while another run works on it."""
    record: tuple[Row, bytes] | None
    """The trajectory as a replay buffer has it."""
    used: Usage


class NotStarted(Exception):
    """Ray has made a worker anew, elsewhere, and it does not know its job yet."""


class Worker:
    """Called from as many threads as it has episodes in flight.

    Ray makes it again when it or its node died; `start` tells it what it needs to know.
    """

    def __init__(self) -> None:
        self._source = uuid.uuid4().hex
        self._meter = Meter(JobBudget())
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._attempts: Attempts | None = None
        self._idle: list[gym.Env[Observation, Action]] = []

    def start(self, setup: Setup) -> Agent:
        """Make the policy, if it is not made yet; who acts.

        Raises:
            ConfigError: the policy cannot be had here, or the job's folder is not on this machine.
        """
        with self._lock:
            if self._attempts is None:
                self._attempts = self._make(setup)
            return self._attempts.policy.agent

    def attempt(self, item: Item, lost: str = "") -> Reply:
        """Do one attempt, or (`lost`: why) record that the machinery failed it.

        Raises:
            NotStarted: `start` has not been called.
            Stopped: `stop` was called.
        """
        records: list[tuple[Row, bytes]] = []
        attempts = self._attempts
        if attempts is None:
            raise NotStarted

        def keep(trajectory: Trajectory) -> None:
            if self._record:
                records.append(pack(trajectory))

        if lost:
            failure = Failure(kind="worker", message=lost)
            result = attempts.give_up(item, failure, keep)
        else:
            env = self._take()
            try:
                result = attempts.run(env, item, keep)
            except BaseException:
                env.close()
                raise
            self._idle.append(env)
        return Reply(result=result, record=records[0] if records else None, used=self.usage())

    def usage(self) -> Usage:
        """What this worker's episodes took so far, unfinished ones included."""
        return self._meter.usage(self._source)

    def stop(self) -> None:
        """Running episodes end at their next step, without a result."""
        self._stop.set()

    def close(self) -> None:
        """Free what idle environments hold, and give leases back."""
        with self._lock:
            if self._attempts is not None:
                self._attempts.leases.close()
            while self._idle:
                self._idle.pop().close()

    def _make(self, setup: Setup) -> Attempts:
        _check_folder(setup)
        spec = setup.policy
        policy = spec.make() if isinstance(spec, PolicySpec) else _load(spec, "policy")
        self._make_env: MakeEnv = _load(setup.make_env, "make_env")
        self._record = setup.record
        folder = JobFolder(setup.out)
        return Attempts(
            plan=setup.plan,
            policy=policy,
            folder=folder,
            leases=Leases(folder.path, stale_after=setup.stale_after),
            meter=self._meter,
            slots=threading.Semaphore(setup.cpu_slots),
            stop=self._stop,
        )

    def _take(self) -> gym.Env[Observation, Action]:
        try:
            return self._idle.pop()
        except IndexError:
            return self._make_env()


def _check_folder(setup: Setup) -> None:
    file = Path(setup.out) / IDENTITY
    if not file.exists() or file.read_text() != setup.identity:
        raise ConfigError(
            f"{setup.out} on {socket.gethostname()} is not the job's folder: with Ray it must lie "
            "on a file system that all nodes share, under the same path."
        )


def _load(data: bytes, what: str) -> Any:
    try:
        return pickle.loads(data)
    except Exception as error:
        raise ConfigError(
            f"The {what} cannot be unpickled on {socket.gethostname()} "
            f"({type(error).__name__}: {error}): its code must be importable on every node."
        ) from error
