"""Statements in the words of a language model: from what was observed, checked for leaks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeAlias

import msgspec

from swe_env.cache import cache_dir, digest
from swe_env.errors import ConfigError, ModelError
from swe_env.tasks.leaks import leaked
from swe_env.types import Task

Writer: TypeAlias = Callable[[str], str]
"""From a prompt to the text of an answer."""
Progress = Callable[[str, int, int], None]

PROMPT = """\
You use the Python package {repo} and report what is wrong in its issue tracker.
This is all you saw:

{statement}

Write the issue: a title line, an empty line, then at most 150 words. Say what you did, what came
out and what you expected, with the calls and values above unchanged. You have not read the source:
guess no cause and propose no fix.
"""
_LONGEST = 2000
"""Characters; a longer answer is no issue of 150 words."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Server:
    """An OpenAI-compatible server as a `Writer`; what it answers is kept in the cache."""

    base_url: str
    model: str
    api_key: str = "none"
    timeout: float = 120.0

    def __call__(self, prompt: str) -> str:
        """Its answer.

        Raises:
            ConfigError: the client library is not installed.
            ModelError: the server did not answer.
        """
        kept = cache_dir("statements") / f"{digest([self.base_url, self.model, prompt])}.json"
        if kept.is_file():
            return msgspec.json.decode(kept.read_bytes(), type=str)
        text = self._ask(prompt)
        kept.write_bytes(msgspec.json.encode(text))
        return text

    def _ask(self, prompt: str) -> str:
        try:
            import openai
        except ImportError as error:
            raise ConfigError(
                "An LM server needs the package openai: install it with `pip install "
                "'swe-env[agents]'`."
            ) from error
        client = openai.OpenAI(
            base_url=self.base_url, api_key=self.api_key, timeout=self.timeout, max_retries=2
        )
        try:
            answer = client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": prompt}],
                temperature=0.0,
                seed=0,
            )
        except openai.OpenAIError as error:
            raise ModelError(
                f"{self.base_url} did not answer ({error}): check that the server runs and serves "
                f"{self.model!r}."
            ) from error
        return answer.choices[0].message.content or "" if answer.choices else ""


def reword(
    tasks: Sequence[Task],
    writer: Writer,
    *,
    name: str = "",
    tries: int = 3,
    workers: int = 8,
    progress: Progress | None = None,
) -> list[Task]:
    """The tasks with statements that `writer` worded.

    It is shown a task's statement and its package's name, and nothing of the answer. A text that
    stands a line of the gold patch or the name of a hidden test in, or that is no issue, is asked
    for again, and after `tries` the task's own statement stays; ``metadata["statement"]`` tells
    which it is, and keeps the original.

    Args:
        tasks: whose `problem_statement` tells what was observed.
        writer: for example `Server`.
        name: of the model, for the record.
        tries: how often to ask.
        workers: tasks at once.
        progress: called after each task.

    Raises:
        ModelError: the server failed.
    """

    def one(task: Task) -> Task:
        prompt = PROMPT.format(repo=task.repo, statement=task.problem_statement.strip())
        reason = ""
        for attempt in range(tries):
            # A server at temperature 0 repeats itself: the second time it is told why.
            hint = f"\n(Not like this: your last answer {reason}. Version {attempt + 1}.)\n"
            text = writer(prompt + hint if attempt else prompt).strip()
            reason = _fault(text, task)
            if not reason:
                note = {"by": name or "model", "observed": task.problem_statement}
                return _noted(task, text + "\n", note)
        _log.info("%s keeps its own statement: the model's %s.", task.instance_id, reason)
        return _noted(task, task.problem_statement, {"by": "template", "refused": reason})

    done: list[Task] = []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for task in pool.map(one, tasks):
            done.append(task)
            if progress:
                progress("statements", len(done), len(tasks))
    return done


def _fault(text: str, task: Task) -> str:
    if not text:
        return "is empty"
    if len(text) > _LONGEST:
        return "is too long"
    return "quotes the answer" if leaked(text, task.patch, task.FAIL_TO_PASS) else ""


def _noted(task: Task, statement: str, note: dict[str, str]) -> Task:
    metadata = {**task.metadata, "statement": note}
    return replace(task, problem_statement=statement, metadata=metadata)
