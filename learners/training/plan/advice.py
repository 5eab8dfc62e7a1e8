"""Whether a run fits, and if not the sentence that says what would make it fit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from learners.losses import Loss
from learners.training.config import TrainConfig
from learners.training.plan.assumptions import GIB
from learners.training.plan.costs import Costs, Setup, usable
from learners.training.plan.gpus import Gpu
from learners.training.plan.samples import MicroBatch, sample_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_LONGEST = 1 << 20
"""Tokens beyond which nobody asks."""
_MOST_GPUS = 64
_TIGHT = 0.95
"""Share of a card beyond which the verdict warns: no plan is exact to the last GiB."""


def longest_that_fits(costs: Costs, setup: Setup, loss: Loss, room: int, loss_share: float) -> int:
    """Tokens of the longest sequence a sample may have (a pair has two of them); 0 if none fits.

    Memory grows with the tokens, so bisection finds it.
    """

    def fits(tokens: int) -> bool:
        return costs.memory(setup, sample_of(loss, tokens, loss_share)).total <= room

    low, high = 0, _LONGEST
    if fits(high):
        return high
    while high - low > max(low // 500, 1):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def advise(
    costs: Costs,
    setup: Setup,
    card: Gpu,
    longest: MicroBatch,
    loss: Loss,
    shapes: PretrainedConfig,
    config: TrainConfig,
) -> str:
    """The verdict as one sentence."""
    room = usable(card, costs.assume)
    needed = costs.memory(setup, longest).total
    where = f"{'one' if setup.gpus == 1 else f'each of {setup.gpus}'} {card.name}"
    if needed <= room:
        spare = "" if needed < _TIGHT * room else ", with little to spare"
        return f"Fits on {where}{spare}: {_gib(needed)} of {_gib(room)} GiB."
    ways = _ways(costs, setup, longest, loss, room, shapes, config)
    rest = (
        f"; it would fit with {_either(ways)}."
        if ways
        else f", and nothing short of another model, method or card changes that: its weights and "
        f"optimizer alone take {_gib(costs.memory(setup, longest).fixed)} GiB."
    )
    return (
        f"Does not fit on {where}: {_sizes(longest, loss)} tokens need {_gib(needed)} GiB of "
        f"{_gib(room)}{rest}"
    )


def _sizes(batch: MicroBatch, loss: Loss) -> str:
    if batch.rows > batch.samples * (2 if loss.kind == "pairs" else 1):
        return f"{batch.rows} contexts of {batch.tokens:,}"
    return f"{batch.rows} x {batch.width:,}" if batch.rows > 1 else f"{batch.width:,}"


def _ways(
    costs: Costs,
    setup: Setup,
    longest: MicroBatch,
    loss: Loss,
    room: int,
    shapes: PretrainedConfig,
    config: TrainConfig,
) -> list[str]:
    """Changes of which each alone (with checkpointing) is enough."""
    saving = replace(setup, checkpointing=True)
    also = "" if setup.checkpointing else " and gradient checkpointing"

    def total(of: Costs, how: Setup) -> int:
        return of.memory(how, longest).total

    if not setup.checkpointing and (need := total(costs, saving)) <= room:
        return [f"gradient checkpointing ({_gib(need)} GiB)"]
    ways = []
    if setup.method == "full":
        lora = Costs(shapes, config, "lora", costs.assume)
        if (need := total(lora, replace(saving, method="lora"))) <= room:
            ways.append(f"LoRA{also} ({_gib(need)} GiB)")
    if setup.method == "lora" and (need := total(costs, replace(saving, method="qlora"))) <= room:
        ways.append(f"QLoRA in 4 bits{also} ({_gib(need)} GiB)")
    # What is in 4 bits is not sharded.
    method, by = ("lora", "LoRA on ") if setup.method == "qlora" else (setup.method, "")
    gpus = setup.gpus * 2
    while gpus <= _MOST_GPUS:
        if (need := total(costs, replace(saving, method=method, gpus=gpus))) <= room:
            ways.append(f"{by}{gpus} GPUs and FSDP{also} ({_gib(need)} GiB each)")
            break
        gpus *= 2
    share = longest.loss_tokens / sum(longest.lengths)
    tokens = longest_that_fits(costs, saving, loss, room, share)
    if tokens >= 1024:
        alone = " and micro_batch_tokens=1" if longest.samples > 1 else ""
        ways.append(f"max_tokens={tokens // 256 * 256}{alone}{also}")
    return ways


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f}"


def _either(ways: list[str]) -> str:
    return ways[0] if len(ways) == 1 else f"{', '.join(ways[:-1])}, or {ways[-1]}"
