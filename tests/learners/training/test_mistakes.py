"""Everything wrong is one clear sentence before any long work."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import fsspec
import pytest
import torch

from agents.policies import hub
from learners import TrainConfig, train
from learners.losses import LossOutput
from learners.training import NoSignal
from learners.training.ids import own_ids
from learners.training.model import adapter_digest, add_adapter
from swe_env.errors import ConfigError
from swe_env.replay import ReplayBuffer
from swe_env.replay.trajectory import Agent
from tests.learners.models import byte_tokenizer, save_model, tiny
from tests.learners.records import mixed_buffer, sampled, scripted
from tests.learners.training.conftest import write_buffer


@pytest.fixture(autouse=True)
def _no_forward(monkeypatch):
    """A mistake must be found before the model is trained or even scored."""

    def refuse(*args, **kwargs):
        raise AssertionError("long work began")

    monkeypatch.setattr("learners.training.loop.run_batch", refuse)
    monkeypatch.setattr("learners.training.parts.reference_logps", refuse)


def fails(settings, message, error=ConfigError, **changes):
    with pytest.raises(ConfigError, match=message) as caught:
        train(TrainConfig(**{**settings, "loss": "entropo-dpo", **changes}))
    assert "\n" not in str(caught.value)
    assert caught.type is error


def test_unknown_loss(settings):
    fails(settings, "no loss named 'entropo-dop'. Did you mean 'entropo-dpo'", loss="entropo-dop")


def test_no_buffer_and_an_empty_one(settings, tmp_path):
    fails(settings, "There is no replay buffer", buffer=str(tmp_path / "nowhere"))
    empty = write_buffer(tmp_path / "empty", [])
    Path(empty).mkdir(exist_ok=True)  # a buffer makes its folder at the first append
    fails(settings, "is empty: record some rollouts", NoSignal, buffer=empty)


def test_a_buffer_by_url(settings, buffer_folder):
    fails(settings, "There is no replay buffer at memory://nowhere", buffer="memory://nowhere")
    fails(settings, "There is no replay buffer at", eval_buffer=f"file://{buffer_folder}-not")
    with ReplayBuffer("memory://bucket/buffer") as buffer:
        buffer.extend(ReplayBuffer(buffer_folder))
    for url in ("memory://bucket/buffer", f"file://{buffer_folder}"):
        with pytest.raises(AssertionError, match="long work began"):
            train(TrainConfig(**{**settings, "buffer": url, "eval_buffer": url}))
        shutil.rmtree(settings["out"])
    fsspec.filesystem("memory").rm("/", recursive=True)


def test_evaluations_of_nothing(settings):
    fails(settings, "nothing says what: give eval_buffer, or call", eval_every=2)


def test_one_label_only(settings, tmp_path):
    one = write_buffer(tmp_path / "one", [sampled(attempt=i, replies=(f"r{i}",)) for i in range(4)])
    fails(settings, "nothing to prefer: .* no-partner", NoSignal, buffer=one)
    fails(settings, "gives no pairs to train on: .* no-partner", NoSignal, buffer=one, ties=0)
    fails(settings, "Every trajectory is resolved, entropo-kto needs both", NoSignal, buffer=one,
          loss="entropo-kto")  # fmt: skip


def test_everything_too_long(settings):
    fails(settings, "gives no pairs to train on: 0 samples .* too-long", NoSignal, max_tokens=5)


def test_another_tokenizer(settings, tmp_path):
    """With `recorded_ids=false` the same buffer is learned from as text."""
    buffer = write_buffer(tmp_path / "b", [*of_another_model(), scripted("t-9")])
    fails(settings, r"ids of other/model are of another tokenizer or chat template \(0123456789ab"
          r"cdef\) than this model's .*: train the .* text alone \(--set recorded_ids=false\)",
          buffer=buffer)  # fmt: skip
    assert not Path(settings["out"]).exists()
    for loss in ("sft", "entropo-kto", "entropo-dpo"):
        changes = {"buffer": buffer, "loss": loss, "recorded_ids": False}
        with pytest.raises(AssertionError, match="long work began"):
            train(TrainConfig(**{**settings, **changes, "out": str(tmp_path / loss)}))


def test_another_tokenizer_beside_the_models_own(settings, tmp_path, caplog):
    """Their ids would be beyond the vocabulary; held-out solutions are spared them, too."""
    held_out = [
        dataclasses.replace(one, patch=f"--- a/m.py\n+++ b/m.py\n@@ -1 +1 @@\n-x\n+{at}\n")
        for at, one in enumerate([*mixed_buffer(seed=1), *of_another_model(tasks=1)])
    ]
    settings |= {
        "buffer": write_buffer(tmp_path / "b", [*mixed_buffer(), *of_another_model(tasks=2)]),
        "eval_buffer": write_buffer(tmp_path / "e", held_out),
    }
    with pytest.raises(AssertionError, match="long work began"):
        train(TrainConfig(**settings, loss="entropo-dpo"))
    told = [r.getMessage() for r in caplog.records if "chat template" in r.getMessage()]
    numbers = [re.findall(r"ids of (\S+) .* \((\d+) of (\d+) trajectories", one) for one in told]
    assert numbers == [[("other/model", "8", "24")], [("other/model", "4", "20")]]
    fails(settings, "was started with recorded_ids = True, not False", resume=True,
          recorded_ids=False)  # fmt: skip


def of_another_model(*, named=True, **changes):
    """`mixed_buffer` by a model whose ids are beyond any vocabulary here."""
    agent = Agent(
        name="p", model_name="other/model",
        settings={"tokenizer": "0123456789abcdef"} if named else {},
    )  # fmt: skip
    return [
        dataclasses.replace(
            one, agent=agent, steps=tuple(shift(s, 5000) if s.metrics else s for s in one.steps)
        )
        for one in mixed_buffer(**changes)
    ]


def test_ids_of_a_server_that_names_no_tokenizer(settings, tmp_path, caplog):
    """They are read back: as something else than was said they are another model's."""
    shifted = []
    for task in range(4):
        record = sampled(f"t-{task}", replies=("read the file", "mend it"))
        steps = [shift(step) if step.metrics else step for step in record.steps]
        shifted.append(dataclasses.replace(record, steps=tuple(steps)))
    buffer = write_buffer(tmp_path / "b", shifted)
    fails(settings, "ids of p read as something else than its turns in 8 of 8 .*: train the model "
          r".* \(--set recorded_ids=false\)", buffer=buffer)  # fmt: skip
    for record in shifted:
        steps = tuple(dataclasses.replace(step, message="") for step in record.steps)
        dumb = dataclasses.replace(record, steps=steps)
        assert own_ids([dumb], byte_tokenizer(), TrainConfig(**settings)) == [dumb]
    assert "nothing tells whether their token ids are this model's" in caplog.text


def shift(step, by=1):
    """The step with another token for each that it sampled."""
    ids = tuple(token + by for token in step.metrics.completion_token_ids)
    metrics = dataclasses.replace(step.metrics, completion_token_ids=ids)
    return dataclasses.replace(step, metrics=metrics)


def test_another_chat_template(settings, tmp_path):
    own = hub.fingerprint(hub.load_tokenizer(settings["model"]))
    agent = Agent(name="p", model_name="m", settings={"tokenizer": own})
    buffer = write_buffer(tmp_path / "b", [sampled(agent=agent)])
    fails(settings, "or chat template .* with the chat_template it was given", buffer=buffer,
          chat_template="glm")  # fmt: skip
    fails(settings, "There is no chat template 'x.jinja'", buffer=buffer, chat_template="x.jinja")
    fails(settings, "gives no pairs|nothing to prefer", NoSignal, buffer=buffer)


def test_ids_beyond_the_vocabulary(settings, tmp_path):
    fails(settings, "holds token id .* vocabulary ends at 99",
          model=save_model(tmp_path / "m", vocab_size=100))  # fmt: skip


def test_contexts_beyond_a_models_learned_positions(settings, tmp_path):
    folder = tmp_path / "gpt2"
    tiny("gpt2", n_positions=32).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    settings |= {"model": str(folder), "ties": 0}
    fails(settings, "have contexts of up to .* tokens, and GPT2LMHeadModel has positions for 32: "
          'leave them out with max_tokens=32, or shorten them with too_long="cut"')  # fmt: skip
    assert not Path(settings["out"]).exists()
    fails(settings, "gives no pairs .* too-long", NoSignal, max_tokens=32)


def test_contexts_beyond_what_rotary_positions_were_made_for_are_told_of(
    settings, tmp_path, caplog
):
    for limit in (2048, 32):
        model = save_model(tmp_path / f"m{limit}", max_position_embeddings=limit)
        with pytest.raises(AssertionError, match="long work began"):
            train(TrainConfig(**{**settings, "model": model, "out": str(tmp_path / f"o{limit}")}))
        told = [r.getMessage() for r in caplog.records if "contexts longer" in r.getMessage()]
        assert len(told) == (limit == 32)
    assert re.match(r"\d+ of \d+ sequences .* than the 32 that the model was made for", told[0])


def test_an_adapter_that_is_missing_or_of_another_base(settings, tmp_path, monkeypatch):
    fails(settings, "There is no adapter in", init_adapter=str(tmp_path))
    (half := tmp_path / "half").mkdir()
    (half / "adapter_config.json").write_text("{}")
    (half / "adapter_model.bin").write_bytes(b"pickled")
    fails(settings, "it has no adapter_model.safetensors", init_adapter=str(half))
    monkeypatch.undo()
    monkeypatch.setenv("SWE_ENV_CACHE", str(tmp_path / "cache"))
    changes = {"loss": "sft", "max_steps": 1, "lora_targets": ["q_proj", "v_proj"]}
    adapter = train(TrainConfig(**{**settings, **changes})).out
    other = save_model(tmp_path / "other", seed=7)
    wider = save_model(tmp_path / "wider", hidden_size=64)
    deeper, flatter = (save_model(tmp_path / f"{n}", num_hidden_layers=n) for n in (3, 1))
    second = {"init_adapter": str(adapter), "out": str(tmp_path / "second")}
    fails(settings, "made for another base model", **second, model=other)
    (adapter / "training.json").unlink()
    for model in (wider, deeper, flatter):
        fails(settings, "made for another base model", **second, model=model)
    assert list(tmp_path.glob("second/adapter*")) == []


def test_an_adapter_that_names_another_base_is_told_of(settings, tmp_path, monkeypatch, caplog):
    monkeypatch.undo()
    adapter = train(TrainConfig(**{**settings, "loss": "sft", "max_steps": 1})).out
    (adapter / "training.json").unlink()
    other = save_model(tmp_path / "other")
    base = hub.load(other, device="cpu", dtype="float32")[0]
    changes = {"model": other, "init_adapter": str(adapter)}
    add_adapter(base, TrainConfig(**{**settings, **changes}), "")
    assert f"was made for {Path(settings['model']).name}, as it says itself" in caplog.text


def test_an_adapters_digest_covers_its_configuration(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    digests = set()
    for alpha in (8, 16):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": alpha}))
        digests.add(adapter_digest(tmp_path))
    assert len(digests) == 2


def test_nothing_is_overwritten(settings):
    out = Path(settings["out"])
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    fails(settings, "is not empty: give another, or go on with --resume")
    fails(settings, "holds no earlier training run", resume=True)
    (out / "settings.json").write_text(json.dumps({**settings, "seed": 3}))
    fails(settings, "was started with seed = 3, not 0", resume=True)
    older = TrainConfig(**settings, loss="entropo-dpo").model_dump()
    del older["too_long"]  # by a version that had no such setting
    (out / "settings.json").write_text(json.dumps(older))
    fails(settings, "was started with too_long = 'drop', not 'cut'", resume=True, too_long="cut")
    with pytest.raises(AssertionError, match="long work began"):
        train(TrainConfig(**settings, loss="entropo-dpo", resume=True))
    assert (out / "thesis.txt").read_text() == "precious"


def test_an_output_folder_that_cannot_be_made(settings, tmp_path):
    (tmp_path / "file").write_text("x")
    fails(settings, "cannot be made: .*file is no folder", out=str(tmp_path / "file"))
    fails(settings, "cannot be made: .*file is no folder", out=str(tmp_path / "file" / "deep"))
    assert (tmp_path / "file").read_text() == "x"


def test_a_disk_without_room_for_the_checkpoints(settings, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**14))
    fails(settings, "has 0.0156 MiB left, checkpoints and result take up to .* keep_checkpoints=1",
          save_every=50)  # fmt: skip
    assert not Path(settings["out"]).exists()


def test_a_device_that_is_not_there(settings):
    fails(settings, "Device 'gpu' cannot be used", device="gpu")
    if not torch.cuda.is_available():
        fails(settings, r"Device 'cuda' cannot be used \(there is no CUDA device\)", device="cuda")


def test_a_held_out_buffer_of_one_label(settings, tmp_path):
    one = write_buffer(tmp_path / "one", [sampled(attempt=i, replies=(f"r{i}",)) for i in range(4)])
    fails(settings, "Nothing can be evaluated on .*one: No task has both", NoSignal,
          eval_buffer=one)  # fmt: skip


def test_settings(settings, tmp_path):
    fails(
        settings,
        "'dpo' has no entropy term, so zeta 0.2 must equal gamma 0.1",
        loss="dpo",
        zeta=0.2,
    )
    with pytest.raises(ConfigError, match="Training setting 'gama'"):
        TrainConfig.load(**settings, gama=0.1)
    with pytest.raises(
        ConfigError, match="Training setting 'gamma': Input should be greater than 0"
    ):
        TrainConfig.load(**settings, gamma=0)
    with pytest.raises(ConfigError, match="'dtype': Input should be 'bfloat16' or 'float32'"):
        TrainConfig.load(**{**settings, "dtype": "float16"})
    broken = tmp_path / "x.toml"
    broken.write_text("loss = ")
    with pytest.raises(ConfigError, match="cannot be read"):
        TrainConfig.load(broken)


def asks_for_more(policy_chosen_logps, temperature):
    return LossOutput(policy_chosen_logps.mean() / temperature)


def gives_no_output(policy_chosen_logps):
    return policy_chosen_logps.mean()


def learns_nothing(policy_chosen_logps):
    return LossOutput(policy_chosen_logps.detach().mean())


def gives_a_vector(policy_chosen_logps):
    return LossOutput(policy_chosen_logps.mean(), {"my/margin": policy_chosen_logps.detach()})


def gives_a_word(policy_chosen_logps):
    return LossOutput(policy_chosen_logps.mean(), {"my/word": "margin"})


def test_metrics_that_are_no_numbers(settings):
    own = "tests.learners.training.test_mistakes"
    fails(settings, r"metric 'my/margin' of the loss '.*_vector' is a tensor of shape \(2,\)",
          loss=f"{own}:gives_a_vector")  # fmt: skip
    fails(settings, "metric 'my/word' of the loss '.*gives_a_word' is str: give a number",
          loss=f"{own}:gives_a_word")  # fmt: skip
    assert not Path(settings["out"]).exists()


def test_a_window_that_the_run_is_too_short_for(settings):
    fails(settings, r"stop_kl is averaged over stop_window = 10 steps and the run has 6, so it",
          stop_kl=0.1)  # fmt: skip
    fails(settings, r"stop_entropy is averaged over stop_window = 7 steps and the run has 6",
          stop_entropy=0.5, stop_window=7)  # fmt: skip
    fails(settings, r"stop_window = 10 steps and the run has \d, so", stop_kl=0.1, max_steps=None)
    assert not Path(settings["out"]).exists()
    for changes in ({"stop_window": 10}, {"stop_window": 6, "stop_kl": 0.1}):
        with pytest.raises(AssertionError, match="long work began"):
            train(TrainConfig(**{**settings, **changes}))
        shutil.rmtree(settings["out"])


def test_a_loss_that_cannot_be_called(settings):
    fails(settings, "h-dpo sharpens, so its zeta must not be above gamma", loss="h-dpo")
    own = "tests.learners.training.test_mistakes"
    fails(settings, "asks_for_more' fails on two .* missing 1 required .* 'temperature'",
          loss=f"{own}:asks_for_more")  # fmt: skip
    fails(settings, "gives_no_output' fails on two samples", loss=f"{own}:gives_no_output")
    fails(settings, "learns_nothing' fails on two .* does not require grad",
          loss=f"{own}:learns_nothing")  # fmt: skip
    assert not Path(settings["out"]).exists()


def test_the_clamped_z0_needs_lambda_zero(settings, tmp_path):
    settings |= {"z0": "mismatched"}
    fails(settings, "clamped at 0, so .* zeta 0.2 and gamma 0.1", loss="entropo-kto", zeta=0.2)
    fails(settings, "clamped at 0", loss="entropo-kto")
    for number, loss in enumerate(("entropo-kto", "entropo-kto-released")):
        allowed = {"loss": loss, "zeta": 0.1 + number, "out": str(tmp_path / loss)}
        with pytest.raises(AssertionError, match="long work began"):
            train(TrainConfig(**{**settings, **allowed}))


def test_a_file_and_changes_on_top(settings, tmp_path):
    file = tmp_path / "x.toml"
    file.write_text(f'model = "{settings["model"]}"\nbuffer = "b"\nout = "o"\ngamma = 0.5\n')
    config = TrainConfig.load(file, out="elsewhere")
    assert (config.gamma, config.out, config.loss) == (0.5, "elsewhere", "entropo-dpo")


def test_lora_targets_that_match_nothing(settings):
    fails(settings, "No adapter with targets", lora_targets=["no_such_layer"])
    assert torch.is_grad_enabled()
