"""Preference data of the tool-MDP: sampled from the reference policy, or every pair there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learners.experiments.tool_mdp.world import World


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of trajectories of one task; each column has shape (pairs,)."""

    task: Tensor
    chosen: Tensor
    rejected: Tensor
    tie: Tensor
    """bool: both are correct, or both wrong."""

    def without_ties(self) -> Pairs:
        """Only correct over wrong."""
        kept = ~self.tie
        return Pairs(self.task[kept], self.chosen[kept], self.rejected[kept], self.tie[kept])

    def seen(self, shape: Sequence[int]) -> Tensor:
        """Bool of that shape (tasks, trajectories): which trajectories stand in a pair."""
        seen = torch.zeros(*shape, dtype=torch.bool)
        seen[self.task, self.chosen] = True
        seen[self.task, self.rejected] = True
        return seen


def side_by_side(parts: Sequence[Pairs], tasks: int) -> Pairs:
    """The data of several policies of `tasks` tasks each, as `World.repeated` numbers the tasks."""
    shifted = [part.task + i * tasks for i, part in enumerate(parts)]
    columns = [torch.cat([getattr(p, n) for p in parts]) for n in ("chosen", "rejected", "tie")]
    return Pairs(torch.cat(shifted), *columns)


def sampled(world: World, reference: Tensor, *, per_task: int, seed: int) -> Pairs:
    """`per_task` pairs of correct over wrong and as many ties, half of either sort, a task.

    Both sides are drawn from the reference, given that they are correct or wrong.

    Args:
        world: The tasks.
        reference: log π_ref of every trajectory, (tasks, trajectories).
        per_task: Pairs of each sort a task.
        seed: Of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    p = reference.double().exp()
    good, bad = p * world.correct, p * ~world.correct

    def draw(weights: Tensor, count: int) -> Tensor:
        return torch.multinomial(weights, count, replacement=True, generator=generator)

    half = per_task // 2
    chosen = [draw(good, per_task), draw(good, half), draw(bad, per_task - half)]
    rejected = [draw(bad, per_task), draw(good, half), draw(bad, per_task - half)]
    tie = torch.arange(2 * per_task) >= per_task
    return Pairs(
        torch.arange(world.tasks).repeat_interleave(2 * per_task),
        torch.cat(chosen, 1).flatten(),
        torch.cat(rejected, 1).flatten(),
        tie.repeat(world.tasks),
    )


def exhaustive(world: World) -> Pairs:
    """Every pair of correct over wrong, and every tie, once."""
    columns: list[Tensor] = []
    for task, correct in enumerate(world.correct):
        good, bad = correct.nonzero()[:, 0], (~correct).nonzero()[:, 0]
        pairs = [(torch.cartesian_prod(good, bad), False)]
        pairs += [(torch.combinations(side), True) for side in (good, bad)]
        for both, tie in pairs:
            flags = torch.full((len(both),), int(tie))
            columns.append(torch.stack([torch.full_like(flags, task), *both.T, flags]))
    task_of, chosen, rejected, ties = torch.cat(columns, 1)
    return Pairs(task_of, chosen, rejected, ties.bool())
