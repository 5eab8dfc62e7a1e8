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
    with progress_bar(Console(file=printed, width=120), get_time=lambda: now[0]) as show:
        for done in range(first, first + 3):
            show(Progress("training", done, total, {"loss": 0.5}))
            now[0] += 100
    assert f"{first + 2}/{total} {left} loss 0.5" in " ".join(printed.getvalue().split())


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_run_after_its_step_with_a_checkpoint(settings, tmp_path, number, capsys):
    settings |= {"save_every": 50, "loss": "sft"}
    whole = run(TrainConfig(**{**settings, "out": str(tmp_path / "whole")})).out
    config, before = TrainConfig(**settings), signal.getsignal(number)

    def press(progress):
        if progress.stage == "training" and progress.done == 2:
            os.kill(os.getpid(), number)

    with pausing(press, config) as show, pytest.raises(Paused, match="was left after step 2"):
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

    with pausing(press, config) as show, pytest.raises(KeyboardInterrupt):
        run(config, on_progress=show)
    with pausing(lambda _: None, config) as show:
        show(Progress("training", 1, 2, {}))
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("without", ["checkpoints", "one process"])
def test_where_a_run_cannot_be_left_signals_are_what_they_were(settings, monkeypatch, without):
    if without == "one process":
        monkeypatch.setenv("WORLD_SIZE", "2")
        settings["save_every"] = 50
    before = signal.getsignal(signal.SIGTERM)
    with pausing(print, TrainConfig(**settings)) as show:
        assert show is print
        assert signal.getsignal(signal.SIGTERM) is before
