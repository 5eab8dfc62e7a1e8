import itertools
import math

import pytest
import torch

from learners.experiments.tool_mdp.optimum import figures, optimum
from learners.experiments.tool_mdp.policies import Table, TreeTransformer, choice_logps
from learners.experiments.tool_mdp.training import imitate, trajectory_logps
from learners.experiments.tool_mdp.world import (
    MODULUS,
    TOOLS,
    Tree,
    World,
    choices,
    table_world,
    tool_world,
)


def effective(logps, correct):
    within = logps.masked_fill(~correct, -torch.inf).log_softmax(-1)
    return torch.special.entr(within.exp()).sum(-1).exp()


def test_the_world_is_what_the_experiment_promises():
    world = tool_world(tasks=8)
    lengths = world.tree.lengths()
    assert world.correct.shape == (8, 9 + 27 + 81)
    assert lengths.bincount().tolist() == [0, 0, 0, 9, 27, 81]
    for correct, target in zip(world.correct, world.target, strict=True):
        assert 9 <= correct.sum() <= 13
        assert set(lengths[correct].tolist()) == {3, 4, 5}
        assert target.exp().sum().item() == pytest.approx(1)
        assert target.exp()[correct].sum().item() == pytest.approx(0.15)
        assert effective(target, correct) < 0.8 * correct.sum()  # skewed
    assert torch.equal(world.target, tool_world(tasks=8).target)
    assert not torch.equal(world.target, tool_world(tasks=8, seed=1).target)


def test_enumeration_follows_the_tools_one_call_at_a_time():
    """The correct trajectories of a task are those whose calls lead to one and the same state."""
    world = tool_world(tasks=1)
    calls = [c for n in (2, 3, 4) for c in itertools.product(range(3), repeat=n)]

    def end(start, called):
        for a, b in (TOOLS[call] for call in called):
            start = (a * start + b) % MODULUS
        return start

    correct = set(world.correct[0].nonzero()[:, 0].tolist())
    matching = [
        (start, goal)
        for start in range(MODULUS)
        for goal in range(MODULUS)
        if {i for i, c in enumerate(calls) if end(start, c) == goal} == correct
    ]
    assert len(matching) == 1


def test_log_probabilities_of_trajectories_are_sums_over_their_choices():
    tree = Tree(tools=2, min_turns=2, max_turns=3)
    logits = torch.randn(1, tree.decisions, 3, generator=torch.Generator().manual_seed(0))
    logps = choice_logps(logits, tree)
    root, left, right = logps[0]
    expected = [root[0] + left[2], root[1] + right[2], root[0] + left[0], root[0] + left[1],
                root[1] + right[0], root[1] + right[1]]  # fmt: skip
    found = tree.trajectory_logps(logps)[0]
    torch.testing.assert_close(found, torch.stack(expected))
    assert found.exp().sum().item() == pytest.approx(1)
    assert root[2] == -math.inf  # too early to submit


@pytest.mark.parametrize("world", [tool_world(tasks=2), table_world()])
def test_choices_give_back_their_trajectories(world: World):
    again = world.tree.trajectory_logps(choices(world.tree, world.target))
    torch.testing.assert_close(again, world.target)
    torch.testing.assert_close(trajectory_logps(Table(world), world), world.target)


def test_the_tree_in_one_pass_is_every_history_on_its_own():
    world = tool_world(tasks=3)
    torch.manual_seed(0)
    policy = TreeTransformer(world)
    together = policy()
    tokens, positions = policy.get_buffer("tokens"), policy.get_buffer("positions")
    mask = policy.get_buffer("mask")
    for node in (0, 1, 5, 17, 39):
        seen = (mask[2 * node] == 0).nonzero()[:, 0]
        assert positions[seen].tolist() == list(range(len(seen)))
        x = policy.embed(tokens[:, seen]) + policy.place(torch.arange(len(seen)))
        causal = torch.full((len(seen), len(seen)), -torch.inf).triu(1)
        for block in policy.blocks:
            x = block(x, causal)
        alone = policy.head(policy.norm(x[:, -1]))
        torch.testing.assert_close(together[:, node], alone, atol=1e-5, rtol=1e-5)


def test_a_transformer_can_become_the_reference():
    world = tool_world(tasks=2)
    torch.manual_seed(0)
    policy = TreeTransformer(world)
    imitate(policy, world, steps=150, learning_rate=1e-2)
    with torch.no_grad():
        gap = 0.5 * (trajectory_logps(policy, world).exp() - world.target.exp()).abs().sum(-1)
    assert gap.max() < 0.2


def test_the_optimum_maximises_the_objective():
    """Eq. 2: no step away from Eq. 9 gains reward - γ KL + λ entropy."""
    world, gamma, zeta, reward = table_world(), 0.1, 0.2, 2.2
    best = optimum(world.target, world.correct, gamma=gamma, zeta=zeta, reward=reward)

    def value(logits):
        logp = logits.log_softmax(-1)
        p = logp.exp()
        kl, entropy = (p * (logp - world.target)).sum(), -(p * logp).sum()
        return reward * p[world.correct].sum() - gamma * kl + (zeta - gamma) * entropy

    logits = best.clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(logits), logits)
    assert slope.abs().max() < 1e-9
    assert value(best) > value(best + 0.1 * torch.randn(32, dtype=torch.float64))


def test_figures_of_a_known_policy():
    correct = torch.tensor([[True, True, False, False]])
    policy = torch.tensor([[0.25, 0.25, 0.5, 0.0]]).log()
    found = figures(policy, torch.full((1, 4), 0.25).log(), correct, torch.tensor([3, 5, 3, 3]))
    assert found["effective"] == pytest.approx(2)
    assert found["correct"] == pytest.approx(0.5)
    assert found["tv"] == pytest.approx(0.25)
    assert found["kl"] == pytest.approx(0.5 * math.log(2))
    assert found["pass@4"] == pytest.approx(1 - 0.5**4)
    assert found["distinct@16"] == pytest.approx(2 * (1 - 0.75**16))
    assert found["turns"] == pytest.approx(4)
