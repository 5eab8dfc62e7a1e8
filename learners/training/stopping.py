"""`StopRule`: when a run ends early because entropy collapsed or the policy went too far."""

from __future__ import annotations

from typing import Any

from learners.training.config import TrainConfig
from swe_env.errors import ConfigError


class StopRule:
    """Watches the figures of every step; depends on them alone, so a resumed run stops alike."""

    def __init__(self, config: TrainConfig) -> None:
        self._share, self._budget = config.stop_entropy, config.stop_kl
        self._window = config.stop_window
        self._first: list[float] = []
        self._entropies: list[float] = []
        self._distances: list[float] = []

    def see(self, metrics: dict[str, float]) -> None:
        """Take note of one step."""
        if len(self._first) < self._window:
            self._first.append(metrics["entropy"])
        self._entropies = [*self._entropies, metrics["entropy"]][-self._window :]
        self._distances = [*self._distances, metrics.get("kl_bound", 0.0)][-self._window :]

    def reason(self) -> str:
        """Why the run should end now, or empty."""
        if len(self._entropies) < self._window:
            return ""
        entropy, start = _mean(self._entropies), _mean(self._first)
        if self._share is not None and entropy < self._share * start:
            return (
                f"the entropy fell to {entropy:.3g} nats a token, below {self._share:g} of its "
                f"{start:.3g} at the start"
            )
        distance = _mean(self._distances)
        if self._budget is not None and distance > self._budget:
            return (
                f"the policy is {distance:.3g} nats a token from the reference, over the budget "
                f"of {self._budget:g}"
            )
        return ""

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "first": self._first, "entropies": self._entropies, "distances": self._distances,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._first = list(state["first"])
        self._entropies = list(state["entropies"])
        self._distances = list(state["distances"])


def check_window(config: TrainConfig, total: int) -> None:
    """A rule that is asked for has as many steps as it looks at.

    Raises:
        ConfigError: the run of `total` steps is over before.
    """
    for name in ("stop_entropy", "stop_kl"):
        if getattr(config, name) is not None and config.stop_window > total:
            raise ConfigError(
                f"{name} is averaged over stop_window = {config.stop_window} steps and the run has "
                f"{total}, so it could never stop it: give a smaller stop_window, or leave {name} "
                "out."
            )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
