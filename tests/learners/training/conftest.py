import pytest

from learners import TrainConfig, train
from swe_env.replay import ReplayBuffer
from tests.learners.models import save_model
from tests.learners.records import mixed_buffer


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SWE_ENV_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def buffer_folder(tmp_path):
    return write_buffer(tmp_path / "buffer", mixed_buffer())


@pytest.fixture
def settings(model_folder, buffer_folder, tmp_path):
    """Settings of a run of a second or two."""
    return {
        "model": model_folder, "buffer": buffer_folder, "out": str(tmp_path / "out"),
        "learning_rate": 5e-3, "batch_size": 4, "max_steps": 6, "lora_r": 4, "device": "cpu",
        "dtype": "float32", "tensorboard": False, "save_every": None, "warmup": 0.0,
    }  # fmt: skip


def write_buffer(folder, trajectories):
    with ReplayBuffer(folder) as buffer:
        buffer.extend(trajectories)
    return str(folder)


class Killed(BaseException):
    """What a callback raises to stand for a kill between two steps."""


def train_and_kill(settings, after):
    """Train until step `after` is over, then die."""

    def kill(progress):
        if progress.stage == "training" and progress.done == after:
            raise Killed

    with pytest.raises(Killed):
        train(TrainConfig(**settings), on_progress=kill)


def train_killed_and_resumed(settings, out, after):
    """The folder of a run into `out` that died after step `after` and was gone on with."""
    settings = {**settings, "out": str(out)}
    train_and_kill(settings, after)
    return train(TrainConfig(**settings, resume=True)).out
