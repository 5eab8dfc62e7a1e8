"""A buffer as training samples: selected, encoded, and every drop counted."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from learners.data.encode import Encoded
from learners.data.report import DropReport, Unusable
from learners.data.select import Pair, Row, kto_rows, pairs, sft_rows
from swe_env.replay.trajectory import Trajectory

T = TypeVar("T")
Encoder = Callable[[Trajectory], Encoded]


@dataclass(frozen=True, slots=True)
class Sample:
    """What one term of the loss looks at."""

    sequences: tuple[Encoded, ...]
    """(chosen, rejected) of a pair, or one trajectory."""
    group: int
    """Number of its task."""
    tie: bool = False
    desirable: bool = True
    from_turn: int = 0
    """Agent turns at the head that both sides of a pair have in common, and that are not learned:
    their log-probabilities cancel in the margin."""
    mean_tokens: float = 0.0
    """Mean number of sampled tokens of its task's rows; 0 for pairs."""
    task: str = ""
    """The task's id, for messages."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all its sequences (`len` of `Encoded`)."""
        return sum(len(sequence) for sequence in self.sequences)

    @property
    def contexts(self) -> list[Encoded]:
        """Of all its sequences, in order (`Encoded.contexts`): what passes are made of."""
        return [context for sequence in self.sequences for context in sequence.contexts]

    @property
    def num_loss_tokens(self) -> int:
        """Sampled tokens of all its sequences."""
        return sum(sequence.num_loss_tokens for sequence in self.sequences)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Samples of one kind."""

    samples: tuple[Sample, ...]
    report: DropReport

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits over everything the loss sees."""
        seen = hashlib.sha256()
        for sample in self.samples:
            seen.update(f"{sample.group},{sample.tie},{sample.desirable};".encode())
            for sequence in sample.sequences:
                seen.update(repr((sequence.input_ids, sequence.turn_ids)).encode())
                for one in sequence.later:
                    seen.update(repr((one.kept, one.input_ids, one.turn_ids)).encode())
        return seen.hexdigest()[:16]


def pair_samples(
    trajectories: Iterable[Trajectory],
    encoder: Encoder,
    *,
    per_task: int = 1,
    ties: int = 0,
    seed: int = 0,
    text_format: str | None = None,
    step_level: bool = True,
) -> Dataset:
    """`pairs` of what can be encoded; a pair whose sides start from different tokens is dropped.

    Where both sides begin with the same agent steps, as branches do, the pair is step-level: only
    what follows is learned.

    Args:
        trajectories: As for `pairs`.
        encoder: Gives a trajectory's tokens.
        per_task: As for `pairs`.
        ties: As for `pairs`.
        seed: As for `pairs`.
        text_format: The one that `encoder` writes all calls in; None where it takes the record's.
        step_level: False to learn all turns of every pair: for a loss that is no function of
            S_w - S_l, such as one that counts tokens (`Loss.counts_tokens`).
    """
    known = _Known(encoder)
    found, report = pairs(
        trajectories, per_task=per_task, ties=ties, seed=seed, refusal=known.refusal,
        text_format=text_format,
    )  # fmt: skip
    groups = _numbers(pair.chosen.instance_id for pair in found)

    def build(pair: Pair) -> Sample:
        task = pair.chosen.instance_id
        sides, shared = (known[pair.chosen], known[pair.rejected]), 0
        if not _same_start(*sides):
            raise Unusable("prompts-differ", f"{task}: prompts differ.")
        turn = pair.shared_steps if step_level else 0
        chosen, rejected = (side.from_turn(turn) for side in sides)
        if turn and _same_start(chosen, rejected):  # cut ones may differ before it
            sides, shared = (chosen, rejected), turn
        return Sample(sides, groups[task], pair.tie, from_turn=shared, task=task)

    return _build(found, build, report)


def row_samples(
    trajectories: Iterable[Trajectory],
    encoder: Encoder,
    *,
    kind: str,
    per_task: int | None = None,
    seed: int = 0,
) -> Dataset:
    """`kto_rows` (kind ``"kto"``) or `sft_rows` (``"sft"``) of what can be encoded."""
    known, select = _Known(encoder), kto_rows if kind == "kto" else sft_rows
    found, report = select(trajectories, per_task=per_task, seed=seed, refusal=known.refusal)
    groups = _numbers(row.trajectory.instance_id for row in found)

    def build(row: Row) -> Sample:
        task = row.trajectory.instance_id
        sequences = (known[row.trajectory],)
        return Sample(sequences, groups[task], desirable=row.desirable, task=task)

    dataset = _build(found, build, report)
    lengths: dict[int, list[int]] = {}
    for sample in dataset.samples:
        lengths.setdefault(sample.group, []).append(sample.num_loss_tokens)
    return replace(
        dataset,
        samples=tuple(
            replace(sample, mean_tokens=sum(lengths[sample.group]) / len(lengths[sample.group]))
            for sample in dataset.samples
        ),
    )


def mismatched_sequence(prompt_of: Encoded, completion_of: Encoded) -> Encoded:
    """One task's first state with another task's turns behind it: KTO's mismatched sample.

    A context in which those turns' own first state is rewritten has no place for another's: it and
    what follows are left out.
    """
    start, end = prompt_of.prompt_length, completion_of.prompt_length
    later = itertools.takewhile(lambda one: one.kept >= end, completion_of.later)
    return Encoded(
        prompt_of.input_ids[:start] + completion_of.input_ids[end:],
        prompt_of.loss_mask[:start] + completion_of.loss_mask[end:],
        prompt_of.turn_ids[:start] + completion_of.turn_ids[end:],
        later=tuple(replace(one, kept=one.kept - end + start) for one in later),
    )


class _Known:
    """Each trajectory that is asked for, encoded once."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._found: dict[int, Encoded] = {}  # a selection knows them by identity too

    def refusal(self, trajectory: Trajectory) -> str:
        """The reason why it cannot be encoded, or empty."""
        if id(trajectory) not in self._found:
            try:
                self._found[id(trajectory)] = self._encoder(trajectory)
            except Unusable as problem:
                return problem.reason
        return ""

    def __getitem__(self, trajectory: Trajectory) -> Encoded:
        return self._found[id(trajectory)]


def _build(found: Sequence[T], build: Callable[[T], Sample], report: DropReport) -> Dataset:
    samples = []
    for item in found:
        try:
            samples.append(build(item))
        except Unusable as problem:
            report.drop(problem.reason)
    report.kept = len(samples)
    report.step_level = sum(sample.from_turn > 0 for sample in samples)
    sequences = [sequence for sample in samples for sequence in sample.sequences]
    cuts = [one.cut_tokens for one in sequences if one.cut_tokens]
    report.cut, report.cut_tokens = len(cuts), sum(cuts)
    rewritten = [len(one.contexts) for one in sequences if one.later]
    report.rewritten, report.contexts = len(rewritten), sum(rewritten)
    report.templated = sum(one.templated for one in sequences)
    report.partly = sum(one.unused_ids for one in sequences)
    return Dataset(tuple(samples), report)


def _same_start(one: Encoded, other: Encoded) -> bool:
    """Equal tokens before the first one that is learned."""
    return one.first_state == other.first_state


def _numbers(names: Iterable[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(dict.fromkeys(names))}
