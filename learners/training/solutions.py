"""`Solutions`: how a policy's probability lies on the different correct solutions of its tasks.

Nothing is sampled. A held-out buffer's attempts were drawn from some policy, the reference as
nearly as is known; weighted by ``exp(S - S_ref)`` they stand for the policy as it is now
(self-normalised importance sampling). Counts of different outputs mislead, since wrong ones differ
for free: only correct ones count, on tasks for which the buffer has several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from learners.data.dataset import Dataset, Sample
from learners.data.encode import Encoded
from learners.data.report import DropReport, Unusable
from learners.training.score import Scorer
from swe_env.replay.trajectory import Trajectory

_DRAWS = 8


@dataclass(frozen=True, slots=True)
class Attempts:
    """Finished attempts at tasks with at least two different correct solutions."""

    dataset: Dataset
    solutions: tuple[int, ...]
    """Of each sample: the number of its solution within its task; -1 where it is not correct."""


def attempts(
    trajectories: Iterable[Trajectory], encoder: Callable[[Trajectory], Encoded]
) -> Attempts:
    """Those of a buffer that can be encoded; solutions are one where `patch_key` is."""
    from agents.selection.patches import patch_key

    report = DropReport()
    tasks: dict[str, list[tuple[Encoded, bool, str]]] = {}
    for trajectory in trajectories:
        report.seen += 1
        if trajectory.failure is not None or not trajectory.finished:
            report.drop("failure" if trajectory.failure is not None else "unfinished")
            continue
        try:
            encoded = encoder(trajectory)
        except Unusable as problem:
            report.drop(problem.reason)
            continue
        found = encoded, trajectory.resolved, patch_key(trajectory.patch)
        tasks.setdefault(trajectory.instance_id, []).append(found)
    samples: list[Sample] = []
    solutions: list[int] = []
    for name in sorted(tasks):
        keys = sorted({key for _, resolved, key in tasks[name] if resolved})
        if len(keys) < 2:
            report.drop("one-solution", len(tasks[name]))
            continue
        group = samples[-1].group + 1 if samples else 0
        for encoded, resolved, key in tasks[name]:
            samples.append(Sample((encoded,), group, desirable=resolved))
            solutions.append(keys.index(key) if resolved else -1)
    report.kept = len(samples)
    return Attempts(Dataset(tuple(samples), report), tuple(solutions))


class Solutions:
    """Measures of diversity over correct solutions, under the policy as it is."""

    def __init__(self, found: Attempts, references: Tensor, scorer: Scorer) -> None:
        """`references`: S of each attempt under the reference, (attempts,), float64."""
        self._scorer, self._references = scorer, references
        self._sequences = [sample.sequences[0] for sample in found.dataset.samples]
        self._groups = torch.tensor([sample.group for sample in found.dataset.samples])
        self._solutions = torch.tensor(found.solutions)
        self._before = spread(torch.zeros_like(references), self._groups, self._solutions)

    def __len__(self) -> int:
        return len(self._sequences)

    def figures(self, progress: Callable[[int, int], None]) -> dict[str, float]:
        """Means over tasks; to be called by all processes, with the model in evaluation mode.

        ``solutions/effective`` is exp(H) of the policy's distribution over the correct solutions,
        ``solutions/effective_before`` the same of the reference; ``solutions/resolved`` the
        policy's probability of a correct one; ``solutions/distinct@8`` the number of different
        correct ones expected in 8 samples; ``solutions/sample_size`` how many equally weighted
        attempts a task's are worth: near 1 the other figures say little.

        Args:
            progress: Called with (attempts scored, of how many).
        """
        logps = self._scorer.all(self._sequences, progress=progress).logps
        found = spread(logps - self._references, self._groups, self._solutions)
        found["effective_before"] = self._before["effective"]
        return {f"solutions/{name}": value for name, value in found.items()}


def spread(log_weights: Tensor, groups: Tensor, solutions: Tensor) -> dict[str, float]:
    """The measures of `Solutions.figures`, each a mean over groups.

    Args:
        log_weights: Logarithm of each attempt's weight, (attempts,), up to a constant of its group.
        groups: Task of each, (attempts,).
        solutions: Solution of each within its task, -1 where it is not correct, (attempts,).
    """
    tasks = []
    for group in range(int(groups.max()) + 1):
        mine = groups == group
        weights, which = log_weights[mine].softmax(0), solutions[mine]
        right = which >= 0
        masses = weights.new_zeros(int(which.max()) + 1).index_add(0, which[right], weights[right])
        total = masses.sum()
        shares = masses / total.clamp(min=torch.finfo(total.dtype).tiny)
        tasks.append(
            torch.stack(
                (
                    torch.special.entr(shares).sum().exp(),
                    total,
                    (1 - (1 - masses.clamp(max=1)) ** _DRAWS).sum(),
                    1 / weights.square().sum(),
                )
            )
        )
    names = ("effective", "resolved", f"distinct@{_DRAWS}", "sample_size")
    return dict(zip(names, torch.stack(tasks).mean(0).tolist(), strict=True))
