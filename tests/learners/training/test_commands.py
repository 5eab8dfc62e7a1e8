import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from learners.training.commands import train
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
