"""When a pass does not fit a GPU's memory: once more with less, else one sentence."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable
from typing import TypeVar

import torch

from learners.ops.keeping import give_way
from learners.training.config import TrainConfig
from learners.training.draws import draw_again, draws
from learners.training.results import OutOfMemory
from learners.training.score import Scorer

log = logging.getLogger(__name__)

T = TypeVar("T")


def retry_out_of_memory(work: Callable[[], T], scorer: Scorer) -> T:
    """What `work` gives, which adds to gradients that are empty before it.

    Where memory runs out while something was kept that need not be (`learners.ops.keeping`), it is
    done again with less of it, from the same random numbers. Not where the model is sharded: the
    other processes would wait for passes that they had made already.
    """
    trained = [parameter for parameter in scorer.model.parameters() if parameter.requires_grad]
    once = scorer.workers.sharded or any(parameter.grad is not None for parameter in trained)
    before = draws(scorer.device)
    while True:
        try:
            return work()
        except torch.OutOfMemoryError as error:
            if once or not give_way(scorer.model):
                raise
            traceback.clear_frames(error.__traceback__)
        log.warning("The GPU's memory ran out: the batch is computed again, and less is kept.")
        for parameter in trained:
            parameter.grad = None
        draw_again(before, scorer.device)
        torch.cuda.empty_cache()


def out_of_memory(error: torch.OutOfMemoryError, config: TrainConfig, step: int) -> OutOfMemory:
    """The sentence for a step that does not fit whatever is recomputed.

    Lets go of what the failed pass had made, which hangs on the error.
    """
    traceback.clear_frames(error.__traceback__)
    size = re.search(r"Tried to allocate [\d.]+ \w+", str(error))
    first = "gradient_checkpointing=true, " if config.gradient_checkpointing is False else ""
    return OutOfMemory(
        f"The GPU's memory ran out in step {step + 1}{f' ({size[0]})' if size else ''}. A step "
        f"takes less with {first}a max_tokens below {config.max_tokens}, a smaller "
        "micro_batch_tokens or more GPUs (FSDP2): swe train --plan says how much. The checkpoint "
        "before is intact."
    )
