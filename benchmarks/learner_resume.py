"""A training run killed (SIGKILL) at random moments and resumed, beside one that was not.

    python benchmarks/learner_resume.py --kills 10

A tiny random model learns from made trajectories (`learner_pairs.py`) in a process of its own. One
run goes through; the other is killed ten times, each time at a moment within a random step, and
goes on with ``resume``. Compared: the bytes of the final adapter; the digest of every checkpoint,
whole (parameters, both moments and step of every optimizer state, random generators,
the loss's own state); and every figure of ``metrics.jsonl`` but the speed. The exit code is 1 where
anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from learner_pairs import trajectories

from swe_env.machine import machine

RUNS: dict[str, dict[str, Any]] = {
    "entropo-dpo": {"save_every": 1},
    "entropo-kto": {"save_every": 3, "lora_dropout": 0.05},
}
"""Losses, and what else their runs have: steps from one checkpoint to the next, of which a kill
takes back those since; dropout draws random numbers in every step."""

WITHIN = 0.5
"""Seconds up to which a kill waits after a step was written down: about what a step takes."""


def main() -> int:
    """Both runs of each loss."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--losses", nargs="*", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "learner_resume.json"
    )
    given = parser.parse_args()
    if given.child:
        child(json.loads(given.child))
        return 0
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="resume-") as folder:
        model, buffer = make(Path(folder))
        for loss in given.losses:
            settings = {
                "loss": loss, "model": model, "buffer": buffer, "max_steps": given.steps,
                "batch_size": 4, "learning_rate": 1e-3, "device": "cpu",
                "dtype": "float32", "tensorboard": False, **RUNS[loss],
            }  # fmt: skip
            found[loss] = compare(settings, Path(folder, loss), given)
            print(json.dumps({loss: found[loss]}), flush=True)
    result = {
        "machine": machine("torch", "transformers", "peft"),
        "command": f"python benchmarks/learner_resume.py --kills {given.kills}", "runs": found,
    }  # fmt: skip
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(run["identical"] for run in found.values()) else 1


def make(folder: Path) -> tuple[str, str]:
    """A tiny random Llama with SmolLM2's tokenizer, and a buffer of 16 pairs."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from agents.policies import hub
    from swe_env.replay import ReplayBuffer

    tokenizer = hub.load_tokenizer("smollm2")
    torch.manual_seed(0)
    shapes = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(shapes).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    with ReplayBuffer(folder / "buffer") as buffer:
        short = list(trajectories(tokenizer, 48))[:32]
        buffer.extend(short)
    return str(folder / "model"), str(folder / "buffer")


def compare(settings: dict[str, Any], folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """One run of each kind."""
    draw = random.Random(given.seed)
    whole, killed = folder / "whole", folder / "killed"
    start(settings, whole).wait()
    at, kills = 0, []
    for number in range(given.kills):
        # Spread over what is left; a step is done at least, so that all kills are apart.
        most = given.steps - 1 - (given.kills - 1 - number)
        at = draw.randint(at + 1, max(at + 1, min(most, at + 2 * given.steps // given.kills)))
        process = start(settings, killed)
        while done(killed) < at and process.poll() is None:
            time.sleep(0.005)
        time.sleep(draw.random() * WITHIN)
        assert process.poll() is None, "the run ended before it was killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        at = done(killed)
        kills.append(at)
    assert start(settings, killed).wait() == 0
    name = "out/adapter_model.safetensors"
    adapters = [hashlib.sha256((run / name).read_bytes()).hexdigest() for run in (whole, killed)]
    states = [digests(run) for run in (whole, killed)]
    saved = -(-given.steps // settings["save_every"])  # the last step has one, too
    figures = [metrics(run) for run in (whole, killed)]
    same = {
        "adapter_bytes": adapters[0] == adapters[1],
        "every_checkpoint": states[0] == states[1] and len(states[0]) == saved,
        "figures_of_every_step": figures[0] == figures[1] and len(figures[0]) == given.steps,
    }  # fmt: skip
    return {
        "steps": given.steps, "save_every": settings["save_every"], "killed_after_steps": kills,
        "adapter_sha256": adapters[1],
        "last_checkpoint_digest": states[1].get(str(given.steps)), "same": same,
        "identical": all(same.values()),
    }  # fmt: skip


def start(settings: dict[str, Any], run: Path) -> subprocess.Popen[bytes]:
    """The training process, which resumes what is there."""
    run.mkdir(parents=True, exist_ok=True)
    job = {**settings, "out": str(run / "out"), "resume": (run / "out" / "settings.json").exists()}
    env = {**os.environ, "SWE_ENV_CACHE": str(run / "cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, __file__, "--child", json.dumps(job)], env=env)


def child(job: dict[str, Any]) -> None:
    """Train; after each step that has a checkpoint write its digest down."""
    from learners import TrainConfig, train
    from learners.training.checkpoint import checkpoints, read_checkpoint
    from learners.training.results import Progress

    out = Path(job["out"])

    def watch(progress: Progress) -> None:
        if progress.stage != "training":
            return
        if progress.done % job["save_every"] and progress.done < progress.total:
            return
        state = read_checkpoint(checkpoints(out / "checkpoints")[-1])
        assert state["step"] == progress.done
        with (out.parent / "states").open("a") as states:
            states.write(f"{progress.done} {digest(state)}\n")

    train(TrainConfig(**job), on_progress=watch)


def digests(run: Path) -> dict[str, str]:
    """Of the checkpoint of each step; one that was made twice is the same both times."""
    found: dict[str, str] = {}
    for line in (run / "states").read_text().splitlines():
        step, state = line.split()
        assert found.setdefault(step, state) == state, f"step {step} was saved otherwise before"
    return found


def digest(value: Any) -> str:
    """Over every byte of every tensor and every other value of a checkpoint, but the speed."""
    import torch

    seen = hashlib.sha256()

    def see(part: Any, name: str) -> None:
        seen.update(name.encode())
        if isinstance(part, torch.Tensor):
            seen.update(f"{part.dtype}{tuple(part.shape)}".encode())
            seen.update(part.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(part, dict):
            for key in part:
                if key != "tokens_per_second":
                    see(part[key], f"{name}/{key}")
        elif isinstance(part, list | tuple):
            for at, one in enumerate(part):
                see(one, f"{name}/{at}")
        else:
            seen.update(repr(part).encode())

    see(value, "")
    return seen.hexdigest()


def done(run: Path) -> int:
    """Steps written down so far."""
    path = run / "out" / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def metrics(run: Path) -> list[dict[str, float]]:
    """What was written down, but the speed."""
    rows = [json.loads(line) for line in (run / "out/metrics.jsonl").open()]
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows]


if __name__ == "__main__":
    sys.exit(main())
