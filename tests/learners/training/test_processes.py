"""Two processes (gloo, on the CPU) come to the result of one, however they share the work."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from learners import TrainConfig, read_metrics, train
from learners.data.batching import shares
from learners.data.dataset import Sample
from learners.data.encode import Encoded
from learners.ops.context import Context
from learners.training import workers
from learners.training.workers import Workers, start_workers
from learners.training.zero import deepspeed_settings
from swe_env.errors import ConfigError
from tests.learners.models import save_model
from tests.learners.records import rewriting_buffer
from tests.learners.training.conftest import train_and_kill, write_buffer

CASES = {
    "pairs": {"loss": "entropo-dpo", "tie_word_embeddings": False},
    "one": {"loss": "sft", "batch_size": 1},  # the second process has nothing to do
    "tokens": {"loss": "sft"},  # micro-batches weigh by their tokens
    "mismatched": {"loss": "kto", "z0": "mismatched"},
    "full": {"loss": "entropo-dpo", "mode": "full", "learning_rate": 1e-3},
    "resumed": {"loss": "entropo-kto", "z0": "task", "save_every": 2},
    "recomputed": {"loss": "entropo-dpo", "gradient_checkpointing": True},
    "filled": {"loss": "entropo-dpo", "gradient_checkpointing": "auto"},  # see `launched`
}
_SHARDED = ("--use_fsdp", "--fsdp_version", "2")
OPTIONS = {
    "replicated": ("--multi_gpu",),  # accelerate's name for several processes
    "sharded": _SHARDED,
    "context": (*_SHARDED, "--use_parallelism_config", "--parallelism_config_cp_size", "2"),
    "zero-2": ("--use_deepspeed", "--zero_stage", "2"),
    "zero-3": ("--use_deepspeed", "--zero_stage", "3"),
}
"""Of `accelerate launch`."""
DEEPSPEED = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None or not shutil.which("g++"),
    reason="deepspeed is not installed, or g++, with which it builds what processes on a CPU need",
)
LEFT = ("sharded", "zero-3")
"""Where a run is also left to be gone on with by a single process."""
TAKEN = ("replicated", "sharded")
"""Where a run that a single process began is also gone on with."""
pytestmark = [
    pytest.mark.timeout(600),  # three trainings of five runs each, on a busy machine
    pytest.mark.xdist_group("processes"),  # which are made once for all
]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory, model_folder):
    """``jobs(kind)``: every case, into a folder of that kind."""
    home = tmp_path_factory.mktemp("processes")
    # Trajectories of one context and of two: processes must make equally many passes all the same.
    buffer = write_buffer(home / "buffer", rewriting_buffer())
    untied = save_model(home / "untied", tie_word_embeddings=False)

    def build(kind):
        found = []
        for name, case in CASES.items():
            changes = dict(case)
            tied = changes.pop("tie_word_embeddings", True)
            settings = {
                "buffer": buffer, "learning_rate": 5e-3, "batch_size": 7, "max_steps": 5,
                "lora_r": 4, "device": "cpu", "dtype": "float32", "tensorboard": False,
                "save_every": None, "warmup": 0.0, "micro_batch_tokens": 200,
                "model": model_folder if tied else untied, "out": str(home / kind / name),
            }  # fmt: skip
            kill_at = 4 if name == "resumed" else None
            job = {"settings": {**settings, **changes}, "kill_at": kill_at}
            found.append(job | {"fill": name == "filled"})
        return home, found

    return build


@pytest.fixture(scope="module")
def one(jobs):
    """Where a single process trained, uninterrupted."""
    home, found = jobs("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWE_ENV_CACHE", str(home / "cache-of-one"))
        for job in found:
            train(TrainConfig(**job["settings"]))
    return home / "one"


@pytest.fixture(
    scope="module",
    params=[
        "replicated",
        "sharded",
        "context",
        pytest.param("zero-2", marks=DEEPSPEED),
        pytest.param("zero-3", marks=DEEPSPEED),
    ],
)
def two(jobs, request):
    """Where two processes trained.

    Each with the whole model, with a part of its weights or state, or with a part of every row.
    """
    home, found = jobs(request.param)
    environment = {"SWE_ENV_CACHE": str(home / f"cache-{request.param}"), "OMP_NUM_THREADS": "1"}
    environment |= {"DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(home / "built")}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if request.param in LEFT:
        found.append({**resumed(jobs(f"left-{request.param}")[1]), "leave": True})
    if request.param in TAKEN:
        begun = resumed(jobs(f"taken-{request.param}")[1])["settings"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SWE_ENV_CACHE", environment["SWE_ENV_CACHE"])
            train_and_kill(begun, after=4)
        found.append({"settings": {**begun, "resume": True}, "kill_at": None})
    if request.param == "replicated":
        found.append({**resumed(jobs("damaged")[1]), "damage": True})
    launch(home / f"{request.param}.json", found, OPTIONS[request.param], environment)
    return home / request.param


def resumed(jobs):
    return jobs[list(CASES).index("resumed")]


def launch(file, jobs, options, environment):
    file.write_text(json.dumps(jobs))
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--main_process_port", "0", *options,
        "-m", "tests.learners.training.launched", str(file),
    ]  # fmt: skip
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-12000:]  # the launcher's own report comes last


def weights(folder):
    whole = folder / "model.safetensors"
    return load_file(whole if whole.exists() else folder / "adapter_model.safetensors")


@pytest.mark.parametrize("case", CASES)
def test_two_processes_take_the_steps_of_one(one, two, case):
    alone, shared = read_metrics(one / case), read_metrics(two / case)
    assert [r["step"] for r in shared] == [1, 2, 3, 4, 5]
    for ours, theirs in zip(alone, shared, strict=True):
        # Accuracies jump where a margin is 0 up to rounding, as at the first step of KTO.
        # Sharded processes share beginnings between samples too, because all make few passes.
        for name in set(ours) - {"tokens_per_second", "rewards/accuracies", "shared_tokens"}:
            assert theirs[name] == pytest.approx(ours[name], abs=1e-5, rel=1e-5), name
    compare(two / case, one / case)
    record = json.loads((two / case / "training.json").read_text())
    assert record["processes"] == 2
    if two.name in LEFT and case == "resumed":
        goes_on_alone(two.parent / f"left-{two.name}" / case, one / case)
    if two.name in TAKEN and case == "resumed":
        taken = two.parent / f"taken-{two.name}" / case
        assert json.loads((taken / "training.json").read_text())["processes"] == 2
        compare(taken, one / case)
    if two.name == "replicated" and case == "resumed":  # from step 2, as step 4 was damaged
        compare(two.parent / "damaged" / case, one / case)


def goes_on_alone(left, whole):
    """A checkpoint does not depend on how the model was spread."""
    settings = json.loads((left / "settings.json").read_text())
    assert (left / "checkpoints" / "step-00000004").is_dir()
    compare(train(TrainConfig(**{**settings, "resume": True, "eval_every": None})).out, whole)


def compare(folder, other):
    found, expected = weights(folder), weights(other)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=5e-5, rtol=1e-3)


def samples(*lengths):
    return [Sample((Encoded((1,) * n, (False,) * n, (0,) * n),), 0) for n in lengths]


def test_shares_are_even_in_tokens_and_complete():
    assert shares(samples(9, 1, 1, 8, 1), 2) == [[0, 2], [1, 3, 4]]
    assert shares(samples(5), 3) == [[0], [], []]
    assert shares(samples(3, 9, 4), 1) == [[0, 1, 2]]


def test_what_a_launcher_may_not_ask_for(monkeypatch):
    assert start_workers("cuda:1").count == 1  # alone, any device will do
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="leave device 'cuda:1' out"):
        start_workers("cuda:1")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "0")
    with monkeypatch.context() as without:
        without.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ConfigError, match="not installed: pip install deepspeed, or shard"):
            start_workers("cpu")
    with monkeypatch.context() as old:
        old.setattr("importlib.util.find_spec", lambda name: name)
        old.setattr("importlib.metadata.version", lambda name: "0.16.4")
        with pytest.raises(
            ConfigError, match=r"DeepSpeed 0\.16\.4 ends its steps by a fixed count"
        ):
            start_workers("cpu")


def test_how_processes_may_share_sequences(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    assert workers._context(3, 0) is None
    monkeypatch.setenv("PARALLELISM_CONFIG_CP_SIZE", "2")
    with pytest.raises(ConfigError, match="3 processes cannot share sequences by 2"):
        workers._context(3, 0)
    monkeypatch.setenv("PARALLELISM_CONFIG_TP_SIZE", "2")
    with pytest.raises(ConfigError, match="swe train has no tp_size: spread long sequences"):
        workers._context(4, 0)
    four = [Workers(4, index, context=Context(2, index % 2)) for index in range(4)]
    assert [one.groups for one in four] == [2, 2, 2, 2]
    assert [one.group for one in four] == [0, 0, 1, 1]
    assert [one.counts for one in four] == [True, False, True, False]


@DEEPSPEED
def test_deepspeed_without_zero_is_refused(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "0")
    with pytest.raises(ConfigError, match="without ZeRO shards nothing: give --zero_stage 1, 2"):
        deepspeed_settings("cpu")


def test_a_process_alone_needs_nobody():
    alone = Workers()
    assert alone.main
    assert alone.agree(3) == 3
    assert alone.gather("x") == ["x"]
