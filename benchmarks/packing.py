"""Pairs with a shared prompt on a CPU: each sequence alone, packed, and with the prompt once.

    python benchmarks/packing.py --share 0.25 --tokens 500

A Llama of SmolLM2-135M's shapes with few layers, random weights and a LoRA adapter (r = 8, all
linear layers); forward and backward of the log-probability sums of one pair, a fifth of its tokens
sampled. The ways take turns, by processor time of one thread; the least of all turns counts.
"""

from __future__ import annotations

import argparse
import json
import random
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from learners.data.encode import Encoded
from learners.training.passes import Packing, Passes
from learners.training.score import PolicySums, Scorer
from learners.training.workers import Workers

NEVER = 2.0
WAYS = {
    "alone, transformers' sdpa": (Packing("none"), 1, False),
    "alone, segments": (Packing("segments", NEVER), 1, True),
    "one row, segments": (Packing("segments", NEVER), 2, True),
    "one row, dense mask": (Packing("dense", NEVER), 2, True),
    "prompt once, segments": (Packing("segments", 0.0), 2, True),
    "prompt once, dense mask": (Packing("dense", 0.0), 2, True),
}
"""Packing, sequences of a call, and whether they go in one pass."""
VOCABULARY = 4_096
"""Small, so that the head has the share of the work that it has in 30 layers with 49,152 tokens."""


def policy(layers: int, dtype: torch.dtype) -> torch.nn.Module:
    """SmolLM2-135M's shapes, fewer layers, frozen, with an adapter."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
        max_position_embeddings=32_768,
    )  # fmt: skip
    base = LlamaForCausalLM(config).to(dtype)
    return get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))


def pair(tokens: int, share: float, sampled: float = 0.2) -> list[Encoded]:
    """Two sequences whose first ``share`` is the same prompt; turns after it."""
    draw = random.Random(0)
    prompt = [draw.randrange(VOCABULARY) for _ in range(round(tokens * share))]
    rest = tokens - len(prompt)
    every = max(round(rest / (tokens * sampled) * 10), 10)
    found = []
    for side in range(2):
        ids = [*prompt, side, *(draw.randrange(VOCABULARY) for _ in range(rest - 1))]
        mask = [False] * len(prompt) + [at % every < 10 for at in range(rest)]
        mask[-1] = True
        found.append(Encoded(tuple(ids), tuple(mask), tuple(int(m) - 1 for m in mask)))
    return found


def main() -> None:
    """Time every way, in turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--ways", nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sequences = pair(args.tokens, args.share)
    cpu = torch.device("cpu")
    best: dict[str, float] = {}
    scorers: dict[str, Scorer] = {}
    shared: dict[str, int] = {}
    for turn in range(args.turns + 1):
        for way in args.ways or WAYS:
            packing, width, together = WAYS[way]
            if not turn:
                model = policy(args.layers, getattr(torch, args.dtype))
                scorers[way] = Scorer(PolicySums(model), Passes(model, cpu, packing), Workers())
                scorers[way].passes.together = together
                continue
            before, start = scorers[way].shared_tokens, time.process_time()
            for at in range(0, 2, width):
                scorers[way](sequences[at : at + width], width).logps.sum().backward()
            taken = time.process_time() - start
            best[way] = min(taken, best.get(way, taken))
            shared[way] = scorers[way].shared_tokens - before
    loss_tokens = sum(s.num_loss_tokens for s in sequences)
    print(json.dumps(vars(args) | {"loss_tokens": loss_tokens}))
    for way, seconds in best.items():
        speed = 2 * args.tokens / seconds
        print(f"{way:32} {seconds:7.2f} s  {speed:7.0f} tokens/s  shared {shared[way]}")


if __name__ == "__main__":
    main()
