"""The demo's last stage: ``report.html``, the closing table, and what to make of it."""

from __future__ import annotations

import math
import os
import platform
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from agents.selection import Estimate
from agents.viewer import Arm, ReportData, StageTime, render_report, report_from_buffers
from learners.experiments.demo.settings import DemoSettings
from learners.training import read_metrics
from swe_env import __version__
from swe_env.machine import commit, processor
from swe_env.replay import ReplayBuffer, Trajectory

ARMS = {
    "base": "the bare instruct model",
    "adapter": "after SFT on oracle trajectories (where training starts)",
    "trained": "after preference training",
}


def write_report(
    out: Path, settings: DemoSettings, records: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Write ``report.html``, print the table, return its figures."""
    arms = {name: _trajectories(out / "buffers" / name) for name in ARMS}
    data = report_from_buffers(
        arms,
        title="EntroPO on a laptop",
        descriptions=ARMS,
        facts=_facts(out, settings),
        config=asdict(settings),
        training=_curves(out, settings),
        stages=[StageTime(name=r["title"], seconds=r["seconds"]) for r in records.values()],
        notes=_notes(records, data_arms=arms),
        selector_names=("hybrid", "majority", "random", "oracle"),
        show=4,
        seed=settings.seed,
    )
    path = render_report(data, out / "report.html")
    _print(data, records, path)
    return {arm.name: _figures(arm) for arm in data.arms}


def _curves(out: Path, settings: DemoSettings) -> dict[str, list[dict[str, float]]]:
    runs = {"sft": out / "sft", settings.loss: out / "train"}
    return {name: rows for name, folder in runs.items() if (rows := read_metrics(folder))}


def _trajectories(buffer: Path) -> list[Trajectory]:
    found = sorted(ReplayBuffer(buffer), key=lambda t: (t.instance_id, t.attempt))
    # A job that was continued may hold an attempt twice: a failure and its later success.
    latest = {(t.instance_id, t.attempt): t for t in found if t.failure is not None}
    latest |= {(t.instance_id, t.attempt): t for t in found if t.failure is None}
    return list(latest.values())


def _facts(out: Path, settings: DemoSettings) -> dict[str, str]:
    libraries = ("torch", "transformers", "peft", "gymnasium")
    versions = ", ".join(
        [f"swe-env {__version__}", *(f"{name} {metadata.version(name)}" for name in libraries)]
    )
    return {
        "command": " ".join(["swe", *sys.argv[1:]]),
        "machine": f"{platform.system()}, {os.cpu_count()} cores of {processor()}",
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit() or "unknown",
        "seed": str(settings.seed),
        "model": settings.model,
        "folder": out.name,
    }


def _notes(records: dict[str, dict[str, Any]], data_arms: dict[str, list[Trajectory]]) -> list[str]:
    train = records["train"]["result"]
    oracle = records["oracle"]["result"]
    resolved = sum(split["resolved"] for split in oracle.values())
    attempts = sum(split["attempts"] for split in oracle.values())
    notes = [
        f"The oracle (gold patch through the tools) resolved {resolved} of {attempts} attempts.",
    ]
    if train["steps"]:
        notes.append(
            f"Preference training took {train['steps']} steps; the adapter of step "
            f"{train['step']} was kept, the best trained one on development tasks (pass@1 by step: "
            f"{', '.join(f'{k}: {v:.3f}' for k, v in train['dev_pass@1'].items())})."
        )
    if train["stopped"]:
        what = "was stopped early" if train["steps"] else "could not begin"
        notes.append(f"Preference training {what}: {train['stopped'].rstrip('.')}.")
    empty = [name for name, found in data_arms.items() if not any(t.resolved for t in found)]
    if empty:
        notes.append(f"Nothing was resolved by: {', '.join(empty)}.")
    notes.append(
        "A model of 135M parameters and some minutes of training show that the loop works; they "
        "are too little to tell one preference loss from another."
    )
    return notes


def _figures(arm: Arm) -> dict[str, Any]:
    return {
        "attempts": len([a for a in arm.attempts if not a.failure]),
        "resolved": sum(a.resolved for a in arm.attempts if not a.failure),
        "pass@k": {str(e.k): [e.value, e.low, e.high] for e in arm.pass_at},
    }


def _print(data: ReportData, records: dict[str, dict[str, Any]], path: Path) -> None:
    # A transcript in a file is not bound to 80 columns.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    table = Table(title="Held-out tasks", title_justify="left")
    ks = sorted({e.k for arm in data.arms for e in arm.pass_at})
    for column in ("", "resolved", *(f"pass@{k}" for k in ks), "hybrid selects", "failures"):
        table.add_column(column, justify="left" if not column else "right")
    for arm in data.arms:
        table.add_row(*_row(arm, ks))
    console.print(table)
    times = Table(title="Time", title_justify="left", show_header=False)
    for record in records.values():
        times.add_row(record["title"], f"{record['seconds']:.0f} s")
    console.print(times)
    for note in data.notes:
        console.print(f"• {note}")
    console.print(f"Report: {path}")


def _row(arm: Arm, ks: list[int]) -> list[str]:
    counted = [attempt for attempt in arm.attempts if not attempt.failure]
    failed: dict[str, int] = {}
    for attempt in arm.attempts:
        if attempt.failure:
            failed[attempt.failure] = failed.get(attempt.failure, 0) + 1
    pass_at = {e.k: _estimate(e) for e in arm.pass_at}
    hybrid = next((s.estimate for s in arm.selected if s.selector == "hybrid"), None)
    return [
        arm.name,
        f"{sum(a.resolved for a in counted)}/{len(counted)}",
        *(pass_at.get(k, "—") for k in ks),
        _estimate(hybrid) if hybrid else "—",
        ", ".join(f"{kind} {n}" for kind, n in sorted(failed.items())) or "none",
    ]


def _estimate(e: Estimate) -> str:
    value = f"{e.value:.2f}"
    return value if math.isnan(e.low) else f"{value} [{e.low:.2f}, {e.high:.2f}]"
