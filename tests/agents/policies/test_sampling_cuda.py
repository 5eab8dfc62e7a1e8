"""The sampler on a GPU: CUDA graphs and prompts computed together change no token."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from agents.policies.sampling import Engine, Sampling
from agents.policies.sampling.batch import Batch
from agents.policies.sampling.fixed import FixedBatch
from agents.policies.sampling.graphs import Graphs
from agents.policies.sampling.grouped import attend_grouped, use_grouped
from agents.policies.sampling.head import next_logits
from agents.policies.sampling.layout import apart, find_layout, together
from agents.policies.sampling.prefill import Part, prefill
from swe_env.errors import ModelError

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

FULL = Sampling(temperature=1.0, top_k=0, top_p=1.0)
TOP = Sampling()
DTYPES = [torch.float32, torch.bfloat16]


def small_model(family="llama", dtype=torch.float32):
    torch.manual_seed(0)
    shape = {
        **{"vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16},
        **{"num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 2},
        **{"initializer_range": 0.2, "pad_token_id": 0, "max_position_embeddings": 8192},
    }
    made = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**shape)),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**shape)),
    }[family]()
    return made.eval().to("cuda", dtype)


def ids(count, seed):
    draw = random.Random(seed)
    return [draw.randrange(256) for _ in range(count)]


def play(engine, seed, length, limit, turns=3):
    text, replies = ids(length, seed), []
    for turn in range(turns):
        reply = engine.generate(text, limit=limit, seed=(seed, turn))
        replies.append((text, reply))
        text = [*text, *reply.token_ids, *ids(17, seed + turn)]
    return replies


def play_all(engine, count=12):
    """Episodes of all lengths and limits; half of them start late."""
    work = [(seed, 5 + 61 * seed, 1 + (seed * 37) % 60) for seed in range(count)]
    with ThreadPoolExecutor(max(1, count // 2)) as threads:
        return list(threads.map(lambda job: play(engine, *job), work))


def same(found, wanted, tolerance):
    """Equal tokens, and log-probabilities within `tolerance`."""
    for ours, theirs in zip(found, wanted, strict=True):
        for (prompt, reply), (other_prompt, other) in zip(ours, theirs, strict=True):
            assert prompt == other_prompt
            assert reply.token_ids == other.token_ids
            torch.testing.assert_close(
                torch.tensor(reply.logprobs),
                torch.tensor(other.logprobs),
                atol=tolerance,
                rtol=tolerance,
            )


@pytest.mark.parametrize(
    ("family", "sampling"),
    [("llama", FULL), ("llama", TOP), ("qwen3", FULL)],
    ids=["llama", "llama, top 20", "qwen3"],
)
def test_graphs_and_prompts_together_give_the_tokens_of_steps_run_by_python(family, sampling):
    model = small_model(family)
    graphs = Engine(model, None, sampling=sampling, ends=[5], max_batch=8)
    assert isinstance(graphs._batch, FixedBatch)
    found = play_all(graphs)
    assert graphs.stats.steps < graphs.stats.generated
    assert graphs.stats.steps / 2 < graphs.stats.replayed <= graphs.stats.steps
    assert graphs.stats.reused > 0
    graphs.close()
    plain = Engine(model, None, sampling=sampling, ends=[5], max_batch=8, fixed=False)
    assert isinstance(plain._batch, Batch)
    same(found, play_all(plain), 1e-4)
    assert plain.stats.replayed == 0
    plain.close()
    alone = Engine(
        model, None, sampling=sampling, ends=[5], max_batch=1, cache_tokens=0, fixed=False
    )
    same(found[:3], play_all(alone, 3), 1e-4)
    alone.close()


@pytest.mark.parametrize("dtype", DTYPES)
def test_logprobs_are_those_of_one_forward_pass(dtype):
    model = small_model(dtype=dtype)
    engine = Engine(model, None, sampling=FULL, ends=[], max_batch=8)
    apart_ = []
    for turns in play_all(engine):
        for prompt, reply in turns:
            with torch.inference_mode():
                text = torch.tensor([prompt + reply.token_ids], device="cuda")
                logits = model(text).logits[0, len(prompt) - 1 : -1].float().cpu()
            wanted = logits.log_softmax(-1).gather(-1, torch.tensor(reply.token_ids)[:, None])
            apart_.append((torch.tensor(reply.logprobs) - wanted[:, 0]).abs())
    assert engine.stats.replayed > 0
    engine.close()
    found = torch.cat(apart_)
    mean, most = (1e-4, 1e-3) if dtype == torch.float32 else (0.1, 1.5)
    assert found.mean() < mean
    assert found.max() < most


@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_rows_join_and_leave_at_random_and_buffers_grow(dtype):
    model = small_model(dtype=dtype)
    assert use_grouped(model)
    layout, decode = find_layout(model), next_logits(model)
    graphs = Graphs(torch.device("cuda"))
    fixed, usual = FixedBatch(layout, 8, graphs), Batch(torch.device("cuda"))
    draw, newest, widths, buckets = random.Random(3), [], set(), set()
    for step in range(150):
        while len(newest) < 8 and (not newest or draw.random() < 0.3):
            context = ids(draw.randrange(1, 900 if step > 80 else 300), step)
            [row] = prefill(model.model, layout, [Part(context, 0, [])])
            fixed.join(together(row), len(context))
            usual.join(apart(row), len(context))
            newest.append(draw.randrange(256))
        logits = fixed.step(decode, newest)
        assert logits.isfinite().all()
        wanted = usual.step(decode, newest)
        if dtype == torch.float32:
            torch.testing.assert_close(logits, wanted, atol=1e-3, rtol=1e-3)
        else:
            assert (logits - wanted).abs().mean() < 0.03 * wanted.abs().mean() + 0.02
        newest = wanted.argmax(-1).tolist()
        widths.add(fixed.width)
        buckets |= set(graphs._captured)
        while newest and draw.random() < 0.25:
            row = draw.randrange(len(newest))
            fixed.leave(row, keep=False)
            usual.leave(row, keep=False)
            newest[row] = newest[-1]
            newest.pop()
    assert graphs.replayed > 75
    assert len(widths) > 1
    assert len(buckets) > 1


@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_prompts_computed_together_equal_each_alone(dtype):
    model = small_model(dtype=dtype)
    layout = find_layout(model)
    wholes, parts = [], []
    for seed, (known, new) in enumerate([(0, 300), (170, 200), (55, 160), (0, 1500), (1400, 290)]):
        text = ids(known + new, seed)
        [whole] = prefill(model.model, layout, [Part(text, 0, [])])
        wholes.append(whole)
        parts.append(Part(text, known, together(whole[..., :known, :]) if known else []))
    for got, whole in zip(prefill(model.model, layout, parts), wholes, strict=True):
        assert got.isfinite().all()
        if dtype == torch.float32:
            torch.testing.assert_close(got, whole, atol=1e-3, rtol=1e-3)
        else:
            assert (got - whole).abs().float().mean() < 0.03 * whole.abs().float().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
def test_grouped_attention_of_one_query_a_row(dtype, masked):
    torch.manual_seed(0)
    query = torch.randn(5, 1, 16, 64, device="cuda").to(dtype).transpose(1, 2)
    key, value = torch.randn(2, 5, 4, 700, 64, device="cuda").to(dtype)[..., 40:673, :]
    mask = torch.rand(5, 1, 1, 633, device="cuda") < 0.6
    mask[..., -1] = True
    keys, values = (part.double().repeat_interleave(4, 1) for part in (key, value))
    scores = 0.3 * query.double() @ keys.transpose(2, 3)
    if masked:
        scores = scores.masked_fill(~mask, -torch.inf)
    wanted = (scores.softmax(-1) @ values).transpose(1, 2)
    got, _ = attend_grouped(None, query, key, value, mask if masked else None, scaling=0.3)
    error = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(got.double(), wanted, atol=error, rtol=error)


def test_a_step_that_cannot_be_captured_is_run_by_python(caplog):
    model = small_model()
    forward = model.model.forward

    def waiting(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.last_hidden_state.sum().item()  # waits for the device: forbidden while capturing
        return output

    plain = Engine(model, None, sampling=FULL, ends=[], fixed=False)
    wanted = play(plain, 1, 40, 30)
    plain.close()
    model.model.forward = waiting
    engine = Engine(model, None, sampling=FULL, ends=[])
    same([play(engine, 1, 40, 30)], [wanted], 1e-4)
    assert engine.stats.replayed == 0
    assert sum("not run as CUDA graphs" in record.message for record in caplog.records) == 1
    engine.close()


def test_an_error_in_the_model_reaches_every_caller_and_the_engine_goes_on():
    model = small_model()
    forward, broken = model.model.forward, threading.Event()

    def failing(*args, **kwargs):
        if broken.is_set():
            raise RuntimeError("out of memory")
        return forward(*args, **kwargs)

    model.model.forward = failing
    engine = Engine(model, None, sampling=FULL, ends=[])
    first = play(engine, 1, 50, 20)
    broken.set()
    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(engine.generate, [1, 2, n], limit=5, seed=(n,)) for n in range(4)]
        for future in waiting:
            with pytest.raises(ModelError, match="out of memory"):
                future.result(timeout=60)
    broken.clear()
    same([play(engine, 1, 50, 20)], [first], 1e-4)
    assert engine.stats.replayed > 0
    engine.close()


def test_two_engines_take_turns_on_one_gpu():
    model = small_model()
    engines = [Engine(model, None, sampling=FULL, ends=[], max_batch=4) for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(lambda engine: play(engine, 3, 60, 40), engines)
    same([one], [other], 1e-4)
    for engine in engines:
        engine.close()
