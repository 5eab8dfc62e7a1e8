"""A policy that asks a person at the terminal."""

from __future__ import annotations

import json
import shlex
import sys
import threading
from collections.abc import Sequence
from typing import Any, TextIO

from agents.parsing.base import describe_tools
from agents.policies.base import BasePolicy, Episode, EpisodeOver
from swe_env.types import Action

_HELP = """\
TOOL KEY=VALUE …   a call; quote values as in a shell
TOOL KEY=<<END …   the value is the lines that follow, up to a line END
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
                self._say(f"[{episode.observation['steps_left']} steps left]> ", end="")
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
        if line.startswith("!"):
            shell = "bash" if "bash" in schemas else "execute_bash"
            return Action(tool=shell, arguments={"command": line[1:].strip()})
        if line.startswith("{"):
            found = json.loads(line)
            if not isinstance(found.get("tool"), str):
                raise ValueError('The call has no "tool".')
            return Action(tool=found["tool"], arguments=dict(found.get("arguments", {})))
        name, *words = shlex.split(line)
        if name not in schemas:
            raise ValueError(f"There is no tool {name!r}: {', '.join(schemas)}.")
        kinds = schemas[name].get("parameters", {}).get("properties", {})
        return Action(tool=name, arguments=dict(self._argument(word, kinds) for word in words))

    def _argument(self, word: str, kinds: dict[str, Any]) -> tuple[str, Any]:
        key, found, value = word.partition("=")
        if not found:
            raise ValueError(f"{word!r} is not KEY=VALUE.")
        if value.startswith("<<") and len(value) > 2:
            return key, self._lines(value[2:])
        if kinds.get(key, {}).get("type") == "string":
            return key, value
        try:
            return key, json.loads(value)
        except json.JSONDecodeError:
            return key, value

    def _lines(self, end: str) -> str:
        lines: list[str] = []
        while (line := self._source.readline()) and line.rstrip("\n") != end:
            lines.append(line)
        return "".join(lines).removesuffix("\n")

    def _say(self, text: str, end: str = "\n") -> None:
        self._shown.write(text + end)
        self._shown.flush()
