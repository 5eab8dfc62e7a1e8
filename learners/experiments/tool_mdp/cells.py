"""The grid: which losses, at which gamma and zeta, with which labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GAMMA = 0.1
RATIOS = (0.9, 1.0, 1.1, 1.5, 2.0, 3.0)
"""ζ/γ; below 1 sharpens (H-DPO)."""
SMOOTHING = 0.1
TEMPERATURES = (1.0, 1.25, 1.5, 2.0, 3.0)
"""At which the λ = 0 cells are sampled as well; ζ/γ above 1.1 is among them."""

Labels = Literal["hard", "smooth", "smooth+ties"]
LABELS: tuple[Labels, ...] = ("hard", "smooth", "smooth+ties")

PolicyName = Literal["table", "table-drawn", "transformer"]
"""A table trained on every pair, one on pairs drawn from the reference, and the transformer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One training run."""

    loss: Literal["entropo-dpo", "entropo-kto", "entropo-kto-released"]
    """A name of `learners.losses`; with zeta equal to gamma it is DPO or KTO with that beta."""
    labels: Labels
    gamma: float
    zeta: float

    @property
    def name(self) -> str:
        """Unique in the grid, and fit for a file."""
        return f"{self.loss}.{self.labels}.g{self.gamma:g}.z{self.zeta:g}"

    @property
    def control(self) -> Cell:
        """DPO or KTO with β = ζ: what that zeta does without any entropy term."""
        loss: Literal["entropo-dpo", "entropo-kto"] = (
            "entropo-dpo" if self.loss == "entropo-dpo" else "entropo-kto"
        )
        return Cell(loss=loss, labels=self.labels, gamma=self.zeta, zeta=self.zeta)


def grid() -> list[Cell]:
    """Every ratio beside its control, DPO with each kind of labels, KTO with hard ones.

    KTO takes single rows, so it has no ties, and smoothing changes nothing in it: a row's loss is
    ``1 - σ(x)``, with its label flipped ``σ(x)``, and a mean of the two that flips with
    probability ε is ``ε + (1 - 2 ε) (1 - σ(x))``, the same gradient times ``1 - 2 ε``.

    In the order 1, 2, 3 and then those between, so that a run that is stopped tells the most.
    """
    cells: dict[str, Cell] = {}
    for ratio in sorted(RATIOS, key=lambda r: (r != round(r), r)):
        zeta = round(GAMMA * ratio, 6)
        made = [Cell(loss="entropo-dpo", labels=kind, gamma=GAMMA, zeta=zeta) for kind in LABELS]
        made.append(Cell(loss="entropo-kto", labels="hard", gamma=GAMMA, zeta=zeta))
        made.append(Cell(loss="entropo-kto-released", labels="hard", gamma=GAMMA, zeta=zeta))
        for cell in made:
            cells[cell.name] = cell
            cells[cell.control.name] = cell.control
    return list(cells.values())
