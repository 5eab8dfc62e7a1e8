"""`TrainConfig`: everything a training run depends on, from keywords, JSON or TOML."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from swe_env.errors import ConfigError


class TrainConfig(BaseModel):
    """Settings of one run of `learners.train`.

    The defaults are the paper's (arXiv 2509.12434: LoRA r = 8, alpha = 16, learning rate 1e-5,
    batch 16, gamma = 0.1, zeta = 0.11) plus label smoothing and tie pairs, without which pass/fail
    labels drive all mass to the winners whatever zeta is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    loss: str = "entropo-dpo"
    """Name or dotted path of a loss (`learners.losses`)."""
    model: str
    """Folder in transformers' form, hub id, or ``smollm2``."""
    buffer: str
    """Folder of the replay buffer, or its URL on an fsspec file system."""
    out: str
    """Folder the adapter, its card, the metrics and the checkpoints go to."""
    init_adapter: str | None = None
    """A peft adapter to start from; with it the model is also the reference policy."""
    mode: Literal["lora", "full", "qlora"] = "lora"
    """What is trained: an adapter, every weight, or an adapter on weights in 4 bits (CUDA)."""

    gamma: float = Field(default=0.1, gt=0)
    """Weight of the KL to the reference; beta of ``dpo`` and ``kto``."""
    zeta: float | None = Field(default=None, gt=0)
    """gamma + lambda; by default 1.1 gamma, and always gamma for ``dpo`` and ``kto``."""
    label_smoothing: float = Field(default=0.1, ge=0, le=0.5)
    """Pairs: the chance that a label is wrong."""
    z0: Literal["task", "batch", "ema", "zero", "mismatched"] = "task"
    """KTO: how the reference point is estimated (`learners.losses.z0`)."""
    desirable_weight: float = Field(default=1.0, ge=0)
    """KTO: weight of resolved trajectories."""
    undesirable_weight: float = Field(default=1.0, ge=0)
    """KTO: weight of unresolved ones."""

    per_task: int | None = Field(default=None, ge=1)
    """At most so many pairs a task and generator (default 1), or rows of each label of a task
    (default all)."""
    ties: int = Field(default=1, ge=0)
    """Pairs: at most so many tie pairs as well; none for a loss that takes no `tie`."""
    max_tokens: int = Field(default=18_000, ge=2)
    """Longer trajectories are left out, or cut, and counted. Where prompts rewrite earlier turns,
    of all contexts together, what one has from the one before it not counted again."""
    too_long: Literal["drop", "cut"] = "drop"
    """What becomes of them: left out, or shortened in the middle of their observations, with every
    sampled token and the first state kept. The shortened context is not the one the policy sampled
    in, so that is an approximation."""
    recorded_ids: bool = True
    """Use token ids as they were recorded; false: every trajectory goes through the chat template
    anew."""
    text_format: str | None = None
    """Format in which tool calls without recorded tokens are written; default: the record's."""
    chat_template: str | None = None
    """In place of the tokenizer's own: ``chatml``, ``glm`` or a Jinja file. Token ids that were
    sampled under another are not used."""

    lora_r: int = Field(default=8, ge=1)
    lora_alpha: int = Field(default=16, ge=1)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    lora_targets: str | list[str] = "all-linear"
    """peft's ``target_modules``."""
    lora_parameters: list[str] = []
    """peft's ``target_parameters``: weights that are no layers of their own, such as the stacked
    experts ``mlp.experts.gate_up_proj`` and ``mlp.experts.down_proj``. The five are ignored with
    `init_adapter`, which has its own."""

    learning_rate: float = Field(default=1e-5, gt=0)
    warmup: float = Field(default=0.1, ge=0, le=1)
    """Share of the steps over which the learning rate rises linearly; then half a cosine to 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    epochs: float = Field(default=1.0, gt=0)
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after so many optimizer steps; overrides `epochs`."""
    batch_size: int = Field(default=16, ge=1)
    """Samples (pairs or rows) an optimizer step."""
    micro_batch_tokens: int = Field(default=16_384, ge=1)
    """Tokens computed in one forward pass; a longer sample is alone in its own."""
    packing: Literal["auto", "segments", "flash", "varlen", "flex", "dense", "none"] = "auto"
    """How sequences share a forward pass without padding (docs/packing.md); by default what suits
    the device and the model."""
    min_share: float | None = Field(default=None, ge=0)
    """A sequence takes over the beginning of another where at least this share of its tokens need
    not be computed again: 0 always, above 1 never, by default where it pays on the device."""
    seed: int = 0
    """Chooses pairs, order, the adapter's first weights, and what dropout draws."""
    dtype: Literal["bfloat16", "float32"] | None = None
    """Of the frozen weights, or with ``mode = "full"`` of the computation and the result; by
    default bfloat16 where the device computes in it natively. What is trained and the optimizer
    are float32 always. float16, whose gradients would need scaling, is not offered."""
    device: str = "auto"
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Recompute activations in the backward pass: a third more time, far less memory. ``auto``: on
    CUDA for the layers that free memory does not hold (all, of a sharded model), elsewhere for
    none. With `true` too attention over long sequences is kept where free memory allows it
    (docs/learner-speed.md)."""

    save_every: int | None = Field(default=50, ge=1)
    """Steps between checkpoints; None for none."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """So many of the newest stay, also behind the end of the run (unless the whole model is
    trained, each is an adapter that peft loads)."""
    eval_every: int | None = Field(default=None, ge=1)
    """Steps between evaluations (`on_eval`, `eval_buffer`); there is one at the end too, also where
    `stop_entropy` or `stop_kl` ends the run."""
    eval_buffer: str | None = None
    """Folder or URL of a held-out replay buffer, on which the same loss's figures are taken."""
    stop_entropy: float | None = Field(default=None, gt=0, lt=1)
    """Stop when the entropy falls below this share of what it was at the start."""
    stop_kl: float | None = Field(default=None, gt=0)
    """Stop when the policy is so many nats an agent token from the reference (``kl_bound``)."""
    stop_window: int = Field(default=10, ge=1)
    """Steps over which the two are averaged; no run is stopped before as many are done, and with
    either of them a shorter run is refused."""
    tensorboard: bool = True
    """Write TensorBoard events beside ``metrics.jsonl``."""
    wandb_project: str | None = None
    """Send the figures to this project of Weights & Biases, too."""
    resume: bool = False
    """Go on from the last checkpoint in `out`, to the same result as if never stopped; a finished
    run is left as it is."""

    def checkpoints_on(self, device: str) -> bool:
        """Whether layers are made to be recomputed on a kind of device."""
        asked = self.gradient_checkpointing
        return device == "cuda" if asked == "auto" else asked

    @property
    def pairs_per_task(self) -> int:
        """`per_task` for a pair loss."""
        return self.per_task or 1

    def ties_for(self, parameters: frozenset[str]) -> int:
        """`ties` for a loss with these parameters: one without `tie` would read them as wins."""
        return self.ties if "tie" in parameters else 0

    def zeta_for(self, parameters: frozenset[str]) -> float:
        """Zeta as a loss with these parameters sees it.

        Raises:
            ConfigError: the loss has no zeta (lambda = 0) and a different one was asked for.
        """
        if "beta" in parameters:
            if self.zeta is not None and self.zeta != self.gamma:
                raise ConfigError(
                    f"The loss {self.loss!r} has no entropy term, so zeta {self.zeta} must equal "
                    f"gamma {self.gamma} or be left out."
                )
            return self.gamma
        return self.zeta if self.zeta is not None else 1.1 * self.gamma

    @classmethod
    def load(cls, path: str | Path | None = None, **changes: Any) -> TrainConfig:
        """From a JSON or TOML file, with changes on top.

        Raises:
            ConfigError: the file cannot be read, or a setting is unknown or out of range.
        """
        data = _read(Path(path)) if path is not None else {}
        try:
            return cls(**{**data, **changes})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the configuration"
            raise ConfigError(f"Training setting {where!r}: {first['msg']}.") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text()
        data = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"The configuration {path} cannot be read: {error}.") from error
    if not isinstance(data, dict):
        raise ConfigError(f"The configuration {path} is not a table of settings.")
    return data
