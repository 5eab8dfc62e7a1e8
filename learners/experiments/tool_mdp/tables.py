"""The result as Markdown tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from learners.experiments.tool_mdp.cells import GAMMA, LABELS, RATIOS, PolicyName
from learners.experiments.tool_mdp.summary import interval

Row = dict[str, Any]
COLUMNS = ("effective", "distinct@16", "correct", "pass@4", "pass@16", "tv", "kl",
           "unseen/correct", "unseen/wrong")  # fmt: skip
HEADS = {
    "effective": "effective correct", "distinct@16": "distinct correct in 16",
    "correct": "P(correct)", "pass@4": "pass@4", "pass@16": "pass@16",
    "tv": "TV to π*", "kl": "KL to π*",
    "unseen/correct": "on unseen correct", "unseen/wrong": "on unseen wrong",
}  # fmt: skip
NAMES = {"entropo-dpo": "DPO", "entropo-kto": "KTO", "entropo-kto-released": "released KTO"}

POLICIES: dict[PolicyName, str] = {
    "table": "table, on every pair",
    "table-drawn": "table, on drawn pairs",
    "transformer": "transformer",
}


def tables(results: dict[str, Any]) -> str:
    """All tables, under a line that names the machine."""
    at, settings = results["machine"], results["settings"]
    parts = [
        f"{at['processor']}, {at['cores']} cores, Linux {at['kernel']}, Python {at['python']}, "
        f"torch {at['versions']['torch']}, commit {at['commit'] or 'unknown'}; "
        f"{results['cpu_seconds'] / 60:.0f} core-minutes{_wall(results)}; {settings['seeds']} "
        f"seeds, ± is half a 95% interval over them."
    ]
    if results["missing"]:
        parts.append(f"**The run was stopped: {results['missing']} cells are missing.**")
    for policy, title in POLICIES.items():
        parts.append(f"### The {title}")
        for loss, labels in [("entropo-dpo", kind) for kind in LABELS] + [
            ("entropo-kto", "hard"), ("entropo-kto-released", "hard"),
        ]:  # fmt: skip
            rows = _pick(results["cells"], policy=policy, loss=loss, labels=labels, temperature=1.0)
            if rows:
                parts.append(f"**{NAMES[loss]}, {labels} labels**\n\n{_grid_table(rows)}")
    for policy, title in POLICIES.items():
        head = f"### The {title}, against its β = ζ control"
        parts.append(f"{head}\n\n{_difference_table(results, policy)}")
    warm = "### λ against λ = 0 sampled at temperature ζ/γ"
    parts.append(f"{warm}\n\n{_warm_table(results)}")
    parts.append(f"### Drawn pairs beside an earlier trial\n\n{_earlier_table(results)}")
    parts.append(f"### Sampling λ = 0 at a higher temperature\n\n{_temperature_table(results)}")
    return "\n\n".join(parts) + "\n"


def _wall(results: dict[str, Any]) -> str:
    seconds = results["wall_seconds"]
    return "" if seconds is None else f", {seconds / 60:.1f} minutes in one go"


def show(figure: list[float | None], digits: int = 2, sign: str = "") -> str:
    """``mean ± half``, or the mean alone."""
    mean, half = figure
    text = f"{mean:{sign}.{digits}f}"
    return text if half is None else f"{text} ± {half:.{digits}f}"


def _shown(row: Row, names: Sequence[str], sign: str = "") -> list[str]:
    counts = ("effective", "distinct@16")
    return [show(row["figures"][name], 2 if name in counts else 3, sign) for name in names]


def _pick(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    return [row for row in rows if all(row[k] == v for k, v in wanted.items())]


def _grid_table(rows: list[Row]) -> str:
    def cells(row: Row) -> list[str]:
        found = row["figures"]
        return [*_shown(row, COLUMNS), f"{found['best/effective'][0]:.2f}"]

    lines = []
    for ratio in RATIOS:
        zeta = round(GAMMA * ratio, 6)
        for gamma in dict.fromkeys((GAMMA, zeta)):
            control = "" if gamma == GAMMA else ", control"
            for row in _pick(rows, gamma=gamma, zeta=zeta):  # the released KTO has no control
                lines.append([f"({gamma:g}, {zeta:g}){control}", *cells(row)])
    heads = ["(γ, ζ)", *(HEADS[name] for name in COLUMNS), "effective, closed form"]
    return _table(heads, lines)


def _difference_table(results: dict[str, Any], policy: PolicyName) -> str:
    rows = _pick(results["against_control"], policy=policy, temperature=1.0)
    names = (*COLUMNS[:3], "kl")
    lines = [
        [
            f"{NAMES[row['loss']]}, {row['labels']}",
            f"({row['gamma']:g}, {row['zeta']:g})",
            *_shown(row, names, "+"),
        ]
        for row in sorted(rows, key=lambda r: (r["loss"], LABELS.index(r["labels"]), r["zeta"]))
    ]
    return _table(["loss, labels", "(γ, ζ)", *(HEADS[n] for n in names)], lines)


def _warm_table(results: dict[str, Any]) -> str:
    rows = _pick(results["against_temperature"], policy="transformer", loss="entropo-dpo")
    names = (*COLUMNS[:3], "tv")
    lines = [
        [
            f"DPO, {row['labels']}",
            f"({row['gamma']:g}, {row['zeta']:g})",
            f"{row['beta']:g}",
            *_shown(row, names, "+"),
        ]
        for row in sorted(rows, key=lambda r: (LABELS.index(r["labels"]), r["zeta"], r["beta"]))
    ]
    return _table(["loss, labels", "(γ, ζ)", "against β", *(HEADS[n] for n in names)], lines)


def _earlier_table(results: dict[str, Any]) -> str:
    lines = []
    for row in results["earlier_trial"]:
        effective, distances = row["effective"], row["tv"]
        mean, half = interval(effective)
        lines.append([
            f"DPO, {row['labels']}", f"{row['ratio']:g}",
            " to ".join(f"{figure:.2f}" for figure in dict.fromkeys(row["earlier"])),
            show([mean, None if math.isnan(half) else half]),
            f"{min(effective):.2f} to {max(effective):.2f}",
            f"{min(distances):.3f} to {max(distances):.3f}",
        ])  # fmt: skip
    heads = ["loss, labels", "ζ/γ", "effective correct, earlier", "here", "by seed", "TV by seed"]
    return _table(heads, lines)


def _temperature_table(results: dict[str, Any]) -> str:
    lines = []
    for labels in LABELS:
        rows = _pick(
            results["cells"], policy="transformer", loss="entropo-dpo", labels=labels,
            gamma=GAMMA, zeta=GAMMA,
        )  # fmt: skip
        for row in rows:
            shown = _shown(row, COLUMNS[:4])
            lines.append([f"DPO, {labels}", f"{row['temperature']:g}", *shown])
    return _table(["loss, labels", "temperature", *(HEADS[n] for n in COLUMNS[:4])], lines)


def _table(heads: list[str], lines: list[list[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
