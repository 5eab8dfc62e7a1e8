"""Generated tokens/s of continuous batching against plain batched `generate`, on CUDA; JSON.

Both sides play the same `--episodes` episodes: a prompt, then `--turns` replies with an observation
after each. A reply's length is drawn for each episode and turn from 1 to twice `--reply` tokens, as
an agent's calls differ in length; nothing is decoded beyond it on our side.

- The engine of the `transformers` policy: every episode in flight goes on by itself, requests join
  and leave the running batch between steps, and only what is new of a prompt is computed.
- `generate`: a turn of all episodes at once, padded on the left, every history read again, as many
  steps as the longest reply of the turn takes. Tokens beyond a reply's length are not counted.

Weights are random unless `--model` names a folder: their values change no shape. No network is
needed. The sides alternate in `--rounds`; the ratio is the median over rounds.

    python benchmarks/rollouts_gpu.py --out benchmarks/results/rollouts_gpu.json
    python benchmarks/rollouts_gpu.py --device cpu --tiny    # that it works at all
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from agents.policies import hub
from agents.policies.sampling import Engine, Sampling
from swe_env.machine import machine

SIZES = {
    "tiny": {"hidden": 64, "layers": 2, "heads": 4, "kv_heads": 2, "inner": 128, "words": 512},
    "1.5b": {
        **{"hidden": 2048, "layers": 24, "heads": 16, "kv_heads": 4},
        **{"inner": 8192, "words": 49_152},
    },
}
"""Shapes of models with random weights, of Llama's kind."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder of a model; random weights where it is left out")
    parser.add_argument("--episodes", type=int, default=64, help="in flight")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=1500, help="tokens of the first prompt")
    parser.add_argument("--observation", type=int, default=300, help="tokens of an observation")
    parser.add_argument("--reply", type=int, default=96, help="tokens of a reply, on average")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, few and short episodes")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("There is no CUDA device here: run this on one, or try --device cpu --tiny.")
    if options.tiny:
        options.episodes, options.turns, options.rounds = 6, 3, 2
        options.prompt, options.observation, options.reply = 40, 12, 6
    result = compare(options)
    print(json.dumps(result, indent=2))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Play both sides in turn, after a short round of each that is not counted."""
    model = load(options)
    own = model.config._attn_implementation

    def theirs(work: Work) -> dict[str, float]:
        model.set_attn_implementation(own)  # the engine gives its model another
        return plain(model, work)

    work = Work(options, int(model.get_input_embeddings().num_embeddings))
    short = {**vars(options), "turns": 1, "reply": min(options.reply, 8)}
    warm = Work(argparse.Namespace(**short), work.words)
    ours(model, warm)
    theirs(warm)
    rounds = []
    for number in range(1, options.rounds + 1):
        say(f"round {number}, continuous: {(first := ours(model, work))}")
        say(f"round {number}, generate: {(other := theirs(work))}")
        rounds.append((first, other))
    ratios = [mine["tokens_per_s"] / other["tokens_per_s"] for mine, other in rounds]
    cuda = torch.device(options.device).type == "cuda"
    return {
        "options": {key: value for key, value in vars(options).items() if key != "out"},
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "gpu": torch.cuda.get_device_name(options.device) if cuda else "none",
        "gpu_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1) if cuda else 0.0,
        "generated": work.total,
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "continuous_tokens_per_s": median([mine for mine, _ in rounds], "tokens_per_s"),
        "generate_tokens_per_s": median([other for _, other in rounds], "tokens_per_s"),
        "last_round": {"continuous": rounds[-1][0], "generate": rounds[-1][1]},
        "machine": machine("torch", "transformers"),
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def load(options: argparse.Namespace) -> Any:
    """The model of a folder, or one with random weights."""
    device = torch.device(options.device)
    if options.model:
        return hub.load(options.model, dtype=options.dtype, device=options.device)[0]
    from transformers import AutoModelForCausalLM, LlamaConfig

    size = SIZES["tiny" if options.tiny else "1.5b"]
    config = LlamaConfig(
        vocab_size=size["words"],
        hidden_size=size["hidden"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        num_key_value_heads=size["kv_heads"],
        intermediate_size=size["inner"],
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    with device:
        dtype = hub.as_dtype(options.dtype, device)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.to(device).eval()


class Work:
    """What is played: the same prompts, observations and lengths for both sides."""

    def __init__(self, options: argparse.Namespace, words: int) -> None:
        self.words, self.turns, self.episodes = words, options.turns, options.episodes
        rng = random.Random(0)
        self.prompts = [self._ids(rng, options.prompt) for _ in range(self.episodes)]
        self.seen = [
            [self._ids(rng, options.observation) for _ in range(self.turns)]
            for _ in range(self.episodes)
        ]
        self.lengths = [
            [rng.randint(1, 2 * options.reply - 1) for _ in range(self.turns)]
            for _ in range(self.episodes)
        ]
        self.total = sum(map(sum, self.lengths))
        self.longest = max(
            len(prompt) + sum(map(len, seen)) + sum(lengths)
            for prompt, seen, lengths in zip(self.prompts, self.seen, self.lengths, strict=True)
        )

    def _ids(self, rng: random.Random, count: int) -> list[int]:
        return [rng.randrange(self.words) for _ in range(count)]


def ours(model: Any, work: Work) -> dict[str, float]:
    """All episodes through the engine, each in a thread of its own."""
    engine = Engine(
        model,
        None,  # it would turn tokens to text to look for a stop string: there is none
        sampling=Sampling(),
        ends=[],
        max_batch=work.episodes,
        cache_tokens=work.episodes * work.longest,
    )

    def play(episode: int) -> None:
        ids = list(work.prompts[episode])
        for turn in range(work.turns):
            limit = work.lengths[episode][turn]
            reply = engine.generate(ids, limit=limit, seed=(episode, turn))
            ids += [*reply.token_ids, *work.seen[episode][turn]]

    begin = time.perf_counter()
    with ThreadPoolExecutor(work.episodes) as threads:
        list(threads.map(play, range(work.episodes)))
    seconds = time.perf_counter() - begin
    engine.close()
    stats = engine.stats
    assert stats.generated == work.total
    return {
        "tokens_per_s": round(work.total / seconds, 1),
        "seconds": round(seconds, 2),
        "steps": stats.steps,
        "mean_batch": round(stats.generated / stats.steps, 1),
        "prefilled": stats.prefilled,
        "reused": stats.reused,
        "replayed": stats.replayed,
    }


def plain(model: Any, work: Work) -> dict[str, float]:
    """All episodes turn by turn through `generate`, as one padded batch."""
    begin, steps, read = time.perf_counter(), 0, 0
    histories = [list(prompt) for prompt in work.prompts]
    for turn in range(work.turns):
        width = max(map(len, histories))
        ids = torch.zeros((work.episodes, width), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, history in enumerate(histories):
            ids[row, width - len(history) :] = torch.tensor(history)
            mask[row, width - len(history) :] = 1
        limit = max(lengths[turn] for lengths in work.lengths)
        output = model.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            do_sample=True,
            temperature=0.7,
            top_k=20,
            top_p=0.8,
            min_new_tokens=limit,
            max_new_tokens=limit,
            eos_token_id=None,
            pad_token_id=0,
        )[:, width:].tolist()
        steps, read = steps + limit, read + sum(map(len, histories))
        for row, history in enumerate(histories):
            history += [*output[row][: work.lengths[row][turn]], *work.seen[row][turn]]
    seconds = time.perf_counter() - begin
    return {
        "tokens_per_s": round(work.total / seconds, 1),
        "seconds": round(seconds, 2),
        "steps": steps,
        "mean_batch": work.episodes,
        "prefilled": read,
        "reused": 0,
        "replayed": 0,
    }


def median(rounds: list[dict[str, float]], name: str) -> float:
    """Of one figure over the rounds."""
    return round(statistics.median(one[name] for one in rounds), 1)


if __name__ == "__main__":
    main()
