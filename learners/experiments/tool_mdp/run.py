"""`run_tool_mdp`: all cells on all seeds, in worker processes, continued where it was stopped."""

from __future__ import annotations

import copy
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import msgspec
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from learners.experiments.stages import Stages
from learners.experiments.tool_mdp.cells import Cell, PolicyName, grid
from learners.experiments.tool_mdp.data import Pairs, exhaustive, sampled, side_by_side
from learners.experiments.tool_mdp.page import write_page
from learners.experiments.tool_mdp.policies import Ensemble, Table
from learners.experiments.tool_mdp.summary import summarize
from learners.experiments.tool_mdp.tables import tables
from learners.experiments.tool_mdp.training import imitate, train_cell, trajectory_logps
from learners.experiments.tool_mdp.world import World, flat, table_world, tool_world
from swe_env.disk import write_atomically


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a run's figures depend on."""

    seeds: int = 5
    """Of the transformer's first weights, and of all pairs that are drawn from the reference."""
    tasks: int = 4
    pairs_per_task: int = 300
    """Of correct over wrong; and as many ties."""
    steps: int = 300
    learning_rate: float = 3e-3
    reference_steps: int = 300
    reference_learning_rate: float = 1e-2
    table_steps: int = 500
    table_learning_rate: float = 0.3
    descent_steps: int = 2000
    """Of plain gradient descent, by which the table learns from drawn pairs."""
    descent_learning_rate: float = 0.33
    """For each pair."""


@dataclass(frozen=True, slots=True)
class Job:
    """One cell of one policy, all seeds of it."""

    policy: PolicyName
    cell: Cell

    @property
    def name(self) -> str:
        """Of its record."""
        return f"{self.policy}.{self.cell.name}"


def run_tool_mdp(out: Path, settings: Settings = Settings(), *, workers: int | None = None) -> Path:
    """Train every cell, and write ``results.json``, ``tables.md`` and ``index.html``.

    A run that is stopped writes them from the cells it has, and they say how many are missing.

    Args:
        out: Folder; the same call continues a run that was stopped, cell by cell.
        settings: What to run.
        workers: Processes, of one thread each; by default one a core.

    Returns:
        The path of ``results.json``.

    Raises:
        ConfigError: the folder holds a run with other settings, or there are not so many tasks.
    """
    tool_world(tasks=settings.tasks)  # refused before any work
    stages = Stages(out, asdict(settings), total=1)
    jobs = _jobs()
    title = f"Train {len(jobs)} cells, those on drawn pairs with {settings.seeds} seeds each"
    try:
        stages.run("cells", title, partial(_run_all, out, jobs, settings, workers))
    finally:
        _report(out, jobs, settings, stages.records.get("cells"))
    return out / "results.json"


def _jobs() -> list[Job]:
    """DPO's cells on drawn pairs as well: the figures to compare with are of DPO alone."""
    policies: tuple[PolicyName, ...] = ("transformer", "table", "table-drawn")
    return [
        Job(policy, cell)
        for policy in policies
        for cell in grid()
        if policy != "table-drawn" or cell.loss == "entropo-dpo"
    ]


def _report(out: Path, jobs: list[Job], settings: Settings, stage: dict[str, Any] | None) -> None:
    found = [_path(out, job) for job in jobs if _path(out, job).exists()]
    records = [msgspec.json.decode(path.read_bytes()) for path in found]
    in_one_go = stage and stage["result"]["trained"] == len(jobs)
    results = summarize(records, asdict(settings)) | {
        "wall_seconds": round(stage["seconds"], 1) if stage and in_one_go else None,
        "missing": len(jobs) - len(found),
    }
    write_atomically(out / "results.json", msgspec.json.format(msgspec.json.encode(results)))
    write_atomically(out / "tables.md", tables(results).encode())
    write_page(results, out / "index.html")


def run_job(job: Job, settings: Settings) -> dict[str, Any]:
    """Train and measure one cell; the record as plain data, ``seeds`` in the order of the seeds."""
    started = time.process_time()
    if job.policy == "table":
        world = table_world()
        results = train_cell(
            Table(world), world, exhaustive(world), job.cell,
            steps=settings.table_steps, learning_rate=settings.table_learning_rate,
        )  # fmt: skip
    elif job.policy == "table-drawn":
        one = flat(table_world())
        world = one.repeated(settings.seeds)
        drawn = [_drawn(one, one.target, settings, seed) for seed in range(settings.seeds)]
        results = train_cell(
            Table(world), world, side_by_side(drawn, one.tasks), job.cell, models=settings.seeds,
            steps=settings.descent_steps, learning_rate=settings.descent_learning_rate,
            method="descent",
        )  # fmt: skip
    else:
        world, reference, pairs = _imitated(settings)
        results = train_cell(
            copy.deepcopy(reference), world, pairs, job.cell, models=settings.seeds,
            steps=settings.steps, learning_rate=settings.learning_rate,
        )  # fmt: skip
    seconds = time.process_time() - started
    return {
        "policy": job.policy, "cell": asdict(job.cell), "seeds": results, "cpu_seconds": seconds
    }  # fmt: skip


@cache
def _imitated(settings: Settings) -> tuple[World, nn.Module, Pairs]:
    """The transformers that became the reference, and their data: made once a process."""
    one = tool_world(tasks=settings.tasks)
    world = one.repeated(settings.seeds)
    policy = Ensemble(one, range(settings.seeds))
    imitate(
        policy, world,
        steps=settings.reference_steps, learning_rate=settings.reference_learning_rate,
    )  # fmt: skip
    with torch.no_grad():
        references = trajectory_logps(policy, world).chunk(settings.seeds)
    drawn = [_drawn(one, reference, settings, seed) for seed, reference in enumerate(references)]
    return world, policy, side_by_side(drawn, settings.tasks)


def _drawn(world: World, reference: Tensor, settings: Settings, seed: int) -> Pairs:
    return sampled(world, reference, per_task=settings.pairs_per_task, seed=1000 + seed)


def _run_all(out: Path, jobs: list[Job], settings: Settings, workers: int | None) -> dict[str, Any]:
    (out / "cells").mkdir(exist_ok=True)
    todo = [job for job in jobs if not _path(out, job).exists()]
    context = multiprocessing.get_context("spawn")
    count = max(1, min(workers or os.cpu_count() or 1, len(todo)))
    with (
        _bar(len(jobs), len(jobs) - len(todo)) as advance,
        ProcessPoolExecutor(
            count, context, initializer=torch.set_num_threads, initargs=(1,)
        ) as pool,
    ):
        futures = {pool.submit(run_job, job, settings): job for job in todo}
        try:
            for future in as_completed(futures):
                job = futures[future]
                write_atomically(_path(out, job), msgspec.json.encode(future.result()))
                advance(job.name)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {"cells": len(jobs), "trained": len(todo)}


def _path(out: Path, job: Job) -> Path:
    return out / "cells" / f"{job.name}.json"


@contextmanager
def _bar(total: int, done: int) -> Iterator[Any]:
    columns = (
        TextColumn("     "), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[last]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total, completed=done, last="")
        yield lambda name: bar.update(task, advance=1, last=name)
