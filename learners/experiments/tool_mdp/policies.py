"""The policies: a table of logits, and 2-layer transformers run once over the whole tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from learners.experiments.tool_mdp.world import OBSERVATIONS, Tree, World


class Policy(Protocol):
    """A module that gives the logits of all choices in all tasks."""

    def __call__(self) -> Tensor:
        """Logits, (tasks, decisions, tools + 1)."""
        ...


def choice_logps(logits: Tensor, tree: Tree, temperature: float = 1.0) -> Tensor:
    """Log-probabilities of the choices, of what is legal alone; sampled at that temperature."""
    return (logits / temperature).masked_fill(~tree.legal(), -torch.inf).log_softmax(-1)


class Table(nn.Module):
    """A softmax of its own for every history of every task: nothing is shared."""

    def __init__(self, world: World) -> None:
        """Starts as the world's reference target."""
        super().__init__()
        start = world.target_choices.masked_fill(~world.tree.legal(), 0.0)
        self.logits = nn.Parameter(start.clone())

    def forward(self) -> Tensor:  # noqa: D102 - see Policy
        return self.logits


class TreeTransformer(nn.Module):
    """A causal pre-norm transformer over the task, then call, observation, call, and so on.

    All histories of a task share their prefixes, so the sequence is the tree itself: a token
    attends to itself and to the tokens before it in its own history, which gives the very
    logits that each history would get on its own, at a tenth of the tokens.
    """

    def __init__(self, world: World, *, width: int = 32, heads: int = 2, layers: int = 2) -> None:
        super().__init__()
        self.heads = heads
        tokens, positions, mask, reads = _layout(world)
        for name, value in (("tokens", tokens), ("positions", positions), ("mask", mask)):
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("reads", reads, persistent=False)
        vocabulary = world.tasks + world.tree.tools + OBSERVATIONS
        self.embed = nn.Embedding(vocabulary, width)
        self.place = nn.Embedding(int(positions.max()) + 1, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, world.tree.tools + 1)

    def forward(self) -> Tensor:  # noqa: D102 - see Policy
        tokens, mask, reads = (self.get_buffer(n) for n in ("tokens", "mask", "reads"))
        x = self.embed(tokens) + self.place(self.get_buffer("positions"))
        for block in self.blocks:
            x = block(x, mask)
        logits: Tensor = self.head(self.norm(x[:, reads]))
        return logits


class Ensemble(nn.Module):
    """Several transformers of one shape, one a seed, computed together as one batch.

    Their tasks stand one after the other: its world is ``world.repeated(models)``. No parameter
    is shared, so a sum of losses trains each as it would be trained alone.
    """

    def __init__(self, world: World, seeds: Sequence[int]) -> None:
        super().__init__()
        models = []
        for seed in seeds:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                models.append(TreeTransformer(world))
        parameters, _ = stack_module_state(models)
        self.names = list(parameters)
        self.stacked = nn.ParameterList(p.detach().clone() for p in parameters.values())
        # In a tuple, so that its own parameters are not taken for the ensemble's.
        self._shape = (models[0],)

    def forward(self) -> Tensor:  # noqa: D102 - see Policy
        def one(parameters: dict[str, Tensor]) -> Tensor:
            logits: Tensor = functional_call(self._shape[0], parameters, ())
            return logits

        found: Tensor = vmap(one)(dict(zip(self.names, self.stacked, strict=True)))
        return found.flatten(0, 1)


class Block(nn.Module):
    """Attention and a feed-forward layer, each behind a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.between = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """X (tasks, tokens, width) → the same; mask (tokens, tokens), added to the scores."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.before(x)).chunk(3, dim=-1)
        )
        # Two matrix products: at these sizes quicker on a CPU than the fused kernel.
        scores = (q * k.shape[-1] ** -0.5) @ k.transpose(-1, -2) + mask
        seen = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + self.out(seen)
        result: Tensor = x + self.down(F.relu(self.up(self.between(x))))
        return result


def _layout(world: World) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens (tasks, n), positions (n,), additive mask (n, n), and where each choice is read.

    Token 0 is the task; node i > 0 has its call at 2 i - 1 and its observation at 2 i.
    """
    tree = world.tree
    nodes = tree.decisions
    length = 2 * nodes - 1
    tokens = torch.empty(world.tasks, length, dtype=torch.long)
    tokens[:, 0] = torch.arange(world.tasks)
    positions = torch.zeros(length, dtype=torch.long)
    sees = torch.zeros(length, length, dtype=torch.bool)
    sees[0, 0] = True
    for node in range(1, nodes):
        parent, call = divmod(node - 1, tree.tools)
        tokens[:, 2 * node - 1] = world.tasks + call
        tokens[:, 2 * node] = world.tasks + tree.tools + world.observations[:, node]
        sees[2 * node - 1] = sees[2 * parent]
        sees[2 * node - 1, 2 * node - 1] = True
        sees[2 * node] = sees[2 * node - 1]
        sees[2 * node, 2 * node] = True
        positions[2 * node - 1] = positions[2 * parent] + 1
        positions[2 * node] = positions[2 * parent] + 2
    mask = torch.zeros(length, length).masked_fill(~sees, -torch.inf)
    return tokens, positions, mask, torch.arange(0, length, 2)
