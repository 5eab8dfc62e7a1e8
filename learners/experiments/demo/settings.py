"""What the demo depends on, apart from the machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ADAPTER = Path(__file__).parents[1] / "data" / "smollm2-swe-sft"
"""The SFT adapter in the repository; `swe demo-adapter` makes it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """Sizes and settings; the defaults aim at 15 minutes on 2 cores, installation included."""

    tasks: str = "quickstart"
    """Task source; its tasks say in ``metadata["split"]`` whether they are held out."""
    seed: int = 0
    model: str = "smollm2"
    start: str = "adapter"
    """``adapter``: begin with the SFT adapter kept in the repository. ``sft``: train one now on
    the oracle trajectories of the training tasks (weaker, for there are few of them)."""
    sandbox: str = "auto"

    train_tasks: int = 6
    heldout_tasks: int = 2
    """How many of each split are attempted, those whose fix changes the fewest characters: a model
    of 135M parameters can mend little more. The oracle proves them first."""
    dev_tasks: int = 2
    """Training packages' tasks kept out of training, to stop on."""
    dev_attempts: int = 2
    train_attempts: int = 3
    """Attempts at each training task; they become the preference data."""
    heldout_attempts: int = 8
    """N: attempts at each held-out task, before and after."""
    base_attempts: int = 1
    """Attempts of the bare model, which cannot speak the format: few are enough to show it."""
    base_tokens: int = 128
    """Tokens of all replies of such an attempt."""

    max_episode_steps: int = 10
    max_new_tokens: int = 128
    """Tokens of one reply."""
    episode_tokens: int = 400
    """Tokens of all replies of an episode; most need 200, one that rambles holds up the rest."""
    output_limit: int = 2400
    """Characters of one observation: the model's view of a file costs more than its replies."""
    temperature: float = 0.7
    top_k: int = 20
    top_p: float = 0.95
    workers: int = 32
    """Episodes in flight."""

    loss: str = "entropo-kto"
    gamma: float = 0.1
    zeta: float = 0.2
    learning_rate: float = 1e-4
    epochs: float = 1.0
    per_task: int = 1
    """Most attempts of each outcome that are learned from, for each task."""
    batch_size: int = 8
    eval_every: int = 4
    """Optimizer steps between looks at the development tasks."""
    micro_batch_tokens: int = 1024
    """Tokens in one forward pass; more needs memory and gains nothing on a CPU."""

    sft_learning_rate: float = 1e-3
    sft_epochs: float = 2.0
    sft_attempts: int = 3
    """Oracle routes recorded for each training task."""
