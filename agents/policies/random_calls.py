"""A policy that looks around at random and changes nothing."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from agents.policies.base import BasePolicy, Episode
from agents.policies.dialect import offered, playable
from swe_env.errors import ConfigError
from swe_env.replay.trajectory import Agent
from swe_env.types import Action

_PATH = re.compile(r"[\w./-]+\.\w+")
_WORD = re.compile(r"[A-Za-z_]\w{3,}")
_READING = {"view": ("path",), "search": ("path", "query"), "run_tests": ()}
"""Tool → arguments that are drawn for it."""


class RandomPolicy(BasePolicy):
    """Draws reading calls from the tools offered, by the episode's seed.

    Args:
        submit: probability of submitting, at each turn.
        tests: whether to run tests, too (they are the slow part).
    """

    def __init__(self, submit: float = 0.1, tests: bool = False) -> None:
        self._submit = submit
        self._tests = tests

    @property
    def agent(self) -> Agent:
        """Name and settings."""
        return Agent(name="random", settings={"submit": self._submit, "tests": self._tests})

    def system_prompt(self, tools: Sequence[dict[str, Any]]) -> str:
        """None.

        Raises:
            ConfigError: there is nothing to look around with, nor a way to submit.
        """
        self._can(tools)
        return ""

    def act(self, episode: Episode) -> Action:
        """A reading call, or now and then the submission.

        Raises:
            ConfigError: there is nothing to look around with, nor a way to submit.
        """
        rng = random.Random(f"{episode.seed} {len(episode.turns)}")
        can = self._can(episode.tools)
        reading = sorted(can - {"submit"})
        if "submit" in can and (rng.random() < self._submit or not reading):
            name, drawn = "submit", {}
        else:
            name = rng.choice(reading)
            values = [(key, _draw(key, episode, rng)) for key in _READING[name]]
            drawn = {key: value for key, value in values if value is not None}
        tool, arguments = offered(name, drawn, episode.tools) or (name, drawn)
        return Action(tool=tool, arguments=arguments, message="")

    def _can(self, tools: Sequence[Mapping[str, Any]]) -> set[str]:
        wanted = {"submit", *_READING} - (set() if self._tests else {"run_tests"})
        if can := wanted & playable(tools):
            return can
        names = ", ".join(tool["function"]["name"] for tool in tools) or "none"
        raise ConfigError(
            f"The policy 'random' can play none of the tools offered ({names}): offer view, search "
            "or submit, or R2E's."
        )


def _draw(key: str, episode: Episode, rng: random.Random) -> Any:
    """A path seen in the last answer, or a word of the issue."""
    if key == "query":
        return rng.choice(sorted(set(_WORD.findall(episode.task.problem_statement))) or ["def "])
    paths = sorted(set(_PATH.findall(episode.observation["text"])))
    return rng.choice(paths) if paths and rng.random() < 0.5 else None
