"""Pairs of multi-turn trajectories from a seed, for `learner.py`: real text, real tool calls.

Every task is a module of Python's standard library: the issue quotes it, the agent searches, views,
edits and tests it. What the tools answer is that source, so lengths, vocabulary and the share of
sampled tokens are those of an agent at work; what happens in it has no meaning.
"""

from __future__ import annotations

import json
import math
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agents.chat import ChatTemplate, episode_messages
from agents.parsing import get_format
from swe_env.replay import ReplayBuffer
from swe_env.replay.trajectory import Agent, Metrics, Step, StepObservation, ToolCall, Trajectory
from swe_env.tools import toolset
from swe_env.types import Action

SHORTEST, LONGEST = 500, 4_000
SPREAD = 0.35
"""Standard deviation of a side's log-length around its task's."""
FORMAT = get_format("r2e")
THOUGHTS = (
    "The name in the report is used in more than one place; the definition comes first.",
    "This branch looks wrong: the value is read before it is set when the argument is missing.",
    "The tests still fail in the same place, so the change did not reach the code that runs.",
    "I will look at the caller before touching anything, it may rely on the present behaviour.",
    "That is the line from the traceback. A smaller change than the one I had in mind will do.",
    "Nothing else uses the helper, so it can be changed without breaking the interface.",
)


def modules() -> list[Path]:
    """Modules of the standard library that are long enough to work in, by name."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return [
        path for path in sorted(folder.glob("[a-z]*.py")) if 12_000 < path.stat().st_size < 90_000
    ]


class Author:
    """Writes what an agent and its tools say about one module."""

    def __init__(self, path: Path, draw: random.Random) -> None:
        self.path, self.draw = f"src/{path.stem}/{path.name}", draw
        self.lines = path.read_text().splitlines()
        code = [line for line in self.lines if line.startswith(("def ", "class ", "    def "))]
        self.names = [line.split("(")[0].split(":")[0].split()[-1] for line in code] or [path.stem]

    def issue(self) -> str:
        """A report with a traceback, a hundred to two hundred tokens."""
        name, at = self.draw.choice(self.names), self.draw.randrange(len(self.lines) - 3)
        quoted = "\n".join(f"    {line.strip()}" for line in self.lines[at : at + 2])
        return (
            f"{name} of {self.path} gives a wrong result\n\nAfter the last release {name} no "
            f"longer does what its documentation says. It used to.\n\nTraceback (most recent "
            f'call last):\n  File "{self.path}", line {at + 1}, in {name}\n{quoted}\nAssertionError'
            f"\n\nExpected: the documented result. The other functions of the module are fine."
        )

    def turn(self, budget: int) -> tuple[Action, str]:
        """A call and its answer, of roughly at most `budget` tokens."""
        kind = self.draw.choices(("view", "search", "edit", "run_tests", "bash"), (4, 2, 3, 2, 1))[
            0
        ]
        arguments, answer = getattr(self, f"_{kind}")(max(min(budget // 14, 60), 3))
        message = self.draw.choice(THOUGHTS)
        return {"tool": kind, "arguments": arguments, "message": message}, answer

    def _some(self, count: int) -> tuple[int, list[str]]:
        at = self.draw.randrange(max(len(self.lines) - count, 1))
        return at, self.lines[at : at + count]

    def _view(self, most: int) -> tuple[dict[str, Any], str]:
        at, lines = self._some(self.draw.randint(min(8, most), most))
        arguments = {"path": self.path, "view_range": [at + 1, at + len(lines)]}
        return arguments, "\n".join(f"{at + 1 + i:>5}\t{line}" for i, line in enumerate(lines))

    def _search(self, most: int) -> tuple[dict[str, Any], str]:
        name = self.draw.choice(self.names)
        found = [f"{self.path}:{i + 1}:{s}" for i, s in enumerate(self.lines) if name in s]
        return {"query": name}, "\n".join(found[:most])

    def _edit(self, most: int) -> tuple[dict[str, Any], str]:
        at, lines = self._some(min(self.draw.randint(2, 7), most))
        new = [line.replace("self", "this", 1) if i == 1 else line for i, line in enumerate(lines)]
        arguments = {"path": self.path, "old_str": "\n".join(lines), "new_str": "\n".join(new)}
        shown = "\n".join(f"{at + 1 + i:>5}\t{line}" for i, line in enumerate(new))
        return arguments, f"Replaced in {self.path}:\n{shown}"

    def _run_tests(self, most: int) -> tuple[dict[str, Any], str]:
        at, lines = self._some(min(self.draw.randint(4, 14), most))
        name = self.draw.choice(self.names)
        body = "\n".join(f"E   {line}" for line in lines)
        head = f"FAILED tests/test_{Path(self.path).stem}.py::test_{name} - line {at}"
        return {}, f"{head}\n{body}\n1 failed, {self.draw.randrange(5, 80)} passed"

    def _bash(self, most: int) -> tuple[dict[str, Any], str]:
        at, lines = self._some(min(self.draw.randint(3, 20), most))
        return {"command": f"sed -n {at + 1},{at + len(lines)}p {self.path}"}, "\n".join(lines)


def trajectories(tokenizer: Any, pairs: int, seed: int = 0) -> Iterator[Trajectory]:
    """Two for each task, one resolved, one not: `pairs` pairs of 2 x 500 to 4,000 tokens.

    Lengths are stratified: the tasks' log-lengths are evenly spread, each side varies around it.
    """
    draw, chat, schemas = random.Random(seed), ChatTemplate(tokenizer), toolset("default").schemas
    system = FORMAT.system_prompt(schemas)
    paths = modules()
    for task in range(pairs):
        author = Author(draw.choice(paths), draw)
        issue = author.issue()
        first = chat.prompt(episode_messages(system, issue))
        middle = SHORTEST * (LONGEST / SHORTEST) ** ((task + 0.5) / pairs)
        for resolved in (True, False):
            wanted = middle * math.exp(draw.gauss(0, SPREAD))
            wanted = round(min(max(wanted, SHORTEST + 60), LONGEST))
            turns: list[Step] = []
            while _length(turns) < SHORTEST:
                turns = list(_steps(author, chat, first, wanted))
            steps = [
                Step(step_id=1, source="system", message=system),
                Step(step_id=2, source="user", message=issue),
                *turns,
            ]
            yield Trajectory(
                instance_id=f"task-{task:03}", steps=tuple(steps), resolved=resolved,
                finished=True, reward=float(resolved), attempt=int(not resolved),
                tools=tuple(schemas), agent=Agent(name="made"),
            )  # fmt: skip


def _steps(author: Author, chat: ChatTemplate, first: list[int], wanted: int) -> Iterator[Step]:
    """Turns until the next one would not fit, then the submission."""
    last = chat.completion(FORMAT.render({"tool": "submit", "arguments": {}}))
    length, prompt, turn = 0, first, 0
    while True:
        left = wanted - length - len(prompt) - len(last)
        action, answer = author.turn(left)
        reply = FORMAT.render(action)
        said, seen = chat.completion(reply), chat.observation(answer)
        fits = len(said) + len(seen) <= left
        if not fits and left > 120 and len(seen) > 60:
            continue  # another, shorter one
        if not fits:
            action, reply, said, answer = {"tool": "submit", "arguments": {}}, "", last, ""
        yield Step(
            step_id=turn + 3, source="agent", message=reply,
            tool_calls=(ToolCall(function_name=action["tool"], arguments=action["arguments"]),),
            observation=StepObservation(content=answer),
            metrics=Metrics(
                prompt_prefix=length, prompt_token_ids=tuple(prompt),
                completion_token_ids=tuple(said),
            ),
        )  # fmt: skip
        if not fits:
            return
        length += len(prompt) + len(said)
        prompt, turn = seen, turn + 1


def _length(turns: list[Step]) -> int:
    metrics = [turn.metrics for turn in turns if turn.metrics is not None]
    return sum(len(m.prompt_token_ids) + len(m.completion_token_ids) for m in metrics)


def write(found: list[Trajectory], buffer: Path, rows: Path) -> dict[str, Any]:
    """Put trajectories in a replay buffer, and as pairs of ids and masks in a JSON file.

    Gives counts over the pairs: tokens, sampled ones, those of the shared prompts.
    """
    from learners.data.encode import encode

    with ReplayBuffer(buffer) as open_buffer:
        open_buffer.extend(found)
    pairs, counts = (
        [],
        {"pairs": 0, "tokens": 0, "agent_tokens": 0, "prompt_tokens": 0, "longest": 0},
    )
    counts["shortest"] = LONGEST
    for chosen, rejected in zip(found[::2], found[1::2], strict=True):
        sides = [encode(side, None) for side in (chosen, rejected)]
        prompt = min(side.prompt_length for side in sides)
        assert sides[0].input_ids[:prompt] == sides[1].input_ids[:prompt]
        row: dict[str, Any] = {"prompt_ids": sides[0].input_ids[:prompt]}
        for name, side in zip(("chosen", "rejected"), sides, strict=True):
            row[f"{name}_ids"] = side.input_ids[prompt:]
            row[f"{name}_agent"] = [int(sampled) for sampled in side.loss_mask[prompt:]]
            counts["tokens"] += len(side)
            counts["agent_tokens"] += side.num_loss_tokens
            counts["longest"] = max(counts["longest"], len(side))
            counts["shortest"] = min(counts["shortest"], len(side))
        counts["prompt_tokens"] += 2 * prompt
        counts["pairs"] += 1
        pairs.append(row)
    rows.write_text(json.dumps(pairs))
    return counts
