import io
import json
import os
import signal
import sys
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from learners import TrainConfig
from learners import train as run
from learners.training.commands import pausing, progress_bar, train
from learners.training.results import Paused, Progress
from swe_env import cli
from swe_env.errors import ConfigError
from tests.learners.records import mixed_buffer, sampled
from tests.learners.training.conftest import write_buffer

app = typer.Typer()
app.command()(train)


def options(settings):
    found = ["--loss", "entropo-kto", "--lr", "0.005", "--batch-size", "4", "--max-steps", "3"]
    for name in ("model", "buffer", "out"):
        found += [f"--{name}", settings[name]]
    return [*found, "--set", "lora_r=4", "--set", "dtype=float32", "--set", "tensorboard=false"]


def test_the_command_trains_and_keeps_its_output_clean(settings):
    result = CliRunner().invoke(app, [*options(settings), "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    printed = json.loads(result.stdout)  # data on stdout, progress on stderr
    assert printed["steps"] == 3
    assert printed["out"] == settings["out"]
    assert "loss" in result.stderr
    record = json.loads(Path(printed["out"], "training.json").read_text())
    assert record["config"]["lora_r"] == 4


def test_a_wrong_setting_reaches_the_user_as_a_sentence(settings):
    with pytest.raises(ConfigError, match="Training setting 'lora_q'"):
        CliRunner().invoke(app, [*options(settings), "--set", "lora_q=4"], catch_exceptions=False)
    with pytest.raises(ConfigError, match="not of the form NAME=VALUE"):
        CliRunner().invoke(app, [*options(settings), "--set", "lora_r"], catch_exceptions=False)


@pytest.mark.parametrize(("first", "total", "left"), [(1, 10, "0:11:40"), (50, 100, "1:20:00")])
def test_the_bar_tells_the_time_left_of_steps_of_minutes(first, total, left):
    """100 s a step, also where the first one shown is that of a checkpoint."""
    now, printed = [0.0], io.StringIO()
    terminal = Console(file=printed, width=120, force_terminal=True, color_system=None)
    with progress_bar(terminal, get_time=lambda: now[0]) as show:
        for done in range(first, first + 3):
            show(Progress("training", done, total, {"loss": 0.5}))
            now[0] += 100
    assert f"{first + 2}/{total} {left} loss 0.5" in " ".join(printed.getvalue().split())


def shown(stages, console=None):
    """What is printed of (seconds before it, progress), on no terminal unless one is given."""
    now, printed = [0.0], io.StringIO()
    console = console or Console(file=printed, width=40)
    with progress_bar(console, get_time=lambda: now[0]) as show:
        for seconds, progress in stages:
            now[0] += seconds
            show(progress)
    return console.file.getvalue()


def test_without_a_terminal_a_stage_is_told_of_every_30_seconds():
    steps = [(8, Progress("training", done, 100, {"loss": 0.5})) for done in range(1, 11)]
    passes = [(1, Progress("reference", done, 3, {})) for done in (1, 2, 3)]
    assert shown([*passes, *steps]).splitlines() == [
        "reference: 1/3",
        "reference: 3/3",
        "training: 1/100, loss 0.5",
        "training: 5/100, 0:12:40 left, loss 0.5",
        "training: 9/100, 0:12:08 left, loss 0.5",
        "training: 10/100, 0:12:00 left, loss 0.5",  # where it ended early
    ]


def test_evaluations_among_the_steps_are_told_of_each():
    one = [(10, Progress("evaluation", done, 4, {})) for done in (1, 2, 3, 4)]
    step = [(10, Progress("training", done, 4, {})) for done in (1, 2)]
    assert shown([step[0], *one, step[1], *one]).splitlines() == [
        "training: 1/4",
        "evaluation: 1/4",
        "evaluation: 4/4",
        "training: 2/4, 0:01:40 left",
        "evaluation: 2/4, 0:00:20 left",
        "evaluation: 4/4",
    ]


def test_a_bar_starts_anew_for_the_next_evaluation():
    terminal = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    one = [(10, Progress("evaluation", done, 4, {})) for done in (1, 2, 3, 4)]
    assert "2/4 0:00:20" in " ".join(shown([*one, *one[:2]], terminal).split())


def test_a_note_stands_whole_above_the_bar():
    note = "12 samples from 40 trajectories; left out: 28 too-long (longer than max_tokens)."
    terminal = Console(file=io.StringIO(), width=40, force_terminal=True, color_system=None)
    stages = [(0, Progress("data", 12, 40, {}, note)), (0, Progress("training", 1, 2, {}))]
    assert shown(stages).splitlines() == [note, "training: 1/2"]
    assert shown(stages, terminal).count(note) == 1


def test_what_was_left_out_is_told_once_and_before_the_first_pass(settings, tmp_path):
    records = mixed_buffer(tasks=2, seed=9)
    records[0] = sampled("t-0", replies=("look " * 200, "done"))
    held_out = write_buffer(tmp_path / "held-out", records)
    asked = [*options(settings), "--set", f"eval_buffer={held_out}", "--set", "max_tokens=300"]
    result = CliRunner().invoke(app, asked, catch_exceptions=False)
    told = result.stderr.splitlines()
    assert told[0] == "16 samples from 16 trajectories."
    assert told[1].startswith(
        "Held out: 7 samples from 8 trajectories; left out: 1 too-long (longer than max_tokens); "
        "of several solutions: 0 samples from 8 trajectories; left out: "
    )
    assert told[2].startswith("reference: 1/16")
    assert result.stderr.count("trajectories") == 3
    assert result.stdout == f"{settings['out']}\n"


def test_an_interrupted_training_is_gone_on_with_by_resume(settings, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("learners.training.loop.train", interrupt)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["swe", "train", *options(settings)])
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err.strip() == (
        "swe: interrupted; run the same command with --resume to go on from its last checkpoint, "
        "or anew if it had none."
    )


@pytest.fixture
def heard():
    """Signals as a program in the foreground has them; tests may run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_run_after_its_step_with_a_checkpoint(settings, tmp_path, number, capsys):
    settings |= {"save_every": None, "loss": "sft"}  # it is saved all the same
    whole = run(TrainConfig(**{**settings, "out": str(tmp_path / "whole")})).out
    config, before = TrainConfig(**settings), signal.getsignal(number)

    def press(progress):
        if progress.stage == "training" and progress.done == 2:
            os.kill(os.getpid(), number)

    with pausing(press) as show, pytest.raises(Paused, match="was left after step 2"):
        run(config, on_progress=show)
    assert "leaving after this step" in capsys.readouterr().err
    assert signal.getsignal(number) is before
    out = run(TrainConfig(**settings, resume=True)).out
    name = "adapter_model.safetensors"
    assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_a_second_signal_and_one_before_the_first_step_end_it_at_once(settings):
    config = TrainConfig(**settings | {"save_every": 50, "loss": "dpo"})

    def press(progress):
        if progress.stage == "reference":
            os.kill(os.getpid(), signal.SIGTERM)

    with pausing(press) as show, pytest.raises(KeyboardInterrupt):
        run(config, on_progress=show)
    with pausing(lambda _: None) as show:
        show(Progress("training", 1, 2, {}))
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_of_several_processes_leaves_signals_to_its_launcher(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    before = signal.getsignal(signal.SIGTERM)
    with pausing(print) as show:
        assert show is print
        assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_is_ignored_stays_so_and_one_in_an_evaluation_ends_it():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pausing(lambda _: None) as show:
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            show(Progress("training", 1, 2, {}))
            show(Progress("evaluation", 1, 2, {}))
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before)
