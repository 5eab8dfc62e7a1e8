"""In which order records are drawn: uniform, balanced over groups, weighted, or both of these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from swe_env.errors import ConfigError
from swe_env.replay.index import Index, Positions

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.intp]


def without_replacement(
    rng: np.random.Generator,
    size: int,
    *,
    groups: Codes | None = None,
    weights: Floats | None = None,
) -> npt.NDArray[np.intp]:
    """An order in which to draw from `size` records; the first n are a sample of n.

    With `groups` the draw goes round: one record of each group in random order, then one more of
    each, until the small ones are used up. With `weights` (at least 0) a record comes early as
    often as its weight says (Efraimidis and Spirakis, 2006), and one of weight 0 never.
    """
    if weights is None:
        order = rng.permutation(size)
    else:
        keys = rng.exponential(size=size)
        able = np.flatnonzero(weights > 0)
        order = able[np.argsort(keys[able] / weights[able], kind="stable")]
    if groups is None:
        return order
    rounds = _occurrence(groups[order])
    shuffled = rng.permutation(len(order))
    return order[shuffled[_stable_order(rounds[shuffled])]]


def with_replacement(
    rng: np.random.Generator,
    size: int,
    n: int,
    *,
    groups: Codes | None = None,
    weights: Floats | None = None,
    without: Sequence[int] = (),
) -> npt.NDArray[np.intp]:
    """`n` independent draws; with `groups` each group is as likely as the next.

    None of `without` is drawn: where nothing else is left, nothing.
    """
    if groups is None and weights is None and not without:
        return rng.integers(size, size=n)
    chances = np.ones(size) if weights is None else weights.copy()
    chances[np.array(without, np.intp)] = 0.0
    if not chances.any():
        return np.empty(0, np.intp)
    if groups is not None:
        totals = np.bincount(groups, weights=chances)
        chances = np.divide(chances, totals[groups], out=np.zeros(size), where=chances > 0)
    return rng.choice(size, size=n, p=chances / chances.sum())


def drawing(
    rng: np.random.Generator,
    size: int,
    replacement: bool,
    *,
    groups: Codes | None = None,
    weights: Floats | None = None,
) -> Callable[[int, Sequence[int]], npt.NDArray[np.intp]]:
    """``draw(n, without)``: the next `n` records, or fewer where that is all there are.

    Without replacement none comes twice; with it none of `without` comes again.
    """
    if replacement:
        return lambda n, without: with_replacement(
            rng, size, n, groups=groups, weights=weights, without=without
        )
    order = iter(without_replacement(rng, size, groups=groups, weights=weights))
    return lambda n, _: np.fromiter(islice(order, n), np.intp)


def strata(index: Index, ordered: Positions, balance: str | Sequence[str]) -> Codes | None:
    """The group of each record of `ordered`; None where nothing is balanced.

    Raises:
        ConfigError: there is no such column.
    """
    names = [balance] if isinstance(balance, str) else list(balance)
    return group_codes([index.codes(name)[ordered] for name in names]) if names else None


def record_weights(
    index: Index, positions: Positions, ordered: Positions, weight: str | npt.ArrayLike | None
) -> Floats | None:
    """The weight of each record of `ordered`; numbers are given in the order of `positions`.

    Raises:
        ConfigError: there is no such column, or see `checked_weights`.
    """
    if weight is None:
        return None
    if isinstance(weight, str):
        return checked_weights(index.column(weight, ordered), len(ordered))
    weights = np.zeros(len(index))
    weights[positions] = checked_weights(weight, len(positions))
    return weights[ordered]


def group_codes(columns: list[npt.NDArray[Any]]) -> Codes:
    """One number per distinct combination of the columns' values."""
    codes, *more = [np.unique(column, return_inverse=True)[1] for column in columns]
    for column in more:  # numbered anew each time, so that they cannot overflow
        pairs = codes * (column.max(initial=0) + 1) + column
        codes = np.unique(pairs, return_inverse=True)[1]
    return codes


def checked_weights(values: npt.ArrayLike, size: int) -> Floats:
    """Weights as floats.

    Raises:
        ConfigError: there is not one for each record, or one is negative or not a number, or none
            is above 0.
    """
    try:
        weights = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"Weights must be numbers: {error}.") from error
    if weights.shape != (size,):
        raise ConfigError(f"There are {weights.size} weights for {size} records: give one each.")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ConfigError("Weights must be finite and at least 0.")
    if size and not weights.any():
        raise ConfigError("Every weight is 0: nothing could be drawn.")
    return weights


def _occurrence(codes: Codes) -> Codes:
    """For each element how many equal ones come before it."""
    order = _stable_order(codes)
    ordered = codes[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(codes) else order
    lengths = np.diff(np.r_[starts, len(codes)])
    found = np.empty(len(codes), np.intp)
    found[order] = np.arange(len(codes)) - np.repeat(starts, lengths)
    return found


def _stable_order(codes: Codes) -> Codes:
    """Where they stand, sorted; numbers that fit in 16 bits are sorted by radix."""
    return np.argsort(codes.astype(np.min_scalar_type(codes.max(initial=0))), kind="stable")
