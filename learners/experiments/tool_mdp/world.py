"""The tool-MDP: a few tools, a hidden state, one observation after each call, and `submit`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from swe_env.errors import ConfigError

MODULUS = 11
"""Hidden states; a trajectory is correct when it submits in its task's goal state."""
TOOLS = ((1, 3), (2, 0), (5, 7), (3, 1))
"""What a call does to the hidden state: ``x → (a x + b) mod MODULUS``, the same in every task."""
OBSERVATIONS = (MODULUS + 1) // 2
"""The observation after a call is ``x // 2``: it tells something of the state, not all."""


@dataclass(frozen=True, slots=True)
class Tree:
    """All that can happen in an episode, as a tree whose nodes are histories of tool calls.

    Nodes are numbered level by level; call `a` in the i-th node of a level leads to the
    (i * tools + a)-th of the next. At each node before the last level the policy calls a tool
    or, once `min_turns` are reached, submits; on the last level only `submit` is left, so that
    costs no decision. A trajectory is the node it submits in: it has depth + 1 turns.
    """

    tools: int
    min_turns: int
    max_turns: int
    """Turns of an episode, the submission included."""

    def level(self, depth: int) -> slice:
        """Where the nodes of that depth stand."""
        start = sum(self.tools**d for d in range(depth))
        return slice(start, start + self.tools**depth)

    @property
    def decisions(self) -> int:
        """How many nodes leave a choice."""
        return int(sum(self.tools**depth for depth in range(self.max_turns - 1)))

    def legal(self) -> Tensor:
        """Bool (decisions, tools + 1): what can be chosen; the last column is `submit`."""
        legal = torch.ones(self.decisions, self.tools + 1, dtype=torch.bool)
        legal[: self.level(self.min_turns - 1).start, -1] = False
        return legal

    def lengths(self) -> Tensor:
        """Turns of every trajectory, (trajectories,), int64."""
        turns = range(self.min_turns, self.max_turns + 1)
        return torch.cat([torch.full((self.tools ** (t - 1),), t) for t in turns])

    def trajectory_logps(self, choice_logps: Tensor) -> Tensor:
        """S of every trajectory from the log-probabilities of the choices.

        Args:
            choice_logps: (tasks, decisions, tools + 1), normalised over what is legal.

        Returns:
            (tasks, trajectories): sums over the policy's own choices, shortest episodes first.
        """
        path = choice_logps.new_zeros(len(choice_logps), 1)
        sums = []
        for depth in range(self.max_turns - 1):
            level = choice_logps[:, self.level(depth)]
            if depth >= self.min_turns - 1:
                sums.append(path + level[..., -1])
            path = (path[..., None] + level[..., :-1]).flatten(1)
        return torch.cat([*sums, path], dim=1)


@dataclass(frozen=True)
class World:
    """Tasks over one tree, with the reference's target and which trajectories are correct."""

    tree: Tree
    correct: Tensor
    """bool (tasks, trajectories)."""
    target: Tensor
    """Log-probability of every trajectory under the skewed reference, (tasks, trajectories)."""
    observations: Tensor
    """Observation on arriving at each node, (tasks, decisions), int64; the root's is unused."""

    @property
    def tasks(self) -> int:
        """How many tasks there are."""
        return len(self.correct)

    def repeated(self, times: int) -> World:
        """The same tasks so many times over, for as many policies that are computed together."""
        columns = (self.correct, self.target, self.observations)
        return World(self.tree, *(column.repeat(times, 1) for column in columns))

    @cached_property
    def target_choices(self) -> Tensor:
        """The target as log-probabilities of choices, (tasks, decisions, tools + 1)."""
        return choices(self.tree, self.target)


def choices(tree: Tree, logps: Tensor) -> Tensor:
    """Log-probabilities of the choices that give the trajectories these log-probabilities.

    Args:
        tree: The tree.
        logps: (tasks, trajectories), normalised.

    Returns:
        (tasks, decisions, tools + 1); -inf where a choice is illegal.
    """
    starts = [tree.tools ** (t - 1) for t in range(tree.min_turns, tree.max_turns + 1)]
    parts = torch.split(logps, starts, dim=1)
    submitted = dict(zip(range(tree.min_turns - 1, tree.max_turns), parts, strict=True))
    below = submitted[tree.max_turns - 1]
    levels = []
    for depth in reversed(range(tree.max_turns - 1)):
        calls = below.reshape(len(below), -1, tree.tools)
        submit = submitted.get(depth, torch.full_like(calls[..., 0], -torch.inf))
        mass = torch.cat([calls, submit[..., None]], dim=-1)
        below = mass.logsumexp(-1)
        levels.append(mass - below[..., None])
    return torch.cat(levels[::-1], dim=1)


def tool_world(*, tasks: int = 4, seed: int = 0) -> World:
    """Three tools, 3 to 5 turns, 117 trajectories a task of which about a tenth are correct.

    The reference target is skewed at every choice and then weighted so that each task is
    solved with probability 0.15. It depends on the seed alone.

    Raises:
        ConfigError: there are not so many tasks.
    """
    tree = Tree(tools=3, min_turns=3, max_turns=5)
    generator = torch.Generator().manual_seed(seed)
    states = [_states(tree, start) for start in range(MODULUS)]
    found: list[tuple[int, int]] = []
    for start in range(MODULUS):
        for goal in range(MODULUS):
            hit = _submitted(tree, states[start]) == goal
            lengths = set(tree.lengths()[hit].tolist())
            if 9 <= int(hit.sum()) <= 13 and len(lengths) == 3:
                found.append((start, goal))
    if not 1 <= tasks <= len(found):
        raise ConfigError(f"The tool-MDP has 1 to {len(found)} tasks, not {tasks}: change `tasks`.")
    order = torch.randperm(len(found), generator=generator).tolist()
    chosen = [found[i] for i in order[:tasks]]
    correct = torch.stack([_submitted(tree, states[s]) == goal for s, goal in chosen])
    observed = torch.stack([states[s][: tree.decisions] // 2 for s, _ in chosen])
    skew = 1.3 * torch.randn(
        tasks, tree.decisions, tree.tools + 1, generator=generator, dtype=torch.float64
    )
    skew = skew.masked_fill(~tree.legal(), -torch.inf).log_softmax(-1)
    target = _weighted(tree.trajectory_logps(skew), correct, 0.15)
    return World(tree, correct, target, observed)


def table_world() -> World:
    """One task of 32 trajectories of equal length, 8 correct, their reference geometric.

    ``exp(H)`` over the correct ones is 3.24 under the reference.
    """
    tree = Tree(tools=2, min_turns=6, max_turns=6)
    generator = torch.Generator().manual_seed(0)
    correct = torch.zeros(1, 32, dtype=torch.bool)
    correct[0, ::4] = True
    logits = torch.randn(1, 32, generator=generator, dtype=torch.float64)
    logits[correct] = -0.8575 * torch.arange(8, dtype=torch.float64)
    target = _weighted(logits.log_softmax(-1), correct, 0.15)
    return World(tree, correct, target, torch.zeros(1, tree.decisions, dtype=torch.long))


def flat(world: World) -> World:
    """The same trajectories behind a single choice, so that a table is one softmax over them."""
    tree = Tree(tools=world.correct.shape[1], min_turns=2, max_turns=2)
    unused = torch.zeros(world.tasks, tree.decisions, dtype=torch.long)
    return World(tree, world.correct, world.target, unused)


def _states(tree: Tree, start: int) -> Tensor:
    """The hidden state at every node of the tree, the last level included."""
    level = torch.tensor([start])
    levels = [level]
    factor, shift = torch.tensor(TOOLS[: tree.tools]).unbind(1)
    for _ in range(tree.max_turns - 1):
        level = ((level[:, None] * factor + shift) % MODULUS).flatten()
        levels.append(level)
    return torch.cat(levels)


def _submitted(tree: Tree, states: Tensor) -> Tensor:
    """The state each trajectory submits in."""
    return states[tree.level(tree.min_turns - 1).start :]


def _weighted(logps: Tensor, correct: Tensor, share: float) -> Tensor:
    """The same distribution within the correct and the wrong, with that share of correct ones."""
    parts = []
    for side, mass in ((correct, share), (~correct, 1 - share)):
        total = logps.masked_fill(~side, -torch.inf).logsumexp(-1, keepdim=True)
        parts.append((logps - total + torch.tensor(mass).log()).masked_fill(~side, -torch.inf))
    return torch.where(correct, parts[0], parts[1])
