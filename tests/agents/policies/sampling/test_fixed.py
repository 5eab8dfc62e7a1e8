"""Steps of fixed shapes, run by Python here: all of what a CUDA graph replays but the capture."""

import random

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import (
    DynamicCache,
    Gemma2Config,
    Gemma2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from agents.policies.sampling import Engine
from agents.policies.sampling.batch import Batch
from agents.policies.sampling.fixed import FixedBatch
from agents.policies.sampling.graphs import Graphs, Plain
from agents.policies.sampling.grouped import NAME, attend_grouped, use_grouped
from agents.policies.sampling.head import next_logits
from agents.policies.sampling.layout import apart, find_layout, steps_alike, together
from agents.policies.sampling.prefill import Part, apart_from, groups, prefill
from tests.agents.models import VOCABULARY, recomputed, tiny_model
from tests.agents.policies.sampling.test_engine import FULL, jobs, play_together

SHAPE = {
    **{"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "head_dim": 8},
    **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"initializer_range": 0.3, "pad_token_id": 0},
}


def qwen3():
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SHAPE, max_position_embeddings=4096)).eval()


def with_lora():
    import peft

    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "up_proj"])
    model = peft.get_peft_model(tiny_model(), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2)
    return model.eval()


MODELS = {"llama": tiny_model, "qwen3": qwen3, "lora": with_lora}


def ids(count, seed=0):
    draw = random.Random(seed)
    return [draw.randrange(256) for _ in range(count)]


@pytest.mark.parametrize("family", MODELS)
def test_an_engine_of_fixed_steps_gives_the_tokens_of_the_other(family):
    work = [*jobs(9), (ids(700), 30, 99), ([7], 5, 98)]
    fixed = Engine(MODELS[family](), None, sampling=FULL, ends=[5], max_batch=6, fixed=True)
    assert isinstance(fixed._batch, FixedBatch)
    together_ = play_together(fixed, work)
    assert fixed.stats.steps < fixed.stats.generated
    fixed.close()
    plain = Engine(MODELS[family](), None, sampling=FULL, ends=[5], max_batch=6, fixed=False)
    for ours, theirs in zip(together_, play_together(plain, work), strict=True):
        for (prompt, reply), (same_prompt, other) in zip(ours, theirs, strict=True):
            assert prompt == same_prompt
            assert (reply.token_ids, reply.ended) == (other.token_ids, other.ended)
            torch.testing.assert_close(
                torch.tensor(reply.logprobs), torch.tensor(other.logprobs), atol=1e-5, rtol=1e-5
            )
    plain.close()


def both_batches(model, most):
    """A batch of fixed steps and the usual one, and the same model's next logits."""
    assert use_grouped(model)
    layout = find_layout(model)
    assert steps_alike(model)
    return layout, FixedBatch(layout, most, Plain()), Batch(torch.device("cpu"))


@torch.inference_mode()
def test_rows_join_and_leave_at_random_while_the_ring_turns_and_grows(monkeypatch):
    monkeypatch.setattr("agents.policies.sampling.fixed._COLUMNS", 16)
    monkeypatch.setattr("agents.policies.sampling.fixed._SLACK", 4)
    model = tiny_model()
    layout, fixed, usual = both_batches(model, 7)
    decode, draw, widths = next_logits(model), random.Random(3), set()
    newest = []
    for step in range(160):
        longest = 90 if step == 100 else 20
        while len(newest) < 7 and (not newest or draw.random() < 0.3):
            context = ids(draw.randrange(1, longest), step)
            [row] = prefill(model.model, layout, [Part(context, 0, [])])
            fixed.join(together(row), len(context))
            usual.join(apart(row), len(context))
            newest.append(draw.randrange(256))
        logits = fixed.step(decode, newest)
        torch.testing.assert_close(logits, usual.step(decode, newest), atol=1e-5, rtol=1e-5)
        newest = logits.argmax(-1).tolist()
        widths.add(fixed.width)
        assert fixed.lengths == usual.lengths
        while newest and draw.random() < 0.25:
            row = draw.randrange(len(newest))
            [(keys, values)] = fixed.leave(row, keep=True)
            for ours, theirs in zip(
                zip(keys, values, strict=True), usual.leave(row, keep=True), strict=True
            ):
                torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
            newest[row] = newest[-1]
            newest.pop()
    assert len(widths) > 2


@torch.inference_mode()
def test_a_ring_that_comes_around_keeps_its_buffers():
    model = tiny_model()
    layout, fixed, _ = both_batches(model, 4)
    decode = next_logits(model)
    [row] = prefill(model.model, layout, [Part([1, 2, 3], 0, [])])
    fixed.join(together(row), 3)
    buffer = fixed._buffer
    text = [1, 2, 3]
    for step in range(2 * fixed.width):
        text.append(step % 250)
        logits = fixed.step(decode, text[-1:])
        if len(text) == fixed.width - 1:  # another begins, the old one leaves
            text = [7]
            [row] = prefill(model.model, layout, [Part(text, 0, [])])
            fixed.join(together(row), 1)
            fixed.leave(0, keep=False)
    assert fixed._buffer is buffer
    wanted = model(torch.tensor([text])).logits[:, -1]
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)


class Wider(Plain):
    """Runs steps of as many rows as there is room for, as a graph of more rows does."""

    def run(self, rows, work):
        self.replayed += 1
        return work(4)


@torch.inference_mode()
def test_rows_beyond_the_real_ones_change_nothing_and_stay_finite():
    model = tiny_model()
    layout, fixed, _ = both_batches(model, 4)
    wide = FixedBatch(layout, 4, Wider())
    decode = next_logits(model)
    [row] = prefill(model.model, layout, [Part(ids(20), 0, [])])
    for step in range(6):
        for batch in (fixed, wide):
            if step in (0, 3):
                batch.join(together(row), 20)
        tokens = [step] * len(fixed)
        torch.testing.assert_close(
            wide.step(decode, tokens), fixed.step(decode, tokens), atol=1e-5, rtol=1e-5
        )
    assert wide._buffer.isfinite().all()


@pytest.mark.parametrize("family", ["llama", "mistral"])
@torch.inference_mode()
def test_prompts_computed_together_equal_each_alone(family, monkeypatch):
    monkeypatch.setattr("agents.policies.sampling.prefill._CHUNK", 8)
    torch.manual_seed(0)
    model = (
        tiny_model()
        if family == "llama"
        else MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=6)).eval()
    )
    layout = find_layout(model)
    shapes = [(0, 30), (17, 20), (5, 16), (0, 25), (40, 29)]
    parts, wanted = [], []
    for seed, (known, new) in enumerate(shapes):
        text = ids(known + new, seed)
        cache = DynamicCache()
        model.model(input_ids=torch.tensor([text]), past_key_values=cache, use_cache=True)
        full = torch.stack([torch.stack((part.keys[0], part.values[0])) for part in cache.layers])
        wanted.append(full)
        form = together if seed % 2 else apart
        parts.append(Part(text, known, form(full[..., :known, :]) if known else []))
    for got, full in zip(prefill(model.model, layout, parts), wanted, strict=True):
        torch.testing.assert_close(got, full, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", MODELS)
def test_logprobs_of_turns_are_those_of_one_forward_pass(family):
    engine = Engine(MODELS[family](), None, sampling=FULL, ends=[5], max_batch=5, fixed=True)
    for turns in play_together(engine, [*jobs(6), ([7], 5, 98)]):
        for prompt, reply in turns:
            torch.testing.assert_close(
                torch.tensor(reply.logprobs),
                recomputed(MODELS[family](), prompt, reply.token_ids),
                atol=1e-3,
                rtol=0,
            )
    engine.close()


def test_prompts_that_begin_alike_are_computed_once():
    engine = Engine(tiny_model(), None, sampling=FULL, ends=[], fixed=True)
    head = ids(400)
    with torch.inference_mode():
        import numpy as np

        from agents.policies.sampling.engine import _Request

        rows = [_Request([*head, n, 9], 1, np.random.default_rng(n)) for n in range(5)]
        engine._rows = [*rows]
        engine._join_waiting()
    assert sorted(row.prompt for row in engine._rows) == sorted(row.prompt for row in rows)
    assert [len(row.prompt) - 1 for row in engine._rows] == engine._batch.lengths
    assert engine.stats.prefilled == 401 + 4
    assert engine.stats.reused == 4 * 400
    engine._rows = []
    engine.close()


def test_who_waits_for_another_and_who_goes_with_whom():
    head = ids(600)
    parts = [
        Part(head, 0, []),
        Part([*head, 1], 0, []),
        Part([*head[:400], 7], 100, []),
        Part([*head[:300], 8], 290, []),
        Part(ids(500, 2), 0, []),
        Part([1], 1, []),
        Part([2], 1, []),
    ]
    assert apart_from(parts, 10_000) == [0, 3, 4, 5, 6]
    assert apart_from(parts, 599) == [0, 1, 2, 3, 4, 5, 6]
    assert groups(parts, [0, 3, 4, 5, 6]) == [[0, 4], [3], [5, 6]]
    long = [Part(ids(6000 + n, n), 0, []) for n in range(5)]
    assert [len(group) for group in groups(long, range(5))] == [2, 2, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", ["no", "bool", "added"])
def test_grouped_attention_of_one_query_a_row(dtype, masked):
    torch.manual_seed(0)
    query = torch.randn(3, 1, 6, 16).to(dtype).transpose(1, 2)
    key, value = torch.randn(2, 3, 2, 50, 16).to(dtype)[:, :, :, 4:44]
    seen = torch.rand(3, 1, 1, 40) < 0.6
    seen[..., -1] = True
    added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    mask = {"no": None, "bool": seen, "added": added}[masked]
    keys, values = (part.double().repeat_interleave(3, 1) for part in (key, value))
    scores = 0.3 * query.double() @ keys.transpose(2, 3)
    if mask is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    wanted = (scores.softmax(-1) @ values).transpose(1, 2)
    got, _ = attend_grouped(None, query, key, value, mask, scaling=0.3)
    assert got.dtype == dtype
    assert got.shape == (3, 1, 6, 16)
    error = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(got.double(), wanted, atol=error, rtol=error)


def test_which_models_take_fixed_steps():
    plain = tiny_model()
    assert use_grouped(plain)
    assert plain.config._attn_implementation == NAME
    assert steps_alike(plain)
    assert plain.config._attn_implementation == NAME
    sliding = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=16)).eval()
    assert use_grouped(sliding)
    assert not steps_alike(sliding)
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert not steps_alike(tiny_model(rope_parameters=rope))
    capped = Gemma2ForCausalLM(Gemma2Config(**SHAPE, attn_logit_softcapping=0.5)).eval()
    assert not use_grouped(capped)
    chosen = tiny_model()
    chosen.config._attn_implementation = "flash_attention_2"
    assert not use_grouped(chosen)


def test_a_model_that_makes_its_own_masks_takes_no_fixed_steps():
    model = tiny_model()
    forward = model.model.forward

    def unmasked(*args, attention_mask=None, **kwargs):
        return forward(*args, **kwargs)

    assert use_grouped(model)
    model.model.forward = unmasked
    assert not steps_alike(model)


def test_sliding_models_are_prefilled_together_and_decoded_as_before():
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=16)).eval()
    engine = Engine(model, None, sampling=FULL, ends=[5], max_batch=5, fixed=True)
    assert isinstance(engine._batch, Batch)
    for turns in play_together(engine, [*jobs(6), ([7], 5, 98)]):
        for prompt, reply in turns:
            torch.testing.assert_close(
                torch.tensor(reply.logprobs),
                recomputed(model, prompt, reply.token_ids),
                atol=1e-3,
                rtol=0,
            )
    engine.close()


class Dry(Graphs):
    """Records a step's operations and the memory they work on, and replays those without the
    model's Python, as a CUDA graph does.
    """

    def __init__(self):
        super().__init__(torch.device("cpu"))
        self.captures = []

    def _capture(self, rows, work):
        self.captures.append(rows)
        kept = work(rows).clone()
        recorded = make_fx(lambda: work(rows))()

        class Replay:
            def replay(self):
                kept.copy_(recorded())

        return Replay(), kept


@pytest.fixture
def dry(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    return Dry()


@torch.inference_mode()
def test_a_graph_of_more_rows_serves_until_a_smaller_one_is_worth_it(dry):
    for _ in range(3):
        assert dry.run(8, torch.zeros).shape == (8,)
    assert dry.captures == [8]
    for _ in range(16):
        assert dry.run(2, torch.zeros).shape == (8,)
    assert dry.run(2, torch.zeros).shape == (2,)
    for _ in range(3):
        assert dry.run(16, torch.zeros).shape == (16,)
    assert dry.captures == [8, 2, 16]
    assert dry.replayed == 19


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", MODELS)
def test_an_engine_with_graphs_gives_the_same_while_buffers_grow(family, dtype, dry, monkeypatch):
    monkeypatch.setattr("agents.policies.sampling.fixed._COLUMNS", 64)
    monkeypatch.setattr("agents.policies.sampling.fixed._SLACK", 4)
    work = [*jobs(6), (ids(40), 150, 77)]
    model = MODELS[family]().to(dtype)
    graphs = Engine(model, None, sampling=FULL, ends=[], max_batch=6, fixed=True)
    graphs._runner = graphs._batch.runner = dry
    found = play_together(graphs, work)
    assert graphs.stats.replayed > graphs.stats.steps / 2
    assert dry._works
    assert 1 < len(dry.captures) < 20
    graphs.close()
    if dtype == torch.bfloat16:  # another batch shape rounds another way
        return
    plain = Engine(MODELS[family](), None, sampling=FULL, ends=[], max_batch=6, fixed=True)
    for ours, theirs in zip(found, play_together(plain, work), strict=True):
        assert [reply.token_ids for _, reply in ours] == [reply.token_ids for _, reply in theirs]
    plain.close()


WAITING = {
    "item": lambda hidden: hidden.sum().item(),
    "truth": lambda hidden: bool((hidden > 0).any()),
    "nonzero": lambda hidden: hidden.nonzero(),
    "mask": lambda hidden: hidden[hidden > 0],
    "unique": lambda hidden: hidden.unique(),
}


@pytest.mark.parametrize("what", WAITING)
def test_what_waits_for_the_device_is_not_captured(what, caplog, dry):
    model = tiny_model()
    forward = model.model.forward

    def waiting(*args, **kwargs):
        output = forward(*args, **kwargs)
        WAITING[what](output.last_hidden_state)
        return output

    model.model.forward = waiting
    engine = Engine(model, None, sampling=FULL, ends=[], fixed=True)
    engine._runner = engine._batch.runner = dry
    first, second = (engine.generate([1, 2, 3], limit=9, seed=(n,)) for n in range(2))
    assert len(first.token_ids) == len(second.token_ids) == 9
    assert dry.captures == []
    assert engine.stats.replayed == 0
    assert sum("not run as CUDA graphs" in record.message for record in caplog.records) == 1
    engine.close()


def test_a_capture_that_fails_is_tried_once(caplog, dry, monkeypatch):
    def failing(*_):
        raise RuntimeError("cannot capture")

    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: "before")
    streams = []
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    dry._capture = failing
    engine = Engine(tiny_model(), None, sampling=FULL, ends=[], fixed=True)
    engine._runner = engine._batch.runner = dry
    assert len(engine.generate([1, 2, 3], limit=9, seed=(0,)).token_ids) == 9
    assert [record.message for record in caplog.records] == [
        "Decoding steps are not run as CUDA graphs from here on: cannot capture"
    ]
    assert streams == ["before"]
    engine.close()
