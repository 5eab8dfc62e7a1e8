"""KTO's z0 during training: one of the table estimators, or the KTO paper's mismatched samples."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from learners.data.dataset import Sample, mismatched_sequence
from learners.data.encode import Encoded
from learners.losses.z0 import Z0, estimator, mismatched
from learners.training.config import TrainConfig
from learners.training.score import Scorer
from swe_env.errors import ConfigError

log = logging.getLogger(__name__)


def check_mismatched(config: TrainConfig, loss: str, zeta: float) -> None:
    """The KTO paper's estimate is clamped at 0, where with lambda > 0 no gradient is left.

    Raises:
        ConfigError: lambda is not 0, and the loss is not the released variant, which clamps.
    """
    if zeta != config.gamma and loss != "entropo-kto-released":
        raise ConfigError(
            f"z0 'mismatched' is clamped at 0, so {loss} needs zeta = gamma with it, not zeta "
            f"{zeta:g} and gamma {config.gamma:g}: choose z0 'task', 'batch', 'ema' or 'zero'."
        )


def mismatches(samples: Sequence[Sample], max_tokens: int) -> list[Encoded]:
    """Each sample's first state with the turns of the next sample of another task that fit.

    A first state that leaves no room for any turns of another task has no mismatched sequence: its
    sample stands with the next one's, as the estimate is a mean over a batch's sequences. How many
    do is logged.

    Args:
        samples: KTO rows.
        max_tokens: The longest context allowed.

    Returns:
        One for each sample.

    Raises:
        ConfigError: there is only one task, or nothing fits at all.
    """
    if len({sample.group for sample in samples}) < 2:
        raise ConfigError("z0 'mismatched' needs trajectories of at least two tasks.")
    sides, nothing = [sample.sequences[0] for sample in samples], Encoded((), (), ())
    starts = [side.prompt_length for side in sides]
    behind = [mismatched_sequence(nothing, side).longest for side in sides]

    def after(row: int) -> Iterator[int]:
        return (at % len(samples) for at in range(row + 1, row + len(samples)))

    def partner(row: int) -> int | None:
        room, own = max_tokens - starts[row], samples[row].group
        return next((n for n in after(row) if samples[n].group != own and behind[n] <= room), None)

    partners = [partner(row) for row in range(len(samples))]
    alone = partners.count(None)
    if alone == len(samples):
        raise ConfigError(
            f"z0 'mismatched' puts one task's turns behind another's first state, and no two fit "
            f"into max_tokens ({max_tokens}): raise it, or choose z0 'task', 'batch', 'ema' or "
            "'zero'."
        )
    if alone:
        log.warning(
            "The first states of %d of %d trajectories leave no room for another task's turns "
            "within max_tokens: z0 'mismatched' takes other trajectories' in their place.",
            alone, len(samples),
        )  # fmt: skip
    found = []
    for row in range(len(samples)):
        at, other = next((n, o) for n in (row, *after(row)) if (o := partners[n]) is not None)
        found.append(mismatched_sequence(sides[at], sides[other]))
    return found


class MismatchedZ0(Z0):
    """KTO's clamped estimate, with a forward pass over the batch's mismatched samples."""

    def __init__(
        self,
        scorer: Scorer,
        sequences: Sequence[Encoded],
        references: Tensor,
        *,
        ref_weight: float,
    ) -> None:
        super().__init__(torch.zeros(len(sequences)), [0] * len(sequences))
        self._scorer = scorer
        self._sequences = sequences
        self._references = references
        self._ref_weight = ref_weight

    def estimate(self, rows: Sequence[int]) -> Tensor:  # noqa: D102 - as in the base class
        logps = self._scorer.all([self._sequences[row] for row in rows]).logps
        z0 = mismatched(logps, self._references[list(rows)], ref_weight=self._ref_weight)
        return z0.expand(len(rows))


def make_z0(
    name: str,
    samples: Sequence[Sample],
    rewards: Tensor,
    *,
    scorer: Scorer,
    mismatch: tuple[Sequence[Encoded], Tensor] | None,
    ref_weight: float,
    batch_size: int,
) -> Z0:
    """The estimator, exact at step 0 where it reads the table.

    Args:
        name: As in `TrainConfig.z0`.
        samples: KTO rows.
        rewards: Of the rows at step 0, where the policy is the reference, (samples,).
        scorer: Over the policy.
        mismatch: Mismatched sequences and their reference sums, for ``mismatched``.
        ref_weight: gamma / zeta, for the same.
        batch_size: Rows of a full optimizer batch.
    """
    if mismatch is not None:
        return MismatchedZ0(scorer, *mismatch, ref_weight=ref_weight)
    return estimator(name, rewards, [sample.group for sample in samples], batch_size)


def state_of(z0: Z0 | None) -> dict[str, Any]:
    """For a checkpoint."""
    return {} if z0 is None else z0.state_dict()
