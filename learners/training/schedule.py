"""Learning rate and data order: pure functions of step and seed, so a resumed run repeats them."""

from __future__ import annotations

import math
import random


def learning_rate(step: int, total: int, *, peak: float, warmup: float) -> float:
    """Linear warm-up over the first ``warmup`` share of the steps, then half a cosine to 0.

    `step` counts from 0; the first step of a run with warm-up already moves.
    """
    rising = math.ceil(warmup * total)
    if step < rising:
        return peak * (step + 1) / rising
    progress = (step - rising) / max(total - rising, 1)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def total_steps(samples: int, batch_size: int, *, epochs: float, max_steps: int | None) -> int:
    """Optimizer steps of a run; the last batch of an epoch may be smaller."""
    if max_steps is not None:
        return max_steps
    return max(math.ceil(math.ceil(samples / batch_size) * epochs), 1)


def batch_at(step: int, samples: int, batch_size: int, seed: int) -> list[int]:
    """Samples of the optimizer step, each once an epoch in an order drawn from seed and epoch."""
    per_epoch = math.ceil(samples / batch_size)
    epoch, position = divmod(step, per_epoch)
    order = list(range(samples))
    random.Random(f"{seed}:{epoch}").shuffle(order)
    return order[position * batch_size : (position + 1) * batch_size]
