"""A policy that asks a person at the terminal."""

from __future__ import annotations

import json
import shlex
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from agents.parsing.base import describe_tools
from agents.policies.base import BasePolicy, Episode, EpisodeOver
from swe_env.types import Action

_HELP = """\
TOOL VALUE …       a call: values in the order of the tool's arguments, quoted as in a shell
TOOL KEY=VALUE …   the same by name; KEY=<<END: the lines that follow, up to a line END
! COMMAND          a shell command
{"tool": …}        a call as JSON
?                  this help and the tools
Ctrl-D             stop here; what was changed is graded"""


class HumanPolicy(BasePolicy):
    """A person plays: each turn shows the answer and reads a call; one episode at a time."""

    interactive = True
    """Talks with who sits at the terminal: `swe run` then shows nothing of its own there."""

    def __init__(self, source: TextIO | None = None, shown: TextIO | None = None) -> None:
        """Read calls from `source` (standard input) and write to `shown` (standard error)."""
        self._source = source or sys.stdin
        self._shown = shown or sys.stderr
        self._lock = threading.Lock()

    def act(self, episode: Episode) -> Action:
        """The call that the person types; asks again until it can be read.

        Raises:
            EpisodeOver: the input ended (``human``).
        """
        with self._lock:
            self._say(episode.observation["text"])
            if not episode.turns:
                self._say(f"\n{_HELP}\n\n{describe_tools(episode.tools)}")
            while True:
                self._say(_prompt(episode), end="")
                line = self._source.readline()
                if not line:
                    raise EpisodeOver("human")
                try:
                    if call := self._read(line.strip(), episode.tools):
                        return call
                except ValueError as error:
                    self._say(f"{error} Type ? for help.")

    def _read(self, line: str, tools: Sequence[dict[str, Any]]) -> Action | None:
        """The call in a line, None when there is none to make.

        Raises:
            ValueError: says what is wrong.
        """
        if line == "?":
            self._say(f"{_HELP}\n\n{describe_tools(tools)}")
        if line in ("", "?"):
            return None
        schemas = {tool["function"]["name"]: tool["function"] for tool in tools}
        words: list[str] = []
        arguments: dict[str, Any] = {}
        if line.startswith("{"):
            name, arguments = _written(line)
        elif line.startswith("!"):
            name, key = ("bash", "command") if "bash" in schemas else ("execute_bash", "cmd")
            arguments = {key: line[1:].strip()}
        else:
            name, *words = shlex.split(line)
        if name not in schemas:
            raise ValueError(f"There is no tool {name!r}: {', '.join(schemas)}.")
        return Action(tool=name, arguments=arguments | self._arguments(words, schemas[name]))

    def _arguments(self, words: Sequence[str], schema: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a line's words, by name or in the order of the tool's parameters."""
        kinds = schema.get("parameters", {}).get("properties", {})
        arguments: dict[str, Any] = {}
        for word in words:
            key, named, value = word.partition("=")
            if not named or key not in kinds:
                left = [name for name in kinds if name not in arguments]
                if not left:
                    raise ValueError(f"{word!r} is one value too many.")
                key, value = left[0], word
            arguments[key] = self._value(value, kinds[key])
        return arguments

    def _value(self, text: str, kind: Mapping[str, Any]) -> Any:
        if text.startswith("<<") and len(text) > 2:
            return self._lines(text[2:])
        if kind.get("type") == "string":
            return text
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return text

    def _lines(self, end: str) -> str:
        lines: list[str] = []
        while (line := self._source.readline()) and line.rstrip("\n") != end:
            lines.append(line)
        return "".join(lines).removesuffix("\n")

    def _say(self, text: str, end: str = "\n") -> None:
        self._shown.write(text + end)
        self._shown.flush()


def _prompt(episode: Episode) -> str:
    seen = episode.observation
    failed = f"exit code {seen['exit_code']}, " if seen["exit_code"] else ""
    return f"[{failed}{seen['steps_left']} steps left]> "


def _written(line: str) -> tuple[str, dict[str, Any]]:
    """The tool and arguments of a call that was typed as JSON."""
    found = json.loads(line)
    if not isinstance(found.get("tool"), str):
        raise ValueError('The call has no "tool".')
    arguments = found.get("arguments", {})
    if not isinstance(arguments, dict):
        raise ValueError('The "arguments" are no JSON object.')
    return found["tool"], arguments
