"""Log-probabilities under the reference policy: computed once, before the first step, and cached.

The reference is the policy as training finds it (base weights plus the starting adapter), scored
by the same code as the policy: at step 0 with lambda = 0 every margin is 0. Nothing of a second
model is kept in memory. Sums are cached sample by sample while they are found, so that a killed
run goes on, and another buffer with some of the samples has only the others to score.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from learners.data.encode import Encoded
from learners.training.score import Scorer
from swe_env.cache import cache_dir, digest
from swe_env.disk import sync_folder
from swe_env.errors import InfrastructureError

log = logging.getLogger(__name__)

_BLOCK = 8
"""Samples of each process from one writing to the next: what a kill loses."""
_LINE = msgspec.json.Decoder(tuple[str, list[float]])
"""A sample's digest, and the sum of each of its sequences."""


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
    """Score with the policy as it is what no equal run has scored, and read the rest.

    Several processes score their shares, and all get the main process's figures.

    Args:
        scorer: Over the policy before its first step.
        sequences: What to score, those of a sample beside each other.
        key: Everything else the figures depend on: base weights, adapter, types, versions.
        width: Sequences a sample, which may share a pass.
        progress: Called with (done, total) sequences, those that were read among the done ones;
            never where all were.

    Raises:
        InfrastructureError: the cache cannot be read or written to.
    """
    passes, workers = scorer.passes, scorer.workers
    how = [passes.kernel, str(passes.min_share), str(passes.together), workers.spread, str(width)]
    samples = [sequences[at : at + width] for at in range(0, len(sequences), width)]
    names = [_digest(sample) for sample in samples]
    folder = workers.on_main(lambda: cache_dir("reference", digest([list(key), how])))
    found = workers.on_main(lambda: _read(folder, set(names)))
    missing = {
        name: sample for name, sample in zip(names, samples, strict=True) if name not in found
    }
    had = len(sequences) - sum(len(sample) for sample in missing.values())
    log.info("Reference: %d of %d sequences need no scoring.", had, len(sequences))

    def show(before: int, done: int, _: int) -> None:
        if progress is not None:
            progress(had + before + done, len(sequences))

    found |= _score(scorer, missing, width, folder, show)
    sums = [value for name in names for value in found[name]]
    return Reference(torch.tensor(sums, dtype=torch.float64))


def _digest(sample: Sequence[Encoded]) -> str:
    """Of what its sums depend on: they may share a pass, so all of its sequences."""
    return digest([
        [one.input_ids, one.loss_mask, [[c.kept, c.input_ids, c.loss_mask] for c in one.later]]
        for one in sample
    ])  # fmt: skip


def _score(
    scorer: Scorer,
    missing: Mapping[str, Sequence[Encoded]],
    width: int,
    folder: Path,
    show: Callable[[int, int, int], None],
) -> dict[str, list[float]]:
    """Sums of samples by their digest, each block of them in the cache before the next begins."""
    # In a file of its own: what other runs append at the same time cannot cut its lines.
    file = folder / f"{os.getpid()}-{secrets.token_hex(4)}.jsonl"
    names = sorted(missing, key=lambda name: -sum(len(one) for one in missing[name]))
    size = _BLOCK * scorer.workers.groups
    found: dict[str, list[float]] = {}
    was_training = scorer.model.training
    scorer.model.eval()
    for start in range(0, len(names), size):
        block = names[start : start + size]
        sequences = [one for name in block for one in missing[name]]
        sums = scorer.all(sequences, width, progress=partial(show, len(found) * width)).logps
        new = dict(zip(block, sums.view(-1, width).tolist(), strict=True))
        scorer.workers.on_main(partial(_append, file, new))
        found |= new
    scorer.model.train(was_training)
    return found


def _append(file: Path, found: Mapping[str, list[float]]) -> None:
    try:
        with file.open("ab") as opened:
            opened.write(b"".join(msgspec.json.encode(one) + b"\n" for one in found.items()))
        sync_folder(file.parent)
    except OSError as error:
        raise InfrastructureError(
            f"The reference's figures could not be put into the cache {file.parent} "
            f"({error.strerror}): free space there, or point SWE_ENV_CACHE at another folder."
        ) from error


def _read(folder: Path, wanted: AbstractSet[str]) -> dict[str, list[float]]:
    """What is there of these samples; a kill may have cut the last line of a file."""
    found = {}
    for file in sorted(folder.glob("*.jsonl")):
        try:
            lines = file.read_bytes().split(b"\n")
        except OSError as error:
            raise InfrastructureError(
                f"{file} in the cache cannot be read ({error.strerror}): remove it, or point "
                "SWE_ENV_CACHE at another folder."
            ) from error
        for line in lines:
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                name, sums = _LINE.decode(line)
                if name in wanted:
                    found[name] = sums
    return found
