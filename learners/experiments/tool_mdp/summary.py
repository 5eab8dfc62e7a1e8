"""Means and 95% intervals over seeds of what the cells measured, and differences to controls."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from learners.experiments.tool_mdp.cells import Cell
from swe_env.machine import machine

T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t for 1 … 9 degrees of freedom; the normal's 1.96 serves from 10 on."""
COMPARED = ("effective", "distinct@16", "correct", "tv", "kl")


def interval(values: Sequence[float]) -> list[float]:
    """``[mean, half the width of its 95% interval]``, by Student's t; the half is NaN for one."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return [mean, math.nan]
    freedom = len(values) - 1
    t = T_975[freedom - 1] if freedom <= len(T_975) else 1.96
    return [mean, t * statistics.stdev(values) / math.sqrt(len(values))]


def summarize(records: Iterable[dict[str, Any]], settings: dict[str, Any]) -> dict[str, Any]:
    """The whole result of a run as plain data.

    ``cells`` has one entry a policy, cell and sampling temperature with each figure as
    ``[mean, half-width]`` over seeds (null for a single one); ``against_control`` the same of the
    difference to the β = ζ control, taken within each seed.
    """
    records = list(records)
    by_cell: dict[tuple[str, Cell, float], dict[int, dict[str, float]]] = {}
    for record in records:
        for seed, results in enumerate(record["seeds"]):
            for result in results:
                key = (record["policy"], Cell(**record["cell"]), result["temperature"])
                by_cell.setdefault(key, {})[seed] = result
    cells, differences = [], []
    for (policy, cell, temperature), seeds in by_cell.items():
        head = {"policy": policy, **_head(cell), "temperature": temperature, "seeds": len(seeds)}
        names = [n for n in next(iter(seeds.values())) if n != "temperature"]
        cells.append(head | {"figures": _figures(names, list(seeds.values()))})
        control = by_cell.get((policy, cell.control, temperature))
        if control is not None and cell.control != cell:
            apart = [{n: seeds[seed][n] - control[seed][n] for n in COMPARED} for seed in seeds]
            differences.append(head | {"figures": _figures(COMPARED, apart)})
    return {
        "settings": settings,
        "machine": machine("torch"),
        "cpu_seconds": round(sum(record["cpu_seconds"] for record in records), 1),
        "cells": cells,
        "against_control": differences,
    }


def _head(cell: Cell) -> dict[str, Any]:
    return {"loss": cell.loss, "labels": cell.labels, "gamma": cell.gamma, "zeta": cell.zeta}


def _figures(
    names: Iterable[str], results: list[dict[str, float]]
) -> dict[str, list[float | None]]:
    return {
        name: [None if math.isnan(v) else round(v, 5) for v in interval([r[name] for r in results])]
        for name in names
    }
