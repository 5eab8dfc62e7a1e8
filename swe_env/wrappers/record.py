"""`RecordTrajectory`: writes every episode of an environment to a replay buffer."""

from __future__ import annotations

import logging
import os
import platform
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from typing import Any, Protocol, SupportsFloat

import gymnasium as gym
import msgspec
from gymnasium.utils import RecordConstructorArgs

from swe_env.cache import digest
from swe_env.errors import InfrastructureError
from swe_env.prefix import common_prefix
from swe_env.replay.trajectory import (
    Agent,
    Branch,
    Metrics,
    Step,
    StepObservation,
    ToolCall,
    Trajectory,
)
from swe_env.types import Action, Completion, Failure, Observation, TestReport

log = logging.getLogger(__name__)

UNGRADED = "ungraded"
"""Failure kind of an episode that was left before a verdict: no evidence about the agent."""
CRASH = "crash"
"""Failure kind of an episode that ended in an exception that is no `InfrastructureError`."""


UNSEEDED = -1
"""`Trajectory.seed` of an episode that was reset without a seed."""
_SURROGATE = re.compile("[\ud800-\udfff]")


class Sink(Protocol):
    """Where trajectories go: a `ReplayBuffer`, or a plain list."""

    def append(self, trajectory: Trajectory, /) -> object:
        """Take one trajectory."""
        ...


class RecordTrajectory(
    gym.Wrapper[Observation, Action, Observation, Action], RecordConstructorArgs
):
    """Writes one record per episode to `buffer`.

    The record is written when the episode terminates or truncates, when `finish` ends it, and also
    when it is left unfinished (`close`, another `reset`, an exception), then with a failure (kind
    ``ungraded``, ``crash`` or the error's own) so that nobody learns from it. Steps start with the
    system prompt, if any, and the first observation, so that trajectories of one task and prompt
    share their first state.

    Args:
        env: the environment; its `unwrapped` may have ``task``, ``toolset`` and ``settings``.
        buffer: a `ReplayBuffer`, the path of one, or anything with ``append``.
        agent: who acts: an `Agent`, or its fields as a mapping.
        system_prompt: what the policy was told before the issue.
        attempt: number of the first episode of each task; later ones count up.
        provenance: entries added to every record's `Trajectory.provenance`.
    """

    def __init__(
        self,
        env: gym.Env[Observation, Action],
        buffer: Sink | str | os.PathLike[str],
        *,
        agent: Agent | Mapping[str, Any],
        system_prompt: str = "",
        attempt: int = 0,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        gym.Wrapper.__init__(self, env)
        path = os.fspath(buffer) if isinstance(buffer, (str, os.PathLike)) else None
        self._agent = agent if isinstance(agent, Agent) else msgspec.convert(dict(agent), Agent)
        RecordConstructorArgs.__init__(
            self,
            buffer=path or getattr(buffer, "path", repr(buffer)),
            agent=asdict(self._agent),
            system_prompt=system_prompt,
            attempt=attempt,
            provenance=dict(provenance or {}),
        )
        self.buffer = _open(path) if path is not None else buffer
        self._opened = path is not None
        self._system_prompt = system_prompt
        self._first_attempt = attempt
        self.provenance = dict(provenance or {})
        """May be added to until the episode ends."""
        self._seen: dict[str, int] = {}
        self._steps: list[Step] = []
        self._branch: Branch | None = None
        self._running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; one still running is recorded as unfinished."""
        self._abandon("reset")
        self._started, self._clock = datetime.now(UTC), time.monotonic()
        observation, info = self.env.reset(seed=seed, options=options)
        self._instance_id = str(info.get("instance_id", ""))
        self._seed = UNSEEDED if seed is None else int(seed)
        self._steps, self._branch = [], None
        if self._system_prompt:
            self._steps.append(Step(step_id=1, source="system", message=self._system_prompt))
        first = Step(step_id=len(self._steps) + 1, source="user", message=observation["text"])
        self._steps.append(first)
        self._context: tuple[int, ...] = ()
        self._running = True
        return observation, info

    def continue_from(self, parent: Trajectory, at_step: int, *, tokens: bool = True) -> None:
        """Take a record's first agent steps for this episode's: `reset` has led to their end.

        The record of this episode names `parent` and `at_step` (`Trajectory.branch`).

        Args:
            parent: the record.
            at_step: how many of its agent steps the environment has behind it.
            tokens: keep the steps' token ids; False where they are another model's, or follow
                another prompt.

        Raises:
            gymnasium.error.ResetNeeded: no episode is running.
        """
        self._require_running()
        self._branch = Branch(parent=parent.trajectory_id, at_step=at_step)
        shared = parent.agent_steps[:at_step]
        for number, step in enumerate(shared, len(self._steps) + 1):
            kept = step if step.step_id == number else replace(step, step_id=number)
            self._steps.append(kept if tokens else replace(kept, metrics=None))
        for step, prompt in replace(parent, steps=shared if tokens else ()).prompt_ids():
            assert step.metrics is not None
            self._context = prompt + step.metrics.completion_token_ids

    def step(self, action: Action) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        """Take a step and record it; the last one writes the trajectory."""
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
        except BaseException as error:
            if self._running and not isinstance(error, gym.error.ResetNeeded):
                self._add(action, None)
                self._abandon("failure", error)
            raise
        if not self._running:  # an environment that goes on after its end: that is recorded
            return observation, reward, terminated, truncated, info
        self._add(action, observation)
        if truncated and not terminated and not {"report", "failure"} & info.keys():
            reward, more = self._verdict("steps")  # a limit inside that does not grade
            info = info | more
        if terminated or truncated:
            self._write(float(reward), info, finished=terminated)
        return observation, reward, terminated, truncated, info

    def finish(self, truncation: str, unsent: Action | None = None) -> tuple[float, dict[str, Any]]:
        """End the running episode from outside: grade the workspace as it is and record it.

        Args:
            truncation: the limit that struck.
            unsent: a last action that never reached the environment (a reply cut off within):
                its message and tokens become a step without a call.

        Raises:
            gymnasium.error.ResetNeeded: no episode is running.
        """
        self._require_running()
        if unsent is not None:
            self._add(unsent, None, called=False)
        try:
            reward, info = self._verdict(truncation)
        except BaseException as error:
            self._abandon("failure", error)
            raise
        self._write(reward, info, finished=False)
        return reward, info

    def abort(self, failure: Failure) -> None:
        """End the running episode without a verdict: the machinery outside failed (the model).

        Raises:
            gymnasium.error.ResetNeeded: no episode is running.
        """
        self._require_running()
        info = {"failure": asdict(failure), "truncation": "failure"}
        self._write(0.0, info, finished=False)

    def close(self) -> None:
        """Record an unfinished episode, close the environment and a buffer opened by path."""
        self._abandon("closed")
        self.env.close()
        if self._opened:
            self.buffer.close()  # type: ignore[union-attr]

    def _require_running(self) -> None:
        if not self._running:
            raise gym.error.ResetNeeded("No episode is running, so none can end: call reset().")

    def _verdict(self, truncation: str) -> tuple[float, dict[str, Any]]:
        finish = getattr(self.env.unwrapped, "finish", None)
        if finish is None:
            return 0.0, {"truncation": truncation}
        reward, info = finish(truncation)
        return float(reward), dict(info)

    def _add(self, action: Action, observation: Observation | None, *, called: bool = True) -> None:
        number = len(self._steps) + 1
        given: Mapping[str, Any] = action if isinstance(action, Mapping) else {"arguments": action}
        call = ToolCall(
            function_name=_whole(str(given.get("tool", ""))),
            arguments=_whole(_as_arguments(given.get("arguments"))),
            tool_call_id=f"call_{number}",
        )
        seen = None
        if observation is not None:
            seen = StepObservation(
                content=_whole(observation["text"]), exit_code=int(observation["exit_code"])
            )
        step = Step(
            step_id=number,
            source="agent",
            message=_whole(str(given.get("message") or "")),
            tool_calls=(call,) if called else (),
            observation=seen,
            metrics=self._metrics(given.get("completion")),
        )
        self._steps.append(step)

    def _metrics(self, completion: Completion | None) -> Metrics | None:
        """The turn's tokens, its prompt as an increment on what came before (see `Metrics`)."""
        if not completion or completion.get("token_ids") is None:
            return None
        prompt = tuple(int(token) for token in completion.get("prompt_token_ids") or ())
        tokens = tuple(int(token) for token in completion["token_ids"])
        shared = common_prefix(self._context, prompt)
        self._context = prompt + tokens
        return Metrics(
            prompt_prefix=shared,
            prompt_token_ids=prompt[shared:],
            completion_token_ids=tokens,
            logprobs=tuple(float(value) for value in completion.get("logprobs") or ()),
        )

    def _abandon(self, truncation: str, error: BaseException | None = None) -> None:
        if not self._running:
            return
        kind, message = UNGRADED, f"the episode was left before its verdict ({truncation})"
        if error is not None:
            kind = error.kind if isinstance(error, InfrastructureError) else CRASH
            message = f"{type(error).__name__}: {error}"
        failure = {"kind": kind, "message": message}
        self._write(0.0, {"failure": failure, "truncation": truncation}, finished=False)

    def _write(self, reward: float, info: Mapping[str, Any], *, finished: bool) -> None:
        self._running = False
        failure = info.get("failure")
        report = info.get("report")
        count = self._seen.get(self._instance_id, 0)
        self._seen[self._instance_id] = count + 1
        self.trajectory = Trajectory(
            instance_id=self._instance_id,
            agent=self._agent,
            steps=tuple(self._steps),
            attempt=self._first_attempt + count,
            seed=self._seed,
            reward=0.0 if failure else reward,
            resolved=bool(report.resolved) if report is not None else False,
            finished=finished and failure is None,
            truncation=str(info.get("truncation", "")),
            failure=Failure(**failure) if failure else None,
            patch=str(info.get("patch", "")),
            report=self._timed(report),
            tools=tuple(self._schemas()),
            provenance=self._origin(),
            branch=self._branch,
        )
        self.buffer.append(self.trajectory)  # type: ignore[union-attr]

    def _timed(self, report: TestReport | None) -> TestReport | None:
        """The report with the seconds of its tests, which `info` leaves out."""
        timings = getattr(self.env.unwrapped, "timings", {})
        if report is None or "tests" not in timings:
            return report
        return replace(report, seconds=round(timings["tests"], 3))

    def _schemas(self) -> Sequence[dict[str, Any]]:
        toolset = getattr(self.env.unwrapped, "toolset", None)
        return [dict(schema) for schema in toolset.schemas] if toolset is not None else []

    def _origin(self) -> dict[str, Any]:
        base = self.env.unwrapped
        task = getattr(base, "task", None)
        return {
            "task": digest(task) if task is not None else "",
            "env": dict(getattr(base, "settings", {})),
            "versions": {"swe-env": _version(), "python": platform.python_version()},
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._clock, 3),
            **self.provenance,
        }


def _whole(value: Any) -> Any:
    """The same with U+FFFD for lone surrogates, which no record can hold."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {_whole(key): _whole(item) for key, item in value.items()}
    return [_whole(item) for item in value] if isinstance(value, (list, tuple)) else value


def _as_arguments(given: object) -> dict[str, Any]:
    """The arguments as a table; of what is none (the environment refused it), its text."""
    if isinstance(given, Mapping):
        return {str(key): value for key, value in given.items()}
    return {} if given is None else {"malformed": repr(given)}


def _open(path: str) -> Sink:
    from swe_env.replay.buffer import ReplayBuffer

    return ReplayBuffer(path)


@cache
def _version() -> str:
    try:
        return metadata.version("swe-env")
    except metadata.PackageNotFoundError:
        return "unknown"
