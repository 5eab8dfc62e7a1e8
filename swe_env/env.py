"""`SWEEnv`: one issue of a real repository as a Gymnasium episode."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any, cast

import gymnasium as gym
from gymnasium.spaces import Dict, Discrete

from swe_env import settings as check
from swe_env import tasks as task_sources
from swe_env.errors import ConfigError, InfrastructureError, SandboxError
from swe_env.grading import TestRun, grade, run_tests
from swe_env.grading.cache import grade_once
from swe_env.grading.verdict import grade_workspace
from swe_env.plugins import Registry
from swe_env.repos import sandbox_spec
from swe_env.sandbox import get as get_sandbox
from swe_env.sandbox.base import WORKDIR, Sandbox
from swe_env.spaces import ToolCallSpace, UnicodeText
from swe_env.tools import ToolContext, ToolResult, shorten, terminal
from swe_env.types import INVALID_TOOL, Action, Observation, Task, TestReport

MAX_TEXT = 65_536
"""Longest observation text in characters; longer ones keep head and tail."""
_MARK = 100
"""Room for the words that say how much was left out."""

rewards: Registry[Callable[[TestReport], float]] = Registry("rewards")


@rewards.register("resolved")
def resolved(report: TestReport) -> float:
    """1 when the patch resolves the task, else 0."""
    return float(report.resolved)


@rewards.register("fraction")
def fraction(report: TestReport) -> float:
    """Share of the FAIL_TO_PASS tests that pass, 0 when anything else broke."""
    return report.fraction


class SWEEnv(gym.Env[Observation, Action]):
    """A repository with an issue; actions are tool calls, the reward is real tests.

    Observation: ``{"text": str, "tool": str, "exit_code": int, "steps_left": int}``.
    Action: ``{"tool": str, "arguments": dict}``, optionally ``"message"`` and ``"completion"``,
    which are recorded and change nothing here.

    ``submit`` terminates; the step limit truncates, and the diff so far is graded all the same. At
    the end ``info["report"]`` is the `TestReport`, ``info["patch"]`` everything that changed and
    ``info["truncation"]`` the limit that struck, or empty. When the machinery failed, the step
    truncates with ``info["failure"] = {"kind", "message"}`` and reward 0: keep it out of scores.
    """

    metadata = {  # noqa: RUF012 - gymnasium's own form
        "render_modes": list(check.RENDER_MODES),
        "render_fps": 1,  # text that follows the steps has no rate; Gymnasium asks for one
    }

    def __init__(
        self,
        tasks: str | Sequence[Task] = "quickstart",
        *,
        sandbox: str = "auto",
        tools: str | Sequence[str] = "default",
        reward: str = "resolved",
        max_episode_steps: int = 100,
        command_timeout: float = 60.0,
        grade_timeout: float = 600.0,
        output_limit: int = 16_000,
        network: bool = False,
        limits: Mapping[str, int] | None = None,
        grade_cache: bool = False,
        render_mode: str | None = None,
    ) -> None:
        """Make the environment; nothing is built or started before `reset`.

        Args:
            tasks: task source (``quickstart``, ``jsonl:PATH``, …) or the tasks themselves.
            sandbox: ``auto``, ``local``, ``docker``, ``process``, or a registered or dotted name.
            tools: a preset (``default``, ``full``, ``r2e``) or tool names, presets among them.
            reward: ``resolved``, ``fraction``, or a registered or dotted function of a TestReport.
            max_episode_steps: steps after which the episode is truncated and graded.
            command_timeout: seconds a single tool call may take.
            grade_timeout: seconds the grading tests may take.
            output_limit: characters of one tool's output that are kept.
            network: whether commands reach the network.
            limits: overrides of `Limits`, for example ``{"memory": 2 << 30}``.
            grade_cache: give the same verdict to the same patch of the same task without running
                the tests again (in this process).
            render_mode: ``ansi`` or ``human``.

        Raises:
            ConfigError: a name or value is wrong.
            SandboxError: that kind of sandbox does not work on this machine; says what to do.
        """
        self._source = check.tasks(tasks)
        self._tasks: list[Task] | None = None
        self.toolset = check.tools(tools)
        self._reward_name = check.word("reward", reward, "resolved")
        self._reward = rewards.get(reward)
        self._sandbox_name = check.word("sandbox", sandbox, "auto")
        self._sandbox_used = ""
        self._limits = check.limits(limits)
        self.max_episode_steps = check.whole(
            "max_episode_steps", max_episode_steps, check.MOST_STEPS
        )
        self.command_timeout = check.seconds("command_timeout", command_timeout)
        self.grade_timeout = check.seconds("grade_timeout", grade_timeout)
        output = check.whole("output_limit", output_limit, what="number of characters")
        self.output_limit = min(output, MAX_TEXT - 2 * _MARK)
        self.network = check.flag("network", network)
        self.grade_cache = check.flag("grade_cache", grade_cache)
        self.render_mode = check.render_mode(render_mode)
        if reason := get_sandbox(sandbox).available():
            raise SandboxError(reason)
        # Gymnasium types both spaces by what they hold; Dict cannot name a TypedDict.
        self.observation_space: gym.Space[Any] = Dict(
            {
                "text": UnicodeText(MAX_TEXT),
                "tool": UnicodeText(256),
                "exit_code": Discrete(257, start=-1),
                "steps_left": Discrete(1 << 31),
            }
        )
        self.action_space: gym.Space[Any] = ToolCallSpace(
            self.toolset.schemas, self.toolset.samples
        )
        self.task: Task | None = None
        self.timings: dict[str, float] = {}
        """Seconds of this episode's reset, tools and grading, and of the tests' own process
        (``tests``, a part of the grading); kept apart from `info`, which is the same for the same
        seed and actions."""
        self._context: ToolContext | None = None
        self._frame = ""
        self._steps = 0
        self._invalid = 0
        self._over = True

    @property
    def tasks(self) -> list[Task]:
        """The tasks of this environment, loaded on first use."""
        if self._tasks is None:
            source = self._source
            self._tasks = task_sources.load(source) if isinstance(source, str) else list(source)
            if not self._tasks:
                raise ConfigError(f"The task source {source!r} holds no task.")
        return self._tasks

    @property
    def settings(self) -> dict[str, Any]:
        """What it takes to make this environment again, as plain data.

        Its arguments, tasks that were given as objects apart, and ``sandbox_used``: the kind of
        sandbox that the last `reset` started (``auto`` decides at each start).
        """
        return {
            "tasks": self._source if isinstance(self._source, str) else "given",
            "sandbox": self._sandbox_name,
            "sandbox_used": self._sandbox_used,
            "tools": [schema["function"]["name"] for schema in self.toolset.schemas],
            "reward": self._reward_name,
            "max_episode_steps": self.max_episode_steps,
            "command_timeout": self.command_timeout,
            "grade_timeout": self.grade_timeout,
            "output_limit": self.output_limit,
            "network": self.network,
            "limits": asdict(self._limits),
            "grade_cache": self.grade_cache,
        }

    @property
    def busy(self) -> bool:
        """Whether the episode's shell still runs a command, which a fork would not have."""
        return self._context is not None and terminal.running(self._context)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode: the task of ``options["instance_id"]``, else one drawn by the seed.

        Raises:
            ConfigError: an option is unknown, or its value of the wrong kind.
            TaskError: there is no such task; says which is near.
            InfrastructureError: the checkout, environment or sandbox could not be had.
        """
        super().reset(seed=seed)
        old = self._let_go()
        with _closing(old):
            return self._begin(options)

    def _begin(self, options: dict[str, Any] | None) -> tuple[Observation, dict[str, Any]]:
        wanted = check.instance_id(options)
        draw = int(self.np_random.integers(len(self.tasks)))
        self.task = self.tasks[draw] if wanted is None else task_sources.find(self.tasks, wanted)
        started = time.perf_counter()
        spec = sandbox_spec(self.task, network=self.network, limits=self._limits)
        box = get_sandbox(self._sandbox_name)(spec)
        self._context, self._sandbox_used = self._make_context(box), box.kind
        self.timings = dict.fromkeys(("reset", "tools", "grading", "tests"), 0.0)
        self.timings["reset"] = time.perf_counter() - started
        self._steps = self._invalid = 0
        self._over = False
        text = f"Resolve this issue in the current repository.\n\n{self.task.problem_statement}"
        observation = self._observe("", ToolResult(text))
        self._render_frame(None, observation)
        return observation, {"instance_id": self.task.instance_id, "repo": self.task.repo}

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Call one tool; a wrong call is answered by an observation, never raised.

        Raises:
            gymnasium.error.ResetNeeded: the episode is over or was never begun.
        """
        if self._over or self.task is None:
            raise gym.error.ResetNeeded("The episode is over: call reset() before step().")
        action = check.action(action)
        self._steps += 1
        started = time.perf_counter()
        failure: InfrastructureError | None = None
        try:
            result = self._call(action)
        except InfrastructureError as error:
            failure, result = error, ToolResult(f"The environment failed: {error}", exit_code=-1)
        self.timings["tools"] += time.perf_counter() - started
        observation = self._observe(str(action.get("tool", "")), result)
        self._render_frame(action, observation)
        terminated = result.submitted
        truncated = not terminated and (
            failure is not None or self._steps >= self.max_episode_steps
        )
        reward, info = 0.0, self._info()
        if failure is not None:
            info = self._fail(failure)
        elif terminated or truncated:
            reward, info = self.finish("steps" if truncated else "")
            if "failure" in info:
                terminated, truncated = False, True
        return observation, reward, terminated, truncated, info

    def finish(self, truncation: str = "") -> tuple[float, dict[str, Any]]:
        """Grade the workspace as it is and end the episode.

        `step` calls this; call it yourself when something outside the environment ends the
        episode (a policy's own limit), with that reason as `truncation`.

        Returns:
            (reward, info) with ``report``, ``patch`` and ``truncation``, or with ``failure``.

        Raises:
            gymnasium.error.ResetNeeded: there is no running episode; one is graded once only.
        """
        if self._over or self.task is None or self._context is None:
            raise gym.error.ResetNeeded("There is no running episode to grade: call reset() first.")
        started = time.perf_counter()
        try:
            patch, report = grade_workspace(
                self._context.sandbox,
                self.task,
                grade_once if self.grade_cache else grade,
                sandbox=self._sandbox_name,
                timeout=self.grade_timeout,
                limits=self._limits,
            )
        except InfrastructureError as error:
            return 0.0, self._fail(error)
        finally:
            self._over = True
            self.timings["grading"] += time.perf_counter() - started
        self.timings["tests"] += report.seconds
        info = self._info() | {
            "patch": patch,
            # The seconds differ from run to run, so they stay in `timings` (and in the record).
            "report": replace(report, seconds=0.0),
            "truncation": truncation,
        }
        return self._reward(report), info

    def fork(self) -> SWEEnv:
        """An independent environment in the same state at the same step (files copy-on-write).

        Background processes and shell variables of this environment are not carried over.

        Raises:
            gymnasium.error.ResetNeeded: there is no running episode to fork.
            SandboxError: the sandbox could not be forked.
        """
        if self._over or self._context is None:
            raise gym.error.ResetNeeded("There is no running episode to fork: call reset() first.")
        twin = copy.copy(self)
        twin._np_random = copy.deepcopy(self._np_random)
        twin.action_space = copy.deepcopy(self.action_space)
        twin.timings = dict(self.timings)
        twin._context = self._make_context(self._context.sandbox.fork())
        twin._context.state.update(copy.deepcopy(self._context.state))
        return twin

    def render(self) -> str | None:
        """The last action and observation as text (``ansi``); ``human`` prints at each step."""
        return self._frame if self.render_mode == "ansi" else None

    def close(self) -> None:
        """Kill the episode's processes and drop its workspace."""
        if (box := self._let_go()) is not None:
            box.close()
        super().close()

    def _make_context(self, box: Sandbox) -> ToolContext:
        task = cast(Task, self.task)

        def visible_tests(targets: Sequence[str]) -> TestRun:
            return run_tests(
                box,
                command=task.test_command,
                targets=targets,
                timeout=self.command_timeout,
                runner=task.log_parser,
            )

        return ToolContext(
            sandbox=box,
            task=task.public(),
            command_timeout=self.command_timeout,
            output_limit=self.output_limit,
            state={},
            run_tests=visible_tests,
        )

    def _call(self, action: Action) -> ToolResult:
        assert self._context is not None
        name, arguments = action.get("tool"), action.get("arguments")
        if not isinstance(name, str) or not isinstance(arguments, Mapping):
            name, arguments = INVALID_TOOL, {"reason": check.FORM}
        if name == INVALID_TOOL:
            self._invalid += 1
            return ToolResult(str(arguments.get("reason", "The call was malformed.")), exit_code=1)
        return self.toolset.call(self._context, name, dict(arguments))

    def _observe(self, tool: str, result: ToolResult) -> Observation:
        text = result.text
        box = self._context.sandbox if self._context else None
        if box is not None and box.workdir != WORKDIR:
            # A sandbox without its own mounts works in a temporary folder: show relative paths, so
            # that the text is the same in every run.
            text = text.replace(f"{box.workdir}/", "").replace(box.workdir, ".")
        for path, shown in box.private.items() if box is not None else ():
            text = text.replace(path, shown)
        return {
            "text": shorten(text, MAX_TEXT - _MARK),
            "tool": tool[:256],
            "exit_code": max(-1, min(int(result.exit_code), 255)),
            "steps_left": max(0, self.max_episode_steps - self._steps),
        }

    def _info(self) -> dict[str, Any]:
        assert self.task is not None
        return {"instance_id": self.task.instance_id, "invalid_actions": self._invalid}

    def _fail(self, error: InfrastructureError) -> dict[str, Any]:
        self._over = True
        return self._info() | {
            "failure": {"kind": error.kind, "message": str(error)},
            "truncation": "failure",
        }

    def _render_frame(self, action: Action | None, observation: Observation) -> None:
        call = "" if action is None else f"> {action.get('tool')} {action.get('arguments')}\n"
        self._frame = f"{call}{observation['text']}"
        if self.render_mode == "human":
            print(self._frame)

    def _let_go(self) -> Sandbox | None:
        """End the episode; its sandbox, if there is one, is the caller's to close."""
        context, self._context, self._over = self._context, None, True
        return context.sandbox if context is not None else None


@contextlib.contextmanager
def _closing(box: Sandbox | None) -> Iterator[None]:
    """Close a sandbox while something else is done; ends when both are."""
    if box is None:
        yield
        return
    with ThreadPoolExecutor(1) as beside:
        closed = beside.submit(box.close)
        yield
    closed.result()
