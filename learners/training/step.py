"""One optimizer batch, cut into micro-batches with the gradients and figures of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learners.data.batching import microbatches
from learners.data.dataset import Sample
from learners.losses import Loss
from learners.training.score import Scorer


@dataclass(frozen=True, slots=True)
class Objective:
    """The loss with its settings."""

    loss: Loss
    settings: dict[str, float]
    """gamma, zeta, beta, label_smoothing, desirable_weight, undesirable_weight."""
    scorer: Scorer
    micro_batch_tokens: int


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What one optimizer batch gave."""

    metrics: dict[str, float]
    logps: Tensor
    """Policy sums in the order of the samples, (samples,) or (samples, 2); detached, float64."""


def run_batch(
    objective: Objective,
    samples: Sequence[Sample],
    references: Tensor,
    z0: Tensor | None,
) -> BatchResult:
    """Loss, gradients (accumulated into the parameters) and metrics of one optimizer batch.

    The gradient does not depend on how the batch is cut into micro-batches: each is weighted by
    its share of samples (of loss tokens for SFT), whatever their sizes.

    Args:
        objective: What to minimise.
        samples: The batch.
        references: Reference sums, float64, (samples, sequences a sample).
        z0: KTO's reference point of each sample, (samples,), or None.
    """
    device = objective.scorer.device
    width = len(samples[0].sequences)
    logps = torch.zeros(len(samples), width, dtype=torch.float64, device=device)
    entropies, counts = torch.zeros_like(logps), torch.zeros_like(logps, dtype=torch.long)
    references = references.to(device)
    weights = [_weight(objective.loss, sample) for sample in samples]
    for rows in microbatches(samples, objective.micro_batch_tokens):
        chosen = [samples[row] for row in rows]
        sums = objective.scorer([s for sample in chosen for s in sample.sequences])
        live = sums.logps.view(len(rows), width)
        tokens = sums.num_tokens.view(len(rows), width)
        offered = _offer(objective, chosen, live, tokens, references[rows], z0, rows)
        share = sum(weights[row] for row in rows) / sum(weights)
        torch.autograd.backward(objective.loss(**offered).loss * share)
        logps[rows] = live.detach()
        entropies[rows] = sums.entropies.detach().view(len(rows), width)
        counts[rows] = tokens
    everything = list(range(len(samples)))
    out = objective.loss(**_offer(objective, samples, logps, counts, references, z0, everything))
    entropy = float(entropies.sum() / counts.sum().clamp(min=1))
    metrics = {"loss": float(out.loss), **out.metrics, "entropy": entropy}
    return BatchResult(metrics, logps.cpu())


def _offer(
    objective: Objective,
    samples: Sequence[Sample],
    logps: Tensor,
    counts: Tensor,
    references: Tensor,
    z0: Tensor | None,
    rows: Sequence[int],
) -> dict[str, Any]:
    """All that a loss of this kind may name as a parameter."""
    offered: dict[str, Any] = dict(objective.settings)
    device = logps.device
    if objective.loss.kind == "pairs":
        for column, side in enumerate(("chosen", "rejected")):
            offered[f"policy_{side}_logps"] = logps[:, column]
            offered[f"ref_{side}_logps"] = references[:, column]
            offered[f"{side}_num_tokens"] = counts[:, column]
        offered["tie"] = torch.tensor([sample.tie for sample in samples], device=device)
        return offered
    offered["policy_logps"] = logps[:, 0]
    offered["ref_logps"] = references[:, 0]
    offered["num_tokens"] = counts[:, 0]
    offered["desirable"] = torch.tensor([sample.desirable for sample in samples], device=device)
    if z0 is not None:
        offered["z0"] = z0.to(device)[list(rows)]
    return offered


def _weight(loss: Loss, sample: Sample) -> int:
    return sample.num_loss_tokens if loss.kind == "sft" else 1
