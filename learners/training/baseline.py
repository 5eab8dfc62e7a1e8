"""KTO's z0 during training: one of the table estimators, or the KTO paper's mismatched samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from learners.data.dataset import Sample, mismatched_sequence
from learners.data.encode import Encoded
from learners.losses.z0 import Z0, estimator, mismatched
from learners.training.config import TrainConfig
from learners.training.score import Scorer
from swe_env.errors import ConfigError


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


def mismatches(samples: Sequence[Sample]) -> list[Encoded]:
    """Each sample's first state with the turns of the next sample of another task.

    Raises:
        ConfigError: there is only one task.
    """
    found = []
    for index, sample in enumerate(samples):
        others = [*samples[index + 1 :], *samples[:index]]
        other = next((s for s in others if s.group != sample.group), None)
        if other is None:
            raise ConfigError("z0 'mismatched' needs trajectories of at least two tasks.")
        found.append(mismatched_sequence(sample.sequences[0], other.sequences[0]))
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
) -> Z0:
    """The estimator, exact at step 0 where it reads the table.

    Args:
        name: As in `TrainConfig.z0`.
        samples: KTO rows.
        rewards: Of the rows at step 0, where the policy is the reference, (samples,).
        scorer: Over the policy.
        mismatch: Mismatched sequences and their reference sums, for ``mismatched``.
        ref_weight: gamma / zeta, for the same.
    """
    if mismatch is not None:
        return MismatchedZ0(scorer, *mismatch, ref_weight=ref_weight)
    return estimator(name, rewards, [sample.group for sample in samples])


def state_of(z0: Z0 | None) -> dict[str, Any]:
    """For a checkpoint."""
    return {} if z0 is None else z0.state_dict()
