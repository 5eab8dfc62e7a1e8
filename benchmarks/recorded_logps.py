"""Log-probabilities recorded at sampling against those that the learner computes, token by token.

Real episodes: the `transformers` policy (SmolLM2-135M-Instruct) on tasks in a sandbox, several in
flight at once, so that a reply's tokens were computed in batches that rows joined and left. Each
record is then encoded as the learner encodes it (`learners.data.encode`) and its log-probabilities
computed in one pass (`learners.ops`). The exit code is 1 when two differ by more than 1e-3.

    python benchmarks/recorded_logps.py runs/synth/*/tasks.jsonl --out FILE
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from agents.policies import hub
from agents.policies.transformers import TransformersPolicy
from agents.rollouts import run_rollouts
from learners.data import encode
from learners.ops import token_logps
from swe_env import tasks as sources
from swe_env.machine import machine
from swe_env.replay import ReplayBuffer, Trajectory

MOST = 1e-3
"""Largest difference that passes, in nats."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="+", help="tasks.jsonl files; the first task of each")
    parser.add_argument("--model", default=hub.SMOLLM2)
    parser.add_argument("--attempts", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--reply", type=int, default=80, help="most tokens of a reply")
    parser.add_argument("--workers", type=int, default=8, help="episodes in flight")
    parser.add_argument("--sandbox", default="auto")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="logps-") as folder:
        result = measure(options, Path(folder))
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    sys.exit(not result["largest"] <= MOST)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Play, encode, compute again, compare."""
    tasks = [sources.load(f"jsonl:{path}")[0] for path in options.tasks]
    with TransformersPolicy(
        options.model, max_new_tokens=options.reply, dtype=options.dtype, device="cpu"
    ) as policy:
        run_rollouts(
            policy,
            tasks,
            attempts=options.attempts,
            workers=options.workers,
            out=folder / "job",
            buffer=folder / "buffer",
            env_kwargs={"sandbox": options.sandbox, "max_episode_steps": options.steps},
        )
    model, tokenizer = hub.load(options.model, dtype=options.dtype, device="cpu")
    with ReplayBuffer(folder / "buffer") as buffer:
        records = list(buffer)
    differences = [difference(record, model, tokenizer) for record in records]
    apart = torch.cat(differences)
    return {
        "model": str(options.model),
        "dtype": options.dtype,
        "episodes": len(records),
        "turns": sum(len(record.agent_steps) for record in records),
        "longest": max(int(length) for length in map(tokens, records)),
        "tokens": len(apart),
        "largest": float(f"{apart.abs().max():.2e}"),
        "mean_of_absolute": float(f"{apart.abs().mean():.2e}"),
        "above_1e-4": int((apart.abs() > 1e-4).sum()),
        "workers": options.workers,
        "machine": machine("torch", "transformers"),
    }


def tokens(record: Trajectory) -> int:
    """Tokens of the whole episode, prompts included."""
    step, prompt = list(record.prompt_ids())[-1]
    assert step.metrics is not None
    return len(prompt) + len(step.metrics.completion_token_ids)


def difference(record: Trajectory, model: Any, tokenizer: Any) -> torch.Tensor:
    """Computed less recorded, of every token that the policy sampled."""
    encoded = encode(record, tokenizer)
    metrics = [step.metrics for step in record.agent_steps if step.metrics is not None]
    recorded = [value for one in metrics for value in one.logprobs]
    assert encoded.num_loss_tokens == len(recorded) > 0
    ids, mask = torch.tensor(encoded.input_ids), torch.tensor(encoded.loss_mask)
    with torch.inference_mode():
        hidden = model.base_model(input_ids=ids[None]).last_hidden_state[0, :-1]
        weight = model.get_output_embeddings().weight
        found, _ = token_logps(hidden[mask[1:]], weight, ids[1:][mask[1:]])
    return found.double() - torch.tensor(recorded, dtype=torch.float64)


if __name__ == "__main__":
    main()
