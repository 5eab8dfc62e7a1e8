"""`Threads`: a job's episodes in threads of this process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import gymnasium as gym

from agents.policies import Policy, PolicySpec
from agents.rollouts.attempts import Attempts, MakeEnv, Plan
from agents.rollouts.episode import Start, Stopped
from agents.rollouts.running import Job
from swe_env.replay.trajectory import Trajectory
from swe_env.types import Action, Observation


class Threads:
    """Does a job's open attempts, each thread with an environment of its own.

    Args:
        policy: who acts; a `PolicySpec` is made here, and what was made is closed.
        plan: what the attempts have in common.
        make_env: makes a thread's environment.
        workers: threads.
        cpu_slots: environments that work at the same time; None for the CPU count.
        start: see `Attempts.start`.
    """

    def __init__(
        self,
        policy: Policy | PolicySpec,
        plan: Plan,
        make_env: MakeEnv,
        *,
        workers: int,
        cpu_slots: int | None = None,
        start: Callable[[], Start] | None = None,
    ) -> None:
        self._made = isinstance(policy, PolicySpec)
        self._policy = policy.make() if isinstance(policy, PolicySpec) else policy
        self.agent = self._policy.agent
        self._plan, self._make_env, self._start = plan, make_env, start
        self._workers, self._slots = workers, cpu_slots or os.cpu_count() or 1

    def __call__(self, job: Job) -> None:
        """Return when every attempt is done, or the job ends early."""
        attempts = Attempts(
            plan=self._plan,
            policy=self._policy,
            folder=job.folder,
            leases=job.leases,
            meter=job.meter,
            slots=threading.Semaphore(self._slots),
            stop=job.stopping,
            start=self._start,
        )
        _Crew(attempts, self._make_env, job).run(min(self._workers, len(job.todo)))

    def close(self) -> None:
        """Close the policy, if it was made here; the threads end with the job."""
        close = getattr(self._policy, "close", None)
        if self._made and close is not None:
            close()


class _Crew:
    """The threads of one job."""

    def __init__(self, attempts: Attempts, make_env: MakeEnv, job: Job) -> None:
        self.attempts, self.make_env, self.job = attempts, make_env, job
        self.error: BaseException | None = None

    def run(self, workers: int) -> None:
        """Work until there is nothing left to begin; raise what a thread raised."""
        threads = [
            threading.Thread(target=self._work, name=f"rollout-{k}", daemon=True)
            for k in range(workers)
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(0.1)
        if self.error is not None:
            raise self.error

    def _work(self) -> None:
        """A worker's life: take the next attempt until there is none."""
        job = self.job
        env: gym.Env[Observation, Action] | None = None
        try:
            while (taken := job.take()) is not None:
                due, item = taken
                job.stopping.wait(max(0.0, due - time.monotonic()))
                env = env or self.make_env()
                result = self.attempts.run(env, item, self._keep)
                if result is None:
                    job.later(item)
                else:
                    job.done(item, result)
        except Stopped:
            pass
        except BaseException as error:  # must reach the caller's thread
            self.error = self.error or error
            job.draining.set()
        finally:
            if env is not None:
                env.close()

    def _keep(self, trajectory: Trajectory) -> None:
        self.job.store(trajectory.trajectory_id, lambda buffer: buffer.append(trajectory))
