"""The trained model: base weights frozen, one LoRA adapter, new or continued."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from agents.policies import hub
from learners.ops.keeping import checkpoint_settings
from learners.ops.lean import lean_layers
from learners.ops.lora import lean_lora
from learners.ops.rotary import lean_rotary
from learners.ops.sequence import unwrap
from learners.training.card import public_model, read_record
from learners.training.config import TrainConfig
from swe_env.errors import ConfigError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


log = logging.getLogger(__name__)

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def base_fingerprint(model: PreTrainedModel) -> str:
    """16 hexadecimal digits that tell one set of base weights from another.

    Hashes every parameter's name and shape and 32 of its values, rounded to bfloat16 so that the
    type the weights were loaded in does not matter.
    """
    return _fingerprint(model.named_parameters())


def saved_fingerprint(name: str, model: PreTrainedModel) -> str:
    """`base_fingerprint` of weights on disk, for a `model` that holds them packed in fewer bits.

    Read one after the other, unless the files have other names for them than the model.

    Args:
        name: As for `hub.load`.
        model: What was loaded from there.
    """
    files = hub.weight_files(name)
    names = [name for name, _ in model.named_parameters()]
    if not set(names) <= files.keys():
        return base_fingerprint(hub.load(name, dtype="bfloat16", device="cpu")[0])
    return _fingerprint((name, _read(files[name], name)) for name in names)


def _read(path: Path, name: str) -> Tensor:
    with safe_open(path, "pt") as file:
        found: Tensor = file.get_tensor(name)
    return found


def _fingerprint(named: Iterable[tuple[str, Tensor]]) -> str:
    seen = hashlib.sha256()
    for name, parameter in named:
        flat = parameter.detach().flatten()
        some = flat[:: max(flat.numel() // 32, 1)][:32].to(torch.bfloat16).float().tolist()
        seen.update(f"{name}{tuple(parameter.shape)}{some}".encode())
    return seen.hexdigest()[:16]


def model_digest(model: PreTrainedModel) -> str:
    """16 hexadecimal digits over configuration and weights: all that a model's figures depend on.

    Of every weight and buffer, in the type it has, the bits are summed as integers, which depends
    on no order, beside some of its values. The configuration says what no weight does: rotary
    frequencies, windows, soft caps, the norms' epsilon.
    """
    config = {k: v for k, v in model.config.to_dict().items() if k not in _NO_MATTER}
    seen = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, value in model.state_dict().items():
        flat = value.detach().flatten()
        words = flat.view(_WORDS[flat.element_size()])
        some = words[:: max(words.numel() // 32, 1)][:32].tolist()
        total = int(words.sum(dtype=torch.int64))
        seen.update(f"{name}{tuple(value.shape)}{value.dtype}{total}{some}".encode())
    return seen.hexdigest()[:16]


_NO_MATTER = {"_name_or_path", "transformers_version"}
"""Of a configuration: where it was read and what wrote it."""
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def add_adapter(base: PreTrainedModel, config: TrainConfig, fingerprint: str) -> PeftModel:
    """`base` with a trainable adapter: `config.init_adapter`'s, or a new one that changes nothing.

    Adapter weights are float32 whatever the base is. A new one's first weights and dropout's draws
    follow from ``config.seed``.

    Raises:
        ConfigError: the starting adapter is missing, or was made for another base model.
    """
    from peft import LoraConfig, get_peft_model

    model: Any
    torch.manual_seed(config.seed)
    if config.init_adapter is None:
        lora = LoraConfig(
            r=config.lora_r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=config.lora_targets,
            target_parameters=config.lora_parameters or None,
            task_type="CAUSAL_LM",
        )
        try:
            with hub.quiet_renames():
                model = get_peft_model(base, lora)
        except ValueError as error:
            targets = [config.lora_targets, *config.lora_parameters]
            raise ConfigError(f"No adapter with targets {targets!r}: {error}") from error
    else:
        model = _continued(
            base, check_adapter(config.init_adapter, fingerprint, config.model), config
        )
    lean_lora(model)
    lean_layers(base)
    lean_rotary(base)
    model.peft_config["default"].base_model_name_or_path = public_model(config.model)
    found: PeftModel = model
    return found


def checkpoint(model: Any, config: TrainConfig, device: torch.device) -> None:
    """Let layers be recomputed in the backward pass, where `config` asks for it on that device."""
    selective = config.gradient_checkpointing == "auto"
    if not config.checkpoints_on(device.type) or (selective and not _can(model)):
        return
    with hub.quiet_renames():
        model.gradient_checkpointing_enable(checkpoint_settings(model, selective=selective))


def _can(model: nn.Module) -> bool:
    return bool(getattr(unwrap(model), "supports_gradient_checkpointing", False))


def _continued(base: PreTrainedModel, folder: Path, config: TrainConfig) -> Any:
    """`base` with the adapter in `folder`.

    Raises:
        ConfigError: one of the two has layers that the other has not, or of another shape.
    """
    from peft import PeftModel

    try:
        with hub.quiet_renames():
            warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)
            model: Any = PeftModel.from_pretrained(base, str(folder), is_trainable=True)
            # Only its second loading tells what did not fit.
            loaded = model.load_adapter(str(folder), "default", is_trainable=True)
    except SafetensorError as error:
        raise ConfigError(
            f"The weights of the adapter in {folder} cannot be read ({error}): fetch them again (a "
            "file of a few lines stands in for one that Git LFS holds)."
        ) from error
    except (RuntimeError, ValueError) as error:
        raise _other_base(folder, config.model) from error
    if loaded.missing_keys or loaded.unexpected_keys:
        raise _other_base(folder, config.model)
    made_for = model.peft_config["default"].base_model_name_or_path or config.model
    if read_record(folder) is None and Path(made_for).name != Path(config.model).name:
        log.warning(
            "The adapter in %s was made for %s, as it says itself, and is trained on %s.",
            folder, made_for, config.model,
        )  # fmt: skip
    return model


def check_adapter(path: str | Path, fingerprint: str | None = None, model: str = "") -> Path:
    """The adapter's folder, once it is known to hold one that fits `model` of that fingerprint.

    Raises:
        ConfigError: there is none, or it records the fingerprint of other base weights.
    """
    folder = Path(path).expanduser()
    for name in (_CONFIG, _WEIGHTS):
        if not (folder / name).is_file():
            raise ConfigError(f"There is no adapter in {folder}: it has no {name}.")
    record = read_record(folder) if fingerprint is not None else None
    if record is not None and record.get("base_fingerprint", fingerprint) != fingerprint:
        raise _other_base(folder, model)
    return folder


def adapter_digest(path: str | Path | None) -> str:
    """Content hash of an adapter, weights and configuration (its scaling), or empty for none.

    Raises:
        ConfigError: the folder holds no adapter in safetensors.
    """
    if path is None:
        return ""
    folder = check_adapter(path)
    seen = hashlib.sha256()
    for name in (_WEIGHTS, _CONFIG):
        seen.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return seen.hexdigest()[:16]


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters the optimizer moves, in a fixed order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def save_adapter(model: Any, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write the adapter as peft, transformers and vLLM read it.

    `weights` are the model's trained parameters by name, where it has them only in parts.
    """
    model.save_pretrained(str(folder), save_embedding_layers=False, state_dict=weights)


def _other_base(folder: Path, model: str) -> ConfigError:
    return ConfigError(
        f"The adapter in {folder} was made for another base model than {model}: start from the "
        "model it was trained on."
    )
