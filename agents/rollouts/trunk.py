"""`Trunk`: a recorded episode taken again up to a step, and environments forked from there."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym

from agents.policies.base import Policy, Turn
from agents.rollouts import again
from agents.rollouts.episode import Start
from swe_env.env import SWEEnv
from swe_env.errors import ConfigError, ReplayError, SandboxError
from swe_env.replay.trajectory import Step, Trajectory
from swe_env.types import Action, Completion, Observation, Task


def check_step(trajectory: Trajectory, at_step: int) -> None:
    """That an episode can go on after the record's first `at_step` agent steps.

    Raises:
        ConfigError: it cannot; says why.
    """
    name = trajectory.trajectory_id[:12]
    if trajectory.failure is not None:
        raise ConfigError(
            f"The record {name} ended in a failure of the machinery ({trajectory.failure.kind}), "
            "so its steps are no evidence: branch from another."
        )
    calls = sum(bool(step.tool_calls) for step in trajectory.agent_steps)
    # The environment itself ended these with their last step; other limits strike between steps.
    ended = trajectory.finished or trajectory.truncation == "steps"
    last = calls - 1 if ended else calls
    if not 0 <= at_step <= last:
        raise ConfigError(
            f"The record {name} cannot be branched after step {at_step}: its {calls} steps leave a "
            f"running episode after steps 0 to {last}."
        )


class Trunk:
    """The state after a record's first steps; made at the first fork, once, by taking them again.

    Args:
        trajectory: the record.
        at_step: how many of its agent steps are taken.
        task: the task it was recorded on.
        policy: who goes on from there.
        sandbox: where to run; None for the kind that was used then.

    Raises:
        ConfigError: the record cannot be taken again or branched there; says why.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        at_step: int,
        task: Task,
        *,
        policy: Policy,
        sandbox: str | None = None,
    ) -> None:
        import swe_env  # noqa: F401 - registers SWE-v0

        check_step(trajectory, at_step)
        self.settings = again.recorded_settings(trajectory, task)
        self.settings["sandbox"] = sandbox or self.settings["sandbox"]
        self.trajectory, self.at_step = trajectory, at_step
        self.env: gym.Env[Observation, Action] = gym.make(
            "SWE-v0", tasks=[task], disable_env_checker=True, **self.settings
        )
        self._tokens = _same_tokens(trajectory, policy, _base(self.env).toolset.schemas)
        self._lock = threading.Lock()
        self._first: Observation | None = None
        self._turns: tuple[Turn, ...] = ()

    def fork(self) -> tuple[SWEEnv, Observation]:
        """An environment that has the steps behind it, and the episode's first observation.

        Raises:
            ReplayError: taken again, the steps gave other answers than those recorded.
            InfrastructureError: the environment could not be started or forked.
        """
        with self._lock:
            if self._first is None:
                first = again.reset(self.env, self.trajectory)
                self._turns = self._take()
                self._first = first
            return _base(self.env).fork(), self._first

    def start(self) -> Start:
        """What the forked episodes have behind them; after the first `fork`."""
        return Start(parent=self.trajectory, turns=self._turns, tokens=self._tokens)

    def close(self) -> None:
        """Drop the state; what was forked from it lives on."""
        self.env.close()

    def _take(self) -> tuple[Turn, ...]:
        steps = self.trajectory.agent_steps[: self.at_step]
        completions = _completions(self.trajectory) if self._tokens else {}
        turns: list[Turn] = []
        for taken in again.take(self.env, steps):
            if failure := taken.info.get("failure"):
                raise SandboxError(failure["message"])
            number = len(turns) + 1
            if taken.differences or taken.over:
                raise ReplayError(self._otherwise(number, taken))
            action = Action(**taken.action)
            if taken.step.message:
                action["message"] = taken.step.message
            if found := completions.get(taken.step.step_id):
                action["completion"] = found
            turns.append(Turn(action=action, observation=taken.observation))
        if _base(self.env).busy:
            raise ConfigError(
                f"Step {self.at_step} of {self.trajectory.trajectory_id[:12]} leaves a command "
                "running, which a fork does not carry over: branch where none runs."
            )
        return tuple(turns)

    def _otherwise(self, number: int, taken: again.Taken) -> str:
        name = self.trajectory.trajectory_id[:12]
        what = " and ".join(found.what for found in taken.differences) or "end of the episode"
        return (
            f"Taken again, step {number} of {name} came out otherwise ({what}), so the recorded "
            f"state cannot be had: `swe replay --id {name}` shows the differences."
        )


class Forks(gym.Env[Observation, Action]):
    """An environment whose `reset` forks a trunk: every episode starts in the trunk's state."""

    def __init__(self, trunk: Trunk) -> None:
        self._trunk = trunk
        self._fork: SWEEnv | None = None
        self.observation_space = trunk.env.observation_space
        self.action_space = trunk.env.action_space

    @property
    def unwrapped(self) -> SWEEnv:
        """The running fork; before the first reset, the environment it will be forked from."""
        return self._fork or _base(self._trunk.env)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """A new fork; the episode's first observation, as the trunk's own reset gave it."""
        del options  # there is one task and one state
        super().reset(seed=seed)
        self.close()
        self._fork, first = self._trunk.fork()
        assert self._fork.task is not None
        return first, {"instance_id": self._fork.task.instance_id, "repo": self._fork.task.repo}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """The fork's `SWEEnv.step`."""
        return self.unwrapped.step(action)

    def close(self) -> None:
        """Drop the fork; the trunk stays."""
        if self._fork is not None:
            self._fork.close()
            self._fork = None


def _base(env: gym.Env[Observation, Action]) -> SWEEnv:
    base: Any = env.unwrapped
    assert isinstance(base, SWEEnv)
    return base


def _completions(trajectory: Trajectory) -> dict[int, Completion]:
    """step_id → what was sampled there, the whole prompt included."""
    found: dict[int, Completion] = {}
    for step, prompt in trajectory.prompt_ids():
        assert step.metrics is not None
        found[step.step_id] = Completion(
            token_ids=list(step.metrics.completion_token_ids),
            logprobs=list(step.metrics.logprobs),
            prompt_token_ids=list(prompt),
        )
    return found


def _same_tokens(
    trajectory: Trajectory, policy: Policy, tools: Sequence[Mapping[str, Any]]
) -> bool:
    """Whether the record's token ids mean the same to `policy` and follow its own prompt."""
    was, now = trajectory.agent, policy.agent
    names = ("format", "tokenizer")
    if (was.name, was.model_name) != (now.name, now.model_name):
        return False
    if any(was.settings.get(name) != now.settings.get(name) for name in names):
        return False
    prompt = getattr(policy, "system_prompt", None)
    said = prompt(tools) if prompt else ""
    return said == _system(trajectory.steps) and list(trajectory.tools) == list(tools)


def _system(steps: Sequence[Step]) -> str:
    return next((step.message for step in steps if step.source == "system"), "")
