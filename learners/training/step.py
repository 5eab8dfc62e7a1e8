"""One optimizer batch, cut into micro-batches with the gradients and figures of the whole."""

from __future__ import annotations

import numbers
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learners.data.batching import shares
from learners.data.dataset import Sample
from learners.data.encode import Encoded
from learners.losses import Loss, LossOutput
from learners.losses.variants import normalized_reward
from learners.ops.lora import unchanging
from learners.training.memory import retry_out_of_memory
from learners.training.score import Scorer
from swe_env.errors import ConfigError, SweError


@dataclass(frozen=True, slots=True)
class Objective:
    """The loss with its settings."""

    loss: Loss
    settings: dict[str, float]
    """gamma, zeta, beta, label_smoothing, desirable_weight, undesirable_weight."""
    scorer: Scorer
    micro_batch_tokens: int

    def rewards(self, samples: Sequence[Sample], logps: Tensor, references: Tensor) -> Tensor:
        """KTO's r of each row, whose expectation z0 is.

        Args:
            samples: The rows.
            logps: Policy sums, (samples,).
            references: Reference sums, (samples,).
        """
        gamma, zeta = self.settings["gamma"], self.settings["zeta"]
        if "mean_tokens" not in self.loss.parameters:
            return logps - gamma / zeta * references
        counts = torch.tensor([sample.num_loss_tokens for sample in samples], device=logps.device)
        mean = _mean_tokens(samples, logps)
        return normalized_reward(logps, references, counts, mean, gamma=gamma, zeta=zeta)


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

    The gradient depends neither on how the batch is cut into micro-batches nor on how those are
    dealt out to processes: each is weighted by its share of samples (of loss tokens where the loss
    is a mean over those), whatever their sizes. Gradients are this process's part of the sum, or,
    where the model is sharded, the whole; figures are the whole batch's on every process.

    Args:
        objective: What to minimise.
        samples: The batch.
        references: Reference sums, float64, (samples, sequences a sample).
        z0: KTO's reference point of each sample, (samples,), or None.
    """
    scorer = objective.scorer
    references = references.to(scorer.device)
    found = retry_out_of_memory(lambda: _passes(objective, samples, references, z0), scorer)
    logps, entropies, counts, shared = found
    scorer.workers.add(logps, entropies, counts, shared)
    metrics = batch_figures(objective, samples, references, z0, logps, entropies, counts)
    metrics["shared_tokens"] = float(shared)
    return BatchResult(metrics, logps.cpu())


def _passes(
    objective: Objective, samples: Sequence[Sample], references: Tensor, z0: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """This process's passes: sums, entropies and loss tokens of its samples, and shared tokens."""
    scorer, workers = objective.scorer, objective.scorer.workers
    shared = torch.zeros(1, dtype=torch.float64, device=scorer.device)
    width = len(samples[0].sequences)
    logps = torch.zeros(len(samples), width, dtype=torch.float64, device=scorer.device)
    entropies, counts = torch.zeros_like(logps), torch.zeros_like(logps, dtype=torch.long)
    with unchanging(scorer.model):
        for rows, counted in _my_batches(objective, samples):
            chosen = [samples[row] for row in rows]
            before = scorer.shared_tokens
            sums = scorer([s for sample in chosen for s in sample.sequences], width)
            live = sums.logps.view(len(rows), width)
            tokens = sums.num_tokens.view(len(rows), width)
            sides = live, tokens, references[rows]
            offered = _offer(objective.loss, objective.settings, chosen, *sides, z0, rows)
            out = objective.loss(**offered)
            share = _share(out, chosen, samples) * (workers.gradient_factor if counted else 0)
            scorer.backward(out.loss * share)
            if not counted or not workers.counts:
                continue
            logps[rows] = live.detach()
            entropies[rows] = sums.entropies.detach().view(len(rows), width)
            counts[rows] = tokens
            shared += scorer.shared_tokens - before
    return logps, entropies, counts, shared


def batch_figures(
    objective: Objective,
    samples: Sequence[Sample],
    references: Tensor,
    z0: Tensor | None,
    logps: Tensor,
    entropies: Tensor,
    counts: Tensor,
) -> dict[str, float]:
    """The loss's own figures over all samples, and the policy's entropy and distance.

    ``entropy`` is exact, in nats, a mean over agent tokens. ``kl_bound`` is the mean of
    ``|S - S_ref|`` over agent tokens: at least ``|E[S_ref - S]|``, which is KL(reference ‖ policy)
    where the reference sampled the trajectories.

    Args:
        objective: The loss.
        samples: What the sums are of.
        references: Reference sums, (samples, sequences a sample).
        z0: As for `run_batch`.
        logps: Policy sums, like `references`.
        entropies: Sums of entropies, like `references`.
        counts: Agent tokens, like `references`.
    """
    sides, everything = (logps, counts, references), list(range(len(samples)))
    offered = _offer(objective.loss, objective.settings, samples, *sides, z0, everything)
    out = objective.loss(**offered)
    tokens = counts.sum().clamp(min=1)
    own = plain_figures(objective.loss, out)
    figures = {"loss": float(out.loss), **own, "entropy": float(entropies.sum() / tokens)}
    if objective.loss.needs_reference:
        figures["kl_bound"] = float((logps - references).abs().sum() / tokens)
    return figures


def plain_figures(loss: Loss, out: LossOutput) -> dict[str, float]:
    """The metrics of a loss as numbers; tensors without dimensions are taken for theirs.

    Raises:
        ConfigError: one of them is something else.
    """
    figures = {}
    for name, value in out.metrics.items():
        found: Any = value  # a loss of one's own gives whatever it does
        if isinstance(found, Tensor) and found.dim() == 0 and not found.is_complex():
            found = found.item()
        if not isinstance(found, numbers.Real):
            what = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else ""
            raise ConfigError(
                f"The metric {name!r} of the loss {loss.name!r} is {what or type(found).__name__}: "
                "give a number, or a tensor without dimensions."
            )
        figures[str(name)] = float(found)
    return figures


def try_loss(loss: Loss, settings: Mapping[str, float]) -> None:
    """Call the loss once, on two samples of a token, as the steps will.

    Raises:
        ConfigError: it refuses the settings, asks for what no step offers, or gives no loss or
            metrics that are no numbers.
    """
    width = 2 if loss.kind == "pairs" else 1
    token = Encoded((0, 0), (False, True), (-1, 0))
    samples = [
        Sample((token,) * width, group, desirable=group == 0, mean_tokens=1.0) for group in (0, 1)
    ]
    logps = -torch.arange(1.0, 2 * width + 1, dtype=torch.float64).view(2, width)
    sides = logps.requires_grad_(), torch.ones(2, width, dtype=torch.long), logps.detach()
    z0 = torch.zeros(2, dtype=torch.float64) if loss.needs_reference else None
    try:
        out = loss(**_offer(loss, settings, samples, *sides, z0, (0, 1)))
        torch.autograd.backward(out.loss)
        plain_figures(loss, out)
    except SweError:
        raise
    except Exception as error:  # a loss of one's own raises whatever it does
        said = str(error).strip().splitlines() or [""]
        raise ConfigError(
            f"The loss {loss.name!r} fails on two samples of a token each "
            f"({type(error).__name__}: {said[0]}): docs/losses.md says what it may ask for and "
            "must give."
        ) from error


def _my_batches(
    objective: Objective, samples: Sequence[Sample]
) -> Iterator[tuple[list[int], bool]]:
    """This process's micro-batches, and whether each counts.

    A sharded model needs the same number of passes from every process: who has fewer repeats the
    shortest sample, for nothing.
    """
    workers, passes = objective.scorer.workers, objective.scorer.passes
    plans = []
    for share in shares(samples, workers.groups):
        cut = passes.microbatches([samples[row] for row in share], objective.micro_batch_tokens)
        plans.append([[share[position] for position in rows] for rows in cut])
    mine = plans[workers.group]
    yield from ((rows, True) for rows in mine)
    if workers.sharded:
        shortest = min(range(len(samples)), key=lambda row: samples[row].num_tokens)
        for _ in range(max(map(len, plans)) - len(mine)):
            yield [shortest], False


def _offer(
    loss: Loss,
    settings: Mapping[str, float],
    samples: Sequence[Sample],
    logps: Tensor,
    counts: Tensor,
    references: Tensor,
    z0: Tensor | None,
    rows: Sequence[int],
) -> dict[str, Any]:
    """All that a loss of this kind may name as a parameter."""
    offered: dict[str, Any] = dict(settings)
    device = logps.device
    if loss.kind == "pairs":
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
    offered["mean_tokens"] = _mean_tokens(samples, logps)
    if z0 is not None:
        offered["z0"] = z0.to(device)[list(rows)]
    return offered


def _mean_tokens(samples: Sequence[Sample], like: Tensor) -> Tensor:
    return torch.tensor([s.mean_tokens for s in samples], dtype=like.dtype, device=like.device)


def _share(out: LossOutput, some: Sequence[Sample], samples: Sequence[Sample]) -> float:
    """The weight in the whole batch of a mean over some of its samples."""
    if out.per_token:
        return sum(s.num_loss_tokens for s in some) / sum(s.num_loss_tokens for s in samples)
    return len(some) / len(samples)
