"""What entropo.md 4.2 says of 32 trajectories, 8 of them correct: by the losses themselves."""

import json
import math
import statistics
from pathlib import Path

import pytest
import torch

from learners.experiments.tool_mdp.cells import Cell
from learners.experiments.tool_mdp.data import exhaustive
from learners.experiments.tool_mdp.policies import Table
from learners.experiments.tool_mdp.run import Job, Settings, run_job
from learners.experiments.tool_mdp.summary import EARLIER, interval
from learners.experiments.tool_mdp.training import train_cell
from learners.experiments.tool_mdp.world import table_world
from learners.losses import get_loss

RESULTS = Path(__file__).parents[4] / "benchmarks" / "results"
TIES = EARLIER["smooth+ties"]


def trained(labels, ratio, *, loss="entropo-dpo", steps=500, learning_rate=0.3):
    world = table_world()
    cell = Cell(loss=loss, labels=labels, gamma=0.1, zeta=0.1 * ratio)
    ((found, *_),) = train_cell(
        Table(world), world, exhaustive(world), cell, steps=steps, learning_rate=learning_rate
    )
    return found


@pytest.mark.parametrize(
    ("labels", "tolerance"), [("hard", 0.0), ("smooth", 0.25), ("smooth+ties", 0.15)]
)
def test_trap_2_descent_on_drawn_pairs_gives_the_pages_figures(labels, tolerance):
    """In the mean over five draws, at ζ/γ = 2, by one rate and number of steps for all labels."""
    cell = Cell(loss="entropo-dpo", labels=labels, gamma=0.1, zeta=0.2)
    seeds = run_job(Job("table-drawn", cell), Settings())["seeds"]
    mean = statistics.fmean(found["effective"] for found, *_ in seeds)
    low, high = EARLIER[labels][2.0]
    assert low - tolerance < mean < high + tolerance


def test_trap_2_the_stored_grid_has_each_of_the_pages_figures_where_one_more_draw_would_lie():
    stored = json.loads((RESULTS / "tool_mdp.json").read_text())["earlier_trial"]
    assert [(r["labels"], r["ratio"]) for r in stored] == [
        (n, r) for n in EARLIER for r in EARLIER[n]
    ]
    for row in stored:
        mean, half = interval(row["effective"])
        low, high = row["earlier"]
        reach = half * math.sqrt(len(row["effective"]) + 1)
        assert low - reach < mean < high + reach


@pytest.mark.parametrize("loss", ["entropo-kto", "entropo-kto-released"])
@pytest.mark.parametrize("epsilon", [0.1, 0.5])
def test_labels_flipped_at_random_only_scale_ktos_gradient(loss, epsilon):
    """So the grid has KTO with hard labels alone; at ε = 1/2, a tie's, nothing is left."""
    reference, desirable = -torch.arange(1.0, 7.0), torch.arange(6) % 2 == 0

    def slope(flipped):
        logps = (0.9 * reference).requires_grad_()
        values = [
            get_loss(loss)(
                policy_logps=logps, ref_logps=reference, desirable=labels,
                gamma=0.1, zeta=0.2, z0=-1.0,
            ).loss
            for labels in (desirable, ~desirable)
        ]  # fmt: skip
        ((1 - flipped) * values[0] + flipped * values[1]).backward()
        return logps.grad

    assert slope(0.0).abs().min() > 0
    torch.testing.assert_close(slope(epsilon), (1 - 2 * epsilon) * slope(0.0))


def test_trap_2_smoothing_alone_reaches_the_closed_form():
    found = trained("smooth", 2.0)
    assert found["tv"] <= 0.01
    assert found["effective"] == pytest.approx(found["best/effective"], rel=0.01)
    assert found["effective"] > 1.1 * EARLIER["smooth"][2.0][1]


@pytest.mark.parametrize("ratio", [0.9, *TIES])
def test_trap_2_smoothing_and_ties_reach_the_closed_form(ratio):
    found = trained("smooth+ties", ratio)
    assert found["tv"] <= 0.01
    if ratio in TIES:
        assert TIES[ratio][0] - 0.1 < found["effective"] < TIES[ratio][1] + 0.1


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
