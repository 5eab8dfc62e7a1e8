import json
import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import learners
from agents.policies import hub
from agents.policies.sampling import Engine, Sampling, attention
from learners import StopTraining, TrainConfig, read_metrics, train
from learners.data import encode
from learners.losses import LossOutput
from learners.ops import sequence_logps
from learners.training import Diverged, checkpoint
from learners.training.model import model_digest
from learners.training.plan import plan_training
from learners.training.policy import Policy
from swe_env.errors import ConfigError, SweError
from swe_env.replay import ReplayBuffer
from tests.learners.models import byte_tokenizer, save_model, tiny_llama
from tests.learners.records import rewriting_buffer, sampled
from tests.learners.training.conftest import (
    Killed,
    train_and_kill,
    train_killed_and_resumed,
    write_buffer,
)


def weights(folder):
    return load_file(f"{folder}/adapter_model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


LOSSES = ["sft", "entropo-dpo", "entropo-kto", "dpo", "kto", "entropo-kto-released"]
LOSSES += ["entropo-kto-normalized"]


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_an_adapter_that_peft_loads(settings, loss, tmp_path):
    result = train(TrainConfig(**settings, loss=loss))
    records = read_metrics(result.out)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(value) for record in records for value in record.values())
    first = records[0]
    assert 0 < first["entropy"] <= math.log(300)
    assert first["grad_norm"] > 0
    loaded = PeftModel.from_pretrained(tiny_llama(), result.out)
    trajectory = next(iter(ReplayBuffer(settings["buffer"])))
    encoded = encode(trajectory, byte_tokenizer())
    ids = torch.tensor([encoded.input_ids])
    mask = torch.tensor([encoded.loss_mask])
    after = sequence_logps(loaded, ids, mask).logps
    with loaded.disable_adapter():
        before = sequence_logps(loaded, ids, mask).logps
    assert abs(after - before).item() > 1e-3
    card = (result.out / "README.md").read_text()
    record = json.loads((result.out / "training.json").read_text())
    assert f"trained with {loss}" in card
    assert record["data_digest"] in card
    assert record["steps"] == 6


def test_what_is_published_names_no_path_of_this_machine(settings, tmp_path):
    settings |= {"loss": "sft", "max_steps": 1}
    start = train(TrainConfig(**settings)).out
    changes = {"init_adapter": str(start), "out": str(tmp_path / "second")}
    out = train(TrainConfig(**{**settings, **changes})).out
    for name in ("README.md", "training.json", "adapter_config.json"):
        text = (out / name).read_text()
        assert str(tmp_path) not in text
        assert settings["model"] not in text
    record = json.loads((out / "training.json").read_text())
    names = [record["config"][name] for name in ("buffer", "out", "init_adapter", "model")]
    assert names == ["buffer", "second", "out", Path(settings["model"]).name]
    card = (out / "README.md").read_text()
    assert f"starting adapter `out@sha256:{record['init_adapter_digest']}`" in card


def test_an_epoch_ends_with_its_last_batch_however_short(settings):
    """Eight resolved trajectories in batches of five."""
    settings |= {"loss": "sft", "batch_size": 5, "max_steps": None, "epochs": 2.0}
    records = read_metrics(train(TrainConfig(**settings)).out)
    assert [record["epoch"] for record in records] == [0.5, 1.0, 1.5, 2.0]


def test_sft_lowers_the_loss(settings):
    records = read_metrics(train(TrainConfig(**settings, loss="sft")).out)
    assert records[-1]["loss"] < records[0]["loss"] - 0.05


def test_training_raises_the_margin_of_the_pairs(settings):
    changes = {"loss": "entropo-dpo", "ties": 0, "max_steps": 12, "batch_size": 8}
    records = read_metrics(train(TrainConfig(**{**settings, **changes})).out)
    assert records[-1]["rewards/margins"] > records[0]["rewards/margins"] + 0.2
    assert records[-1]["rewards/accuracies"] == 1.0


@pytest.mark.parametrize("init", [False, True])
def test_at_step_zero_policy_and_reference_are_one(settings, init, tmp_path):
    """lambda = 0: the margin is 0 to the last digit, with and without a starting adapter."""
    if init:
        start = train(TrainConfig(**settings, loss="sft")).out
        settings |= {"init_adapter": str(start), "out": str(tmp_path / "second")}
    settings |= {"loss": "dpo", "max_steps": 1, "label_smoothing": 0.0, "ties": 0}
    first = read_metrics(train(TrainConfig(**settings)).out)[0]
    assert first["rewards/margins"] == 0
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-12)


def test_step_zero_of_entropo_is_its_closed_form(settings):
    """u = lambda (S_w - S_l): the length term of trap 1, through the whole trainer."""
    settings |= {"gamma": 0.1, "zeta": 0.4, "max_steps": 1, "batch_size": 64, "ties": 0}
    first = read_metrics(train(TrainConfig(**settings, loss="entropo-dpo")).out)[0]
    gap = first["logps/chosen"] - first["logps/rejected"]
    assert first["rewards/margins"] == pytest.approx(0.3 * gap, rel=1e-9)


def test_z0_of_the_normalized_kto_is_of_its_own_reward(settings):
    """At step 0 the mean of z0 over whole tasks is the mean reward, by the leave-one-out rule."""
    settings |= {"loss": "entropo-kto-normalized", "zeta": 0.4, "batch_size": 64, "max_steps": 1}
    first = read_metrics(train(TrainConfig(**settings)).out)[0]
    rewards = first["rewards/chosen"] + first["rewards/rejected"]  # as many of each
    assert first["z0"] == pytest.approx(rewards / 2 / 0.4, rel=1e-9)


def test_a_starting_adapters_dropout_draws_by_the_seed(settings, tmp_path):
    settings |= {"loss": "sft", "max_steps": 2}
    start = train(TrainConfig(**settings, lora_dropout=0.3)).out
    found = []
    for drawn, seed in ((1, 0), (2, 0), (2, 5)):
        torch.manual_seed(drawn)  # whatever ran in this process before
        changes = {"init_adapter": str(start), "out": f"{tmp_path}/{drawn}-{seed}", "seed": seed}
        config = TrainConfig(**{**settings, **changes, "batch_size": 64})
        found.append(weights(train(config).out))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_gradient_checkpointing_changes_nothing(settings, tmp_path):
    plain = train(TrainConfig(**settings, loss="entropo-dpo"))
    settings |= {"out": str(tmp_path / "second"), "gradient_checkpointing": True}
    recomputes = []

    def on_eval(model, step):
        recomputes.extend(getattr(m, "gradient_checkpointing", False) for m in model.modules())
        return {}

    again = train(TrainConfig(**settings, loss="entropo-dpo"), on_eval=on_eval)
    assert any(recomputes)
    assert same(weights(plain.out), weights(again.out))


@pytest.mark.parametrize(
    ("loss", "extra"),
    [("entropo-kto", {"z0": "task"}), ("entropo-kto", {"z0": "ema"}), ("entropo-dpo", {}),
     ("sft", {"lora_dropout": 0.3})],
)  # fmt: skip
def test_a_killed_run_resumes_to_the_same_bytes(settings, tmp_path, loss, extra):
    settings |= {**extra, "save_every": 2, "loss": loss}
    whole = train(TrainConfig(**settings)).out
    resumed = train_killed_and_resumed(settings, tmp_path / "killed", after=5)
    assert same(weights(whole), weights(resumed))
    timeless = [
        [
            {k: v for k, v in record.items() if k != "tokens_per_second"}
            for record in read_metrics(o)
        ]
        for o in (whole, resumed)
    ]
    assert timeless[0] == timeless[1]


def test_a_run_killed_while_it_saves_keeps_the_checkpoint_before(settings, monkeypatch):
    settings |= {"save_every": 2, "loss": "sft"}
    whole = train(TrainConfig(**{**settings, "out": settings["out"] + "-whole"}))
    real, calls = torch.save, []

    def full(state, path):
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(state, path)

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(SweError, match=r"step 4 could not be written .* No space left"):
        train(TrainConfig(**settings))
    folder = Path(settings["out"]) / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["step-00000002"]
    monkeypatch.setattr(checkpoint.torch, "save", real)
    resumed = train(TrainConfig(**settings, resume=True))
    assert same(weights(whole.out), weights(resumed.out))


def test_a_disk_that_is_full_at_the_end_costs_no_step(settings, monkeypatch):
    settings |= {"save_every": 4, "loss": "sft"}
    whole = train(TrainConfig(**{**settings, "out": settings["out"] + "-whole"})).out
    write = Policy.write

    def full(policy, folder, adapter):
        if folder == Path(settings["out"]):
            raise OSError(28, "No space left on device")
        write(policy, folder, adapter)

    with monkeypatch.context() as patched:
        patched.setattr(Policy, "write", full)
        with pytest.raises(SweError, match=r"The result of step 6 could not be .*--resume"):
            train(TrainConfig(**settings))
    steps = []
    resumed = train(
        TrainConfig(**settings, resume=True),
        on_progress=lambda p: steps.append(p.done) if p.stage == "training" else None,
    )
    assert steps == [6]
    assert same(weights(whole), weights(resumed.out))


def test_the_reference_of_weights_that_differ_by_little_is_their_own(settings, tmp_path):
    """Weights that differ in a single place, or by less than half precision shows, are others."""
    model = tiny_llama()
    folders = []
    for number in range(2):
        folder = tmp_path / f"model-{number}"
        model.save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        folders.append(str(folder))
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight[0, 1] += 0.1
    margins = []
    for folder in folders:
        changes = {"model": folder, "out": folder + "-out", "max_steps": 1, "ties": 0}
        first = read_metrics(train(TrainConfig(**{**settings, **changes}, loss="dpo")).out)[0]
        margins.append(first["rewards/margins"])
    assert margins == [0, 0]


def test_the_reference_of_one_configuration_is_not_anothers(settings, tmp_path):
    """Equal weights give other figures under another epsilon, and the same ones elsewhere."""
    digests, stages = [], []
    for number, epsilon in enumerate((1e-6, 1e-2, 1e-2)):
        folder = save_model(tmp_path / f"model-{number}", rms_norm_eps=epsilon)
        digests.append(model_digest(hub.load(folder, device="cpu", dtype="float32")[0]))
        seen = set()
        changes = {"model": folder, "out": folder + "-out", "max_steps": 1}
        train(
            TrainConfig(**{**settings, **changes}, loss="dpo"),
            on_progress=lambda p, s=seen: s.add(p.stage),
        )
        stages.append("reference" in seen)
    assert digests[0] != digests[1] == digests[2]
    assert stages == [True, True, False]


def test_evaluation_is_recorded_and_can_stop_the_run(settings):
    seen = []

    def on_eval(model, step):
        seen.append((step, model.training))
        torch.rand(3)
        if step == 4:
            raise StopTraining("held-out pass@1 fell")
        return {"pass@1": 0.5}

    result = train(TrainConfig(**settings, loss="sft", eval_every=2), on_eval=on_eval)
    assert seen == [(2, False), (4, False)]
    assert result.steps == 4
    assert result.stopped == "held-out pass@1 fell"
    assert [r.get("eval/pass@1") for r in read_metrics(result.out)] == [None, 0.5, None, None]
    assert (result.out / "adapter_model.safetensors").is_file()


def test_a_kill_during_an_evaluation_repeats_no_step_and_the_evaluation(settings, tmp_path):
    settings |= {"loss": "sft", "eval_every": 3, "save_every": 50, "max_steps": 5}
    whole = train(TrainConfig(**settings), on_eval=lambda model, step: {"x": step / 4})

    def killed(model, step):
        raise Killed

    settings |= {"out": str(tmp_path / "killed")}
    with pytest.raises(Killed):
        train(TrainConfig(**settings), on_eval=killed)
    seen, steps = [], []
    resumed = train(
        TrainConfig(**settings, resume=True),
        on_eval=lambda model, step: seen.append(step) or {"x": step / 4},
        on_progress=lambda p: steps.append(p.done) if p.stage == "training" else None,
    )
    assert (seen, steps) == ([3, 5], [3, 4, 5])
    assert same(weights(whole.out), weights(resumed.out))
    assert [r.get("eval/x") for r in read_metrics(resumed.out)] == [None, None, 0.75, None, 1.25]


def test_a_kill_after_a_stop_does_not_train_past_it(settings, monkeypatch):
    settings |= {"loss": "sft", "save_every": 50}
    folder = Path(settings["out"]) / "checkpoints"

    def stop(progress):
        if progress.stage == "training" and progress.done == 2:
            (folder / ".saving-abc").mkdir(parents=True)  # a kill during an earlier save
            raise StopTraining("enough")

    def die(*_):
        raise Killed

    with monkeypatch.context() as dying:
        dying.setattr("learners.training.loop.write_card", die)
        with pytest.raises(Killed):
            train(TrainConfig(**settings), on_progress=stop)
    assert [path.name for path in folder.iterdir()] == ["step-00000002"]
    resumed = train(TrainConfig(**settings, resume=True))
    assert (resumed.steps, resumed.stopped) == (2, "enough")


@pytest.mark.parametrize("by", ["rule", "evaluation"])
def test_a_kill_while_a_stop_is_saved_does_not_train_past_it(settings, monkeypatch, by):
    settings |= {"loss": "dpo", "save_every": 1, "max_steps": 40}
    settings |= {"stop_kl": 0.02, "stop_window": 1} if by == "rule" else {"eval_every": 3}

    def on_eval(model, step):
        raise StopTraining("held-out pass@1 fell")

    def die(folder, step, policy, optimizer, extra, **keep):
        if extra["stopped"]:
            raise Killed
        checkpoint.save_checkpoint(folder, step, policy, optimizer, extra, **keep)

    on_eval = on_eval if by == "evaluation" else None
    with monkeypatch.context() as dying:
        dying.setattr("learners.training.loop.save_checkpoint", die)
        with pytest.raises(Killed):
            train(TrainConfig(**settings), on_eval=on_eval)
    last = checkpoint.checkpoints(Path(settings["out"]) / "checkpoints")[-1]
    resumed = train(TrainConfig(**settings, resume=True), on_eval=on_eval)
    assert ("from the reference" if by == "rule" else "pass@1 fell") in resumed.stopped
    assert last.name == f"step-{resumed.steps:08d}"
    assert [r["step"] for r in read_metrics(resumed.out)] == [*range(1, resumed.steps + 1)]


def test_a_kill_while_a_step_is_saved_again_leaves_it(settings, monkeypatch):
    settings |= {"loss": "sft", "save_every": 2, "keep_checkpoints": 1}
    moved, replace = [], Path.replace

    def move(path, target):
        if "checkpoints" in target.parts:
            moved.append(target)
            if len(moved) == 2:
                raise Killed
        replace(path, target)

    def stop(progress):
        if progress.stage == "training" and progress.done == 2:
            raise StopTraining("enough")

    with monkeypatch.context() as dying:
        dying.setattr(Path, "rename", move)
        dying.setattr(Path, "replace", move)
        with pytest.raises(Killed):
            train(TrainConfig(**settings), on_progress=stop)
    (left,) = checkpoint.checkpoints(Path(settings["out"]) / "checkpoints")
    assert checkpoint.read_checkpoint(left)["step"] == 2
    resumed = train(TrainConfig(**settings, resume=True), on_progress=stop)
    assert (resumed.steps, resumed.stopped) == (2, "enough")


def test_a_disk_that_is_full_at_a_resumption_costs_no_figure(settings, monkeypatch):
    settings |= {"loss": "sft", "save_every": 2}
    train_and_kill(settings, after=3)
    before = read_metrics(settings["out"])
    real = Path.write_text

    def full(path, text):
        if path.name.startswith("metrics"):
            real(path, text[:100])
            raise OSError(28, "No space left on device")
        return real(path, text)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        with pytest.raises(SweError, match=r"The figures of step 2 could not be .*--resume"):
            train(TrainConfig(**settings, resume=True))
    assert read_metrics(settings["out"]) == before
    assert len(before) == 3
    assert train(TrainConfig(**settings, resume=True)).steps == 6


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_full_while_figures_are_written_is_a_sentence(settings):
    def fill(progress):
        if progress.stage == "training" and progress.done == 2:
            (file := Path(settings["out"]) / "metrics.jsonl").unlink()
            file.symlink_to("/dev/full")

    with pytest.raises(SweError, match=r"The figures of step 3 could not be written .* No space"):
        train(TrainConfig(**settings, loss="sft"), on_progress=fill)


def test_a_run_is_not_resumed_on_other_data(settings):
    settings |= {"loss": "sft", "save_every": 2}
    train_and_kill(settings, after=3)
    write_buffer(settings["buffer"], [sampled("t-new")])
    with pytest.raises(ConfigError, match=r"gives other samples .* resume it with the buffer as"):
        train(TrainConfig(**settings, resume=True))


def test_a_run_is_not_resumed_on_another_model_or_starting_adapter(settings, tmp_path):
    folder = save_model(tmp_path / "model")
    settings |= {"model": folder, "loss": "sft", "save_every": 1}
    start = train(TrainConfig(**{**settings, "out": str(tmp_path / "start"), "max_steps": 1})).out
    settings |= {"init_adapter": str(start)}
    train_and_kill(settings, after=2)
    resume = TrainConfig(**settings, resume=True)
    record = (start / "adapter_config.json").read_text()
    other = record.replace('"lora_alpha": 16', '"lora_alpha": 8')
    (start / "adapter_config.json").write_text(other)
    with pytest.raises(ConfigError, match=r"starting adapter .*start is another \(digest .*began"):
        train(resume)
    (start / "adapter_config.json").write_text(record)
    (start / "training.json").unlink()  # which names the base that the adapter was made for
    save_model(tmp_path / "model", seed=1)
    with pytest.raises(ConfigError, match=r"base model .*model has other weights \(digest"):
        train(resume)
    save_model(tmp_path / "model")
    last = Path(settings["out"]) / "checkpoints" / "step-00000002" / "state.pt"
    state = torch.load(last)
    del state["extra"]["base"], state["extra"]["init_adapter"]  # by an earlier version
    torch.save(state, last)
    assert train(resume).steps == 6


def test_a_finished_run_is_not_resumed_but_its_result_given_again(settings, caplog):
    settings |= {"loss": "sft", "save_every": 2, "max_steps": 3}
    result = train(TrainConfig(**settings))
    (result.out / "adapter_model.safetensors").write_bytes(b"precious")
    before = read_metrics(result.out)
    assert train(TrainConfig(**settings, resume=True)) == result
    assert f"The run in {result.out} is finished: nothing is trained." in caplog.text
    assert read_metrics(result.out) == before
    assert (result.out / "adapter_model.safetensors").read_bytes() == b"precious"
    with pytest.raises(ConfigError, match="was started with seed = 0, not 1"):
        train(TrainConfig(**settings, resume=True, seed=1))


def flat(policy_chosen_logps):
    """A finite loss whose gradient is not."""
    return LossOutput((policy_chosen_logps - policy_chosen_logps.detach()).sqrt().mean())


@pytest.mark.parametrize(
    ("changes", "step", "what"),
    [({"loss": "sft", "learning_rate": 1e37}, 2, "loss"),
     ({"loss": "tests.learners.training.test_train:flat"}, 1, "gradient norm")],
)  # fmt: skip
def test_what_is_not_finite_ends_the_run_before_its_step(settings, changes, step, what):
    settings |= {**changes, "save_every": 1}
    with pytest.raises(
        Diverged, match=rf"The {what} of step {step} is (nan|inf) \(in samples of t-\d, .*float32"
    ):
        train(TrainConfig(**settings))
    out = Path(settings["out"])
    assert len(read_metrics(out)) == step - 1
    assert not (out / "training.json").exists()
    saved = [path.name for path in (out / "checkpoints").glob("*")]
    assert saved == [f"step-{done:08d}" for done in range(1, step)]


def test_what_an_evaluation_draws_does_not_change_the_run(settings, tmp_path):
    settings |= {"loss": "sft", "lora_dropout": 0.3}
    plain = train(TrainConfig(**settings))
    settings |= {"out": str(tmp_path / "second"), "eval_every": 1}
    watched = train(
        TrainConfig(**settings), on_eval=lambda model, step: {"x": float(torch.rand(1))}
    )
    assert same(weights(plain.out), weights(watched.out))


@pytest.mark.parametrize("min_share", [0.1, 2.0])
def test_a_sampler_kept_over_evaluations_leaves_training_its_attention(
    settings, tmp_path, min_share
):
    """Its own attention has no gradients: training with it would stand still, or break."""
    settings |= {"loss": "entropo-dpo", "min_share": min_share, "max_steps": 3}
    plain = train(TrainConfig(**settings))
    kept, used = [], []

    def sample(model, step):
        if not kept:
            kept.append(
                Engine(model, None, sampling=Sampling(temperature=0), ends=[], cache_tokens=0)
            )
        kept[0].generate([40, 41, 42], limit=3, seed=[step])
        used.append(model.get_base_model().config._attn_implementation)
        return {}

    settings |= {"out": str(tmp_path / "second"), "eval_every": 1}
    watched = train(TrainConfig(**settings), on_eval=sample)
    kept[0].close()
    assert len(used) == 3
    assert set(used) == {attention.NAME}
    assert same(weights(plain.out), weights(watched.out))


def test_progress_tells_every_step(settings):
    seen = []
    train(TrainConfig(**settings, loss="entropo-kto"), on_progress=seen.append)
    assert [p.done for p in seen if p.stage == "training"] == [1, 2, 3, 4, 5, 6]
    assert [p.done for p in seen if p.stage == "reference"][-1] == 16
    assert "rewards/margins" in seen[-1].metrics


def test_the_reference_is_scored_once_for_equal_runs(settings, tmp_path):
    stages = []
    for out in ("a", "b"):
        seen = set()
        changes = {**settings, "out": str(tmp_path / out)}
        train(TrainConfig(**changes, loss="dpo"), on_progress=lambda p, s=seen: s.add(p.stage))
        stages.append("reference" in seen)
    assert stages == [True, False]


@pytest.mark.parametrize("loss", ["entropo-dpo", "kto"])
def test_prompts_that_rewrite_earlier_turns_are_learned_from(settings, tmp_path, loss):
    """Several contexts a trajectory: the same losses packed and padded, and the plan knows them."""
    records = rewriting_buffer()
    folder = write_buffer(tmp_path / "rewriting", records)
    settings |= {"buffer": folder, "loss": loss, "max_steps": 3, "learning_rate": 0.05}
    if loss == "kto":
        settings |= {"z0": "mismatched"}
    losses = []
    for packing in ("auto", "none"):
        result = train(
            TrainConfig(**{**settings, "packing": packing, "out": f"{tmp_path}/{packing}"})
        )
        losses.append([row["loss"] for row in read_metrics(result.out)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len(set(losses[0])) == 3
    assert "contexts, as prompts rewrite earlier turns" in str(result.report)
    if loss == "kto":
        plan = plan_training(TrainConfig(**settings))
        assert plan.tokens == sum(len(encode(one, None)) for one in records)
        assert plan.longest.rows > plan.longest.samples


def test_mismatched_z0_is_ktos_and_zero_at_step_zero(settings):
    settings |= {"loss": "kto", "z0": "mismatched", "max_steps": 2, "learning_rate": 0.05}
    first, second = read_metrics(train(TrainConfig(**settings)).out)
    assert first["z0"] == 0
    assert first["loss"] == pytest.approx(0.5, rel=1e-12)
    assert second["z0"] >= 0


def test_mismatched_z0_of_the_released_kto_weighs_the_reference(settings):
    """zeta = gamma / 2: E[S - 2 S_ref] is -E[S] at the first step, where E[S - S_ref] is 0."""
    settings |= {"loss": "entropo-kto-released", "z0": "mismatched", "gamma": 0.1, "zeta": 0.05}
    settings |= {"batch_size": 64, "max_steps": 1}
    first = read_metrics(train(TrainConfig(**settings)).out)[0]
    assert first["z0"] > -max(first["logps/chosen"], first["logps/rejected"]) / 2 > 10


def test_tensorboard_holds_the_same_figures(settings):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(TrainConfig(**{**settings, "tensorboard": True}, loss="entropo-dpo"))
    events = EventAccumulator(str(result.out / "tensorboard"))
    events.Reload()
    losses = [event.value for event in events.Scalars("loss")]
    assert losses == pytest.approx([r["loss"] for r in read_metrics(result.out)], rel=1e-6)


def test_import_learners_is_light():
    import subprocess
    import sys

    script = "import learners, sys; assert 'torch' not in sys.modules; learners.TrainConfig"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert set(learners.__all__) == {
        "Progress", "StopTraining", "TrainConfig", "TrainResult", "encode", "kto_rows", "pairs",
        "read_metrics", "sft_rows", "train",
    }  # fmt: skip
