import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from agents.policies.sampling import Engine, Sampling
from swe_env.errors import ConfigError, ModelError
from tests.agents.models import VOCABULARY, byte_tokenizer, recomputed, tiny_model

FULL = Sampling(temperature=1.0, top_k=0, top_p=1.0)


def sliding_models():
    torch.manual_seed(0)
    shape = {
        **{"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "head_dim": 8},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
        **{"sliding_window": 16, "initializer_range": 0.3, "pad_token_id": 0},
    }
    return {
        "mistral": MistralForCausalLM(MistralConfig(**shape)).eval(),
        "gemma2": Gemma2ForCausalLM(Gemma2Config(**shape, query_pre_attn_scalar=8)).eval(),
    }


def jobs(count, longest=120):
    """Prompts of every length that share heads of every length, three turns each."""
    draw = random.Random(0)
    head = [draw.randrange(256) for _ in range(60)]
    return [
        (
            head[: draw.randrange(1, 60)]
            + [draw.randrange(256) for _ in range(draw.randrange(1, longest))],
            draw.randrange(1, 24),
            number,
        )
        for number in range(count)
    ]


def play(engine, job):
    ids, limit, seed = job
    turns = []
    for turn in range(3):
        reply = engine.generate(ids, limit=limit, seed=(seed, turn))
        turns.append((ids, reply))
        ids = [*ids, *reply.token_ids, 1, 2, 3]
    return turns


def play_together(engine, jobs):
    with ThreadPoolExecutor(len(jobs)) as threads:
        return list(threads.map(lambda job: play(engine, job), jobs))


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_logprobs_equal_one_full_forward_pass_and_the_batch_changes_nothing(family):
    model = tiny_model() if family == "llama" else sliding_models()[family]
    work = jobs(8)
    engine = Engine(model, None, sampling=FULL, ends=[5], max_batch=5)
    together = play_together(engine, work)
    assert engine.stats.steps < engine.stats.generated
    for turns in together:
        for prompt, reply in turns:
            torch.testing.assert_close(
                torch.tensor(reply.logprobs),
                recomputed(model, prompt, reply.token_ids),
                atol=1e-3,
                rtol=0,
            )
    engine.close()
    alone = Engine(model, None, sampling=FULL, ends=[5], max_batch=1, cache_tokens=0)
    for job, turns in zip(work, together, strict=True):
        assert [reply.token_ids for _, reply in play(alone, job)] == [
            reply.token_ids for _, reply in turns
        ]
    assert alone.stats.reused == 0
    alone.close()


def test_greedy_equals_transformers_generate():
    model = tiny_model()
    engine = Engine(model, None, sampling=Sampling(temperature=0), ends=[])
    for turns in play_together(engine, jobs(6)):
        for prompt, reply in turns:
            wanted = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=False,
                max_new_tokens=len(reply.token_ids),
                pad_token_id=0,
            )
            assert reply.token_ids == wanted[0, len(prompt) :].tolist()
    engine.close()


def test_rows_longer_than_the_buffers_join_and_run_on():
    model = tiny_model()
    engine = Engine(model, None, sampling=FULL, ends=[])
    lengths = [3, 400, 30, 900]
    draw = random.Random(1)
    work = [([draw.randrange(256) for _ in range(n)], 150, n) for n in lengths]
    for turns in play_together(engine, work):
        prompt, reply = turns[-1]
        torch.testing.assert_close(
            torch.tensor(reply.logprobs),
            recomputed(model, prompt, reply.token_ids),
            atol=1e-3,
            rtol=0,
        )
    engine.close()


def test_only_new_tokens_are_computed():
    engine = Engine(tiny_model(), None, sampling=FULL, ends=[])
    prompt = list(range(100))
    first = engine.generate(prompt, limit=20, seed=(1,))
    assert (engine.stats.prefilled, engine.stats.reused) == (99, 0)
    engine.generate(prompt, limit=20, seed=(2,))
    assert (engine.stats.prefilled, engine.stats.reused) == (99, 99)
    # The last sampled token was never read, the prompt's last one is read by the first step.
    engine.generate([*prompt, *first.token_ids, 1, 2, 3], limit=1, seed=(3,))
    assert (engine.stats.prefilled, engine.stats.reused) == (99 + 3, 99 + 119)
    engine.close()


def test_the_seed_decides():
    engine = Engine(tiny_model(), None, sampling=FULL, ends=[])

    def sample(*seed):
        return engine.generate([1, 2, 3], limit=30, seed=seed).token_ids

    assert sample(1, 0) == sample(1, 0)
    assert len({tuple(sample(*seed)) for seed in ((1, 0), (1, 1), (0, 1), (-1, 0))}) == 4
    engine.close()


def test_a_number_just_below_one_draws_no_token_that_was_cut_off(monkeypatch):
    class Highest:
        def random(self):
            return 1.0 - 2**-53

    monkeypatch.setattr("numpy.random.default_rng", lambda seed: Highest())
    model = tiny_model()
    with torch.no_grad():
        logits = model(torch.tensor([[1, 2, 3]])).logits[0, -1]
    engine = Engine(
        model, byte_tokenizer(), sampling=Sampling(temperature=1.0, top_k=0, top_p=0.5), ends=()
    )
    (token,) = engine.generate([1, 2, 3], limit=1, seed=(0,)).token_ids
    ranked = logits.softmax(-1).sort(descending=True)
    kept = int((ranked.values.cumsum(-1) - ranked.values < 0.5).sum())
    assert token == ranked.indices[kept - 1]
    engine.close()


def test_a_reply_ends_with_an_end_token_the_stop_string_or_the_limit():
    tokenizer = byte_tokenizer()
    free = Engine(tiny_model(), tokenizer, sampling=FULL, ends=[])
    long = free.generate([1], limit=40, seed=(0,))
    assert (long.ended, len(long.token_ids)) == ("length", 40)
    free.close()
    ends = Engine(tiny_model(), tokenizer, sampling=FULL, ends=[long.token_ids[7]])
    reply = ends.generate([1], limit=40, seed=(0,))
    assert reply.ended == "end"
    assert reply.token_ids == long.token_ids[: long.token_ids.index(long.token_ids[7]) + 1]
    ends.close()
    ascii_run = next(i for i in range(38) if tokenizer.decode(long.token_ids[i : i + 2]).isascii())
    stop = tokenizer.decode(long.token_ids[ascii_run : ascii_run + 2])
    stops = Engine(tiny_model(), tokenizer, sampling=FULL, ends=[], stop=stop)
    reply = stops.generate([1], limit=40, seed=(0,))
    assert reply.ended == "stop"
    assert reply.token_ids == long.token_ids[: len(reply.token_ids)]
    assert tokenizer.decode(reply.token_ids).count(stop) == 1
    stops.close()


def test_an_error_in_the_model_reaches_every_caller_and_the_engine_goes_on():
    model = tiny_model()
    forward, broken = model.model.forward, threading.Event()

    def failing(*args, **kwargs):
        if broken.is_set():
            raise RuntimeError("out of memory\nlong trace")
        return forward(*args, **kwargs)

    model.model.forward = failing
    engine = Engine(model, None, sampling=FULL, ends=[])
    broken.set()
    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(engine.generate, [1, 2, n], limit=5, seed=(n,)) for n in range(4)]
        for future in waiting:
            with pytest.raises(ModelError, match="out of memory"):
                future.result(timeout=20)
    broken.clear()
    assert len(engine.generate([1, 2], limit=5, seed=(0,)).token_ids) == 5
    engine.close()


def test_close_frees_who_waits_and_refuses_who_comes():
    engine = Engine(tiny_model(), None, sampling=FULL, ends=[])
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(engine.generate, [1], limit=100_000, seed=(0,))
        while not engine.stats.steps:
            assert not waiting.done()
        engine.close()
        with pytest.raises(ModelError, match="closed"):
            waiting.result(timeout=20)
    with pytest.raises(ModelError, match="closed"):
        engine.generate([1], limit=1, seed=(0,))


def test_a_model_with_recurrent_state_is_refused():
    config = MambaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, state_size=4)
    with pytest.raises(ConfigError, match="'openai' policy"):
        Engine(MambaForCausalLM(config), None, sampling=FULL, ends=[])
