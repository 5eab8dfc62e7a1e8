import pytest

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
