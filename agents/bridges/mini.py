"""mini-swe-agent's own agent plays an episode of ours: its commands run in our sandbox.

`MiniEnvironment` is its Environment protocol over an environment of ours, `run_mini` an episode
from reset to a graded record. mini-swe-agent is imported when an episode runs, not before.
"""

from __future__ import annotations

import logging
import os
import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module, metadata
from typing import Any, Protocol

import gymnasium as gym

from swe_env.cache import digest
from swe_env.errors import ConfigError, InfrastructureError, SandboxError
from swe_env.replay.export.conversation import APART
from swe_env.replay.imports.common import text_of
from swe_env.replay.imports.mini_swe_agent import LIMITS, thought
from swe_env.replay.trajectory import Agent, Trajectory
from swe_env.sandbox.base import WORKDIR
from swe_env.types import INVALID_TOOL, Action, Failure, Observation
from swe_env.wrappers.record import RecordTrajectory, Sink

log = logging.getLogger(__name__)

MARKER = "COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
"""The first line of a successful command's output that hands the work in."""


class Flow(Protocol):
    """The exceptions that end its agent's loop: the module `minisweagent.exceptions`."""

    Submitted: type[Exception]
    LimitsExceeded: type[Exception]


class MiniAgent(Protocol):
    """What is used of its agents; `minisweagent.agents.default.DefaultAgent` is one."""

    config: Any
    model: Any
    messages: list[dict[str, Any]]

    def run(self, task: str = "", **kwargs: Any) -> dict[str, Any]:
        """Play until the end; ``exit_status`` and ``submission``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniConfig:
    """What templates and files of mini-swe-agent are told about the environment."""

    cwd: str = WORKDIR
    timeout: float = 60.0
    """Seconds a command may take."""


class MiniEnvironment:
    """mini-swe-agent's Environment over a running episode of an environment of ours.

    Each command is run by the tool ``bash``, in a subshell of its own as mini-swe-agent promises
    its models, and killed when it is not done in time. The marker command submits: the episode
    ends, is graded, and its agent gets `Submitted`. Replies that held no readable command are
    recorded as calls of ``invalid``. When our step limit strikes, its agent gets `LimitsExceeded`.

    Args:
        env: reset before the first command; offers the tools ``bash`` and ``submit``.
        messages: its agent's messages so far, from which the texts of replies are taken.
        flow: its exceptions; None for mini-swe-agent's own.

    Raises:
        ConfigError: a tool is missing, or mini-swe-agent is.
    """

    def __init__(
        self,
        env: gym.Env[Observation, Action],
        *,
        messages: Callable[[], Sequence[Mapping[str, Any]]] = tuple,
        flow: Flow | None = None,
    ) -> None:
        base: Any = env.unwrapped
        if missing := {"bash", "submit"} - set(base.toolset.names):
            raise ConfigError(
                f"mini-swe-agent needs the tool {' and '.join(sorted(missing))}: make the "
                'environment with tools=["bash", "submit"].'
            )
        self.env = env
        self.config = MiniConfig(timeout=base.command_timeout)
        self.messages = messages
        self._flow = flow or _flow()
        self._told = 0
        self._over = False
        self.info: dict[str, Any] = {}
        """The last step's; holds the report at the end."""

    def execute(self, action: dict[str, Any], cwd: str = "") -> dict[str, Any]:
        """Run ``action["command"]``; ``output``, ``returncode`` and ``exception_info``.

        Raises:
            Submitted: the command was the marker; the episode is graded.
            LimitsExceeded: the environment's step limit ended the episode; it is graded.
            InfrastructureError: the environment failed; the episode has no verdict.
        """
        said = self._said()
        command = str(action.get("command", ""))
        place = f"cd -- {shlex.quote(cwd)} || exit\n" if cwd else ""
        seen = self._step("bash", {"command": f"(\n{place}{command}\n)"}, said)
        code, note = seen["exit_code"], ""
        for _ in range(2):  # the second interrupt kills
            if not self.env.unwrapped.busy:  # type: ignore[attr-defined]  # SWEEnv has it
                break
            self._step("bash", {"command": "ctrl+c"})
            note = f"The command was not done after {self.config.timeout:g} seconds and was killed."
        output = _output(seen)
        first, _, rest = output.lstrip().partition("\n")
        if first.strip() == MARKER and code == 0:
            self._step("submit", {})
            raise self._ended("Submitted", rest)
        return {"output": output, "returncode": code, "exception_info": note}

    def get_template_vars(self, **kwargs: Any) -> dict[str, Any]:
        """What its prompts may name: the sandbox's system and `config`; nothing of this process."""
        names = platform.uname()
        told = {"system": names.system, "release": names.release, "version": names.version}
        return {**asdict(self.config), **told, "machine": names.machine, **kwargs}

    def serialize(self) -> dict[str, Any]:
        """Its trajectory files' part about the environment."""
        kind = f"{type(self).__module__}.{type(self).__name__}"
        config = {"environment": asdict(self.config), "environment_type": kind}
        return {"info": {"config": config}}

    def catch_up(self) -> None:
        """Record replies without a readable command, which reach no `execute`."""
        messages = self.messages()
        for message in messages[self._told :]:
            extra = message.get("extra") or {}
            if extra.get("interrupt_type") == "FormatError" and not self._over:
                reason = text_of(message.get("content"))
                reply = text_of(extra.get("model_response"))
                self._step(INVALID_TOOL, {"reason": reason}, reply)
        self._told = len(messages)

    def _said(self) -> str:
        """The text of the reply that this command is in, once: its other commands add nothing."""
        new = [dict(message) for message in self.messages()[self._told :]]
        self.catch_up()
        replies = [m for m in new if m.get("role") == "assistant" or m.get("object") == "response"]
        return thought(replies[-1]) if replies else ""

    def _step(self, tool: str, arguments: dict[str, Any], message: str = "") -> Observation:
        action = Action(tool=tool, arguments=arguments)
        if message:
            action["message"] = message
        seen, _, terminated, truncated, self.info = self.env.step(action)
        self._over = terminated or truncated
        if failure := self.info.get("failure"):
            raise SandboxError(failure["message"])
        if truncated:
            raise self._ended("LimitsExceeded", "")
        return seen

    def _ended(self, status: str, submission: str) -> Exception:
        kind: type[Exception] = getattr(self._flow, status)
        extra = {"exit_status": status, "submission": submission}
        return kind({"role": "exit", "content": submission or status, "extra": extra})


def run_mini(
    env: gym.Env[Observation, Action],
    make_agent: Callable[[MiniEnvironment], MiniAgent],
    *,
    instance_id: str,
    buffer: Sink | None = None,
    attempt: int = 0,
    seed: int = 0,
    provenance: Mapping[str, Any] | None = None,
    flow: Flow | None = None,
) -> Trajectory:
    """Let mini-swe-agent's agent play one episode; graded and recorded like any other.

    The record's first messages are its own prompts, and its tool calls what was run (in a
    subshell), so `replay` and `branch` work on it. Limits of its own end the episode with the
    truncation that an import of its file would have; an error of its model or code is a `failure`.

    Args:
        env: made with ``tools=["bash", "submit"]``; left open.
        make_agent: makes the agent, for example
            ``lambda env: DefaultAgent(model, env, **config["agent"])``.
        instance_id: the task.
        buffer: gets the record.
        attempt: recorded; which attempt at this task it is.
        seed: of the environment.
        provenance: entries for the record.
        flow: see `MiniEnvironment`.

    Raises:
        ConfigError: see `MiniEnvironment`.
    """
    records: list[Trajectory] = []
    inner = MiniEnvironment(env, flow=flow)
    agent = make_agent(inner)
    recorder = RecordTrajectory(
        env, records, agent=_agent(agent), system_prompt=" ", attempt=attempt, provenance=provenance
    )
    inner.env, inner.messages = recorder, lambda: agent.messages
    recorder.reset(seed=seed, options={"instance_id": instance_id})
    base: Any = env.unwrapped
    try:
        ended = agent.run(task=base.task.problem_statement)
        inner.catch_up()
        if not records:
            status = str(ended.get("exit_status", ""))
            recorder.finish(LIMITS.get(status, status or "unknown"))
    except Exception as error:
        if not records:  # not the environment's, which has ended the episode by itself
            log.exception("mini-swe-agent broke on %s.", instance_id)
            kind = error.kind if isinstance(error, InfrastructureError) else "agent"
            message = f"{type(error).__name__}: {error}"
            recorder.abort(Failure(kind=kind, message=message))
    (record,) = records
    record = _with_prompts(record, agent.messages)
    if buffer is not None:
        buffer.append(record)
    return record


def _with_prompts(record: Trajectory, messages: Sequence[Mapping[str, Any]]) -> Trajectory:
    """The record with the agent's own prompts for the environment's first observation."""
    steps = list(record.steps)
    for at, message in enumerate(messages[:2]):
        steps[at] = replace(steps[at], message=text_of(message.get("content")))
    return replace(record, steps=tuple(steps))


def _agent(agent: MiniAgent) -> Agent:
    settings: dict[str, Any] = getattr(agent.config, "model_dump", dict)()
    told = {name: str(value) for name, value in settings.items() if name != "output_path"}
    model = getattr(getattr(agent.model, "config", None), "model_name", "")
    return Agent(
        name="mini-swe-agent",
        version=_version(),
        model_name=str(model),
        settings={"calls": APART, "agent": type(agent).__name__, "config": digest(told)},
    )


def _output(seen: Observation) -> str:
    """The command's output without the notes that the tool adds for models of ours."""
    text, code = seen["text"], seen["exit_code"]
    if code == 0 and text == "[done, no output]":
        return ""
    return text.removesuffix(f"[exit code {code}]").rstrip("\n") if code > 0 else text


def _flow() -> Flow:
    os.environ.setdefault("MSWEA_SILENT_STARTUP", "1")  # it prints a banner when it is imported
    try:
        found: Any = import_module("minisweagent.exceptions")
    except ImportError as error:
        raise ConfigError(
            "mini-swe-agent is not installed here: pip install 'mini-swe-agent>=2.4'."
        ) from error
    return found  # type: ignore[no-any-return]


def _version() -> str:
    try:
        return metadata.version("mini-swe-agent")
    except metadata.PackageNotFoundError:
        return ""
