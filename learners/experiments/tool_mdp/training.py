"""Training in the tool-MDP: the reference by imitation, a cell by its loss, both on all there is.

Every step sees all pairs: with the whole tree computed at once a batch costs no less.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler

from learners.experiments.tool_mdp.cells import SMOOTHING, TEMPERATURES, Cell
from learners.experiments.tool_mdp.data import Pairs
from learners.experiments.tool_mdp.optimum import figures, implied_reward, optimum
from learners.experiments.tool_mdp.policies import choice_logps
from learners.experiments.tool_mdp.world import World
from learners.losses import get_loss
from learners.losses.z0 import leave_one_out

Method = Literal["adam", "descent"]


def trajectory_logps(policy: nn.Module, world: World, temperature: float = 1.0) -> Tensor:
    """S of every trajectory under the policy, (tasks, trajectories)."""
    choices = choice_logps(policy(), world.tree, temperature)
    return world.tree.trajectory_logps(choices)


def imitate(policy: nn.Module, world: World, *, steps: int, learning_rate: float) -> None:
    """Make the policy the reference: least cross-entropy to the world's target, in place.

    The loss is a sum over the tasks, so that models side by side do not change one another's.
    """
    target = world.target.exp()
    optimizer, schedule = _optimizer("adam", policy, steps, learning_rate)
    for _ in range(steps):
        loss = -(target * trajectory_logps(policy, world)).sum()
        _step(loss, optimizer, schedule)


def train_cell(
    policy: nn.Module,
    world: World,
    pairs: Pairs,
    cell: Cell,
    *,
    steps: int,
    learning_rate: float,
    models: int = 1,
    method: Method = "adam",
) -> list[list[dict[str, float]]]:
    """Train reference policies, in place, and measure them against the closed form.

    Args:
        policy: Starts as π_ref.
        world: The tasks, those of one model after the other.
        pairs: The data; KTO takes both sides of the pairs that are no ties as rows.
        cell: What to minimise.
        steps: Steps over all the data.
        learning_rate: Of Adam at the start, from where it falls to 0 as half a cosine; of descent
            throughout, and for each pair: ties take nothing from what the others move.
        models: How many models the policy is, each with its own share of world and pairs.
        method: Adam, or plain gradient descent on the sum over the pairs.

    Returns:
        For each model its figures at each sampling temperature (1 alone where λ is not 0), with
        ``temperature``, the last ``loss`` (a mean over the models), ``unseen/correct`` and
        ``unseen/wrong`` (the mass on such trajectories as stand in none of the pairs and ties
        the cell uses, which no loss holds) and the closed form's own figures as ``best/…``.
    """
    with torch.no_grad():
        reference = trajectory_logps(policy, world)
    objective = _pair_objective if cell.loss == "entropo-dpo" else _row_objective
    used = pairs if cell.labels == "smooth+ties" else pairs.without_ties()
    optimizer, schedule = _optimizer(method, policy, steps, learning_rate)
    loss = torch.zeros(())
    # The mean over all rows is a mean over models; each is to see its own loss's gradient.
    scale = models if method == "adam" else len(used.task)
    for _ in range(steps):
        loss = objective(trajectory_logps(policy, world), reference, used, cell)
        _step(loss * scale, optimizer, schedule)
    best = optimum(
        reference.double(), world.correct,
        gamma=cell.gamma, zeta=cell.zeta, reward=implied_reward(SMOOTHING),
    )  # fmt: skip
    unseen = ~used.seen(world.correct.shape)
    results: list[list[dict[str, float]]] = [[] for _ in range(models)]
    for temperature in TEMPERATURES if cell.gamma == cell.zeta else (1.0,):
        with torch.no_grad():
            logps = trajectory_logps(policy, world, temperature)
        columns = (logps, best, world.correct, unseen)
        shares = zip(*(column.chunk(models) for column in columns), strict=True)
        for found, (mine, ideal, correct, outside) in zip(results, shares, strict=True):
            at_best = figures(ideal, ideal, correct, world.tree.lengths())
            loose = mine.double().exp() * outside
            found.append(
                {"temperature": temperature, "loss": float(loss.detach())}
                | figures(mine, ideal, correct, world.tree.lengths())
                | {"unseen/correct": float((loose * correct).sum(-1).mean())}
                | {"unseen/wrong": float((loose * ~correct).sum(-1).mean())}
                | {f"best/{name}": value for name, value in at_best.items()}
            )
    return results


def _pair_objective(logps: Tensor, reference: Tensor, pairs: Pairs, cell: Cell) -> Tensor:
    """EntroPO-DPO over the pairs."""
    return get_loss(cell.loss)(
        policy_chosen_logps=logps[pairs.task, pairs.chosen],
        policy_rejected_logps=logps[pairs.task, pairs.rejected],
        ref_chosen_logps=reference[pairs.task, pairs.chosen],
        ref_rejected_logps=reference[pairs.task, pairs.rejected],
        gamma=cell.gamma, zeta=cell.zeta, tie=pairs.tie,
        label_smoothing=0.0 if cell.labels == "hard" else SMOOTHING,
    ).loss  # fmt: skip


def _row_objective(logps: Tensor, reference: Tensor, pairs: Pairs, cell: Cell) -> Tensor:
    """EntroPO-KTO over both sides of the pairs, z0 = "task" with every reward up to date."""
    task = pairs.task.repeat(2)
    trajectory = torch.cat([pairs.chosen, pairs.rejected])
    policy_logps, ref_logps = logps[task, trajectory], reference[task, trajectory]
    rewards = policy_logps.detach() - cell.gamma / cell.zeta * ref_logps
    return get_loss(cell.loss)(
        policy_logps=policy_logps, ref_logps=ref_logps,
        desirable=torch.arange(len(task)) < len(pairs.task),
        gamma=cell.gamma, zeta=cell.zeta, z0=leave_one_out(rewards, task),
    ).loss  # fmt: skip


def _optimizer(
    method: Method, policy: nn.Module, steps: int, learning_rate: float
) -> tuple[Optimizer, LRScheduler]:
    if method == "descent":
        descent = SGD(policy.parameters(), lr=learning_rate)
        return descent, ConstantLR(descent, factor=1.0)
    adam = Adam(policy.parameters(), lr=learning_rate, fused=True)
    return adam, CosineAnnealingLR(adam, steps)


def _step(loss: Tensor, optimizer: Optimizer, schedule: LRScheduler) -> None:
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()
    schedule.step()
