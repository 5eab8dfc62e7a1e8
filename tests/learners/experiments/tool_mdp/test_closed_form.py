"""What entropo.md 4.2 says of 32 trajectories, 8 of them correct: by the losses themselves."""

import pytest
import torch

from learners.experiments.tool_mdp.cells import Cell
from learners.experiments.tool_mdp.data import exhaustive, sampled
from learners.experiments.tool_mdp.policies import Table
from learners.experiments.tool_mdp.training import train_cell
from learners.experiments.tool_mdp.world import table_world
from learners.losses import entropo_dpo

# exp(H over correct) that the reference page gives for smoothing + ties, and for smoothing alone.
EFFECTIVE = {1.0: 3.20, 1.1: 3.47, 2.0: 5.45, 3.0: 6.60}
SMOOTH_ALONE = {1.0: 3.02, 1.1: 3.22, 2.0: 4.64, 3.0: 5.88}


def trained(labels, ratio, *, loss="entropo-dpo", steps=500, learning_rate=0.3):
    world = table_world()
    cell = Cell(loss=loss, labels=labels, gamma=0.1, zeta=0.1 * ratio)
    ((found, *_),) = train_cell(
        Table(world), world, exhaustive(world), cell, steps=steps, learning_rate=learning_rate
    )
    return found


def descended(labels, ratio, *, steps=2000, rate=100.0):
    """Effective correct solutions after plain gradient descent on 300 pairs of the reference."""
    world = table_world()
    pairs = sampled(world, world.target, per_task=300, seed=3).without_ties()
    reference = world.target[0].double()
    logits = reference.clone().requires_grad_()
    for _ in range(steps):
        logps = logits.log_softmax(0)
        loss = entropo_dpo(
            logps[pairs.chosen], logps[pairs.rejected],
            reference[pairs.chosen], reference[pairs.rejected],
            gamma=0.1, zeta=0.1 * ratio, label_smoothing=0.1 if labels == "smooth" else 0.0,
        ).loss  # fmt: skip
        (gradient,) = torch.autograd.grad(loss, logits)
        logits = (logits - rate * gradient).detach().requires_grad_()
    within = logits.detach()[world.correct[0]].softmax(0)
    return float(torch.exp(-(within * within.log()).sum()))


@pytest.mark.parametrize("ratio", SMOOTH_ALONE)
def test_trap_2_smoothing_alone_passes_the_pages_figures_on_its_way(ratio):
    """One policy is best for every pair: the page has a descent that stopped on the way to it."""
    assert descended("smooth", ratio) == pytest.approx(SMOOTH_ALONE[ratio], rel=0.05)


def test_trap_2_smoothing_alone_reaches_the_closed_form():
    found = trained("smooth", 2.0)
    assert found["tv"] <= 0.01
    assert found["effective"] == pytest.approx(found["best/effective"], rel=0.01)
    assert found["effective"] > 1.1 * SMOOTH_ALONE[2.0]


@pytest.mark.parametrize("ratio", [1.0, 3.0])
def test_trap_2_plain_descent_with_hard_labels_leaves_one_solution(ratio):
    assert 1.0 <= descended("hard", ratio, steps=500) < 1.3


@pytest.mark.parametrize("ratio", [0.9, *EFFECTIVE])
def test_trap_2_smoothing_and_ties_reach_the_closed_form(ratio):
    found = trained("smooth+ties", ratio)
    assert found["tv"] <= 0.01
    if ratio in EFFECTIVE:
        assert found["effective"] == pytest.approx(EFFECTIVE[ratio], abs=0.1)


@pytest.mark.parametrize("ratio", [1.0, 3.0])
def test_trap_2_hard_labels_have_no_finite_optimum(ratio):
    """The loss falls without end, the policy leaves the closed form, λ or not."""
    short, long = (trained("hard", ratio, steps=steps) for steps in (200, 600))
    assert long["loss"] < short["loss"] / 2
    assert long["correct"] > 0.999
    assert long["tv"] > 0.05


def test_trap_2_with_hard_labels_the_optimizer_decides_how_many_solutions_are_left():
    slow, fast = (trained("hard", 3.0, learning_rate=rate) for rate in (0.3, 3.0))
    assert fast["effective"] < 1.1
    assert slow["effective"] > 3
    smooth = [trained("smooth+ties", 3.0, learning_rate=rate) for rate in (0.1, 0.3)]
    assert smooth[0]["effective"] == pytest.approx(smooth[1]["effective"], abs=0.1)
