"""Log-probabilities under the reference policy: computed once, before the first step, and cached.

The reference is the policy as training finds it (base weights plus the starting adapter), scored
by the same code as the policy: at step 0 with lambda = 0 every margin is 0. Nothing of a second
model is kept in memory.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from learners.data.encode import Encoded
from learners.training.score import Scorer
from swe_env.cache import build_once, cache_dir, digest

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reference:
    """Sums of log-probabilities, one for each sequence in the order given."""

    logps: Tensor
    """(sequences,), float64, on the CPU."""


def reference_logps(
    scorer: Scorer,
    sequences: Sequence[Encoded],
    *,
    key: Sequence[str],
    width: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Reference:
    """Score every sequence with the policy as it is, or read what an equal run wrote.

    Several processes score their shares, and all get the main process's figures.

    Args:
        scorer: Over the policy before its first step.
        sequences: What to score.
        key: Everything else the figures depend on: base weights, adapter, data, types, versions.
        width: Sequences a sample, which may share a pass.
        progress: Called with (done, total).
    """
    passes = scorer.passes
    how = [passes.kernel, str(passes.min_share), str(passes.together), scorer.workers.spread]
    how.append(str(width))
    content = [[*key, *how], [_digest(sequence) for sequence in sequences]]
    target = cache_dir("reference") / f"{digest(content)}"

    def build(folder: Path, logps: list[float] | None = None) -> None:
        found = _score(scorer, sequences, width, progress) if logps is None else logps
        (folder / _FILE).write_text(json.dumps(found))

    if scorer.workers.count == 1:
        return _read(build_once(target, build))
    if scorer.workers.agree(target.exists()):
        return scorer.workers.on_main(lambda: _read(target))
    # Not under the cache's lock: the processes would wait for each other for ever.
    logps = _score(scorer, sequences, width, progress)
    return scorer.workers.on_main(lambda: _read(build_once(target, lambda to: build(to, logps))))


_FILE = "logps.json"


def _digest(sequence: Encoded) -> str:
    later = [[one.kept, one.input_ids, one.turn_ids] for one in sequence.later]
    return digest([sequence.input_ids, sequence.turn_ids, *later])


def _read(folder: Path) -> Reference:
    logps = json.loads((folder / _FILE).read_text())
    return Reference(torch.tensor(logps, dtype=torch.float64))


def _score(
    scorer: Scorer,
    sequences: Sequence[Encoded],
    width: int,
    progress: Callable[[int, int], None] | None,
) -> list[float]:
    was_training = scorer.model.training
    scorer.model.eval()
    found: list[float] = scorer.all(sequences, width, progress=progress).logps.tolist()
    scorer.model.train(was_training)
    return found
