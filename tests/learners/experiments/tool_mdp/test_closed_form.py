"""What entropo.md 4.2 says of 32 trajectories, 8 of them correct: by the losses themselves."""

import pytest

from learners.experiments.tool_mdp.cells import Cell
from learners.experiments.tool_mdp.data import exhaustive
from learners.experiments.tool_mdp.policies import Table
from learners.experiments.tool_mdp.training import train_cell
from learners.experiments.tool_mdp.world import table_world

# exp(H over correct): hard labels, smoothing + ties, as far as the reference page gives them.
EFFECTIVE = {1.0: 3.20, 1.1: 3.47, 2.0: 5.45, 3.0: 6.60}


def trained(labels, ratio, *, loss="entropo-dpo", steps=500, learning_rate=0.3):
    world = table_world()
    cell = Cell(loss=loss, labels=labels, gamma=0.1, zeta=0.1 * ratio)
    ((found, *_),) = train_cell(
        Table(world), world, exhaustive(world), cell, steps=steps, learning_rate=learning_rate
    )
    return found


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
