import io
import json
import sys
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from learners.training.commands import progress_bar, train
from learners.training.results import Progress
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
        "swe: interrupted; run the same command with --resume to go on from its last checkpoint."
    )
