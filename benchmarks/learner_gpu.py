"""Speed and memory of the learner on a GPU, beside TRL where it is installed.

    python benchmarks/learner_gpu.py

Models of 0.5B, 1.5B, 4B and 8B with random weights (Qwen's shapes), LoRA r = 8 on all linear
layers, bfloat16; one DPO pair of 2 x 8k to 128k random tokens an optimizer step, a fifth of them
sampled, the first 1,024 in common. Gradient checkpointing is as each side has it by default: ours
recomputes what the card does not hold (`learners.ops.keeping`), TRL's recomputes every layer. At 8k
there is also TRL's with nothing recomputed (``trl, kept``).

A point is two steps of at most 2 x 8k to warm up and timed steps of its own, one or at 8k five, of
which the median counts, through the code that `learners.train` runs. The peak is that of the timed
steps, weights included. Every point goes into the result file as soon as it is there; a point that
runs out of memory says so, and points that the time (`--minutes`) is too short for are named:
`--resume` plays those.

``utilisation`` counts what is computed, attention and recomputation included (less what was kept);
``mfu`` leaves recomputation out. Both are shares of the card's dense bf16 peak
(`learners.training.plan.gpus`).

`--device cpu --tiny` runs the same code on a CPU with models of a few thousand weights: its figures
mean nothing.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib.util
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, Qwen2Config, Qwen3Config

from learners.data.dataset import Sample
from learners.data.encode import Encoded
from learners.losses import get_loss
from learners.ops.keeping import checkpoint_settings
from learners.ops.sequence import unwrap
from learners.training.config import TrainConfig
from learners.training.model import add_adapter, checkpoint, trainable
from learners.training.passes import Packing, Passes
from learners.training.plan.assumptions import Assumptions
from learners.training.plan.costs import Costs, Setup
from learners.training.plan.gpus import GPUS
from learners.training.plan.samples import MicroBatch
from learners.training.score import PolicySums, Scorer
from learners.training.step import Objective, run_batch
from learners.training.workers import Workers
from swe_env.machine import machine

K = 1024
SHARED = 1024
CONFIG = TrainConfig(model="", buffer="", out="")


def _shapes(kind: Any, *sizes: int, tied: bool) -> PretrainedConfig:
    names = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads",
    )  # fmt: skip
    more: dict[str, Any] = {"head_dim": 128} if kind is Qwen3Config and sizes[1] > 64 else {}
    found: PretrainedConfig = kind(
        **dict(zip(names, sizes, strict=True)), **more, tie_word_embeddings=tied,
        max_position_embeddings=256 * K, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return found


MODELS: dict[str, Callable[[], PretrainedConfig]] = {
    "0.5B": lambda: _shapes(Qwen2Config, 151_936, 896, 4864, 24, 14, 2, tied=True),
    "1.5B": lambda: _shapes(Qwen2Config, 151_936, 1536, 8960, 28, 12, 2, tied=True),
    "4B": lambda: _shapes(Qwen3Config, 151_936, 2560, 9728, 36, 32, 8, tied=True),
    "8B": lambda: _shapes(Qwen3Config, 151_936, 4096, 12_288, 36, 32, 8, tied=False),
    "tiny": lambda: _shapes(Qwen3Config, 512, 64, 128, 2, 4, 2, tied=True),
}
"""Shapes of Qwen2.5-0.5B and 1.5B, Qwen3-4B and 8B."""
POINTS = (
    ("0.5B", 8 * K), ("1.5B", 8 * K), ("4B", 8 * K), ("8B", 8 * K), ("8B", 32 * K),
    ("0.5B", 128 * K), ("0.5B", 32 * K), ("1.5B", 32 * K), ("4B", 32 * K), ("0.5B", 64 * K),
    ("1.5B", 64 * K), ("4B", 64 * K),
)  # fmt: skip
"""Model and tokens of each sequence of the pair."""
TINY = (("tiny", 96), ("tiny", 160))
SIDES = ("ours", "trl", "trl, kept")
KEPT = (("0.5B", 8 * K), ("1.5B", 8 * K), ("4B", 8 * K), ("tiny", 96))
"""Points that TRL's side is played at without recomputation, too."""
WARM = 2
"""Steps to warm up."""


@dataclass(frozen=True, slots=True)
class Point:
    """One model and one pair."""

    model: str
    tokens: int
    pair: Sample
    short: Sample
    """To warm up with."""

    @property
    def steps(self) -> int:
        """Timed ones."""
        return 5 if self.tokens <= 8 * K else 1


def main() -> int:
    """Play every point on both sides."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="models of a few thousand weights")
    parser.add_argument("--minutes", type=float, default=9.0, help="start no point after that")
    parser.add_argument("--sides", nargs="*", default=list(SIDES), choices=SIDES)
    parser.add_argument("--points", nargs="*", help="as in 0.5B:8192; by default all")
    parser.add_argument("--card-gb", type=float, help="use no more of the card than so many GB")
    parser.add_argument("--packing", default="auto", help="as the learner's setting")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", action="store_true", help="play what the file has not yet")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print(
            "There is no CUDA GPU here: run this on a machine with one, or try the script with "
            "--device cpu --tiny.",
            file=sys.stderr,
        )
        return 2
    if given.device == "cpu" and not given.tiny:
        print("On a CPU only --tiny models are run.", file=sys.stderr)
        return 2
    device = torch.device(given.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    out = given.out or Path(__file__).parent / "results" / f"learner_gpu_{_plain(name)}.json"
    has_trl = importlib.util.find_spec("trl") is not None
    sides = [side for side in given.sides if side == "ours" or has_trl]
    if len(sides) < len(given.sides):
        print("trl is not installed here: only our side is played.", file=sys.stderr)
    asked = [_point(text) for text in given.points] if given.points else None
    points = [
        (model, tokens, side)
        for model, tokens in asked or (TINY if given.tiny else POINTS) for side in sides
        if side != "trl, kept" or (model, tokens) in KEPT
    ]  # fmt: skip
    result: dict[str, Any] = {"device": name, "peak_flops": _peak(name), "calls": [], "points": []}
    if given.resume and out.exists():
        result = json.loads(out.read_text())
    command = "python benchmarks/learner_gpu.py " + " ".join(sys.argv[1:])
    result["calls"].append(
        {"machine": machine("torch", "transformers", "peft"), "command": command}
    )
    play_all(points, result, out, given)
    print(out)
    return 0


def play_all(
    points: list[tuple[str, int, str]], result: dict[str, Any], out: Path, given: Any
) -> None:
    """Add the points that `result` has not yet, and write it after each."""
    device, started = torch.device(given.device), time.monotonic()
    filled = _fill(device, given.card_gb) if given.card_gb else None
    there = {(row["model"], row["tokens_each"], row["side"]) for row in result["points"]}
    result["not_played"] = []
    for model, tokens, side in points:
        if (model, tokens, side) in there:
            continue
        if time.monotonic() - started > 60 * given.minutes:
            result["not_played"].append(f"{model}, 2 x {tokens}, {side}")
            continue
        row = play(side, make_point(model, tokens), device, given.packing, result["peak_flops"])
        row["call"] = len(result["calls"]) - 1
        if filled is not None and row.get("peak_bytes"):
            row["peak_bytes"] -= filled.numel()
        result["points"].append(row)
        print(json.dumps(row), flush=True)
        out.write_text(json.dumps(result, indent=1) + "\n")
    out.write_text(json.dumps(result, indent=1) + "\n")


def play(
    side: str, point: Point, device: torch.device, packing: str, peak: float | None
) -> dict[str, Any]:
    """One point on one side: the figures, or why there are none."""
    row: dict[str, Any] = {"side": side, "model": point.model, "tokens_each": point.tokens}
    try:
        if side == "ours":
            took = ours(point, device, packing)
        else:
            took = trl_side(point, device, checkpointing=side == "trl")
        row |= took | _derived(point, took, peak, shared=side == "ours")
    except torch.OutOfMemoryError:
        row["failed"] = "out of memory"
    except Exception as error:
        row["failed"] = f"{type(error).__name__}: {error}".splitlines()[0]
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return row


def ours(point: Point, device: torch.device, packing: str) -> dict[str, Any]:
    """An optimizer step by `run_batch`, as in `learners.train`."""
    with torch.device(device):
        base = _model(point.model)
    model = add_adapter(base.requires_grad_(False), CONFIG, "").train()
    checkpoint(model, CONFIG, device)
    workers = Workers()
    scorer = Scorer(PolicySums(model), Passes(model, device, Packing(packing)), workers)
    settings = {"gamma": 0.1, "zeta": 0.11, "beta": 0.1, "label_smoothing": 0.0}
    objective = Objective(get_loss("entropo-dpo"), settings, scorer, 1)
    parameters = trainable(model)
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)

    def step(pair: Sample) -> None:
        references = torch.zeros(1, 2, dtype=torch.float64)  # cached before the first step
        run_batch(objective, [pair], references, None)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    took = _timed(step, point, device)
    kept = checkpoint_settings(model)["context_fn"]
    layers = len(unwrap(model).get_decoder().layers)
    return {
        **took, "packing": scorer.passes.kernel, "kept_attention": kept.attention,
        "kept_layers": kept.layers if CONFIG.checkpoints_on(device.type) else layers,
    }  # fmt: skip


def trl_side(point: Point, device: torch.device, *, checkpointing: bool) -> dict[str, Any]:
    """TRL's trainer, reference precomputed; its loss on the whole completion."""
    import trl
    from datasets import Dataset
    from learner_trl import Dpo
    from peft import LoraConfig
    from transformers import TrainerCallback

    with torch.device(device):
        base = _model(point.model)
    pairs = [point.short] * WARM + [point.pair] * point.steps
    data = []
    for pair in pairs:
        chosen, rejected = (list(side.input_ids) for side in pair.sequences)
        cut = pair.sequences[0].prompt_length
        data.append(
            {"prompt_ids": chosen[:cut], "chosen_ids": chosen[cut:], "rejected_ids": rejected[cut:]}
        )
    times: list[float] = []
    begun = peak = 0.0

    class Watch(TrainerCallback):
        def on_step_begin(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
            nonlocal begun
            if device.type == "cuda" and state.global_step == WARM:
                torch.cuda.reset_peak_memory_stats()
            begun = _now(device)

        def on_step_end(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
            nonlocal peak
            if state.global_step > WARM:
                times.append(_now(device) - begun)
                peak = _peak_bytes(device) or 0

    with tempfile.TemporaryDirectory() as folder:
        settings = trl.DPOConfig(
            output_dir=folder, per_device_train_batch_size=1, max_steps=len(pairs), beta=0.1,
            max_length=None, precompute_ref_log_probs=True, gradient_checkpointing=checkpointing,
            bf16=True, use_cpu=device.type == "cpu", save_strategy="no", report_to="none",
            disable_tqdm=True, remove_unused_columns=False, train_sampling_strategy="sequential",
        )  # fmt: skip
        lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        Dpo(
            model=base, args=settings, train_dataset=Dataset.from_list(data),
            processing_class=_tokenizer(), peft_config=lora, callbacks=[Watch()],
            data_collator=_collator(),
        ).train()  # fmt: skip
    kept = {} if checkpointing else {"kept_layers": len(base.get_decoder().layers)}
    return {**_seconds(times), "peak_bytes": int(peak) or None, "trl": trl.__version__, **kept}


def make_point(model: str, tokens: int) -> Point:
    """A pair of two sequences of `tokens`, and a short one."""
    vocabulary = MODELS[model]().vocab_size
    return Point(model, tokens, _pair(tokens, vocabulary), _pair(min(tokens, 8 * K), vocabulary))


def _pair(tokens: int, vocabulary: int) -> Sample:
    draw = random.Random(tokens)
    shared = min(SHARED, tokens // 4)
    prompt = [draw.randrange(3, vocabulary) for _ in range(shared)]
    sides = []
    for side in range(2):
        rest = [3 + side, *(draw.randrange(3, vocabulary) for _ in range(tokens - shared - 1))]
        mask = [False] * shared + [at % 250 < 50 for at in range(len(rest))]
        mask[-1] = True
        sides.append(
            Encoded(tuple(prompt + rest), tuple(mask), tuple(int(sampled) - 1 for sampled in mask))
        )
    return Sample(tuple(sides), 0)


def _model(name: str) -> Any:
    return AutoModelForCausalLM.from_config(
        MODELS[name](), dtype=torch.bfloat16, attn_implementation="sdpa"
    )


def _timed(step: Callable[[Sample], None], point: Point, device: torch.device) -> dict[str, Any]:
    for _ in range(WARM):
        step(point.short)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times: list[float] = []
    for _ in range(point.steps):
        begun = _now(device)
        step(point.pair)
        times.append(_now(device) - begun)
    return {**_seconds(times), "peak_bytes": _peak_bytes(device)}


def _seconds(times: list[float]) -> dict[str, Any]:
    return {"seconds": statistics.median(times), "of_steps": [round(one, 4) for one in times]}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _peak_bytes(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else None


def _derived(
    point: Point, took: dict[str, Any], peak: float | None, *, shared: bool
) -> dict[str, float | None]:
    """Speed and shares of the peak; TRL's work is taken without sharing, on agent tokens."""
    costs = _costs(point.model)
    sides = point.pair.sequences
    common = (sides[0].prompt_length,) if shared else ()
    loss_tokens = point.pair.num_loss_tokens
    batch = MicroBatch(tuple(map(len, sides)), loss_tokens, common)
    seconds, attention = took["seconds"], took.get("kept_attention", False)
    done = costs.flops(
        Setup("lora", 1, True), batch, kept_attention=attention,
        kept_layers=took.get("kept_layers", 0),
    )  # fmt: skip
    needed = costs.flops(Setup("lora", 1, False), batch)
    return {
        "agent_tokens_per_second": loss_tokens / seconds,
        "tokens_per_second": point.pair.num_tokens / seconds,
        "utilisation": done / seconds / peak if peak else None,
        "mfu": needed / seconds / peak if peak else None,
    }


@functools.cache
def _costs(model: str) -> Costs:
    return Costs(MODELS[model](), CONFIG, "lora", Assumptions())


def _peak(name: str) -> float | None:
    """The card's dense bf16 peak, FLOP/s, if it is known."""
    words = name.upper().replace("-", " ").split()
    known = {card.name.partition("-")[0]: card.peak for card in GPUS.values()}
    return next((peak for card, peak in known.items() if card in words), None)


def _point(text: str) -> tuple[str, int]:
    model, _, tokens = text.partition(":")
    return model, int(tokens)


def _fill(device: torch.device, gigabytes: float) -> torch.Tensor:
    """What is to be left alone of the card."""
    free = torch.cuda.mem_get_info(device)[0]
    return torch.empty(max(free - int(gigabytes * 1e9), 0), dtype=torch.uint8, device=device)


def _plain(name: str) -> str:
    return "_".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def _collator() -> Any:
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    return DataCollatorForPreference(pad_token_id=0)


def _tokenizer() -> Any:
    """The least that TRL's trainer asks of one: the data are ids already."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")


if __name__ == "__main__":
    sys.exit(main())
