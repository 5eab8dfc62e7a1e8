"""Weights & Biases: offline, with all its files in the test's folder."""

import shutil
import struct
import sys

import pytest

from learners import TrainConfig, train
from swe_env.errors import ConfigError
from tests.learners.training.conftest import train_and_kill


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    found = pytest.importorskip("wandb")
    found.teardown()  # it reads the environment once
    yield found
    found.teardown()


def sent(folder):
    """The id and the steps of each part of a run, in order."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # its process may write for a while after a run is finished
    found = []
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        data, at, steps = path.read_bytes(), 7, []
        assert len(data) < 1 << 15  # one block of LevelDB's log format
        while at < len(data):
            (size,) = struct.unpack_from("<H", data, at + 4)
            record = Record.FromString(data[at + 7 : at + 7 + size])
            steps += [record.history.step.num] if record.HasField("history") else []
            at += 7 + size
        found.append((path.stem.removeprefix("run-"), steps))
    return found


def test_a_resumed_run_is_one_run_and_gives_no_step_twice(settings, wandb):
    settings |= {"loss": "sft", "wandb_project": "p", "save_every": 2}
    train_and_kill(settings, after=3)
    out = train(TrainConfig(**settings, resume=True)).out
    name = (out / "wandb-id.txt").read_text().strip()
    assert sent(out) == [(name, [1, 2, 3]), (name, [4, 5, 6])]


def test_another_run_in_a_folder_of_that_name_is_another(settings, wandb):
    settings |= {"loss": "sft", "wandb_project": "p", "max_steps": 1}
    names = set()
    for _ in range(2):
        out = train(TrainConfig(**settings)).out
        names |= {name for name, _ in sent(out)}
        shutil.rmtree(out)
    assert len(names) == 2


def test_a_run_that_cannot_be_begun_is_found_before_the_scoring(settings, wandb):
    stages = []
    with pytest.raises(ConfigError, match=r"the run out in 'p/q' cannot be begun \(Invalid "):
        train(
            TrainConfig(**settings, loss="dpo", wandb_project="p/q"),
            on_progress=lambda p: stages.append(p.stage),
        )
    assert stages == ["data"]


def test_without_a_login_nothing_is_begun(settings, wandb, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "online")
    wandb.teardown()
    with pytest.raises(ConfigError, match=r"no login .*: run `wandb login`, or set WANDB_MODE=off"):
        train(TrainConfig(**settings, wandb_project="p"))
    assert not (tmp_path / "out").exists()


def test_it_is_asked_for_and_missing(settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="needs the package wandb: pip install wandb"):
        train(TrainConfig(**settings, wandb_project="p"))
