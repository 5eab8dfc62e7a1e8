"""Whole training runs on a GPU, beside the same runs on the CPU."""

import importlib.util
import math

import pytest
import torch
from safetensors.torch import load_file

from learners import TrainConfig, read_metrics, train
from tests.learners.training.conftest import train_killed_and_resumed

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("loss", ["entropo-dpo", "entropo-kto", "sft"])
def test_the_losses_are_the_cpus(settings, tmp_path, loss):
    settings |= {"loss": loss}
    wanted = read_metrics(train(TrainConfig(**settings)).out)
    settings |= {"device": "cuda", "out": str(tmp_path / "gpu")}
    found = read_metrics(train(TrainConfig(**settings)).out)
    for one, other in zip(found, wanted, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert one["entropy"] == pytest.approx(other["entropy"], rel=1e-3)


def test_trap_4_the_policy_and_its_reference_are_equal_before_the_first_step(settings):
    """In half precision too, where several pairs share a pass and the reference had one each."""
    settings |= {"device": "cuda", "dtype": "bfloat16", "loss": "dpo", "max_steps": 1}
    first = read_metrics(train(TrainConfig(**settings)).out)[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-2)
    assert abs(first["rewards/margins"]) < 2e-2


@pytest.mark.parametrize("how", ["auto", True, False])
def test_half_precision_learns_whatever_is_recomputed(settings, how):
    settings |= {"device": "cuda", "dtype": "bfloat16", "gradient_checkpointing": how}
    records = read_metrics(train(TrainConfig(**settings, loss="entropo-dpo")).out)
    assert records[-1]["rewards/margins"] > records[0]["rewards/margins"]


def test_a_killed_run_goes_on(settings, tmp_path):
    """To the same weights up to the order of a GPU's sums."""
    settings |= {"device": "cuda", "loss": "entropo-dpo", "save_every": 2, "dtype": "bfloat16"}
    whole = train(TrainConfig(**settings)).out
    resumed = train_killed_and_resumed(settings, tmp_path / "killed", after=3)
    losses = [[record["loss"] for record in read_metrics(out)] for out in (whole, resumed)]
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
    one, other = (load_file(out / "adapter_model.safetensors") for out in (whole, resumed))
    for name, value in one.items():
        assert (value - other[name]).norm() < 0.1 * value.norm(), name


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
def test_qlora(settings):
    settings |= {"device": "cuda", "dtype": "bfloat16", "mode": "qlora", "loss": "entropo-dpo"}
    records = read_metrics(train(TrainConfig(**settings)).out)
    assert records[-1]["rewards/margins"] > records[0]["rewards/margins"]
