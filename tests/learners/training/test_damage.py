"""What a kill, a full disk or a power cut leaves of a run does not end it."""

import json
from pathlib import Path

import pytest

from learners import TrainConfig, train
from swe_env.errors import ConfigError
from tests.learners.training.conftest import train_and_kill

@pytest.fixture
def killed(settings):
    """Settings of a run that was killed after step 5, with checkpoints of steps 2 and 4."""
    settings |= {"loss": "sft", "save_every": 2}
    train_and_kill(settings, after=5)
    return settings


@pytest.mark.parametrize("text", ["", '{"steps": 3', "[]", "\0\0"])
def test_a_damaged_record_of_a_finished_run_counts_as_none(settings, caplog, text):
    settings |= {"loss": "sft", "max_steps": 3}
    result = train(TrainConfig(**settings))
    (result.out / "training.json").write_text(text)
    assert train(TrainConfig(**settings, resume=True)).steps == 3
    assert "training.json cannot be read (" in caplog.text
    assert json.loads((result.out / "training.json").read_text())["steps"] == 3


def test_a_starting_adapter_with_a_damaged_record_is_taken_as_one_without(
    settings, tmp_path, caplog
):
    settings |= {"loss": "sft", "max_steps": 1}
    start = train(TrainConfig(**settings)).out
    (start / "training.json").write_text("")
    changes = {"init_adapter": str(start), "out": str(tmp_path / "second")}
    assert train(TrainConfig(**{**settings, **changes})).steps == 1
    assert "training.json cannot be read (" in caplog.text


@pytest.mark.parametrize("text", ["", '{"seed"', "null"])
def test_damaged_settings_are_a_sentence(killed, text):
    record = Path(killed["out"]) / "settings.json"
    before = record.read_text()
    record.write_text(text)
    with pytest.raises(
        ConfigError, match=r"settings\.json cannot be read .*: write its settings"
    ) as e:
        train(TrainConfig(**killed, resume=True))
    assert "\n" not in str(e.value)
    record.write_text(before)
    assert train(TrainConfig(**killed, resume=True)).steps == 6


def test_a_kill_while_the_settings_are_written_leaves_the_folder_as_if_empty(settings):
    out = Path(settings["out"])
    out.mkdir()
    (out / ".settings.json.part").write_text('{"se')
    assert train(TrainConfig(**settings, loss="sft")).steps == 6
    assert not (out / ".settings.json.part").exists()


def test_a_resumption_does_not_write_over_its_settings(killed, monkeypatch):
    """A full disk leaves the old ones, so that the run can be gone on with."""
    real = Path.open

    def full(path, mode="r", *args, **kwargs):
        if "settings.json" in path.name and "w" in mode:
            real(path, mode, *args, **kwargs).close()
            raise OSError(28, "No space left on device")
        return real(path, mode, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        with pytest.raises(ConfigError, match=r"cannot be written .*No space left"):
            train(TrainConfig(**killed, resume=True))
    assert train(TrainConfig(**killed, resume=True)).steps == 6
