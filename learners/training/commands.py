"""``swe train``: the command line of `learners.train`."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from types import FrameType

    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import Task, TaskID

    from learners.training.results import OnProgress, Progress

_EVERY = 30.0
"""Seconds from one line of a stage to the next, where no bar is shown."""


def register(app: typer.Typer) -> None:
    """Mount this module's commands."""
    app.command()(train)


def train(
    loss: Annotated[
        str | None, typer.Option(help="entropo-dpo, entropo-kto, dpo, kto, sft, or module:name.")
    ] = None,
    buffer: Annotated[str | None, typer.Option(help="Folder or URL of the replay buffer.")] = None,
    model: Annotated[str | None, typer.Option(help="Folder, hub id, or smollm2.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder for the adapter and its records.")] = None,
    config: Annotated[Path | None, typer.Option(help="JSON or TOML file of settings.")] = None,
    init_adapter: Annotated[str | None, typer.Option(help="Adapter to start from.")] = None,
    gamma: Annotated[float | None, typer.Option(help="Weight of the KL term.")] = None,
    zeta: Annotated[float | None, typer.Option(help="gamma + lambda; 1.1 gamma if unset.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the samples.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pairs or rows a step.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of selection, order and weights.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on after the last step saved.")
    ] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting, NAME=JSON; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what it takes: memory, speed, hours.")
    ] = False,
    gpu: Annotated[
        str | None, typer.Option(help="With --plan: A100-80 (default), H100-80, H200-141 …")
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="With --plan: how many, sharded.")] = None,
    method: Annotated[
        str | None, typer.Option(help="With --plan: lora, qlora or full, in place of the mode.")
    ] = None,
    assume: Annotated[
        list[str] | None,
        typer.Option(help="With --plan: another assumption, NAME=NUMBER; repeatable."),
    ] = None,
) -> None:
    """Train an adapter on a replay buffer, or with --plan say what that would take."""
    from agents.rollouts.commands import parse_options
    from learners.training.config import TrainConfig
    from learners.training.loop import train as run
    from learners.training.results import Paused
    from learners.training.workers import is_main, stop_workers

    given: dict[str, Any] = {
        "loss": loss, "buffer": buffer, "model": model, "out": out, "init_adapter": init_adapter,
        "gamma": gamma, "zeta": zeta, "learning_rate": lr, "epochs": epochs,
        "max_steps": max_steps, "batch_size": batch_size, "seed": seed,
        "resume": resume or None,
    }  # fmt: skip
    changes = {name: value for name, value in given.items() if value is not None}
    changes |= parse_options(settings or ())
    asked = {"gpu": gpu, "gpus": gpus, "method": method, "assume": assume}
    if plan:
        _plan(config, changes, asked, as_json)
        return
    _only_with_plan(asked)
    resolved = TrainConfig.load(config, **changes)
    try:
        with progress_bar() as show, pausing(show) as heeding:
            result = run(resolved, on_progress=heeding)
    except Paused as pause:
        raise KeyboardInterrupt(f"{pause}: the same command with --resume goes on") from pause
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(
            "run the same command with --resume to go on from its last checkpoint, or anew if it "
            "had none"
        ) from stop
    if is_main():
        _print(result, as_json)
    stop_workers()


def _plan(path: Path | None, changes: dict[str, Any], asked: dict[str, Any], as_json: bool) -> None:
    import json

    from agents.rollouts.commands import parse_options
    from learners.training.config import TrainConfig
    from learners.training.plan import Assumptions, as_dict, as_text, plan_training

    # Nothing is written, so a plan needs no output folder.
    config = TrainConfig.load(path, **{"out": "", **changes})
    assumptions = Assumptions().changed(**parse_options(asked.pop("assume") or ()))
    options = {name: value for name, value in asked.items() if value is not None}
    plan = plan_training(config, **options, assumptions=assumptions)
    typer.echo(json.dumps(as_dict(plan)) if as_json else as_text(plan))
    typer.echo(f"{plan.data}.", err=True)


def _only_with_plan(asked: dict[str, Any]) -> None:
    from swe_env.errors import ConfigError

    given = [name for name, value in asked.items() if value is not None]
    if given:
        raise ConfigError(f"--{given[0]} says what to plan for: it goes with --plan.")


@contextmanager
def progress_bar(
    console: Console | None = None, get_time: Callable[[], float] | None = None
) -> Iterator[OnProgress]:
    """A bar with the time left, as the callback that `learners.train` takes.

    Where there is no terminal to show it on it is lines: of each stage the first, the last and one
    every 30 seconds.

    Args:
        console: Where it is shown; stderr by default.
        get_time: The clock, in seconds.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = console or Console(stderr=True)
    moves = console.is_interactive or console.is_jupyter
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    # The time left is told from all steps that were watched: one may take longer than rich's 30 s.
    with Bar(
        *columns, console=console, speed_estimate_period=math.inf, get_time=get_time,
        disable=not moves,
    ) as bar:  # fmt: skip
        display = _Display(bar)
        try:
            yield display
        finally:
            display.close()


class _Display:
    """Shows a run on a bar, or tells of it in lines where the bar is disabled."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._tasks: dict[str, TaskID] = {}
        self._due: dict[str, float] = {}
        self._untold: dict[str, str] = {}

    def __call__(self, progress: Progress) -> None:
        """As `OnProgress`."""
        if progress.note:
            self._print(progress.note)
        if progress.stage == "data":
            return
        task = self._update(progress)
        if self._bar.disable:
            self._tell(progress, task.time_remaining)

    def close(self) -> None:
        """Print the last line of each stage, if it was held back."""
        for line in self._untold.values():
            self._print(line)

    def _update(self, progress: Progress) -> Task:
        stage = progress.stage
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, figures="")
        number = self._tasks[stage]
        task = self._bar.tasks[number]
        # Another round, as of every evaluation, or another buffer's.
        if progress.done <= task.completed or task.total not in (None, progress.total):
            self._bar.reset(number)
        figures = "  ".join(_figures(progress.metrics))
        self._bar.update(number, completed=progress.done, total=progress.total, figures=figures)
        return task

    def _tell(self, progress: Progress, left: float | None) -> None:
        parts = [f"{progress.done}/{progress.total}", *_figures(progress.metrics)]
        if left:
            parts.insert(1, f"{timedelta(seconds=left)} left")
        line = f"{progress.stage}: {', '.join(parts)}"
        now = self._bar.get_time()
        if progress.done < progress.total and now < self._due.get(progress.stage, now):
            self._untold[progress.stage] = line
            return
        self._print(line)
        self._due[progress.stage] = now + _EVERY
        self._untold.pop(progress.stage, None)

    def _print(self, line: str) -> None:
        self._bar.console.print(line, soft_wrap=True, highlight=False, markup=False)


@contextmanager
def pausing(show: OnProgress) -> Iterator[OnProgress]:
    """`show`, which leaves a run after its step and a checkpoint if Ctrl-C or SIGTERM comes.

    A second one ends it at once; so does the first before the first step, in an evaluation (whose
    step is saved), and where several processes train, which the launcher ends as it likes.
    """
    from learners.training.results import PauseTraining

    training = asked = False

    def ask(_: int, __: FrameType | None) -> None:
        nonlocal asked
        if asked or not training:
            raise KeyboardInterrupt
        asked = True
        typer.echo("swe: leaving after this step; once more to leave at once.", err=True)

    def heeding(progress: Progress) -> None:
        nonlocal training
        training = progress.stage == "training"
        show(progress)
        if asked and training:
            raise PauseTraining

    alone = int(os.environ.get("WORLD_SIZE", "1")) < 2
    main = threading.current_thread() is threading.main_thread()
    if not alone or not main:
        yield show
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # In the background of a script Ctrl-C is not for this process.
    heard = {n: handler for n, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in heard:
            signal.signal(number, ask)
        yield heeding
    finally:
        for number, handler in heard.items():
            signal.signal(number, handler)


def _figures(metrics: dict[str, float]) -> list[str]:
    names = ("loss", "rewards/margins", "entropy", "tokens_per_second")
    return [f"{name} {metrics[name]:.4g}" for name in names if name in metrics]


def _print(result: Any, as_json: bool) -> None:
    import json

    if as_json:
        record = {
            "out": str(result.out), "steps": result.steps, "stopped": result.stopped,
            "metrics": result.metrics, "dropped": dict(result.report.dropped),
        }  # fmt: skip
        typer.echo(json.dumps(record))
        return
    if result.stopped:
        typer.echo(f"Stopped early: {result.stopped}.", err=True)
    typer.echo(str(result.out))
