"""`Trajectory`: one episode, in ATIF's vocabulary plus what learning and grading need."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import msgspec

from swe_env.errors import ReplayError
from swe_env.types import Failure, TestReport

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A tool call as the policy made it."""

    function_name: str
    arguments: dict[str, Any]
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepObservation:
    """What the environment answered to a step's tool call."""

    content: str
    exit_code: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """The tokens of one agent step; all empty when the policy does not know them.

    Prompts grow by appending, so a step keeps only what is new: its whole prompt is the first
    `prompt_prefix` tokens of (previous prompt + previous completion), then `prompt_token_ids`.
    Where a prompt rewrites what came before, `prompt_prefix` is less than all of that.
    `Trajectory.prompt_ids` puts it together again.
    """

    prompt_prefix: int = 0
    prompt_token_ids: tuple[int, ...] = ()
    completion_token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    """Natural logarithms, one for each completion token, at temperature 1 and untruncated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One message: the system's, the user's (the issue) or the agent's with its tool call."""

    step_id: int
    """Counts from 1."""
    source: Literal["system", "user", "agent"]
    message: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    observation: StepObservation | None = None
    metrics: Metrics | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """Who acted, with all it takes to act so again."""

    name: str
    version: str = ""
    model_name: str = ""
    adapter: str = ""
    """Path and content hash of the adapter on top of the model, or empty."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Sampling parameters, system prompt id: whatever changes the behaviour. ``format`` names the
    text format in which its messages hold the calls; without it they stand apart from the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """Where an episode left another one; the steps before are the other's."""

    parent: str
    """`Trajectory.trajectory_id` of the record that it was forked from."""
    at_step: int
    """How many agent steps both share, from the first on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One episode from reset to verdict."""

    instance_id: str
    agent: Agent
    steps: tuple[Step, ...]
    attempt: int = 0
    seed: int = 0
    """What the environment was reset with; -1 for nothing."""
    reward: float = 0.0
    resolved: bool = False
    finished: bool = False
    """The agent submitted by itself, no limit cut it off."""
    truncation: str = ""
    """Which limit cut it off ("steps", "tokens", "time", "stuck", "failure"), or empty."""
    failure: Failure | None = None
    """Set when the machinery failed: such a record is no evidence about the agent."""
    patch: str = ""
    report: TestReport | None = None
    tools: tuple[dict[str, Any], ...] = ()
    """Schemas of the tools offered, in order: part of the first state."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Task digest, environment settings, versions, start time and seconds."""
    schema_version: int = SCHEMA_VERSION
    branch: Branch | None = None
    """Set when the first agent steps are those of another record. They are in `steps` all the
    same, so the record is whole without it."""

    @property
    def agent_steps(self) -> tuple[Step, ...]:
        """The steps the policy took."""
        return tuple(step for step in self.steps if step.source == "agent")

    @property
    def own_steps(self) -> tuple[Step, ...]:
        """The agent steps of this episode alone, without those that came from `branch.parent`."""
        return self.agent_steps[self.branch.at_step if self.branch else 0 :]

    @property
    def trajectory_id(self) -> str:
        """Content address: SHA-256 of the record with times left out (32 hexadecimal digits)."""
        timeless = {k: v for k, v in self.provenance.items() if k not in _TIMES}
        report = replace(self.report, seconds=0.0) if self.report else None
        record = replace(self, provenance=timeless, report=report)
        encoded = msgspec.json.encode(record, order="deterministic")
        if self.branch is None:  # as before the field was there: ids are for ever
            encoded = encoded.removesuffix(_NO_BRANCH) + b"}"
        return hashlib.sha256(encoded).hexdigest()[:32]

    def prompt_ids(self) -> Iterator[tuple[Step, tuple[int, ...]]]:
        """Each agent step that has tokens, with the whole prompt it was sampled from."""
        context: tuple[int, ...] = ()
        for step in self.agent_steps:
            if step.metrics is None:
                continue
            prompt = context[: step.metrics.prompt_prefix] + step.metrics.prompt_token_ids
            yield step, prompt
            context = prompt + step.metrics.completion_token_ids

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; `from_dict` gives an equal trajectory back."""
        data: dict[str, Any] = msgspec.to_builtins(self)
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Trajectory:
        """The trajectory that `to_dict` came from.

        Raises:
            ReplayError: the data does not fit this schema; names the field.
        """
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != SCHEMA_VERSION:
            raise ReplayError(
                f"The record has schema version {version!r}, this swe-env reads {SCHEMA_VERSION}: "
                "upgrade swe-env, or convert the buffer with the version that wrote it."
            )
        try:
            return msgspec.convert(data, cls)
        except msgspec.ValidationError as error:
            raise ReplayError(f"The record is not a trajectory: {error}.") from error


_TIMES = frozenset({"started", "seconds", "host"})
_NO_BRANCH = b',"branch":null}'
