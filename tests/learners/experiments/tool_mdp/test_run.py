import json
import math
from pathlib import Path

import pytest
import torch

from agents.viewer.svg import COLOURS
from learners.experiments.commands import tool_mdp
from learners.experiments.tool_mdp import Settings, page, run_tool_mdp
from learners.experiments.tool_mdp import run as running
from learners.experiments.tool_mdp.cells import LABELS, RATIOS, SMOOTHING, Cell, grid
from learners.experiments.tool_mdp.data import Pairs, exhaustive, sampled, side_by_side
from learners.experiments.tool_mdp.policies import Ensemble, Table, TreeTransformer
from learners.experiments.tool_mdp.summary import COMPARED, interval, student, summarize
from learners.experiments.tool_mdp.tables import COLUMNS, POLICIES, tables
from learners.experiments.tool_mdp.training import imitate, train_cell, trajectory_logps
from learners.experiments.tool_mdp.world import flat, table_world, tool_world
from learners.losses import entropo_dpo
from swe_env.errors import ConfigError

RESULTS = Path(__file__).parents[4] / "benchmarks" / "results"
QUICK = Settings(seeds=2, tasks=1, pairs_per_task=10, steps=1, reference_steps=1, table_steps=1)


def test_every_cell_stands_beside_its_control():
    cells = {cell.name: cell for cell in grid()}
    assert len(cells) == 50
    for cell in cells.values():
        assert cell.control.name in cells
        assert cell.control.gamma == cell.control.zeta == cell.zeta
    for loss in ("entropo-dpo", "entropo-kto", "entropo-kto-released"):
        mine = [c for c in cells.values() if c.loss == loss and c.labels == "hard"]
        at = [cell.zeta / 0.1 for cell in mine if cell.gamma == 0.1]
        assert sorted(at) == pytest.approx(RATIOS)


def test_pairs_are_drawn_from_the_reference_within_a_task():
    world = tool_world(tasks=2)
    pairs = sampled(world, world.target, per_task=200, seed=0)
    assert pairs.task.bincount().tolist() == [400, 400]
    assert int(pairs.tie.sum()) == 400
    good, bad = (world.correct[pairs.task, side] for side in (pairs.chosen, pairs.rejected))
    assert bool(good[~pairs.tie].all())
    assert not bool(bad[~pairs.tie].any())
    assert torch.equal(good[pairs.tie], bad[pairs.tie])
    first = world.target[0].masked_fill(~world.correct[0], -math.inf).softmax(0)
    drawn = pairs.chosen[(pairs.task == 0) & ~pairs.tie].bincount(minlength=117) / 200
    assert 0.5 * (drawn - first).abs().sum() < 0.15


def test_exhaustive_pairs_are_every_pair_once():
    pairs = exhaustive(table_world())
    assert int((~pairs.tie).sum()) == 8 * 24
    assert int(pairs.tie.sum()) == 8 * 7 // 2 + 24 * 23 // 2
    both = zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True)
    unordered = {frozenset(pair) for pair in both}
    assert len(unordered) == 32 * 31 // 2


def test_seeds_side_by_side_are_seeds_alone():
    """A model of an ensemble imitates and learns as it would by itself."""
    world, steps = tool_world(tasks=2), {"steps": 3, "learning_rate": 1e-3}
    cell = Cell(loss="entropo-dpo", labels="smooth+ties", gamma=0.1, zeta=0.2)
    drawn: list[Pairs] = [sampled(world, world.target, per_task=20, seed=s) for s in (0, 1)]
    both, twice = Ensemble(world, (5, 6)), world.repeated(2)
    imitate(both, twice, **steps)
    found = train_cell(both, twice, side_by_side(drawn, 2), cell, models=2, **steps)
    with torch.random.fork_rng():
        torch.manual_seed(6)
        alone = TreeTransformer(world)
    imitate(alone, world, **steps)
    expected = train_cell(alone, world, drawn[1], cell, **steps)
    torch.testing.assert_close(
        trajectory_logps(both, twice)[2:], trajectory_logps(alone, world), atol=1e-4, rtol=1e-4
    )
    assert found[1][0]["kl"] == pytest.approx(expected[0][0]["kl"], rel=1e-3)
    assert found[0][0]["kl"] != pytest.approx(expected[0][0]["kl"], rel=1e-3)


def test_descent_takes_the_gradient_of_the_sum_over_each_draws_own_pairs():
    one = flat(table_world())
    cell = Cell(loss="entropo-dpo", labels="smooth+ties", gamma=0.1, zeta=0.2)
    drawn = [sampled(one, one.target, per_task=20, seed=seed) for seed in (0, 1)]
    both = Table(one.repeated(2))
    train_cell(
        both, one.repeated(2), side_by_side(drawn, 1), cell,
        models=2, steps=1, learning_rate=0.5, method="descent",
    )  # fmt: skip
    for mine, pairs in zip(trajectory_logps(both, one.repeated(2)), drawn, strict=True):
        reference = one.target[0]
        logits = reference.clone().requires_grad_()
        logps = logits.log_softmax(0)
        loss = 40 * entropo_dpo(
            logps[pairs.chosen], logps[pairs.rejected],
            reference[pairs.chosen], reference[pairs.rejected],
            gamma=0.1, zeta=0.2, label_smoothing=SMOOTHING, tie=pairs.tie,
        ).loss  # fmt: skip
        (slope,) = torch.autograd.grad(loss, logits)
        expected = (logits.detach() - 0.5 * slope).log_softmax(0)
        torch.testing.assert_close(mine, expected)


def test_mass_on_trajectories_of_no_pair_is_told():
    world = table_world()
    nothing = torch.zeros(0, dtype=torch.long)
    two = Pairs(*(torch.tensor([v]) for v in (0, 0, 1)), torch.tensor([False]))
    cell = Cell(loss="entropo-dpo", labels="hard", gamma=0.1, zeta=0.2)
    found = train_cell(Table(world), world, two, cell, steps=0, learning_rate=0.1)[0][0]
    outside = world.target[0].exp()
    outside[:2] = 0
    correct = world.correct[0]
    assert found["unseen/correct"] == pytest.approx(outside[correct].sum().item())
    assert found["unseen/wrong"] == pytest.approx(outside[~correct].sum().item())
    assert not Pairs(nothing, nothing, nothing, nothing.bool()).seen((1, 32)).any()


def test_the_interval_is_students():
    mean, half = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3
    assert half == pytest.approx(2.776 * math.sqrt(2.5) / math.sqrt(5), rel=1e-3)
    assert math.isnan(interval([1.0])[1])
    of_tables = {1: 12.706, 2: 4.303, 9: 2.262, 10: 2.228, 30: 2.042, 100: 1.984}
    assert {n: round(student(n), 3) for n in of_tables} == of_tables


def test_lambda_is_held_against_temperature_within_each_seed():
    def record(gamma, zeta, *, at):
        cell = {"loss": "entropo-dpo", "labels": "hard", "gamma": gamma, "zeta": zeta}
        seeds = [
            [{"temperature": t} | dict.fromkeys(COMPARED, figure + seed) for t, figure in at]
            for seed in (0.0, 10.0)
        ]
        return {"policy": "transformer", "cell": cell, "seeds": seeds, "cpu_seconds": 0.0}

    records = [
        record(0.1, 0.3, at=[(1.0, 7.0)]),
        record(0.1, 0.1, at=[(1.0, 1.0), (3.0, 5.0)]),
        record(0.3, 0.3, at=[(1.0, 2.0), (3.0, 8.0)]),
    ]
    found = summarize(records, {})["against_temperature"]
    assert [(r["gamma"], r["zeta"], r["beta"]) for r in found] == [
        (0.1, 0.3, b) for b in (0.1, 0.3)
    ]
    assert [r["figures"]["effective"] for r in found] == [[2.0, 0.0], [-1.0, 0.0]]


def test_a_run_writes_its_results_and_is_continued_cell_by_cell(tmp_path, monkeypatch):
    few = [cell for cell in grid() if cell.zeta in (0.1, 0.2) and cell.labels == "hard"]
    monkeypatch.setattr(running, "grid", lambda: few)
    path = run_tool_mdp(tmp_path, QUICK, workers=1)
    results = json.loads(path.read_text())
    of_dpo = [cell for cell in few if cell.loss == "entropo-dpo"]
    trained = {(c["policy"], c["loss"], c["gamma"], c["zeta"]) for c in results["cells"]}
    assert len(trained) == 2 * len(few) + len(of_dpo)
    seeds = {(c["policy"], c["seeds"]) for c in results["cells"]}
    assert seeds == {("table", 1), ("table-drawn", 2), ("transformer", 2)}
    of_seeds = [c for c in results["cells"] if c["seeds"] == 2]
    assert all(c["figures"]["tv"][1] is not None for c in of_seeds)
    earlier = [(row["labels"], row["ratio"]) for row in results["earlier_trial"]]
    assert earlier == [("hard", 1.0), ("hard", 2.0)]
    against = {(row["zeta"], row["beta"]) for row in results["against_temperature"]}
    assert against == {(0.2, 0.1), (0.2, 0.2)}
    assert results["wall_seconds"] > 0
    told = (tmp_path / "tables.md").read_text()
    assert "released KTO" in told
    assert "minutes in one go" in told
    assert "| DPO, hard | 2 | 1.00 to 1.29 |" in told
    shown = (tmp_path / "index.html").read_text()
    assert shown.count('<svg class="chart"') == 31
    assert "http" not in shown.replace("http://www.w3.org", "")

    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "cells").iterdir()}
    gone = next(iter(kept))
    gone.unlink()
    for record in (tmp_path / "stages").iterdir():
        record.unlink()
    run_tool_mdp(tmp_path, QUICK, workers=1)
    changed = {p for p in (tmp_path / "cells").iterdir() if p.stat().st_mtime_ns != kept[p]}
    assert changed == {gone}
    assert json.loads(path.read_text())["wall_seconds"] is None


def test_charts_show_every_measure_and_a_control_of_each_kind_of_labels(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        page, "line_chart", lambda series, title, **_: drawn.append((title, series)) or ""
    )
    names = (*COLUMNS, "best/effective")
    cells = [
        {"policy": policy, "loss": c.loss, "labels": c.labels, "gamma": c.gamma, "zeta": c.zeta,
         "temperature": 1.0, "figures": dict.fromkeys(names, (c.zeta, None))}
        for policy in POLICIES for c in grid()
    ]  # fmt: skip
    page.write_page({"settings": {"seeds": 1}, "cells": cells}, tmp_path / "index.html")
    titles = [title for title, _ in drawn]
    assert {titles.count("KL(π ‖ π*), nats"), titles.count("pass@16")} == {5}
    of_dpo, of_kto = drawn[0][1], drawn[len(page._MEASURES)][1]
    for series, kinds in ((of_dpo, LABELS), (of_kto, ["hard"])):
        assert len(series) <= COLOURS
        controls = {s.name: s for s in series if s.name.startswith("control")}
        assert list(controls) == [f"control, {kind}, β = ζ" for kind in kinds]
        assert all(len(control.points) == len(RATIOS) for control in controls.values())


def test_the_page_and_the_tables_are_made_of_the_stored_results(tmp_path):
    stored = json.loads((RESULTS / "tool_mdp.json").read_text())
    page.write_page(stored, tmp_path / "index.html")
    shown = (tmp_path / "index.html").read_text()
    assert shown.count('<svg class="chart"') == 31
    assert 'class="line s6"' in shown
    assert "| KL to π* | on unseen correct | on unseen wrong |" in tables(stored)
    assert stored["missing"] == 0
    assert stored["wall_seconds"] < 20 * 60


def test_a_folder_of_another_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "grid", list)
    run_tool_mdp(tmp_path, QUICK, workers=1)
    with pytest.raises(ConfigError, match=r"other settings \(.*seeds"):
        run_tool_mdp(tmp_path, Settings(), workers=1)


@pytest.mark.parametrize("tasks", [0, 49])
def test_tasks_that_do_not_exist_are_refused_before_any_work(tmp_path, tasks):
    with pytest.raises(ConfigError, match=f"has 1 to 48 tasks, not {tasks}: change `tasks`"):
        run_tool_mdp(tmp_path / "run", Settings(tasks=tasks), workers=1)
    assert not (tmp_path / "run").exists()


def test_an_unknown_setting_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="has no setting 'sed'; it has: seeds, "):
        tool_mdp(tmp_path, settings=["sed=1"], workers=1)
