"""The output folder: one run at a time, room on its disk, and what a resumed run may change."""

import errno
import shutil
from pathlib import Path

import pytest
from safetensors import SafetensorError
from safetensors.torch import load_file

from learners import TrainConfig, train
from learners.training import folder as folders
from learners.training.checkpoint import checkpoints
from learners.training.folder import OutFolder
from learners.training.policy import Policy
from swe_env.errors import ConfigError, SweError
from tests.learners.training.conftest import Killed, train_and_kill


@pytest.fixture
def killed(settings):
    """Settings of a run that was killed after step 3, with checkpoints of steps 1 to 3."""
    settings |= {"loss": "sft", "save_every": 1, "keep_checkpoints": 3}
    train_and_kill(settings, after=3)
    return settings


def saved(settings):
    return [path.name for path in checkpoints(Path(settings["out"]) / "checkpoints")]


def test_a_second_run_does_not_write_where_one_does(settings):
    settings |= {"loss": "sft", "save_every": 1}
    said = []

    def begin(progress):
        if progress.stage == "training" and progress.done == 2:
            for resume in (False, True):
                with pytest.raises(ConfigError) as refused:
                    train(TrainConfig(**settings, resume=resume))
                said.append(str(refused.value))

    train(TrainConfig(**settings), on_progress=begin)
    assert "is not empty" in said[0]
    assert "Another run writes to" in said[1]
    assert train(TrainConfig(**settings, resume=True)).steps == 6


def test_of_two_runs_that_found_it_empty_the_second_is_refused(settings):
    """Both have looked at the folder before either has made it."""
    first, second = (OutFolder(TrainConfig(**settings, loss="sft")) for _ in range(2))
    first.check(), second.check()
    first.open(1)
    with pytest.raises(ConfigError, match="Another run writes to"):
        second.open(1)
    first.close()
    with pytest.raises(ConfigError, match="has begun in"):
        second.open(1)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_of(settings, monkeypatch, caplog, number):
    def none(*_):
        raise OSError(number, "no")

    monkeypatch.setattr(folders.fcntl, "flock", none)
    folder = OutFolder(TrainConfig(**settings, resume=True))
    folder.check()
    folder.open(1)
    assert caplog.text.count("has no locks") == 1
    OutFolder(TrainConfig(**settings, resume=True)).check()


def test_a_run_that_began_since_the_folder_was_looked_at_is_not_gone_on_with(settings):
    """What it saved was not read: this one would begin anew over it."""
    first, second = (OutFolder(TrainConfig(**settings, resume=True)) for _ in range(2))
    first.check(), second.check()
    first.open(1)
    first.close()
    with pytest.raises(ConfigError, match=r"Another run has begun in .* since"):
        second.open(1)
    second.close()


def test_checkpoints_stay_behind_the_end_and_the_last_step_has_one(settings):
    settings |= {"loss": "sft", "save_every": 4}
    out = train(TrainConfig(**settings)).out
    assert saved(settings) == ["step-00000004", "step-00000006"]
    names = ("adapter_model.safetensors", "checkpoints/step-00000006/adapter_model.safetensors")
    result, last = (load_file(out / name) for name in names)
    assert all(result[name].equal(last[name]) for name in result)


def test_a_resumed_run_needs_no_room_for_checkpoints_it_has(killed, monkeypatch):
    usage = shutil.disk_usage("/")
    weights = sum(
        value.numel() for value in load_file(
            Path(killed["out"], "checkpoints", "step-00000003", "adapter_model.safetensors")
        ).values()
    )  # fmt: skip
    one = 16 * weights
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=int(1.5 * one)))
    with pytest.raises(ConfigError, match="checkpoints and result take up to"):
        train(TrainConfig(**{**killed, "out": killed["out"] + "-anew"}))
    assert train(TrainConfig(**killed, resume=True)).steps == 6


def test_a_disk_that_is_full_while_an_adapter_is_saved_is_a_sentence(killed, monkeypatch):
    def full(policy, folder, adapter):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patched:
        patched.setattr(Policy, "write", full)
        with pytest.raises(SweError, match=r"checkpoint of step 4 could not be written .*No space"):
            train(TrainConfig(**killed, resume=True))
    assert sorted(path.name for path in Path(killed["out"], "checkpoints").iterdir()) == saved(
        killed
    )
    assert train(TrainConfig(**killed, resume=True)).steps == 6


def test_a_buffer_may_have_moved_until_the_run_is_finished(killed, tmp_path):
    """A finished one is compared with nothing."""
    moved = str(shutil.copytree(killed["buffer"], tmp_path / "moved"))
    again = {**killed, "buffer": moved, "resume": True, "micro_batch_tokens": 100}
    assert train(TrainConfig(**again)).steps == 6
    assert train(TrainConfig(**again)).steps == 6
    with pytest.raises(ConfigError, match="was started with buffer ="):
        train(TrainConfig(**{**again, "buffer": killed["buffer"]}))
    with pytest.raises(ConfigError, match="was started with model ="):
        train(TrainConfig(**{**again, "model": str(tmp_path)}))


def test_a_checkpoint_that_cannot_be_read_for_now_is_not_set_aside(killed, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    before = saved(killed)
    monkeypatch.setattr("learners.training.checkpoint._load", refuse)
    with pytest.raises(SweError, match=r"step-00000003 cannot be read now .*nothing was changed"):
        train(TrainConfig(**killed, resume=True))
    assert saved(killed) == before


def test_a_run_that_fails_lets_go_of_its_folder(killed):
    def fail(progress):
        raise Killed

    with pytest.raises(Killed) as kept:
        train(TrainConfig(**killed, resume=True), on_progress=fail)
    assert kept
    assert train(TrainConfig(**killed, resume=True)).steps == 6
