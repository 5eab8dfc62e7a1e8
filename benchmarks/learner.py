"""Speed and memory of the learner on a CPU beside TRL: same model, adapter, pairs, threads.

    python benchmarks/learner.py --trl TRL_PYTHON                 # two rounds of each loss
    python benchmarks/learner.py --trl TRL_PYTHON --only parity   # losses where the masks are equal
    python benchmarks/learner.py --trl TRL_PYTHON --rounds 0-15 --each 4    # all 64 pairs

TRL_PYTHON is an interpreter that has trl 1.16 and the same torch (`pip install trl==1.16.0 peft
torch==…`); without it only our side is played. 64 pairs of 2 x 500-4,000 tokens are made from a
seed (`learner_pairs.py`). A round takes every n-th of them, so that each has short and long ones,
as one optimizer step on each side, each in a process of its own, one side after the other. Times
and memory begin when model, data and reference log-probabilities are there (`learner_meter.py`).
Rounds are kept in the result file; playing one again replaces it.

agent-tokens/s: tokens that the agent sampled in those pairs, by the seconds of the step. Both sides
run the same trajectories; TRL scores what the tools said too, which is not counted for it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from learner_pairs import trajectories, write

from swe_env.machine import machine

HERE = Path(__file__).parent
GOALS = {"dpo": (1.5, 0.6), "kto": (2.0, 0.6)}
"""Least ratio of speeds, most ratio of memory above the weights."""
WAYS = {"keep": False, "checkpointing": True}
"""Activations kept, or computed again in the backward pass; the same on both sides."""
TRL_BATCH = {"dpo": 1, "kto": 2}
"""Samples of a device batch: TRL's fastest here for DPO, its least for KTO."""


def main() -> None:
    """Play what was asked for and keep it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trl", help="interpreter with trl 1.16")
    parser.add_argument("--only", nargs="*", default=["parity", "dpo", "kto"])
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--each", type=int, default=4, help="pairs a round")
    parser.add_argument("--rounds", default="0-1", help="numbers of rounds, as in 0-3 or 2,5")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--most", type=float, help="seconds a side may take before it is given up")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "learner.json")
    given = parser.parse_args()
    result = json.loads(given.out.read_text()) if given.out.exists() else {}
    with tempfile.TemporaryDirectory(prefix="learner-") as folder:
        bench = Bench(given, Path(folder))
        result["machine"] = machine("torch", "transformers", "peft")
        if "parity" in given.only and given.trl:
            result["parity"] = bench.parity()
            _keep(given.out, result)
        for loss in (name for name in ("dpo", "kto") if name in given.only):
            for number in _numbers(given.rounds):
                played = bench.round(loss, number)
                key = f"{loss} {given.dtype} {given.each} of {given.pairs}, from {number}"
                result.setdefault("rounds", {}).setdefault(key, {}).update(played)
                _keep(given.out, result)
    print(json.dumps(result.get("ratios"), indent=1))


class Bench:
    """Makes the data and plays the sides."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        from agents.policies import hub

        self.given, self.folder = given, folder
        self.made = list(trajectories(hub.load_tokenizer(given.model), given.pairs))
        # Both sides start from the same adapter, which changes nothing yet.
        self.adapter, self.model = folder / "adapter", folder / "model"
        base, tokenizer = hub.load(given.model, dtype="float32", device="cpu")
        base.save_pretrained(self.model)
        tokenizer.save_pretrained(self.model)
        self._save_adapter(base)

    def round(self, loss: str, number: int) -> dict[str, Any]:
        """Every side once, on every n-th pair from the `number`-th on."""
        every = self.given.pairs // self.given.each
        chosen = range(number, self.given.pairs, every)
        with self._data([t for at in chosen for t in self.made[2 * at : 2 * at + 2]]) as data:
            found: dict[str, Any] = {"counts": data["counts"]}
            sides = [(side, way) for way in self.given.ways for side in ("ours", "trl")]
            if number % 2:
                sides.reverse()
            for side, way in sides:
                if side == "ours" or self.given.trl:
                    batch = len(chosen) * (1 if loss == "dpo" else 2)
                    job = {"loss": loss, "batch": batch, "checkpointing": WAYS[way], "steps": 1}
                    found[f"{side}, {way}"] = self._play(side, {**data["job"], **job})
                    print(f"{loss} {number} {side}, {way}: {found[f'{side}, {way}']}", flush=True)
        return found

    def parity(self) -> dict[str, Any]:
        """Both sides' DPO losses over steps that move, float32, TRL on the agent's tokens only."""
        few = min(self.given.each, 3)
        with self._data(self.made[: 2 * few]) as data:
            job = {
                **data["job"], "loss": "dpo", "batch": few, "checkpointing": False, "steps": 3,
                "dtype": "float32", "learning_rate": 1e-3, "agent_only": True,
            }  # fmt: skip
            losses = {side: self._play(side, job)["losses"] for side in ("ours", "trl")}
        apart = [abs(a - b) for a, b in zip(losses["ours"], losses["trl"], strict=True)]
        return {**losses, "steps": 3, "pairs": few, "largest_difference": max(apart)}

    def _play(self, side: str, job: dict[str, Any]) -> dict[str, Any]:
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        env |= {"OMP_NUM_THREADS": str(self.given.threads)}
        python = sys.executable
        with tempfile.TemporaryDirectory(dir=self.folder) as own:
            job = {**job, "out": f"{own}/out"}
            env |= {"SWE_ENV_CACHE": f"{own}/cache", "HF_HOME": f"{own}/hf"}
            if side == "trl":
                python = self.given.trl
                env.pop("PYTHONPATH", None)
                job["device_batch"] = TRL_BATCH[job["loss"]]
            else:
                env["PYTHONPATH"] = str(HERE.parent)
            done = subprocess.run(
                [python, str(HERE / f"learner_{side}.py"), json.dumps(job)],
                capture_output=True, text=True, check=False, env=env,
                timeout=self.given.most,
            )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{side} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return found

    @contextlib.contextmanager
    def _data(self, chosen: list[Any]) -> Iterator[dict[str, Any]]:
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            buffer, rows = Path(folder, "buffer"), Path(folder, "rows.json")
            job = {
                "threads": self.given.threads, "model": str(self.model), "dtype": self.given.dtype,
                "adapter": str(self.adapter), "buffer": str(buffer), "rows": str(rows),
                "beta": 0.1, "learning_rate": 1e-4, "agent_only": False,
            }  # fmt: skip
            yield {"counts": write(chosen, buffer, rows), "job": job}

    def _save_adapter(self, base: Any) -> None:
        import torch
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        lora = LoraConfig(
            r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear",
            task_type="CAUSAL_LM", base_model_name_or_path=str(self.model),
        )  # fmt: skip
        get_peft_model(base, lora).save_pretrained(self.adapter, save_embedding_layers=False)


def ratios(rounds: dict[str, Any]) -> dict[str, Any]:
    """Median over rounds of ours beside TRL's, taken within each round; goals met or not."""
    found: dict[str, Any] = {}
    for loss, (speed, memory) in GOALS.items():
        for way in WAYS:
            both = [
                (kept[f"ours, {way}"], kept[f"trl, {way}"], kept["counts"])
                for key, kept in rounds.items()
                if key.startswith(loss) and {f"ours, {way}", f"trl, {way}"} <= kept.keys()
            ]
            if not both:
                continue
            faster = [sum(trl["seconds"]) / sum(ours["seconds"]) for ours, trl, _ in both]
            less = [ours["peak_bytes"] / trl["peak_bytes"] for ours, trl, _ in both]
            agent = [c["agent_tokens"] / sum(ours["seconds"]) for ours, _, c in both]
            found[f"{loss}, {way}"] = {
                "rounds": len(both), "pairs": sum(counts["pairs"] for *_, counts in both),
                "times_as_fast": round(statistics.median(faster), 2),
                "of_rounds": [round(f, 2) for f in faster],
                "goal_fast": speed, "share_of_memory": round(statistics.median(less), 3),
                "most_memory": round(max(less), 3), "goal_memory": memory,
                "agent_tokens_per_second": round(statistics.median(agent), 1),
                "met": statistics.median(faster) >= speed and statistics.median(less) <= memory,
            }  # fmt: skip
    return found


def _numbers(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def _keep(path: Path, result: dict[str, Any]) -> None:
    command = "python benchmarks/learner.py --trl TRL_PYTHON " + " ".join(
        word for word in sys.argv[1:] if "/" not in word and word != "--trl"
    )
    result["commands"] = sorted({*result.get("commands", []), command})
    result["ratios"] = ratios(result.get("rounds", {}))
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
