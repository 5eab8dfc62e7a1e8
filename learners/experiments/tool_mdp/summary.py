"""Means and 95% intervals over seeds of what the cells measured, and differences to controls."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from learners.experiments.tool_mdp.cells import GAMMA, Cell, Labels
from swe_env.machine import machine

COMPARED = ("effective", "distinct@16", "correct", "tv", "kl")
EARLIER: dict[Labels, dict[float, tuple[float, float]]] = {
    "hard": dict.fromkeys((1.0, 1.1, 2.0, 3.0), (1.00, 1.29)),
    "smooth": {1.0: (3.02, 3.02), 1.1: (3.22, 3.22), 2.0: (4.64, 4.64), 3.0: (5.88, 5.88)},
    "smooth+ties": {1.0: (3.20, 3.20), 1.1: (3.47, 3.47), 2.0: (5.45, 5.45), 3.0: (6.60, 6.60)},
}
"""Lowest and highest effective correct solutions by ζ/γ that an earlier trial's table had left."""

_ByCell = dict[tuple[str, Cell, float], dict[int, dict[str, float]]]


def interval(values: Sequence[float]) -> list[float]:
    """``[mean, half the width of its 95% interval]``, by Student's t; the half is NaN for one."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return [mean, math.nan]
    t = student(len(values) - 1)
    return [mean, t * statistics.stdev(values) / math.sqrt(len(values))]


@cache
def student(freedom: int) -> float:
    """The t within which Student's variable of so many degrees of freedom is 95 times in 100."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if _within(middle, freedom) < 0.95:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """``P(|T| < sqrt(freedom) tan(angle))``: Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    odd = freedom % 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for k in range(freedom // 2):
        total += term
        term *= math.cos(angle) ** 2 * (2 * k + 1 + odd) / (2 * k + 2 + odd)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def summarize(records: Iterable[dict[str, Any]], settings: dict[str, Any]) -> dict[str, Any]:
    """The whole result of a run as plain data.

    ``cells`` has one entry a policy, cell and sampling temperature with each figure as
    ``[mean, half-width]`` over seeds (null for a single one); ``against_control`` the same of the
    difference to the β = ζ control, taken within each seed; ``against_temperature`` to the
    λ = 0 cells with β = γ and β = ζ (``beta``) sampled at temperature ζ/γ; ``earlier_trial`` the
    figures of `EARLIER` beside each seed's ``effective`` and ``tv`` of the table on drawn pairs.
    """
    records = list(records)
    by_cell: _ByCell = {}
    for record in records:
        for seed, results in enumerate(record["seeds"]):
            for result in results:
                key = (record["policy"], Cell(**record["cell"]), result["temperature"])
                by_cell.setdefault(key, {})[seed] = result
    cells, against_control, against_temperature = [], [], []
    for (policy, cell, temperature), seeds in by_cell.items():
        head = {"policy": policy, **_head(cell), "temperature": temperature, "seeds": len(seeds)}
        names = [n for n in next(iter(seeds.values())) if n != "temperature"]
        cells.append(head | {"figures": _figures(names, list(seeds.values()))})
        control = by_cell.get((policy, cell.control, temperature))
        if control is not None and cell.control != cell:
            against_control.append(head | {"figures": _apart(seeds, control)})
        if not cell.gamma == GAMMA < cell.zeta:
            continue
        for beta in (GAMMA, cell.zeta):
            rival = Cell(loss=cell.loss, labels=cell.labels, gamma=beta, zeta=beta)
            warm = by_cell.get((policy, rival, round(cell.zeta / GAMMA, 6)))
            if warm is not None:
                figures = _apart(seeds, warm)
                against_temperature.append(head | {"beta": beta, "figures": figures})
    return {
        "settings": settings,
        "machine": machine("torch"),
        "cpu_seconds": round(sum(record["cpu_seconds"] for record in records), 1),
        "cells": cells,
        "against_control": against_control,
        "against_temperature": against_temperature,
        "earlier_trial": [
            {"labels": labels, "ratio": ratio, "earlier": list(figure)}
            | {name: [round(seed[name], 5) for seed in found] for name in ("effective", "tv")}
            for labels, figures in EARLIER.items()
            for ratio, figure in figures.items()
            if (found := _drawn(by_cell, labels, ratio))
        ],
    }


def _apart(
    seeds: dict[int, dict[str, float]], rival: dict[int, dict[str, float]]
) -> dict[str, list[float | None]]:
    apart = [{n: seeds[seed][n] - rival[seed][n] for n in COMPARED} for seed in seeds]
    return _figures(COMPARED, apart)


def _drawn(by_cell: _ByCell, labels: Labels, ratio: float) -> list[dict[str, float]]:
    cell = Cell(loss="entropo-dpo", labels=labels, gamma=GAMMA, zeta=round(GAMMA * ratio, 6))
    return list(by_cell.get(("table-drawn", cell, 1.0), {}).values())


def _head(cell: Cell) -> dict[str, Any]:
    return {"loss": cell.loss, "labels": cell.labels, "gamma": cell.gamma, "zeta": cell.zeta}


def _figures(
    names: Iterable[str], results: list[dict[str, float]]
) -> dict[str, list[float | None]]:
    return {
        name: [None if math.isnan(v) else round(v, 5) for v in interval([r[name] for r in results])]
        for name in names
    }
