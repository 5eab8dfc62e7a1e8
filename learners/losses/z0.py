"""Estimates of KTO's reference point z0 = E[S - (gamma / zeta) S_ref] over the policy (Eq. 12).

The expectation is over trajectories of the current policy, which an offline buffer does not have:
every estimate here is an approximation and is named as one. All are detached and all work at
micro-batch 1, because they read a table of each row's latest reward instead of the batch in hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from swe_env.errors import ConfigError


def leave_one_out(rewards: Tensor, groups: Tensor) -> Tensor:
    """Mean reward over the *other* rows of the same group.

    Args:
        rewards: r = S - (gamma / zeta) S_ref, shape (rows,).
        groups: Group (task) number of each row, (rows,), integers from 0.

    Returns:
        (rows,), detached. A row alone in its group has no others and gets the mean over the
        rows of all other groups; a row that is all there is gets its own reward.
    """
    rewards = rewards.detach()
    count = torch.bincount(groups).to(rewards.dtype)[groups]
    total = torch.zeros(int(groups.max()) + 1, dtype=rewards.dtype, device=rewards.device)
    total = total.index_add(0, groups, rewards)[groups]
    others = (rewards.sum() - rewards) / max(len(rewards) - 1, 1)
    alone = others if len(rewards) > 1 else rewards
    return torch.where(count > 1, (total - rewards) / (count - 1).clamp(min=1), alone)


def mismatched(policy_logps: Tensor, ref_logps: Tensor, *, ref_weight: float = 1.0) -> Tensor:
    """KTO's estimate from mismatched prompts and completions (arXiv 2402.01306, section 4.1).

    Args:
        policy_logps: S of completions put behind another task's prompt, shape (batch,).
        ref_logps: the same under the reference, (batch,).
        ref_weight: gamma / zeta, what the reference weighs in r: 1 in the KTO paper and TRL.

    Returns:
        Scalar, detached, cut off at 0 as the KTO paper, TRL and the released EntroPO do. Right for
        zeta = gamma only, where z0 is a KL and so not negative.
    """
    return (policy_logps - ref_weight * ref_logps).detach().mean().clamp(min=0)


class Z0:
    """A running estimate of z0 for the rows of one data set.

    Holds the latest known reward of every row. At step 0 the policy is the reference, so the
    table starts exact at (1 - gamma / zeta) S_ref; later an entry is at most one epoch old.
    """

    def __init__(
        self, rewards: Tensor, groups: Sequence[int], batch_size: int | None = None
    ) -> None:
        """Begin from what is known at step 0.

        Args:
            rewards: Each row's reward now, (rows,).
            groups: Each row's task number.
            batch_size: Rows of a full optimizer batch; None to take every batch for a full one.
        """
        self.rewards = rewards.detach().double().cpu().clone()
        self.full = None if batch_size is None else min(batch_size, len(rewards))
        self.groups = torch.as_tensor(groups, dtype=torch.long)

    def estimate(self, rows: Sequence[int]) -> Tensor:
        """z0 for each of these rows, (rows,) float64, taken before they are trained on."""
        raise NotImplementedError

    def update(self, rows: Sequence[int], rewards: Tensor) -> None:
        """Remember what was just computed for these rows."""
        self.rewards[list(rows)] = rewards.detach().double().cpu()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"rewards": self.rewards.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.rewards = state["rewards"].clone()


class TaskZ0(Z0):
    """Leave-one-out mean over the other trajectories of the same task: ``z0="task"``."""

    def estimate(self, rows: Sequence[int]) -> Tensor:  # noqa: D102 - as in the base class
        return leave_one_out(self.rewards, self.groups)[list(rows)]


class BatchZ0(Z0):
    """Mean over the rows of the optimizer batch: ``z0="batch"``."""

    def estimate(self, rows: Sequence[int]) -> Tensor:  # noqa: D102
        return self.rewards[list(rows)].mean().expand(len(rows))


class EmaZ0(Z0):
    """Moving mean over the buffer: ``z0="ema"``.

    Every row weighs the same: a full batch moves the mean by 0.05, an epoch's smaller last one by
    as much less.
    """

    decay = 0.95

    def __init__(
        self, rewards: Tensor, groups: Sequence[int], batch_size: int | None = None
    ) -> None:
        super().__init__(rewards, groups, batch_size)
        self.mean = self.rewards.mean()

    def estimate(self, rows: Sequence[int]) -> Tensor:  # noqa: D102
        return self.mean.expand(len(rows))

    def update(self, rows: Sequence[int], rewards: Tensor) -> None:  # noqa: D102
        super().update(rows, rewards)
        decay = self.decay ** (len(rows) / (self.full or len(rows)))
        self.mean = decay * self.mean + (1 - decay) * rewards.detach().double().cpu().mean()

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {**super().state_dict(), "mean": self.mean.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        super().load_state_dict(state)
        self.mean = state["mean"].clone()


class ZeroZ0(Z0):
    """No reference point: ``z0="zero"``."""

    def estimate(self, rows: Sequence[int]) -> Tensor:  # noqa: D102
        return torch.zeros(len(rows), dtype=torch.float64)


ESTIMATORS: dict[str, Callable[[Tensor, Sequence[int], int | None], Z0]] = {
    "task": TaskZ0,
    "batch": BatchZ0,
    "ema": EmaZ0,
    "zero": ZeroZ0,
}
"""The estimators that read the table; ``mismatched`` needs forward passes of its own."""


def estimator(
    name: str, rewards: Tensor, groups: Sequence[int], batch_size: int | None = None
) -> Z0:
    """The estimator of that name over these rows; arguments as for `Z0`.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in ESTIMATORS:
        raise ConfigError(f"There is no z0 estimator {name!r}: use {', '.join(ESTIMATORS)}.")
    return ESTIMATORS[name](rewards, groups, batch_size)
