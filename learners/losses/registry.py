"""Losses by name: built in, by decorator, entry point (`swe_env.losses`) or dotted path."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from learners.losses.base import LossOutput
from swe_env.errors import ConfigError
from swe_env.plugins import Registry

LossFunction = Callable[..., LossOutput]

losses: Registry[LossFunction] = Registry(
    "losses",
    {
        "entropo-dpo": "learners.losses.dpo:entropo_dpo",
        "entropo-dpo-normalized": "learners.losses.variants:entropo_dpo_normalized",
        "dpo": "learners.losses.dpo:dpo",
        "spl": "learners.losses.variants:spl",
        "h-dpo": "learners.losses.variants:h_dpo",
        "entropo-kto": "learners.losses.kto:entropo_kto",
        "entropo-kto-normalized": "learners.losses.variants:entropo_kto_normalized",
        "kto": "learners.losses.kto:kto",
        "entropo-kto-released": "learners.losses.kto:entropo_kto_released",
        "sft": "learners.losses.sft:sft",
    },
)
"""``@losses.register("mine")`` adds one; the training loop reads its parameter names."""

_KINDS: dict[str, Literal["pairs", "kto", "sft"]] = {
    "policy_chosen_logps": "pairs",
    "desirable": "kto",
    "policy_logps": "sft",
}


@dataclass(frozen=True, slots=True)
class Loss:
    """A loss as the training loop calls it: by the names of its parameters.

    A loss asks for what it wants by naming it; among what the loop offers are, for each kind of
    data, the log-probability sums, ``*num_tokens``, for rows ``mean_tokens`` (of their task), and
    the settings of the same names in `TrainConfig`.
    """

    name: str
    function: LossFunction
    kind: Literal["pairs", "kto", "sft"]
    """The data it learns from."""
    parameters: frozenset[str]

    @property
    def needs_reference(self) -> bool:
        """Whether it looks at the reference policy."""
        return any(name.startswith("ref_") for name in self.parameters)

    @property
    def counts_tokens(self) -> bool:
        """Whether it looks at how many tokens a sum has, so that no turn may be left out of it."""
        return any(name.endswith("num_tokens") for name in self.parameters)

    def __call__(self, **offered: Any) -> LossOutput:
        """The loss of those offered arguments that it has a parameter for."""
        return self.function(**{k: v for k, v in offered.items() if k in self.parameters})


def get_loss(name: str) -> Loss:
    """The loss of that name or dotted path.

    Raises:
        ConfigError: it is unknown, or its parameters fit no kind of data.
    """
    function = losses.get(name)
    parameters = frozenset(inspect.signature(function).parameters)
    for parameter, kind in _KINDS.items():
        if parameter in parameters:
            return Loss(name, function, kind, parameters)
    raise ConfigError(
        f"The loss {name!r} takes none of {', '.join(_KINDS)}, so it cannot be told which data "
        "it learns from: name its parameters as learners.losses does."
    )
