import json
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from learners.losses import LossOutput
from learners.training.commands import train
from learners.training.config import TrainConfig
from learners.training.plan import Assumptions, as_dict, as_text, plan_training
from learners.training.prepare import NoSignal
from swe_env.errors import ConfigError
from tests.learners.models import save_model
from tests.learners.records import sampled, scripted
from tests.learners.training.conftest import write_buffer

app = typer.Typer()
app.command()(train)


@pytest.fixture
def config(settings):
    return TrainConfig(**{**settings, "loss": "entropo-dpo", "epochs": 2.0, "max_steps": None})


def test_a_plan_is_of_the_samples_that_training_would_use(config):
    from learners import train as run

    plan = plan_training(config, gpu="A100-80")
    seen = {}
    result = run(config.model_copy(update={"max_steps": 1}),
                 on_progress=lambda p: seen.setdefault(p.stage, p.total))  # fmt: skip
    assert plan.data == str(result.report)
    assert plan.samples == result.report.kept
    assert plan.counts.trainable == sum(_sizes(Path(config.out)))
    assert plan.steps == 2 * -(-plan.samples // config.batch_size)
    assert plan.longest.rows % 2 == 0
    assert plan.fits
    assert plan.verdict.startswith("Fits on one A100-80")
    assert seen["reference"] == 2 * plan.samples


def without_ties(policy_chosen_logps, policy_rejected_logps):
    return LossOutput((policy_rejected_logps - policy_chosen_logps).mean())


def test_a_loss_that_takes_no_ties_is_given_none(config):
    from learners import train as run

    ties, none = (plan_training(config.model_copy(update={"ties": count})) for count in (2, 0))
    assert none.samples < ties.samples
    own = f"{__name__}:{without_ties.__name__}"
    config = config.model_copy(update={"loss": own, "ties": 2, "max_steps": 1})
    assert run(config).report.kept == plan_training(config).samples == none.samples


def _sizes(folder):
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", "pt") as adapter:
        for key in adapter.keys():  # noqa: SIM118
            yield adapter.get_tensor(key).numel()


def test_hours_are_those_of_the_epochs_and_the_reference(config):
    once = plan_training(config.model_copy(update={"epochs": 1.0}))
    twice = plan_training(config)
    assert twice.hours - twice.reference_hours == pytest.approx(
        2 * (once.hours - once.reference_hours)
    )
    sft = plan_training(config.model_copy(update={"loss": "sft"}))
    assert sft.reference_hours == 0


def test_twice_the_utilisation_is_never_slower(config):
    slow = plan_training(config, assumptions=Assumptions(utilisation=1e-6))
    fast = plan_training(config, assumptions=Assumptions(utilisation=2e-6))
    assert fast.tokens_per_second == pytest.approx(2 * slow.tokens_per_second)


def pairs(count, tokens=40):
    """Equal pairs, one a task."""
    sides = ("a" * tokens, True), ("b" * tokens, False)
    return [
        sampled(f"t-{task}", replies=(reply,), resolved=resolved, attempt=int(resolved))
        for task in range(count)
        for reply, resolved in sides
    ]


def planned(config, tmp_path, records, **options):
    """A plan in which time is that of computing alone."""
    folder = write_buffer(tmp_path / f"buffer-{len(list(tmp_path.iterdir()))}", records)
    changes = {"buffer": folder, "ties": 0, "gradient_checkpointing": True}  # as sharded models
    assume = Assumptions(utilisation=1e-6)
    return plan_training(config.model_copy(update=changes), assumptions=assume, **options)


def test_gpus_are_worth_what_they_have_to_do(config, tmp_path):
    config = config.model_copy(update={"batch_size": 8, "micro_batch_tokens": 1})
    alone, many = (planned(config, tmp_path, pairs(n)) for n in (1, 8))
    speed = alone.tokens_per_second
    assert many.tokens_per_second == pytest.approx(speed)
    spread = {n: planned(config, tmp_path, pairs(n), gpus=8) for n in (1, 8)}
    assert spread[1].tokens_per_second == pytest.approx(0.9 * speed)
    assert spread[8].tokens_per_second == pytest.approx(8 * 0.9 * speed)
    assert any("7 of them have nothing to do: batch_size=8" in note for note in spread[1].notes)
    assert not any("nothing to do" in note for note in spread[8].notes)
    assert spread[1].reference_hours == pytest.approx(alone.reference_hours / 0.9)
    assert spread[8].reference_hours == pytest.approx(alone.reference_hours / 0.9)
    # Of three pairs in a step one GPU has two; its share is what is cut into micro-batches.
    three = planned(config, tmp_path, pairs(3), gpus=2)
    assert three.tokens_per_second == pytest.approx(3 / 2 * 0.9 * speed)


def test_a_gpus_largest_pass_is_cut_from_its_own_share(config, tmp_path):
    config = config.model_copy(update={"batch_size": 4, "micro_batch_tokens": 10_000})
    found = {n: planned(config, tmp_path, pairs(4), gpus=n).longest for n in (1, 2, 4, 8)}
    assert [found[n].rows for n in (1, 2, 4, 8)] == [8, 4, 2, 2]


@pytest.mark.parametrize("sharded", [True, False])
def test_work_is_dealt_out_as_training_deals_it(config, sharded):
    """Against the very loop of `run_batch`, for a process of each number."""
    from types import SimpleNamespace

    from learners.data.batching import microbatches, padded_size
    from learners.data.dataset import pair_samples
    from learners.data.encode import encode
    from learners.losses import get_loss
    from learners.training.plan.samples import workload
    from learners.training.step import _my_batches

    records = [one for n in range(5) for one in pairs(n + 1, 10 + 7 * n)[2 * n :]]
    config = config.model_copy(
        update={"packing": "none", "batch_size": 5, "micro_batch_tokens": 170, "ties": 0}
    )
    samples = pair_samples(records, lambda one: encode(one, None), per_task=1, ties=0, seed=0)
    passes = SimpleNamespace(microbatches=lambda some, budget: microbatches(some, budget))
    work = workload(records, config, get_loss("dpo"), Assumptions(), gpus=3, sharded=sharded)
    (step,) = work.steps
    for group in range(3):
        workers = SimpleNamespace(groups=3, group=group, sharded=sharded)
        scorer = SimpleNamespace(workers=workers, passes=passes)
        objective = SimpleNamespace(scorer=scorer, micro_batch_tokens=170)
        mine = [
            (padded_size([c for row in rows for c in samples.samples[row].contexts]), counted)
            for rows, counted in _my_batches(objective, samples.samples)
        ]
        assert [(one.tokens, one.samples > 0) for one in step[group]] == mine
    assert len({len(share) for share in step}) == (1 if sharded else 2)
    assert sum(one.samples for share in work.references for one in share) == 5
    assert len({len(share) for share in work.references}) == (1 if sharded else 2)


def test_the_worst_pass_is_that_of_most_memory_not_of_most_tokens(config, tmp_path):
    """Shared beginnings spare tokens, and cost copies of their keys and values."""

    def pair(task, first, second):
        """Two sides of two turns, whose first prompt is the same and whose second is not."""
        for good in (True, False):
            one = sampled(task, replies=("a", "b") if good else ("c", "d"), resolved=good)
            steps = list(one.steps)
            for at, ids in ((2, (50,) * first), (3, (51 + good,) * second)):
                metrics = replace(steps[at].metrics, prompt_token_ids=ids)
                prefix = metrics.prompt_prefix and first + 1
                steps[at] = replace(steps[at], metrics=replace(metrics, prompt_prefix=prefix))
            yield replace(one, steps=tuple(steps), attempt=int(good))

    folder = write_buffer(tmp_path / "two", [*pair("t-1", 290, 6), *pair("t-2", 27, 144)])
    deep = Path(save_model(tmp_path / "deep"))
    shapes = json.loads((deep / "config.json").read_text()) | {"num_hidden_layers": 24}
    (deep / "config.json").write_text(json.dumps(shapes))
    changes = {"model": str(deep), "buffer": folder, "ties": 0, "batch_size": 1}
    off, on = (
        plan_training(config.model_copy(update={**changes, "gradient_checkpointing": how}))
        for how in (False, True)
    )
    assert (off.longest.lengths, off.longest.shared) == ((298, 298), (290,))
    assert off.longest.tokens == 306 < on.longest.tokens == 27 + 2 * 146
    # Each column is of the pass that is the worst in it, whichever of them is the run's.
    assert (off.memory, off.memory_other) == (on.memory_other, on.memory)
    assert (off.longest_fits, off.longest_fits_other) == (on.longest_fits_other, on.longest_fits)


def test_packing_and_min_share_are_the_runs(config):
    shares = {
        share: plan_training(config.model_copy(update={"min_share": share})).shared_tokens
        for share in (None, 0.0, 2.0)
    }
    assert shares[2.0] == 0 < shares[None] <= shares[0.0]
    packed, padded = (
        plan_training(config.model_copy(update={"packing": packing, "min_share": 2.0}))
        for packing in ("auto", "none")
    )
    assert (padded.tokens, padded.shared_tokens) == (packed.tokens, 0)
    assert padded.longest.tokens == padded.longest.rows * max(padded.longest.lengths)
    assert padded.longest.tokens > sum(padded.longest.lengths)


def test_an_estimated_trajectory_counts_once_however_many_pairs_hold_it(config, tmp_path):
    records = [
        scripted("t-1", attempt=attempt, resolved=attempt == 0,
                 actions=[("view", {"path": "x" * attempt}), ("submit", {})])
        for attempt in range(3)
    ]  # fmt: skip
    buffer = write_buffer(tmp_path / "scripted", records)
    config = config.model_copy(update={"buffer": buffer, "ties": 0, "per_task": 2})
    plan = plan_training(config)
    assert plan.samples == 2
    assert any(note.startswith("3 trajectories have no token ids") for note in plan.notes)


def test_text_without_ids_is_estimated_and_said_to_be(config, tmp_path):
    records = [
        scripted("t-1", attempt=attempt, resolved=attempt == 0,
                 actions=[("view", {"path": "x" * (70 + attempt)}), ("submit", {})])
        for attempt in range(2)
    ]  # fmt: skip
    buffer = write_buffer(tmp_path / "scripted", records)
    plan = plan_training(
        config.model_copy(update={"buffer": buffer, "ties": 0}),
        assumptions=Assumptions(characters_per_token=1.0),
    )
    assert plan.samples == 1
    text = "Issue of t-1." + json.dumps(list(records[0].tools))
    for step in records[0].agent_steps:
        call = step.tool_calls[0]
        text += step.message + json.dumps([call.function_name, call.arguments])
    text += records[0].agent_steps[0].observation.content
    assert plan.longest.lengths[0] == len(text)
    assert "2 trajectories have no token ids" in " ".join(plan.notes)


def test_samples_over_max_tokens_are_left_out(config):
    whole = plan_training(config)
    assert max(whole.longest.lengths) > 40
    with pytest.raises(NoSignal, match="too-long"):
        plan_training(config.model_copy(update={"max_tokens": 10}))


def test_a_buffer_with_one_label_is_refused_as_training_would(config, tmp_path):
    buffer = write_buffer(tmp_path / "good", [sampled(f"t-{n}") for n in range(3)])
    with pytest.raises(NoSignal, match="no pairs to train on"):
        plan_training(config.model_copy(update={"buffer": buffer}))


def test_wrong_requests_are_one_sentence(config):
    with pytest.raises(ConfigError, match="no training method 'lore'"):
        plan_training(config, method="lore")
    with pytest.raises(ConfigError, match="at least 1 GPU"):
        plan_training(config, gpus=0)
    with pytest.raises(ConfigError, match="There is no replay buffer"):
        plan_training(config.model_copy(update={"buffer": "/nowhere"}))
    with pytest.raises(ConfigError, match="No adapter with targets"):
        plan_training(config.model_copy(update={"lora_targets": ["nothing"]}))


def test_what_training_refuses_is_refused(config):
    with pytest.raises(ConfigError, match="has no entropy term"):
        plan_training(config.model_copy(update={"loss": "dpo", "zeta": 2 * config.gamma}))
    with pytest.raises(ConfigError, match="Full fine-tuning starts from whole weights"):
        plan_training(config.model_copy(update={"init_adapter": "a"}), method="full")
    with pytest.raises(ConfigError, match="stop_kl is a distance from the reference"):
        plan_training(config.model_copy(update={"loss": "sft", "stop_kl": 1.0}))


def test_float32_is_told_of(config):
    assert config.dtype == "float32"
    assert any("66.9 TFLOP/s" in note for note in plan_training(config, gpu="H100-80").notes)
    half = plan_training(config.model_copy(update={"dtype": "bfloat16"}), gpu="H100-80")
    assert not any("TFLOP/s" in note for note in half.notes)


def test_a_started_adapter_gives_its_own_rank(config, settings):
    from learners import train as run

    run(config.model_copy(update={"max_steps": 1}))
    again = config.model_copy(update={"init_adapter": settings["out"], "lora_r": 64})
    assert plan_training(again).counts.adapter == plan_training(config).counts.adapter


def test_a_page_and_the_data_say_the_same(config):
    config = config.model_copy(update={"gradient_checkpointing": False})
    plan = plan_training(config, method="qlora", gpus=2)
    page = as_text(plan)
    assert "trained" in page.splitlines()[1]
    assert "[without]" in page
    assert plan.verdict in page
    assert all(f"Note: {note}" in page for note in plan.notes)
    assert any("train with --set mode=qlora" in note for note in plan.notes)
    assert any("2 GPUs hold the whole model each" in note for note in plan.notes)
    record = json.loads(json.dumps(as_dict(plan)))
    assert record["memory"]["total"] == plan.memory.total
    assert record["longest"]["width"] == plan.longest.width
    setup = {"method": "qlora", "gpus": 2, "checkpointing": False, "selective": False}
    assert record["setup"] == setup


def test_layers_that_have_room_cost_no_second_pass(config):
    """By default all of a tiny model's; with checkpointing asked for, none."""
    asked = [config.model_copy(update={"gradient_checkpointing": how}) for how in ("auto", True)]
    filled, whole = (plan_training(one) for one in asked)
    assert filled.setup.checkpointing
    assert filled.memory == whole.memory
    assert any("2 of 2 are not" in note for note in filled.notes)
    assert not any("are not" in note for note in whole.notes)
    assert filled.hours < whole.hours


def test_the_command_plans_and_writes_nothing(config, settings):
    options = ["--loss", "sft", "--model", settings["model"], "--buffer", settings["buffer"]]
    result = CliRunner().invoke(
        app, [*options, "--plan", "--gpu", "H100-80", "--assume", "utilisation=0.5", "--json"],
        catch_exceptions=False,
    )  # fmt: skip
    record = json.loads(result.stdout)
    assert record["gpu"]["name"] == "H100-80"
    assert record["assumptions"]["utilisation"] == 0.5
    assert not Path(settings["out"]).exists()
    assert "samples from" in result.stderr

    page = CliRunner().invoke(app, [*options, "--plan"], catch_exceptions=False)
    assert "Fits on one A100-80" in page.stdout


def test_what_goes_with_a_plan_is_refused_without_one(settings):
    options = ["--model", settings["model"], "--buffer", settings["buffer"], "--out", "x"]
    with pytest.raises(ConfigError, match="--gpus says what to plan for"):
        CliRunner().invoke(app, [*options, "--gpus", "2"], catch_exceptions=False)


def test_a_model_folder_needs_no_weights(tmp_path, config):
    folder = Path(save_model(tmp_path / "bare"))
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    bare = plan_training(config.model_copy(update={"model": str(folder)}))
    assert bare.memory == plan_training(config).memory
