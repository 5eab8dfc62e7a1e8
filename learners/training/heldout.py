"""`HeldOut`: the loss's own figures on trajectories that are not trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from learners.data.dataset import Sample
from learners.losses.z0 import estimator
from learners.training.solutions import Solutions
from learners.training.step import Objective, batch_figures


class HeldOut:
    """A held-out data set with its reference sums."""

    def __init__(
        self,
        objective: Objective,
        samples: Sequence[Sample],
        references: Tensor,
        z0: str,
        solutions: Solutions | None = None,
    ) -> None:
        """`references` are the samples' reference sums, (samples, sequences a sample)."""
        self._objective, self._solutions = objective, solutions
        self._samples = samples
        self._sequences = [s for sample in samples for s in sample.sequences]
        self._references = references
        # Mismatched samples are of the training set; the task's mean is the nearest to them.
        self._z0 = "task" if z0 == "mismatched" else z0

    def figures(self, progress: Callable[[int, int], None]) -> dict[str, float]:
        """Loss, margins, accuracy, entropy, distance and solutions under the policy as it is.

        To be called by all processes, with the model in evaluation mode. KTO's z0 is estimated
        from the held-out rewards themselves, which are all as new as the policy.

        Args:
            progress: Called with (sequences scored, of how many).
        """
        own = len(self._sequences)
        total = own + (len(self._solutions) if self._solutions is not None else 0)
        sums = self._objective.scorer.all(
            self._sequences, self._references.shape[1],
            progress=lambda done, _: progress(done, total),
        )  # fmt: skip
        logps, entropies, counts = (column.view_as(self._references) for column in sums)
        z0 = None
        if "z0" in self._objective.loss.parameters:
            rewards = self._objective.rewards(self._samples, logps[:, 0], self._references[:, 0])
            groups = [sample.group for sample in self._samples]
            z0 = estimator(self._z0, rewards, groups).estimate(range(len(self._samples)))
        figures = batch_figures(
            self._objective, self._samples, self._references, z0, logps, entropies, counts
        )
        if self._solutions is not None:
            figures |= self._solutions.figures(lambda done, _: progress(own + done, total))
        return figures
