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
        else _no_way(costs, setup, longest, loss, room)
    )
    return (
        f"Does not fit on {where}: {longest.sizes} tokens need {_gib(needed)} GiB of "
        f"{_gib(room)}{rest}"
    )


def _no_way(costs: Costs, setup: Setup, longest: MicroBatch, loss: Loss, room: int) -> str:
    """Why none of `_ways` is enough."""
    saving = replace(setup, checkpointing=True)
    fixed = costs.memory(saving, longest).fixed
    if fixed > room:
        return (
            ", and nothing short of another model, method or card changes that: its weights and "
            f"optimizer alone take {_gib(fixed)} GiB."
        )
    tokens = longest_that_fits(costs, saving, loss, room, _learned(longest))
    fitting = f"sequences of {tokens:,} tokens" if tokens else "no sample"
    return (
        f", and neither another method nor up to {_MOST_GPUS} GPUs change that: beside the "
        f"{_gib(fixed)} GiB of weights and optimizer there is room for {fitting}."
    )


def _learned(batch: MicroBatch) -> float:
    """Share of its tokens whose log-probability is learned."""
    return batch.loss_tokens / sum(batch.lengths)


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

    known = {costs.method: costs}

    def total(how: Setup) -> int:
        if how.method not in known:
            known[how.method] = Costs(shapes, config, how.method, costs.assume)
        return known[how.method].memory(how, longest).total

    if not setup.checkpointing and (need := total(saving)) <= room:
        return [f"gradient checkpointing ({_gib(need)} GiB)"]
    ways = []
    if setup.method == "full" and (need := total(replace(saving, method="lora"))) <= room:
        ways.append(f"LoRA{also} ({_gib(need)} GiB)")
    if setup.method == "lora" and (need := total(replace(saving, method="qlora"))) <= room:
        ways.append(f"QLoRA in 4 bits{also} ({_gib(need)} GiB)")
    # What is in 4 bits is not sharded, so that LoRA may do on the GPUs that there are.
    quantised = setup.method == "qlora"
    method, by = ("lora", "LoRA on ") if quantised else (setup.method, "")
    gpus = setup.gpus if quantised and setup.gpus > 1 else setup.gpus * 2
    while gpus <= _MOST_GPUS:
        if (need := total(replace(saving, method=method, gpus=gpus))) <= room:
            ways.append(f"{by}{gpus} GPUs and FSDP{also} ({_gib(need)} GiB each)")
            break
        gpus *= 2
    tokens = longest_that_fits(costs, saving, loss, room, _learned(longest))
    if tokens >= 1024:
        alone = " and micro_batch_tokens=1" if longest.samples > 1 else ""
        ways.append(f"max_tokens={tokens // 256 * 256}{alone}{also}")
    return ways


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f}"


def _either(ways: list[str]) -> str:
    return ways[0] if len(ways) == 1 else f"{', '.join(ways[:-1])}, or {ways[-1]}"
