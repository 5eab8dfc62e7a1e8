"""Generated tokens/s of the `transformers` policy's engine against one-at-a-time `generate`.

Both sides play the same made-up episodes: a system prompt and an issue, then `--turns` replies with
an observation after each, every reply of exactly `--reply` tokens: no reply ends by itself, and
none is read for its call. The engine plays `--episodes` at
once; the baseline plays them one after another and reads the whole history again each turn, as a
loop around transformers' `generate` does. Rounds alternate, so that both see the same machine;
the ratio is the median over rounds, by the clock and by processor time (which other programs on
the machine disturb less). Prints JSON.

    python benchmarks/rollouts_cpu.py --episodes 8 --out benchmarks/results/rollouts_cpu.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from agents.chat import ChatTemplate, episode_messages
from agents.policies import hub
from agents.policies.sampling import Engine, Sampling, can_pack, pack_linear
from swe_env.machine import machine

SYSTEM = "You fix bugs in Python packages. One call a turn, in function tags. " * 12
ISSUE = "`slugify` drops the last word when the text ends with a separator.\nTraceback:\n" * 20
SEEN = "".join(f"{n:4}: def function_{n}(value, *, strict=False):\n" for n in range(12))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=hub.SMOLLM2)
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--baseline-episodes", type=int, default=2)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--reply", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model, tokenizer = hub.load(options.model, dtype=options.dtype)
    plain, _ = hub.load(options.model, dtype=options.dtype)
    if can_pack(model):  # as the policy does
        pack_linear(model, options.episodes, keep=model.get_output_embeddings())
    chat = ChatTemplate(tokenizer)
    rounds = []
    for number in range(options.rounds):
        ours, stats = batched(model, tokenizer, chat, options, number)
        rounds.append((ours, one_at_a_time(plain, chat, options, number), stats))
    clock, cpu = ([ours[i] / theirs[i] for ours, theirs, _ in rounds] for i in (0, 1))
    asked = {name: value for name, value in vars(options).items() if name != "out"}
    result = {
        **asked,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "policy_tokens_per_s": round(statistics.median(r[0][0] for r in rounds), 1),
        "generate_tokens_per_s": round(statistics.median(r[1][0] for r in rounds), 1),
        "ratio": round(statistics.median(clock), 2),
        "ratios": [round(ratio, 2) for ratio in clock],
        "ratio_by_processor_time": round(statistics.median(cpu), 2),
        "last_round": rounds[-1][2],
        "machine": machine("torch", "transformers"),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def issues(episode: int, number: int) -> list[Any]:
    """Two episodes share an issue, as attempts at one task do."""
    return episode_messages(SYSTEM, f"Issue {number}-{episode // 2}. {ISSUE}")


def batched(
    model: Any, tokenizer: Any, chat: ChatTemplate, options: Any, number: int
) -> tuple[tuple[float, float], dict[str, Any]]:
    """Tokens a second of clock and of processor time, and what the engine counted."""
    engine = Engine(model, tokenizer, sampling=Sampling(), ends=[], max_batch=options.episodes)

    def play(episode: int) -> None:
        ids = chat.prompt(issues(episode, number))
        for turn in range(options.turns):
            reply = engine.generate(ids, limit=options.reply, seed=(number, episode, turn))
            ids += [*reply.token_ids, chat.end_of_turn, *chat.observation(f"{turn}\n{SEEN}")]

    begin = now()
    with ThreadPoolExecutor(options.episodes) as threads:
        list(threads.map(play, range(options.episodes)))
    speed = rate(engine.stats.generated, begin)
    engine.close()
    stats = engine.stats
    return speed, {
        "prefilled": stats.prefilled,
        "reused": stats.reused,
        "mean_batch": round(stats.generated / stats.steps, 1),
    }


def one_at_a_time(model: Any, chat: ChatTemplate, options: Any, number: int) -> tuple[float, float]:
    begin, generated = now(), 0
    for episode in range(options.baseline_episodes):
        ids = chat.prompt(issues(episode, number))
        for turn in range(options.turns):
            prompt = torch.tensor([ids], device=model.device)
            output = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=True,
                temperature=0.7,
                top_k=20,
                top_p=0.8,
                max_new_tokens=options.reply,
                eos_token_id=None,
                pad_token_id=chat.end_of_turn,
            )
            reply = output[0, len(ids) :].tolist()
            generated += len(reply)
            ids += [*reply, chat.end_of_turn, *chat.observation(f"{turn}\n{SEEN}")]
    return rate(generated, begin)


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def rate(tokens: int, begin: tuple[float, float]) -> tuple[float, float]:
    clock, processor = now()
    return tokens / (clock - begin[0]), tokens / (processor - begin[1])


if __name__ == "__main__":
    main()
