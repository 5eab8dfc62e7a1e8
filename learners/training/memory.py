"""When a pass does not fit a GPU's memory: once more with less, else one sentence."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from learners.ops.keeping import give_way
from learners.training.draws import draw_again, draws
from learners.training.results import OutOfMemory
from learners.training.score import Scorer

log = logging.getLogger(__name__)

T = TypeVar("T")


def retried(work: Callable[[], T], scorer: Scorer) -> T:
    """What `work` gives, which adds to gradients that are empty before it.

    Where memory runs out while layers were kept that need not be (`learners.ops.keeping`), it is
    done again with fewer of them, from the same random numbers. Not where the model is sharded: the
    other processes would wait for passes that they had made already.
    """
    trained = [parameter for parameter in scorer.model.parameters() if parameter.requires_grad]
    once = scorer.workers.sharded or any(parameter.grad is not None for parameter in trained)
    before = draws(scorer.device)
    while True:
        try:
            return work()
        except torch.OutOfMemoryError:
            if once or not give_way(scorer.model):
                raise
        # Outside of the handler, whose error holds on to all that the pass had made.
        log.warning("The GPU's memory ran out: the pass is made again, and fewer layers are kept.")
        for parameter in trained:
            parameter.grad = None
        draw_again(before, scorer.device)
        torch.cuda.empty_cache()


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Say in one sentence what a run may do whose memory does not suffice.

    Raises:
        OutOfMemory: it does not.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"The GPU's memory ran out ({str(error).split('. ')[0]}). With "
            "gradient_checkpointing=true, a smaller max_tokens or a smaller micro_batch_tokens a "
            "run takes less (swe train --plan says how much); the first can be changed with "
            "--resume, which goes on from the last checkpoint."
        ) from error
