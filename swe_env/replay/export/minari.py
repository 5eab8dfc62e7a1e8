"""Minari datasets: texts as observations, calls as JSON actions, written by Minari itself.

Minari keeps what Gymnasium's interface shows: observations, actions, rewards, ends. Tokens, report
and patch have no place there; `instance_id` and `attempt` travel as the episode's reset options.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from swe_env.errors import ConfigError
from swe_env.replay.trajectory import Trajectory

if TYPE_CHECKING:
    from minari.data_collector import EpisodeBuffer

_CHUNK = 256
"""Episodes held in memory at once."""


def write_minari(records: Iterable[Trajectory], dataset_id: str) -> int:
    """Make a Minari dataset of every trajectory that has steps; how many there were.

    An observation that a step lacks (an agent that stopped within a reply) is an empty text. HDF5
    holds no NUL characters in texts: they become U+FFFD.

    Args:
        records: A buffer, a view or any iterable; it is gone through twice.
        dataset_id: Minari's name for it, for example ``swe/quickstart/oracle-v0``; it lies where
            Minari keeps its datasets (``MINARI_DATASETS_PATH``).

    Raises:
        ConfigError: Minari is not installed, or has a dataset of that name, or nothing has steps.
    """
    try:
        import minari
    except ImportError as error:
        raise ConfigError("Minari is missing: pip install 'minari[hdf5,create]' pillow.") from error
    if dataset_id in minari.list_local_datasets():
        raise ConfigError(f"Minari has a dataset {dataset_id} already: choose another name.")
    seen, acted = _space(records)
    episodes = _episodes(records)
    first = list(islice(episodes, _CHUNK))
    if not first:
        raise ConfigError("There is nothing to export: no trajectory has an agent step.")
    dataset = minari.create_dataset_from_buffers(
        dataset_id,
        first,
        observation_space=seen,
        action_space=acted,
        algorithm_name="swe-env",
        description="Episodes of SWE-v0: texts that the agent read, tool calls as JSON.",
        requirements=["swe-env"],
    )
    count = len(first)
    while chunk := list(islice(episodes, _CHUNK)):
        dataset.storage.update_episodes(_numbered(chunk, count))
        count += len(chunk)
    return count


def _numbered(chunk: Sequence[EpisodeBuffer], start: int) -> Iterator[EpisodeBuffer]:
    from dataclasses import replace

    for number, episode in enumerate(chunk, start):
        yield replace(episode, id=number)


def _space(records: Iterable[Trajectory]) -> tuple[Any, Any]:
    """Text spaces that hold every observation and action."""
    from gymnasium.spaces import Text

    spaces = []
    longest, used = [1, 1], (set[str](), set[str]())
    for trajectory in records:
        for k, texts in enumerate((_observations(trajectory), _actions(trajectory))):
            for text in texts:
                longest[k] = max(longest[k], len(text))
                used[k].update(text)
    for length, characters in zip(longest, used, strict=True):
        charset = "".join(sorted(characters)) or " "
        spaces.append(Text(max_length=length, min_length=0, charset=charset))
    return spaces[0], spaces[1]


def _episodes(records: Iterable[Trajectory]) -> Iterator[EpisodeBuffer]:
    from minari.data_collector import EpisodeBuffer

    count = 0
    for trajectory in records:
        steps = len(trajectory.agent_steps)
        if not steps:
            continue
        last = [False] * (steps - 1)
        yield EpisodeBuffer(
            id=count,
            seed=trajectory.seed if trajectory.seed >= 0 else None,
            options={"instance_id": trajectory.instance_id, "attempt": trajectory.attempt},
            observations=_observations(trajectory),
            actions=_actions(trajectory),
            rewards=[0.0] * (steps - 1) + [trajectory.reward],
            terminations=[*last, trajectory.finished],
            truncations=[*last, not trajectory.finished],
            infos={},
        )
        count += 1


def _observations(trajectory: Trajectory) -> list[str]:
    """What the agent read: one text before each action and one after the last."""
    start = [step.message for step in trajectory.steps if step.source == "user"][:1] or [""]
    after = [s.observation.content if s.observation else "" for s in trajectory.agent_steps]
    return [_clean(text) for text in start + after]


def _actions(trajectory: Trajectory) -> list[str]:
    found = []
    for step in trajectory.agent_steps:
        calls = [{"tool": c.function_name, "arguments": c.arguments} for c in step.tool_calls]
        action: dict[str, Any] = {**(calls[0] if calls else {}), "message": step.message}
        if len(calls) > 1:
            action["more"] = calls[1:]
        found.append(_clean(json.dumps(action, ensure_ascii=False)))
    return found


def _clean(text: str) -> str:
    return text.replace("\x00", "\ufffd")
