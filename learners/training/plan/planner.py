"""`plan_training`: what a run will take, from its configuration and its buffer alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from learners.training.config import TrainConfig
from learners.training.parts import loss_settings
from learners.training.plan.advice import advise, longest_that_fits
from learners.training.plan.assumptions import Assumptions
from learners.training.plan.costs import Costs, Keeps, Memory, Setup, usable
from learners.training.plan.counts import METHODS, Counts
from learners.training.plan.gpus import Gpu
from learners.training.plan.gpus import gpu as find_gpu
from learners.training.plan.models import known_model, model_config
from learners.training.plan.samples import MicroBatch, Workload, workload
from learners.training.policy import check_start
from swe_env.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will take. Memory is bytes on each GPU."""

    model: str
    source: str
    """Where the model's shapes come from."""
    gpu: Gpu
    setup: Setup
    counts: Counts
    longest: MicroBatch
    """The micro-batch that needs most memory, which `memory` is for."""
    memory: Memory
    """With the setup's own choice of gradient checkpointing."""
    memory_other: Memory
    """With the other choice, for the micro-batch that then needs most."""
    usable: int
    """Bytes of the GPU that a run can have."""
    longest_fits: int
    """Tokens of the longest sequence that fits, alone in its micro-batch (a pair: two)."""
    longest_fits_other: int
    """The same with the other choice of checkpointing."""
    samples: int
    steps: int
    tokens: int
    """Of one epoch."""
    shared_tokens: int
    """Of those, the ones that stand in a beginning already computed for another sequence."""
    tokens_per_second: float
    """Trained tokens, shared ones each time, all GPUs together."""
    hours: float
    """The whole run: the reference pass and all steps; no evaluation, no checkpoints."""
    reference_hours: float
    """Of it, the reference pass."""
    fits: bool
    verdict: str
    """One sentence: that it fits, or that it does not and what would make it fit."""
    notes: tuple[str, ...]
    """What else a reader should know of these figures."""
    data: str
    """What was used of the buffer and what was left out."""
    assumptions: Assumptions


def plan_training(
    config: TrainConfig,
    *,
    gpu: str = "A100-80",
    gpus: int = 1,
    method: str | None = None,
    assumptions: Assumptions | None = None,
) -> Plan:
    """Memory, time and verdict of the run that `config` describes; loads no weights.

    Args:
        config: As for `learners.train`; ``out`` is not touched.
        gpu: A name from `learners.training.plan.gpus`.
        gpus: Cards, each with samples of its own; more than one shard the model (FSDP), but
            not QLoRA's.
        method: ``lora``, ``qlora`` (linear layers in 4 bits) or ``full``; by default the
            settings' mode.
        assumptions: Figures that are not arithmetic; by default `Assumptions()`.

    Raises:
        ConfigError: the model, GPU, method, loss or buffer is not there, or training would refuse
            the settings.
        NoSignal: the buffer gives nothing to train on.
    """
    from learners.training.prepare import read_buffer

    assume = assumptions or Assumptions()
    if gpus < 1:
        raise ConfigError(f"A run needs at least 1 GPU, not {gpus}.")
    method = config.mode if method is None else method
    if method not in METHODS:
        raise ConfigError(f"There is no training method {method!r}: use {', '.join(METHODS)}.")
    card = find_gpu(gpu)
    loss, _ = loss_settings(config)
    check_start(config.model_copy(update={"mode": method}))
    shapes = model_config(config.model)
    selective = config.gradient_checkpointing == "auto"
    setup = Setup(method, gpus, config.checkpoints_on("cuda"), selective)
    work = workload(
        read_buffer(config.buffer), config, loss, assume, gpus=gpus, sharded=setup.sharded
    )
    other = replace(setup, checkpointing=not setup.checkpointing)
    costs = Costs(shapes, config, method, assume)
    longest, longest_other = costs.worst(setup, work.passes), costs.worst(other, work.passes)
    memory = costs.memory(setup, longest)
    room = usable(card, assume)
    step_seconds, reference_seconds = _times(costs, setup, card, work)
    known = known_model(config.model)
    return Plan(
        model=config.model,
        source=known.source if known else "its configuration",
        gpu=card,
        setup=setup,
        counts=costs.counts,
        longest=longest,
        memory=memory,
        memory_other=costs.memory(other, longest_other),
        usable=room,
        longest_fits=longest_that_fits(costs, setup, loss, room, longest.loss_share),
        longest_fits_other=longest_that_fits(costs, other, loss, room, longest_other.loss_share),
        samples=work.samples,
        steps=work.total_steps,
        tokens=work.tokens,
        shared_tokens=work.shared,
        tokens_per_second=work.tokens / step_seconds,
        hours=(reference_seconds + step_seconds * work.total_steps / len(work.steps)) / 3600,
        reference_hours=reference_seconds / 3600,
        fits=memory.total <= room,
        verdict=advise(costs, setup, card, work.passes, loss, shapes, config),
        notes=_notes(costs, setup, card, work, config, costs.keeps(setup, card, longest)),
        data=work.report,
        assumptions=assume,
    )


def _times(costs: Costs, setup: Setup, card: Gpu, work: Workload) -> tuple[float, float]:
    """Seconds of one epoch's steps and of the reference pass."""
    return (
        sum(costs.seconds(setup, card, step) for step in work.steps),
        costs.seconds(setup, card, work.references, train=False),
    )


def _notes(
    costs: Costs, setup: Setup, card: Gpu, work: Workload, config: TrainConfig, kept: Keeps
) -> tuple[str, ...]:
    notes = []
    counts, assume = costs.counts, costs.assume
    if setup.checkpointing and setup.selective and costs.keepable and not setup.sharded:
        notes.append(
            "Layers are computed again only where memory demands it: of the pass that needs most "
            f"{kept.layers} of {len(costs.layers)} are not, in memory that is free otherwise "
            "(gradient_checkpointing=true keeps memory low, =false keeps all)."
        )
    if work.shared:
        notes.append(
            f"Sequences share {work.shared / work.tokens:.0%} of their tokens with others of the "
            "same pass, which are computed once (docs/packing.md)."
        )
    if setup.method == "qlora" and counts.experts and not assume.quantised_experts:
        stay = counts.experts * costs.size / 2**30
        notes.append(
            f"QLoRA leaves the experts ({stay:,.0f} GiB) in bfloat16: transformers stacks them, "
            "and bitsandbytes is given linear layers only (quantised_experts=1 plans for a loader "
            "that quantises them)."
        )
    if setup.method != "full" and counts.experts and counts.adapter > 0.002 * counts.total:
        notes.append(
            f"The adapter has {counts.adapter / 1e6:,.0f} million weights because its targets "
            "include every expert; peft then makes a merged copy of each layer's experts in every "
            "pass (lora_targets with the attention's projections only avoids it)."
        )
    if work.estimated:
        notes.append(
            f"{work.estimated} trajectories have no token ids: their length is estimated from "
            f"their text at {assume.characters_per_token:g} characters a token."
        )
    if config.dtype == "float32":
        notes.append(
            f"In float32 the speed is of {card.float32_peak / 1e12:g} TFLOP/s, as torch uses no "
            f"tensor cores for it; bfloat16 has {card.peak / 1e12:g}."
        )
    if config.z0 == "mismatched":
        notes.append("z0 'mismatched' adds a forward pass a step, which is not counted.")
    if setup.method != config.mode:
        notes.append(
            f"Planned as {setup.method}, while the settings have mode {config.mode}: train with "
            f"--set mode={setup.method}."
        )
    if setup.gpus > 1:
        held = (
            "shard weights, gradients and optimizer state (FSDP), and each has"
            if setup.sharded
            else "hold the whole model each (4-bit weights are not sharded), and each has"
        )
        notes.append(
            f"{setup.gpus} GPUs {held} samples of its own: more GPUs do not shorten what one "
            "sample takes."
        )
    if (most := min(config.batch_size, work.samples)) < setup.gpus:
        notes.append(
            f"A step has {most} samples for {setup.gpus} GPUs, so {setup.gpus - most} of them have "
            f"nothing to do: batch_size={setup.gpus} or a multiple gives each as many."
        )
    return tuple(notes)
