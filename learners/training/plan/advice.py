"""Whether a run fits, and if not the sentence that says what would make it fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from learners.losses import Loss
from learners.training.config import TrainConfig
from learners.training.plan.assumptions import GIB
from learners.training.plan.costs import Costs, Memory, Setup, usable
from learners.training.plan.gpus import Gpu
from learners.training.plan.samples import MicroBatch, sample_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_LONGEST = 1 << 20
"""Tokens beyond which nobody asks."""
_SHORTEST = 1024
"""Tokens below which nobody would cut samples."""
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
    passes: Sequence[MicroBatch],
    loss: Loss,
    shapes: PretrainedConfig,
    config: TrainConfig,
) -> str:
    """The verdict as one sentence, on the worst of the passes."""
    room = usable(card, costs.assume)
    longest = costs.worst(setup, passes)
    needed = costs.memory(setup, longest).total
    where = f"{'one' if setup.gpus == 1 else f'each of {setup.gpus}'} {card.name}"
    if needed <= room:
        spare = "" if needed < _TIGHT * room else ", with little to spare"
        return f"Fits on {where}{spare}: {_gib(needed)} of {_gib(room)} GiB."
    run = _Run(costs, passes, loss, room, shapes, config)
    ways = _ways(run, setup) or _together(run, setup)
    rest = f"; it would fit with {_either(ways)}." if ways else _no_way(run, setup)
    return (
        f"Does not fit on {where}: {longest.sizes} tokens need {_gib(needed)} GiB of "
        f"{_gib(room)}{rest}"
    )


class _Run:
    """What a run needs with other setups than its own."""

    def __init__(
        self,
        costs: Costs,
        passes: Sequence[MicroBatch],
        loss: Loss,
        room: int,
        shapes: PretrainedConfig,
        config: TrainConfig,
    ) -> None:
        self.room = room
        self._passes, self._loss = passes, loss
        self._shapes, self._config = shapes, config
        self._costs = {costs.method: costs}
        self._worsts: dict[Setup, MicroBatch] = {}
        self._assume = costs.assume

    def memory(self, how: Setup) -> Memory:
        """Of the pass that is the worst then."""
        return self._of(how).memory(how, self._worst(how))

    def longest(self, how: Setup) -> int:
        """As `longest_that_fits`."""
        share = self._worst(how).loss_share
        return longest_that_fits(self._of(how), how, self._loss, self.room, share)

    def shorter(self, how: Setup) -> str | None:
        """The settings with which shorter samples fit; None where hardly any would."""
        if (tokens := self.longest(how)) < _SHORTEST:
            return None
        alone = " and micro_batch_tokens=1" if self._worst(how).samples > 1 else ""
        return f"max_tokens={tokens // 256 * 256}{alone}"

    def _worst(self, how: Setup) -> MicroBatch:
        alike = replace(how, gpus=min(how.gpus, 2))  # more of them share what no sample changes
        if alike not in self._worsts:
            self._worsts[alike] = self._of(how).worst(alike, self._passes)
        return self._worsts[alike]

    def _of(self, how: Setup) -> Costs:
        if how.method not in self._costs:
            self._costs[how.method] = Costs(self._shapes, self._config, how.method, self._assume)
        return self._costs[how.method]


def _ways(run: _Run, setup: Setup) -> list[str]:
    """Changes of which each alone (with checkpointing) is enough."""
    saving, also = _saving(setup)

    def total(how: Setup) -> int:
        return run.memory(how).total

    if not setup.checkpointing and (need := total(saving)) <= run.room:
        return [f"gradient checkpointing ({_gib(need)} GiB)"]
    ways = []
    if setup.method == "full" and (need := total(replace(saving, method="lora"))) <= run.room:
        ways.append(f"LoRA{also} ({_gib(need)} GiB)")
    if setup.method == "lora" and (need := total(replace(saving, method="qlora"))) <= run.room:
        ways.append(f"QLoRA in 4 bits{also} ({_gib(need)} GiB)")
    for how in _sharded(saving):
        if (need := total(how)) <= run.room:
            each = " each" if how.gpus > 1 else ""
            ways.append(f"{_named(how, setup)}{also} ({_gib(need)} GiB{each})")
            break
    if shorter := run.shorter(saving):
        ways.append(f"{shorter}{also}")
    return ways


def _together(run: _Run, setup: Setup) -> list[str]:
    """More GPUs and shorter samples, where neither alone is enough.

    As few GPUs as hold samples half as long as the most of them do.
    """
    saving, also = _saving(setup)
    longest = {how: run.longest(how) for how in _sharded(saving)}
    enough = max(max(longest.values(), default=0) / 2, _SHORTEST)
    how = next((how for how, tokens in longest.items() if tokens >= enough), None)
    return [f"{_named(how, setup)} and {run.shorter(how)}{also}"] if how else []


def _no_way(run: _Run, setup: Setup) -> str:
    """Why neither is enough: what the best of the setups leaves."""
    saving, _ = _saving(setup)
    best = max([saving, *_sharded(saving)], key=lambda how: (run.longest(how), how.gpus))
    fixed, tokens = run.memory(best).fixed, run.longest(best)
    each = f" on each of {best.gpus} GPUs" if best.gpus > setup.gpus else ""
    if fixed > run.room:
        return (
            ", and nothing short of another model, method or card changes that: its weights and "
            f"optimizer alone take {_gib(fixed)} GiB{each}."
        )
    fitting = f"sequences of {tokens:,} tokens" if tokens else "no sample"
    return (
        f", and neither another method nor up to {_MOST_GPUS} GPUs change that: beside the "
        f"{_gib(fixed)} GiB of weights and optimizer{each} there is room for {fitting}."
    )


def _saving(setup: Setup) -> tuple[Setup, str]:
    """The setup with checkpointing, and what to add where that is a change."""
    also = "" if setup.checkpointing else " and gradient checkpointing"
    return replace(setup, checkpointing=True), also


def _sharded(saving: Setup) -> list[Setup]:
    """On more and more GPUs; of QLoRA, which is not sharded, as LoRA and on its own GPUs too."""
    method, gpus = saving.method, saving.gpus * 2
    if method == "qlora":
        method, gpus = "lora", saving.gpus
    found = []
    while gpus <= _MOST_GPUS:
        found.append(replace(saving, method=method, gpus=gpus))
        gpus *= 2
    return found


def _named(how: Setup, setup: Setup) -> str:
    """One of `_sharded`, by what it changes."""
    if how.gpus == 1:
        return "LoRA"
    by = "LoRA on " if how.method != setup.method else ""
    return f"{by}{how.gpus} GPUs and FSDP"


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f}"


def _either(ways: list[str]) -> str:
    return ways[0] if len(ways) == 1 else f"{', '.join(ways[:-1])}, or {ways[-1]}"
