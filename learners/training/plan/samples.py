"""How long the samples of a buffer are, without the model's tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from learners.data.batching import microbatches, padded_size, shares
from learners.data.cut import cut_observations
from learners.data.dataset import Dataset, Sample, pair_samples, row_samples
from learners.data.encode import Encoded, answered, encode, recorded, without_ids
from learners.data.report import Unusable
from learners.losses import Loss
from learners.ops.prefix import grow
from learners.training.config import TrainConfig
from learners.training.passes import default_min_share
from learners.training.plan.assumptions import Assumptions
from learners.training.schedule import batch_at, total_steps
from swe_env.replay.trajectory import Step, Trajectory

_NEVER = 2.0
_NOTE = 10
"""Tokens that say how many were left out of an observation, about."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward and backward pass."""

    lengths: tuple[int, ...]
    """Tokens of each of its contexts."""
    loss_tokens: int
    """Tokens of all of them whose log-probability is learned."""
    shared: tuple[int, ...] = ()
    """Beginnings that contexts have in common with another, in tokens: not computed again."""
    padded: bool = False
    """Whether all contexts are filled up to the longest."""
    samples: int = 1
    """Pairs or rows that these are of; 0 if one is repeated for nothing."""

    @property
    def rows(self) -> int:
        """Contexts: one of each sequence, unless prompts rewrite earlier turns."""
        return len(self.lengths)

    @property
    def width(self) -> int:
        """Tokens of the longest context."""
        return max(self.lengths)

    @property
    def computed(self) -> tuple[int, ...]:
        """Tokens of each context, padding included."""
        return (self.width,) * self.rows if self.padded else self.lengths

    @property
    def tokens(self) -> int:
        """Tokens computed."""
        return sum(self.computed) - sum(self.shared)

    @property
    def loss_share(self) -> float:
        """Share of its tokens whose log-probability is learned."""
        return self.loss_tokens / sum(self.lengths)

    @property
    def sizes(self) -> str:
        """Tokens of its contexts, in words."""
        if self.rows == 1:
            return f"{self.width:,}"
        if len(set(self.computed)) == 1:
            return f"{self.rows} x {self.width:,}"
        if self.rows == 2:
            return " + ".join(f"{length:,}" for length in self.lengths)
        return f"{self.rows} contexts of together {sum(self.lengths):,}"


Shares = tuple[tuple[MicroBatch, ...], ...]
"""Each GPU's passes."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What a run computes."""

    samples: int
    """Pairs or rows."""
    tokens: int
    """Of one epoch, shared ones each time, as `Sample.num_tokens` counts."""
    steps: tuple[Shares, ...]
    """One epoch's optimizer steps; the run repeats them."""
    total_steps: int
    references: Shares
    """Samples scored once before the first step; none where the loss needs no reference."""
    report: str
    """What was used of the buffer and what was left out."""
    estimated: int
    """Trajectories without token ids to use, whose length was estimated from their text."""

    @property
    def passes(self) -> tuple[MicroBatch, ...]:
        """Of an epoch's steps, on all GPUs, but for those that are repeated for nothing."""
        return tuple(m for step in self.steps for share in step for m in share if m.samples)

    @property
    def shared(self) -> int:
        """Of an epoch's tokens, the ones that are not computed again."""
        batches = self.passes
        again = sum(sum(m.lengths) for m in batches) - self.tokens  # within a trajectory
        return max(sum(sum(m.shared) for m in batches) - again, 0)


def workload(
    trajectories: Iterable[Trajectory],
    config: TrainConfig,
    loss: Loss,
    assumptions: Assumptions,
    *,
    gpus: int = 1,
    sharded: bool = False,
) -> Workload:
    """Select, batch, deal out and cut the samples as training does, by the same code.

    Lengths are exact where recorded token ids are used. Elsewhere characters are divided by
    ``assumptions.characters_per_token``: no tokenizer is loaded, so ids of another one than the
    model's are taken for its own.

    Args:
        trajectories: The buffer's.
        config: Of the run.
        loss: Its loss.
        assumptions: Of the plan.
        gpus: Processes that a step is dealt out to.
        sharded: Whether they must make equally many passes: who has fewer repeats the shortest.

    Raises:
        NoSignal: the buffer gives nothing to train on.
    """
    from learners.training.prepare import check_samples

    measure = _Measure(config, assumptions.characters_per_token)
    trajectories = list(trajectories)  # each is known by its identity
    own = trajectories if config.recorded_ids else [without_ids(one) for one in trajectories]
    dataset = _dataset(own, measure, config, loss)
    dataset.report.set_aside = sum(a is not b for a, b in zip(own, trajectories, strict=True))
    check_samples(dataset, loss)
    samples = dataset.samples
    join = _padded if config.packing == "none" else _packed(_share(config, measure))
    per_epoch = total_steps(len(samples), config.batch_size, epochs=1, max_steps=None)
    steps = []
    for step in range(per_epoch):
        rows = batch_at(step, len(samples), config.batch_size, config.seed)
        batch = [samples[row] for row in rows]
        dealt = [_cut([batch[i] for i in own], config, join) for own in shares(batch, gpus)]
        shortest = min(batch, key=lambda sample: sample.num_tokens)
        steps.append(_filled(dealt, shortest, join) if sharded else tuple(dealt))
    references = _scored(samples, join, gpus, sharded) if loss.needs_reference else ((),) * gpus
    total = total_steps(
        len(samples), config.batch_size, epochs=config.epochs, max_steps=config.max_steps
    )
    tokens = sum(sample.num_tokens for sample in samples)
    return Workload(
        len(samples), tokens, tuple(steps), total, references, str(dataset.report),
        measure.estimated,
    )  # fmt: skip


def sample_of(loss: Loss, tokens: int, loss_share: float) -> MicroBatch:
    """One sample, alone in its pass, whose sequences all have so many tokens."""
    rows = 2 if loss.kind == "pairs" else 1
    return MicroBatch((tokens,) * rows, max(round(rows * tokens * loss_share), 1))


def _dataset(
    trajectories: Sequence[Trajectory], measure: _Measure, config: TrainConfig, loss: Loss
) -> Dataset:
    if loss.kind == "pairs":
        return pair_samples(
            trajectories, measure,
            per_task=config.pairs_per_task, ties=config.ties_for(loss.parameters),
            seed=config.seed, text_format=config.text_format, step_level=not loss.counts_tokens,
        )  # fmt: skip
    return row_samples(
        trajectories, measure, kind=loss.kind, per_task=config.per_task, seed=config.seed
    )


_Join = Callable[[Sequence[Encoded]], MicroBatch]


def _cut(batch: Sequence[Sample], config: TrainConfig, join: _Join) -> tuple[MicroBatch, ...]:
    """One GPU's passes of a step."""

    def size(contexts: Sequence[Encoded]) -> int:
        return join(contexts).tokens

    cut = microbatches(
        batch, config.micro_batch_tokens, size=padded_size if join is _padded else size
    )
    return tuple(
        replace(join([c for i in group for c in batch[i].contexts]), samples=len(group))
        for group in cut
    )


def _scored(samples: Sequence[Sample], join: _Join, gpus: int, sharded: bool) -> Shares:
    """The passes of `learners.training.score.Scorer.all`: each sample alone, longest first."""
    ordered = sorted(samples, key=lambda sample: -sample.num_tokens)
    dealt = [tuple(join(sample.contexts) for sample in ordered[k::gpus]) for k in range(gpus)]
    return _filled(dealt, ordered[-1], join) if sharded else tuple(dealt)


def _filled(dealt: Sequence[tuple[MicroBatch, ...]], sample: Sample, join: _Join) -> Shares:
    """Equally many passes for all, with one sample repeated for nothing."""
    most, idle = max(map(len, dealt)), replace(join(sample.contexts), samples=0)
    return tuple((*own, *[idle] * (most - len(own))) for own in dealt)


def _share(config: TrainConfig, measure: _Measure) -> float:
    """The run's `min_share` on CUDA; estimated sequences have no ids that could be equal."""
    if measure.estimated:
        return _NEVER
    return default_min_share("cuda") if config.min_share is None else config.min_share


def _packed(share: float) -> _Join:
    def join(contexts: Sequence[Encoded]) -> MicroBatch:
        forest = grow([context.input_ids for context in contexts], min_share=share)
        shared = tuple(tokens for tokens in forest.saved if tokens)
        return replace(_padded(contexts), shared=shared, padded=False)

    return join


def _padded(contexts: Sequence[Encoded]) -> MicroBatch:
    lengths = tuple(len(context) for context in contexts)
    return MicroBatch(lengths, sum(c.num_loss_tokens for c in contexts), padded=True)


class _Measure:
    """An encoder that knows lengths: recorded ids, or as many zeros as the text may have."""

    def __init__(self, config: TrainConfig, characters_per_token: float) -> None:
        self._config = config
        self._per_token = characters_per_token
        self._estimated: set[int] = set()

    @property
    def estimated(self) -> int:
        """Trajectories whose length was estimated, each once however many pairs hold it."""
        return len(self._estimated)

    def __call__(self, trajectory: Trajectory) -> Encoded:
        if recorded(trajectory):
            # Recorded ids are used as they are, so no tokenizer is asked for.
            return self._fit(encode(trajectory, None))  # type: ignore[arg-type]
        self._estimated.add(id(trajectory))
        pieces = [(self._tokens(_before(trajectory)), -1)]
        for turn, (step, answers) in enumerate(answered(trajectory)):
            pieces.append((self._tokens(_said(step)), turn))
            if step is not trajectory.agent_steps[-1]:
                pieces += [(self._tokens(answer), -1) for answer in answers]
        turns = tuple(turn for tokens, turn in pieces for _ in range(tokens))
        return self._fit(Encoded((0,) * len(turns), tuple(turn >= 0 for turn in turns), turns))

    def _fit(self, encoded: Encoded) -> Encoded:
        limit, length = self._config.max_tokens, len(encoded)
        found = encoded if length <= limit else None
        if self._config.too_long == "cut" and not encoded.later:
            found = cut_observations(encoded, limit, lambda _: (0,) * _NOTE)
        if found is None:
            raise Unusable("too-long", f"About {length} tokens.")
        return found

    def _tokens(self, text: str) -> int:
        return max(round(len(text) / self._per_token), 1)


def _before(trajectory: Trajectory) -> str:
    """The first state as text: messages before the first action, and the tools."""
    said = []
    for step in trajectory.steps:
        if step.source == "agent":
            break
        said.append(step.message)
    return "".join(said) + json.dumps(list(trajectory.tools))


def _said(step: Step) -> str:
    calls = [json.dumps([c.function_name, c.arguments]) for c in step.tool_calls[:1]]
    return "".join([step.message, *calls])
