"""`RayExecutor`: a job's episodes in Ray actors, on as many machines as the cluster has.

Ray places the workers, starts them again elsewhere when their machine dies and tells so. An attempt
whose worker died is handed out once more; its lease, and the folder's record of what is finished,
keep it from being done twice.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from agents.policies import Policy, PolicySpec
from agents.rollouts.attempts import MakeEnv, Plan
from agents.rollouts.job import JobFolder
from agents.rollouts.ray_crew import Crew, connect
from agents.rollouts.ray_driver import Driver
from agents.rollouts.ray_worker import Setup
from swe_env.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class RayExecutor:
    """How `run_rollouts` uses a Ray cluster; ``executor="ray"`` is this with its defaults."""

    address: str | None = None
    """The cluster's (``auto``, ``HOST:6379``); None for what ``ray.init()`` finds or starts."""
    episodes: int = 8
    """Most episodes in flight in one worker, which shares a policy among them."""
    gpus: float = 0.0
    """GPUs of one worker."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Other options of Ray's actors (``resources``, ``runtime_env``, ``scheduling_strategy``)."""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ConfigError("A Ray worker needs room for at least one episode.")

    def start(
        self,
        policy: Policy | PolicySpec,
        plan: Plan,
        make_env: MakeEnv,
        *,
        folder: JobFolder,
        workers: int,
        cpu_slots: int | None,
        stale_after: float,
        record: bool,
    ) -> Driver:
        """Connect, and start the first worker.

        Args:
            policy: who acts: a `PolicySpec` is made once in each worker, an object is pickled.
            plan: what the attempts have in common.
            make_env: makes an environment in a worker.
            folder: the job's, on a file system that all nodes share.
            workers: episodes in flight on all machines together.
            cpu_slots: environments of one worker that work at once, each a CPU of Ray's (one).
            stale_after: see `run_rollouts`.
            record: bring the trajectories back, for a replay buffer.

        Raises:
            ConfigError: Ray is not installed or no cluster answers; policy or environment cannot
                be pickled, or not be made in a worker; the folder is not shared.
            InfrastructureError: no worker could be started.
        """
        slots = cpu_slots or 1
        options = {
            "num_cpus": slots,
            "num_gpus": self.gpus,
            "scheduling_strategy": "SPREAD",
            **self.options,
        }
        size = -(-workers // self.episodes)
        with ExitStack() as stack:
            cluster = connect(self.address)
            stack.callback(cluster.close)
            setup = Setup(
                plan=plan,
                policy=policy if isinstance(policy, PolicySpec) else _pickled(policy, "policy"),
                make_env=_pickled(make_env, "make_env"),
                out=str(folder.path),
                identity=folder.identity(),
                cpu_slots=slots,
                stale_after=stale_after,
                record=record,
            )
            crew = Crew(cluster, setup, options, episodes=-(-workers // size))
            stack.callback(crew.dismiss)
            agent = None if isinstance(policy, PolicySpec) else policy.agent
            driver = Driver(crew, size=size, workers=workers, retries=plan.retries, agent=agent)
            stack.pop_all()
        return driver


def _pickled(value: object, what: str) -> bytes:
    cloudpickle: Any = importlib.import_module("ray.cloudpickle")
    try:
        data: bytes = cloudpickle.dumps(value)
    except Exception as error:
        hint = " give PolicySpec(name, options) instead, and each worker makes its own."
        raise ConfigError(
            f"The {what} cannot be sent to Ray's workers ({type(error).__name__}: {error})"
            f"{':' + hint if what == 'policy' else '.'}"
        ) from error
    return data
