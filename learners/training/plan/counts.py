"""Parameters of a model and its adapter, counted on torch's meta device: shapes, no weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from learners.ops.experts import CHOSEN, chosen_experts
from learners.ops.lora import lean_weights
from learners.ops.sequence import unwrap
from learners.training.config import TrainConfig
from learners.training.shard import layer_names, named_layers
from swe_env.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

METHODS = ("lora", "qlora", "full")
"""Adapter on bfloat16 weights, adapter on 4-bit weights, or every weight trained."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many parameters a model has, by what a plan does with them."""

    total: int
    """All of the base model, each tied weight once."""
    active: int
    """Used for one token: all but the experts a token is not sent to."""
    trainable: int
    adapter: int
    """Of `trainable`, what the adapter adds; 0 when every weight is trained."""
    split: int
    """Of `adapter`, what `learners.ops.lora` multiplies by in halves of bfloat16 on CUDA."""
    linear: int
    """Weights of ``nn.Linear`` modules without the output layer: what QLoRA quantises."""
    experts: int
    """Weights in stacks of experts (3-dimensional parameters)."""
    largest_linear: int
    """Weights of the largest of the `linear` ones: QLoRA widens one at a time."""
    layer_total: int
    """All base weights of the largest decoder layer: what FSDP gathers at once."""
    layer_adapter: int
    """The adapter's of the layer with most of them."""
    outside: int
    """Base weights that stand in no layer (embeddings, head, last norm): FSDP's outermost group."""
    layers_active: int
    """Matrix weights that one token meets in all decoder layers, embeddings and head left out."""
    adapter_active: int
    """The same of the adapter."""
    merged_active: int
    """Of `layers_active`, experts that peft merges with their adapters: the gradient of the merged
    stack is computed whole before it becomes the adapter's."""
    head: int
    """Weights of the output layer: vocabulary x width."""


def meta_model(config: PretrainedConfig, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """The model of a configuration with no memory behind its weights.

    Raises:
        ConfigError: transformers has no causal language model for it.
    """
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    from learners.training.plan.trace import ATTENTION, register_attention

    register_attention()
    # Nothing is computed, so the kernel's place is taken by one that only allocates what it does.
    choose: Any = AutoModelForCausalLM
    try:
        with torch.device("meta"), no_init_weights():
            model = choose.from_config(config, dtype=dtype, attn_implementation=ATTENTION)
    except ValueError as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"No plan can be made for this model: {reason}") from error
    model.tie_weights()
    model.requires_grad_(False)
    found: PreTrainedModel = model
    return found


def adapted(model: PreTrainedModel, config: TrainConfig, method: str) -> nn.Module:
    """The model as training would have it: with the run's adapter, or with every weight trained.

    Raises:
        ConfigError: the method is unknown, or the adapter's targets are not in the model.
    """
    from learners.training.model import add_adapter
    from learners.training.plan.fourbit import as_four_bit

    if method not in METHODS:
        raise ConfigError(f"There is no training method {method!r}: use {', '.join(METHODS)}.")
    if method == "full":
        return model.requires_grad_(True)
    fresh = config.model_copy(update={"init_adapter": None, **_inherited(config)})
    with torch.random.fork_rng(), torch.device("meta"), warnings.catch_warnings():
        # peft looks for the experts' rank among modules, though they are parameters.
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern", RuntimeWarning)
        found: nn.Module = add_adapter(model, fresh, "")
    if method == "qlora":
        as_four_bit(found)
    return found


def _inherited(config: TrainConfig) -> dict[str, Any]:
    """Rank and targets of the adapter that the run starts from."""
    if config.init_adapter is None:
        return {}
    from peft import LoraConfig

    from learners.training.model import check_adapter

    lora: Any = LoraConfig.from_pretrained(str(check_adapter(config.init_adapter)))
    targets = lora.target_modules
    return {
        "lora_r": lora.r,
        "lora_alpha": lora.lora_alpha,
        "lora_targets": targets if isinstance(targets, str) else sorted(targets),
        "lora_parameters": sorted(lora.target_parameters or ()),
    }


def decoder_of(model: nn.Module) -> nn.Module:
    """The part that turns tokens into hidden states, without a vision tower if there is one."""
    causal: Any = unwrap(model)
    found: nn.Module = causal.get_decoder()
    return found


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The stack of decoder layers.

    Raises:
        ConfigError: the model has none under the name ``layers``.
    """
    decoder = decoder_of(model)
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ConfigError(f"{type(decoder).__name__} has no decoder layers: no plan can be made.")
    return layers


def count(model: nn.Module) -> Counts:
    """Count the parameters of a model from `adapted`."""
    causal = unwrap(model)
    head = causal.get_output_embeddings().weight  # type: ignore[no-untyped-call]
    share = _expert_share(causal)
    base = [(n, p) for n, p in model.named_parameters() if not _is_adapter(n)]
    added = [(n, p) for n, p in model.named_parameters() if _is_adapter(n)]
    stacks = sum(p.numel() for _, p in base if p.dim() == 3)
    linear = [m.weight.numel() for m in _plain_linears(model) if m.weight is not head]
    layers = decoder_layers(model)
    total = sum(p.numel() for _, p in base)
    return Counts(
        total=total,
        active=total - round(stacks * (1 - share)),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        adapter=sum(p.numel() for _, p in added),
        split=lean_weights(model),
        linear=sum(linear),
        experts=stacks,
        largest_linear=max(linear, default=0),
        layer_total=max(sum(_sizes(layer, adapter=False)) for layer in layers),
        layer_adapter=max(sum(_sizes(layer, adapter=True)) for layer in layers),
        outside=total - sum(p.numel() for p in _in_units(model)),
        layers_active=round(sum(_active(layer, share, adapter=False) for layer in layers)),
        adapter_active=round(sum(_active(layer, share, adapter=True) for layer in layers)),
        merged_active=round(sum(stack.numel() * share for stack in _merged(model))),
        head=head.numel(),
    )


def _is_adapter(name: str) -> bool:
    return ".lora_" in name


def _sizes(layer: nn.Module, *, adapter: bool) -> Iterator[int]:
    for name, parameter in layer.named_parameters():
        if _is_adapter(name) is adapter:
            yield parameter.numel()


def _active(layer: nn.Module, share: float, *, adapter: bool) -> float:
    """Matrix weights of a layer that one token meets."""
    found = 0.0
    for name, parameter in layer.named_parameters():
        if _is_adapter(name) is adapter and parameter.dim() >= 2:
            of_experts = parameter.dim() == 3 or (adapter and ".experts." in name)
            found += parameter.numel() * (share if of_experts else 1)
    return found


def _in_units(model: nn.Module) -> set[nn.Parameter]:
    """Base weights of the modules that FSDP gathers one by one."""
    units = named_layers(model, layer_names(model))
    return {p for unit in units for n, p in unit.named_parameters() if not _is_adapter(n)}


def _merged(model: nn.Module) -> Iterator[nn.Parameter]:
    """Stacks of experts that have an adapter."""
    from peft.tuners.lora.layer import ParamWrapper

    for module in model.modules():
        if isinstance(module, ParamWrapper):
            stack: nn.Parameter = module.get_param()  # type: ignore[no-untyped-call]
            if stack.dim() == 3:
                yield stack


def _plain_linears(model: nn.Module) -> Iterator[nn.Linear]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".lora_" not in name:
            yield module


_EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts")


def _expert_share(causal: PreTrainedModel) -> float:
    """Experts that a token is sent to, over all.

    Raises:
        ConfigError: the configuration names the experts, but not how many of them.
    """
    config = causal.config.get_text_config()
    experts = next((size for name in _EXPERTS if (size := getattr(config, name, None))), None)
    chosen = chosen_experts(config)
    if not experts:
        return 1.0
    if not chosen:
        raise ConfigError(
            f"The configuration of {type(causal).__name__} has {experts} experts and does not say "
            f"to how many a token is sent ({' or '.join(CHOSEN)}): no plan can be made."
        )
    return float(chosen) / float(experts)
