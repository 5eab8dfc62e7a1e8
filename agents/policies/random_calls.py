"""A policy that looks around at random and changes nothing."""

from __future__ import annotations

import random
import re
from typing import Any

from agents.policies.base import BasePolicy, Episode
from swe_env.replay.trajectory import Agent
from swe_env.types import Action

_PATH = re.compile(r"[\w./-]+\.\w+")
_WORD = re.compile(r"[A-Za-z_]\w{3,}")
_READING = frozenset({"view", "search", "run_tests"})


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

    def act(self, episode: Episode) -> Action:
        """A reading call, or now and then the submission."""
        rng = random.Random(f"{episode.seed} {len(episode.turns)}")
        schemas = {tool["function"]["name"]: tool["function"] for tool in episode.tools}
        reading = sorted(_READING & schemas.keys() - (set() if self._tests else {"run_tests"}))
        if "submit" in schemas and (rng.random() < self._submit or not reading):
            return Action(tool="submit", arguments={}, message="")
        name = rng.choice(reading)
        properties = schemas[name].get("parameters", {}).get("properties", {})
        arguments = {
            key: value
            for key in ("path", "query")
            if key in properties and (value := _draw(key, episode, rng)) is not None
        }
        return Action(tool=name, arguments=arguments, message="")


def _draw(key: str, episode: Episode, rng: random.Random) -> Any:
    """A path seen in the last answer, or a word of the issue."""
    if key == "query":
        return rng.choice(sorted(set(_WORD.findall(episode.task.problem_statement))) or ["def "])
    paths = sorted(set(_PATH.findall(episode.observation["text"])))
    return rng.choice(paths) if paths and rng.random() < 0.5 else None
