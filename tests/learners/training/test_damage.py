"""What a kill, a full disk or a power cut leaves of a run does not end it."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from learners import TrainConfig, read_metrics, train
from learners.training.checkpoint import checkpoints, newest_checkpoint, read_checkpoint
from learners.training.workers import Workers
from swe_env.errors import ConfigError
from tests.learners.training.conftest import train_and_kill

DAMAGES = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
    "a page": lambda data: data[: len(data) // 2] + b"\xff" * 8 + data[len(data) // 2 + 8 :],
    "gone": None,
}


@pytest.fixture
def killed(settings):
    """Settings of a run that was killed after step 5, with checkpoints of steps 2 and 4."""
    settings |= {"loss": "sft", "save_every": 2}
    train_and_kill(settings, after=5)
    return settings


def folder(settings):
    return Path(settings["out"]) / "checkpoints"


def damage(path, how="cut"):
    state = path / "state.pt"
    if DAMAGES[how] is None:
        state.unlink()
    else:
        state.write_bytes(DAMAGES[how](state.read_bytes()))


def names(settings):
    return sorted(path.name for path in folder(settings).iterdir())


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before_it(killed, caplog, how):
    damage(folder(killed) / "step-00000004", how)
    state = newest_checkpoint(folder(killed), Workers())
    assert state["step"] == 2
    assert "step-00000004 cannot be read (" in caplog.text
    assert "set aside as step-00000004.damaged, and the run goes on from step-00000002" in (
        caplog.text
    )
    assert names(killed) == ["step-00000002", "step-00000004.damaged"]


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(killed, tmp_path):
    """To the same weights, and keeps what it saves from then on, not what is damaged."""
    whole = train(TrainConfig(**{**killed, "out": str(tmp_path / "whole")})).out
    damage(folder(killed) / "step-00000004")
    train_and_kill({**killed, "resume": True, "save_every": 3, "keep_checkpoints": 1}, after=3)
    assert names(killed) == ["step-00000003", "step-00000004.damaged"]
    out = train(TrainConfig(**killed, resume=True)).out
    ours, theirs = (load_file(o / "adapter_model.safetensors") for o in (out, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [record["step"] for record in read_metrics(out)] == [1, 2, 3, 4, 5, 6]
    assert names(killed) == ["step-00000004", "step-00000004.damaged", "step-00000006"]


def test_no_checkpoint_that_can_be_read_is_a_sentence(killed):
    for path in checkpoints(folder(killed)):
        damage(path)
    with pytest.raises(
        ConfigError, match=r"No checkpoint in .* \(step-00000004: BadZipFile: .* "
    ) as e:
        train(TrainConfig(**killed, resume=True))
    assert "\n" not in str(e.value)
    assert names(killed) == ["step-00000002", "step-00000004"]
    with pytest.raises(ConfigError, match=r"step-00000002 cannot be read .*: remove it to"):
        read_checkpoint(folder(killed) / "step-00000002")


class Second(Workers):
    """The second of two processes, as the main one and the messages between them have it."""

    def __init__(self, chosen):
        super().__init__(2, 1)
        self.chosen = chosen

    def on_main(self, action):
        return self.chosen

    def gather(self, value):
        return ["", value]


def test_another_process_reads_what_the_main_one_chose(killed):
    chosen = folder(killed) / "step-00000002"
    assert newest_checkpoint(folder(killed), Second(chosen))["step"] == 2
    damage(chosen)
    with pytest.raises(ConfigError, match="step-00000002 cannot be read"):
        newest_checkpoint(folder(killed), Second(chosen))
    assert newest_checkpoint(folder(killed), Second(None)) is None


def test_what_another_process_cannot_read_for_now_is_not_to_be_removed(killed, monkeypatch):
    def refuse(path):
        raise MemoryError

    monkeypatch.setattr("learners.training.checkpoint._load", refuse)
    with pytest.raises(ConfigError, match=r"step-00000002 cannot be read now .*nothing was ch"):
        newest_checkpoint(folder(killed), Second(folder(killed) / "step-00000002"))


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(settings, monkeypatch):
    real, synced = os.fsync, []

    def fsync(descriptor):
        at = Path(f"/proc/self/fd/{descriptor}").readlink()
        there = (folder(settings) / "step-00000006").exists()
        synced.append((at.name, at.parent.name[:8], there))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    train(TrainConfig(**{**settings, "loss": "sft", "save_every": 6}))
    for name in ("state.pt", "adapter_model.safetensors"):
        assert (name, ".saving-", False) in synced
    assert ("checkpoints", Path(settings["out"]).name, True) in synced
    # The result, before the record that says that the run is finished.
    files = [name for name, parent, _ in synced if parent == Path(settings["out"]).name]
    assert files.index("adapter_model.safetensors") < files.index(".training.json.part")


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
