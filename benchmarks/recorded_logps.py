"""Log-probabilities recorded at sampling against those that the learner computes, token by token.

Real episodes: the `transformers` policy (SmolLM2-135M-Instruct) on tasks in a sandbox, several in
flight at once, so that a reply's tokens were computed in batches that rows joined and left. Each
record is then encoded as the learner encodes it (`learners.data.encode`) and its log-probabilities
computed in one pass (`learners.ops`). The exit code is 1 when two differ by more than 1e-3.

    python benchmarks/recorded_logps.py quickstart:heldout --each 4 --attempts 2 --out FILE

plays eight episodes of up to ten turns. No episode is cut for going in circles, as small models do.
`--adapter learners/experiments/data/smollm2-swe-sft` has SmolLM2 write real calls; it is added into
the weights on both sides.
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
from agents.rollouts import Budget, run_rollouts
from learners.data import Encoded, encode
from learners.ops import token_logps
from swe_env import tasks as sources
from swe_env.machine import machine
from swe_env.replay import ReplayBuffer, Trajectory

MOST = 1e-3
"""Largest difference that passes, in nats."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="+", help="tasks.jsonl files or task sources")
    parser.add_argument("--each", type=int, default=4, help="most tasks of each of them")
    parser.add_argument("--model", default=hub.SMOLLM2)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--attempts", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
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
    specs = [f"jsonl:{spec}" if Path(spec).is_file() else spec for spec in options.tasks]
    tasks = [task for spec in specs for task in sources.load(spec)[: options.each]]
    with TransformersPolicy(
        options.model, options.adapter, max_new_tokens=options.reply, dtype=options.dtype,
        device="cpu", merge=True if options.adapter else None,
    ) as policy:  # fmt: skip
        run_rollouts(
            policy,
            tasks,
            attempts=options.attempts,
            workers=options.workers,
            out=folder / "job",
            buffer=folder / "buffer",
            env_kwargs={"sandbox": options.sandbox, "max_episode_steps": options.steps},
            budget=Budget(repeats=0, errors=0, failures=0, invalid=0),
        )
    model: Any
    model, tokenizer = hub.load(options.model, dtype=options.dtype, device="cpu")
    if options.adapter:
        model = hub.with_adapter(model, options.adapter, merge=True)
    with ReplayBuffer(folder / "buffer") as buffer:
        records = [record for record in buffer if record.agent_steps]
    differences = [difference(record, model, tokenizer) for record in records]
    apart = torch.cat(differences)
    return {
        "model": str(options.model),
        "adapter": str(options.adapter or ""),
        "tasks": len({record.instance_id for record in records}),
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
    """Tokens of the episode's longest context."""
    return max(
        len(prompt) + len(step.metrics.completion_token_ids)
        for step, prompt in record.prompt_ids()
        if step.metrics is not None
    )


def difference(record: Trajectory, model: Any, tokenizer: Any) -> torch.Tensor:
    """Computed less recorded, of every token that the policy sampled."""
    encoded = encode(record, tokenizer)
    metrics = [step.metrics for step in record.agent_steps if step.metrics is not None]
    recorded = [value for one in metrics for value in one.logprobs]
    assert encoded.num_loss_tokens == len(recorded) > 0
    found = [score(context, model) for context in encoded.contexts]
    return torch.cat(found).double() - torch.tensor(recorded, dtype=torch.float64)


def score(context: Encoded, model: Any) -> torch.Tensor:
    """Log-probabilities of what was sampled in one context."""
    ids, mask = torch.tensor(context.input_ids), torch.tensor(context.loss_mask)
    with torch.inference_mode():
        hidden = model.base_model(input_ids=ids[None]).last_hidden_state[0, :-1]
        weight = model.get_output_embeddings().weight
        return token_logps(hidden[mask[1:]], weight, ids[1:][mask[1:]])[0]


if __name__ == "__main__":
    main()
