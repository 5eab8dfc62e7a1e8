"""The oracle: the gold patch through the tools, by one of several correct routes.

Its trajectories are what a model is first taught on, so they are short, every sentence quotes only
what the episode has shown, and the replies are written in a text format.
"""

from __future__ import annotations

import random
import shlex
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from agents.parsing import TextFormat, get_format
from agents.policies.base import BasePolicy, Episode
from agents.policies.dialect import offered, parameters, playable
from agents.policies.goldedits import Edit, enclosing, gold_edits, patched_paths
from swe_env.errors import ConfigError, PolicyError, TaskError
from swe_env.replay.trajectory import Agent
from swe_env.types import Action, Task

ROUTES = ("view_symbol", "view_range", "search", "direct")
_LONG = 60
"""Lines of a function beyond which it is viewed by range."""

Call = tuple[str, dict[str, Any], str]
"""(tool of the default ones, arguments, reasoning)"""


class OraclePolicy(BasePolicy):
    """Applies the gold patch; the episode's seed chooses the route.

    Routes look at the place by name, by line range, or after a search, or edit directly when the
    issue itself shows the lines; then they edit, may run the tests, and submit. A patch that exact
    edits cannot make goes through ``git apply`` in the shell, and so does every patch where `edit`
    is not offered. R2E's tools are called by their own names; what is not offered is left out.

    Args:
        text_format: how messages are written (`agents.parsing`).
        routes: names to choose from (`ROUTES`).
        tests: probability of running the tests before submitting.
        test_targets: what `run_tests` is given; empty for all visible tests.
    """

    privileged = True

    def __init__(
        self,
        text_format: str | TextFormat = "r2e",
        routes: Sequence[str] = ROUTES,
        tests: float = 0.5,
        test_targets: str = "",
    ) -> None:
        self._format = get_format(text_format)
        self._routes = tuple(routes)
        self._tests = tests
        self._targets = test_targets

    @property
    def agent(self) -> Agent:
        """Name and settings."""
        settings = {
            "format": self._format.name,
            "routes": list(self._routes),
            "tests": self._tests,
            **({"test_targets": self._targets} if self._targets else {}),
        }
        return Agent(name="oracle", settings=settings)

    def system_prompt(self, tools: Sequence[dict[str, Any]]) -> str:
        """The text format's, the same that a model trained on these episodes gets.

        Raises:
            ConfigError: the gold patch cannot be made and submitted with these tools.
        """
        _check(tools)
        return self._format.system_prompt(tools)

    def act(self, episode: Episode) -> Action:
        """The next call of the plan.

        Raises:
            PolicyError: the task has no gold patch, or applying it failed.
        """
        if episode.answer is None or not episode.answer.patch:
            raise PolicyError(f"The oracle needs the gold patch of {episode.task.instance_id}.")
        name, given, message = self._next(episode, episode.answer)
        tool, arguments = offered(name, given, episode.tools) or (name, given)
        action = Action(tool=tool, arguments=arguments, message=message)
        return Action(tool=tool, arguments=arguments, message=self._format.render(action))

    def _next(self, episode: Episode, task: Task) -> Call:
        plan = self._plan(episode, task)
        done = len(episode.turns)
        failed = next(
            (
                k
                for k, (call, turn) in enumerate(zip(plan, episode.turns, strict=False))
                if call[0] == "edit" and turn.observation["exit_code"]
            ),
            None,
        )
        if failed is not None:
            plan = plan[: failed + 1] + self._through_shell(episode, task)
        if done and plan[done - 1][0] == "bash" and episode.observation["exit_code"]:
            raise PolicyError(
                f"The gold patch of {task.instance_id} could not be applied: "
                f"{episode.observation['text'][:200]}"
            )
        if done >= len(plan):
            raise PolicyError(f"The submission of {task.instance_id} did not end the episode.")
        tool, arguments, message = plan[done]
        if tool == "submit" and done and plan[done - 1][0] == "run_tests":
            message = "The tests pass." if episode.observation["exit_code"] == 0 else "It is fixed."
        return tool, arguments, message

    def _plan(self, episode: Episode, task: Task) -> list[Call]:
        can = playable(episode.tools)
        base = _base_files(task)
        edits = gold_edits(task.patch, base) if "edit" in can else None
        if edits is None:
            return self._through_shell(episode, task)
        rng = random.Random(f"route {episode.seed}")
        route = rng.choice(self._routes)
        issue = episode.first["text"]
        symbols = "symbol" in parameters(episode.tools).get("view", ())
        plan: list[Call] = []
        for edit in edits:
            if edit.old_str and not (route == "direct" and _shown(edit.old_str, issue)):
                plan += _look(edit, base[edit.path], route, rng, symbols)
            plan.append(_edit_call(edit))
        return [call for call in plan if call[0] in can] + self._ending(episode)

    def _through_shell(self, episode: Episode, task: Task) -> list[Call]:
        if "bash" not in playable(episode.tools):
            raise PolicyError(
                f"The gold patch of {task.instance_id} cannot be made by edits alone, and no shell "
                "is offered: offer bash, or execute_bash."
            )
        return [_apply(task.patch), *self._ending(episode)]

    def _ending(self, episode: Episode) -> list[Call]:
        rng = random.Random(f"ending {episode.seed}")
        submit: Call = ("submit", {}, "The fix is in.")
        if rng.random() >= self._tests or "run_tests" not in playable(episode.tools):
            return [submit]
        targets = {"targets": self._targets} if self._targets else {}
        return [("run_tests", targets, "Check the fix."), submit]


def _check(tools: Sequence[dict[str, Any]]) -> None:
    can = playable(tools)
    if "submit" not in can or not can & {"edit", "bash"}:
        names = ", ".join(tool["function"]["name"] for tool in tools) or "none"
        raise ConfigError(
            f"The policy 'oracle' cannot solve a task with the tools offered ({names}): offer "
            "submit, and edit or bash, or R2E's."
        )


def _look(edit: Edit, text: str, route: str, rng: random.Random, symbols: bool) -> list[Call]:
    """The calls that bring the edit's lines to sight; `symbols` says that `view` finds by name."""
    symbol = enclosing(text, edit.line)
    name = symbol[0].rpartition(".")[2] if symbol else ""
    calls: list[Call] = []
    if route == "search" and name:
        calls.append(("search", {"query": f"def {name}"}, f"Find {name}."))
    last_changed = edit.line + edit.old_str.count("\n")
    short = symbol is not None and symbol[2] - symbol[1] < _LONG and last_changed <= symbol[2]
    if symbol and short and route != "view_range":
        place = {"symbol": symbol[0]} if symbols else {"view_range": [symbol[1], symbol[2]]}
        calls.append(("view", {"path": edit.path, **place}, f"Look at {name}."))
        return calls
    total = text.count("\n") + 1
    first = max(1, edit.line - rng.randint(3, 8))
    last = min(total, last_changed + rng.randint(3, 8))
    calls.append(("view", {"path": edit.path, "view_range": [first, last]}, "Look at the code."))
    return calls


def _edit_call(edit: Edit) -> Call:
    arguments = {"path": edit.path, "old_str": edit.old_str, "new_str": edit.new_str}
    line = edit.old_str.strip()
    if not line:
        message = "Add the file."
    elif "\n" in line or "`" in line or len(line) > 80:
        message = "These lines are wrong."
    else:
        message = f"`{line}` is wrong."
    return "edit", arguments, message


def _apply(patch: str) -> Call:
    """The whole patch at once, on files put back to their first state."""
    mark = "END_OF_PATCH"
    while mark in patch:
        mark += "_"
    paths = " ".join(shlex.quote(path) for path in patched_paths(patch))
    restore = f"git checkout -q HEAD -- {paths} && " if paths else ""
    body = patch if patch.endswith("\n") else f"{patch}\n"
    command = f"{restore}git apply --whitespace=nowarn - <<'{mark}'\n{body}{mark}"
    return "bash", {"command": command}, "Apply the change as a patch."


def _shown(passage: str, text: str) -> bool:
    return all(line.strip() in text for line in passage.split("\n") if line.strip())


def _base_files(task: Task) -> dict[str, str]:
    """Text of the files that the gold patch changes, as they are when the episode starts.

    Read from the task's own base checkout; what is not there as text is left out.
    """
    from swe_env import repos

    try:
        return _read_files(repos.base(task), tuple(patched_paths(task.patch)))
    except TaskError:  # the checkout is inside an image
        return {}


@lru_cache(maxsize=256)
def _read_files(base: Path, paths: tuple[str, ...]) -> dict[str, str]:
    texts = {}
    for path in paths:
        try:
            texts[path] = (base / path).read_bytes().decode()
        except (OSError, UnicodeDecodeError):
            continue
    return texts
