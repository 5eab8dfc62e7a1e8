"""`Policy`: the model that is trained, loaded as its mode asks and spread over the processes."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from agents.policies import hub
from learners.ops import check_logits
from learners.training.config import TrainConfig
from learners.training.model import (
    add_adapter,
    base_fingerprint,
    checkpoint,
    model_digest,
    save_adapter,
    saved_fingerprint,
    trainable,
)
from learners.training.passes import Packing, Passes
from learners.training.score import PolicySums, Scorer
from learners.training.shard import shard, whole
from learners.training.workers import Workers
from learners.training.zero import Zero
from swe_env.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Policy:
    """A model ready to be trained and scored."""

    model: Any
    """transformers' model (full fine-tuning), or peft's around it."""
    scorer: Scorer
    parameters: list[nn.Parameter]
    """What the optimizer moves, in a fixed order; in parts where the model is sharded."""
    fingerprint: str
    """Of the base weights as they were found; the same whatever type they were loaded in."""
    digest: str
    """Of every one of those weights as it was loaded, and of the model's configuration."""
    size: int
    """How many weights are trained."""
    compute: torch.dtype
    """Type the passes compute in, and of a whole model when it is saved."""
    config: TrainConfig

    def collect(self) -> dict[str, Tensor] | None:
        """The weights that `write` saves, on the CPU of the main process; a collective.

        None where peft finds them itself.
        """
        model = self.model
        if self.config.mode != "full":
            if not self.scorer.workers.sharded:
                return None
            return self._whole({n: p for n, p in model.named_parameters() if p.requires_grad})
        parameters = dict(model.named_parameters())  # tied ones once
        tied = dict(model.named_parameters(remove_duplicate=False)).keys() - parameters.keys()
        buffers = {
            name: value for name, value in model.state_dict().items()
            if name not in parameters and name not in tied
        }  # fmt: skip
        return self._whole({**parameters, **buffers}, self.compute)

    def _whole(
        self, named: dict[str, Tensor], dtype: torch.dtype | None = None
    ) -> dict[str, Tensor]:
        found, zero = {}, self.scorer.zero
        for name, value in named.items():
            full = zero.whole(value) if zero is not None else whole(value)
            if self.scorer.workers.main:
                kind = dtype if full.is_floating_point() else None
                found[name] = full.detach().to("cpu", kind or full.dtype)
        return found

    def write(self, folder: Path, weights: dict[str, Tensor] | None) -> None:
        """Save what was collected: an adapter, or a model with its tokenizer."""
        if self.config.mode != "full":
            save_adapter(self.model, folder, weights)
            return
        self.model.save_pretrained(str(folder), state_dict=weights)
        _say_dtype(folder / "config.json", self.compute)
        tokenizer = hub.load_tokenizer(self.config.model, self.config.chat_template)
        tokenizer.save_pretrained(str(folder))


def _say_dtype(config: Path, dtype: torch.dtype) -> None:
    """In place of the type that the model is trained in, which transformers writes down."""
    record = json.loads(config.read_text())
    record["dtype"] = str(dtype).removeprefix("torch.")
    config.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")


def check_start(config: TrainConfig) -> None:
    """The mode can begin from what the settings name.

    Raises:
        ConfigError: it cannot.
    """
    if config.mode == "full" and config.init_adapter is not None:
        raise ConfigError(
            "Full fine-tuning starts from whole weights: merge the adapter into the model first, "
            "or leave init_adapter out."
        )


def check_mode(config: TrainConfig, workers: Workers) -> None:
    """What the mode needs is there.

    Raises:
        ConfigError: says what is missing or does not go together.
    """
    check_start(config)
    if config.mode != "qlora":
        return
    if workers.sharded:
        raise ConfigError(
            "QLoRA's 4-bit weights are not sharded: launch without --use_fsdp or --use_deepspeed, "
            "which gives each process the whole model."
        )
    if not torch.cuda.is_available() or config.device == "cpu":
        raise ConfigError("QLoRA needs a CUDA GPU: use mode 'lora' on this machine.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("QLoRA needs the package bitsandbytes: pip install bitsandbytes.")


def make_policy(
    config: TrainConfig,
    workers: Workers,
    probe: list[int],
    check_vocabulary: Callable[[int], None],
) -> Policy:
    """Load the model, give it what is trained, prove its logits, and shard it if asked.

    Args:
        config: The settings.
        workers: The processes that train together.
        probe: Some token ids of the data, for `check_logits`.
        check_vocabulary: Called with the vocabulary's size; raises where the data do not fit.

    Raises:
        ConfigError: the model or adapter cannot be had, or is of a kind that cannot be trained.
    """
    device = workers.device or torch.device(hub.default_device(config.device))
    compute = hub.as_dtype(config.dtype, device)
    # A sharded model waits in CPU memory, and no process ever has all of it on its GPU.
    place = "cpu" if workers.sharded else str(device)
    base = _load(config, place, compute)
    check_vocabulary(base.config.get_text_config().vocab_size)
    fingerprint, digest = workers.on_main(lambda: _fingerprint(config, base)), model_digest(base)
    full = config.mode == "full"
    model = _all_trained(base, config) if full else add_adapter(base, config, fingerprint)
    checkpoint(model, config, device)
    check_logits(model, torch.tensor(probe, device=place))
    # FSDP casts whole weights to `compute`; under autocast norms give attention float32.
    inputs = torch.float32 if full and workers.fsdp is None else compute
    passes = Passes(
        model, device, Packing(config.packing, config.min_share),
        together=workers.sharded or workers.context is not None or None,
        place=torch.device(place), dtype=inputs,
    )  # fmt: skip
    if workers.context is not None and not passes.kernel:
        raise ConfigError(
            f"{type(base).__name__} cannot be packed (or packing is 'none'), so its sequences "
            "cannot be shared by several processes: leave --parallelism_config_cp_size out."
        )
    halved = full and compute != torch.float32
    autocast = compute if halved and workers.fsdp is None else None
    sums = PolicySums(model, autocast, workers.context)
    size = sum(parameter.numel() for parameter in trainable(model))
    if workers.fsdp is not None:
        shard(sums, model, workers, compute if full else torch.float32)
    parameters, zero = trainable(model), None
    if workers.deepspeed is not None:
        zero = Zero(
            sums, model, parameters, workers.deepspeed,
            max_grad_norm=config.max_grad_norm, weight_decay=config.weight_decay,
        )  # fmt: skip
    if not workers.sharded:
        workers.copy_from_main(parameters)
    if workers.index:  # dropout differs from process to process
        torch.manual_seed(config.seed + 1_000_003 * workers.index)
    scorer = Scorer(sums, passes, workers, zero)
    return Policy(model, scorer, parameters, fingerprint, digest, size, compute, config)


def _load(config: TrainConfig, place: str, compute: torch.dtype) -> PreTrainedModel:
    if config.mode == "full":
        return hub.load(config.model, dtype="float32", device=place)[0]
    quantization = None
    if config.mode == "qlora":
        from transformers import BitsAndBytesConfig

        four_bit: Any = BitsAndBytesConfig
        quantization = four_bit(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
    base, _ = hub.load(config.model, dtype=compute, device=place, quantization=quantization)
    return base.requires_grad_(False)


def _fingerprint(config: TrainConfig, base: PreTrainedModel) -> str:
    """Of the weights before they are packed in 4 bits: the adapter fits those just as well."""
    return (
        saved_fingerprint(config.model, base) if config.mode == "qlora" else base_fingerprint(base)
    )


def _all_trained(base: PreTrainedModel, config: TrainConfig) -> PreTrainedModel:
    torch.manual_seed(config.seed)
    return base.requires_grad_(True)
