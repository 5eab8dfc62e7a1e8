"""`own_ids`: a buffer's trajectories with no other token ids than the trained model's."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from learners.data.encode import has_ids, without_ids
from learners.training.config import TrainConfig
from swe_env.errors import ConfigError
from swe_env.replay.trajectory import Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_READ = 64
"""Turns of each model whose ids are read back."""
_BEGINNING = 40
"""Characters of a message that are looked for: a parser may have cut its end."""


def own_ids(
    trajectories: Iterable[Trajectory],
    tokenizer: PreTrainedTokenizerBase,
    config: TrainConfig,
    *,
    refuse: bool = True,
    tell: bool = True,
) -> list[Trajectory]:
    """The trajectories, of which those with another tokenizer's ids have none any more.

    Whose the ids are is told by the tokenizer that a record names (`agents.policies.hub.
    fingerprint`); where records of a model name none, as servers' do not, by reading ids back. With
    ``recorded_ids = false`` nothing is checked and no trajectory keeps its ids.

    Args:
        trajectories: A buffer's.
        tokenizer: The trained model's.
        config: Its `recorded_ids` is heeded.
        refuse: Whether a buffer of another tokenizer alone is a mistake, as it is to train on.
        tell: Warn of those without; False where that was done.

    Raises:
        ConfigError: all that have ids have another tokenizer's, so the model is likely a wrong one.
    """
    trajectories = list(trajectories)
    if not config.recorded_ids:
        return [without_ids(one) for one in trajectories]
    recorded = [one for one in trajectories if has_ids(one)]
    others = _others(recorded, tokenizer, tell)
    aside = {id(one) for records in others.values() for one in records}
    if refuse and recorded and all(id(one) in aside for one in recorded):
        raise ConfigError(
            f"The token ids of {next(iter(others))}: train the model that sampled them, with the "
            "chat_template it was given, or learn from the text alone (--set recorded_ids=false)."
        )
    for problem, records in others.items() if tell else ():
        log.warning(
            "The token ids of %s: they are not used, and its text goes through the chat template "
            "(%d of %d trajectories with token ids).",
            problem, len(records), len(recorded),
        )  # fmt: skip
    return [without_ids(one) if id(one) in aside else one for one in trajectories]


def _others(
    recorded: Iterable[Trajectory], tokenizer: PreTrainedTokenizerBase, tell: bool
) -> dict[str, list[Trajectory]]:
    """Those whose ids are another tokenizer's, by whose they are and what is wrong with them."""
    from agents.policies.hub import fingerprint

    ours = fingerprint(tokenizer)
    others: dict[str, list[Trajectory]] = {}
    unnamed: dict[str, list[Trajectory]] = {}
    for trajectory in recorded:
        theirs = trajectory.agent.settings.get("tokenizer")
        who = trajectory.agent.model_name or trajectory.agent.name
        if theirs is None:
            unnamed.setdefault(who, []).append(trajectory)
        elif theirs != ours:
            problem = (
                f"{who} are of another tokenizer or chat template ({theirs}) than this model's "
                f"({ours})"
            )
            others.setdefault(problem, []).append(trajectory)
    for who, records in unnamed.items():
        if problem := _misread(who, records, tokenizer, tell):
            others[problem] = records
    return others


def _misread(
    who: str, records: Sequence[Trajectory], tokenizer: PreTrainedTokenizerBase, tell: bool
) -> str:
    """What is wrong with their ids, where most turns' read as something else than was said."""
    said = [
        (step.message, step.metrics.completion_token_ids)
        for record in records
        for step in record.agent_steps
        if step.metrics and step.metrics.completion_token_ids and step.message.strip()
    ][:_READ]
    if not said and tell:
        log.warning(
            "The records of %s name no tokenizer, and their turns hold no text to compare: nothing "
            "tells whether their token ids are this model's (recorded_ids=false uses none).", who,
        )  # fmt: skip
    alike = sum(
        _bare(message)[:_BEGINNING] in _bare(str(tokenizer.decode(list(ids))))
        for message, ids in said
    )
    if alike >= len(said) / 2:
        return ""
    return (
        f"{who} read as something else than its turns in {len(said) - alike} of {len(said)} of "
        "them with this model's tokenizer"
    )


def _bare(text: str) -> str:
    return "".join(text.split())
