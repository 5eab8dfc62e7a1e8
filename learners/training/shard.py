"""FSDP2: a model's weights in parts, and parts put together again for a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from learners.ops.sequence import unwrap
from learners.training.workers import Workers
from swe_env.errors import ConfigError


def shard(module: nn.Module, model: nn.Module, workers: Workers, compute: torch.dtype) -> None:
    """Shard every decoder layer of `model`, and what is left of `module` as one more group.

    Each parameter stays a parameter of its own (frozen and trained ones side by side); its type
    is what it was. Embeddings and LM head belong to the last group, which is whole while
    `module` runs and again in its backward pass: `token_logps` reads the head's weight without
    calling the head.

    Args:
        module: What is called for a forward pass; holds `model`.
        model: A causal language model, bare or wrapped by peft.
        workers: With accelerate's FSDP settings: whether weights are parted again between
            forward and backward pass, and whether they wait in CPU memory.
        compute: Type of the trained weights in the passes; gradients are added up in float32.

    Raises:
        ConfigError: the layers are not found.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    plugin, device = workers.fsdp, workers.device
    if plugin is None or device is None:
        raise ConfigError("Without accelerate's FSDP settings there is nothing to shard by.")
    names = layer_names(model, plugin.transformer_cls_names_to_wrap)
    layers = named_layers(model, names)
    if not layers:
        raise ConfigError(
            f"No layers named {sorted(names)} to shard: give the decoder layer's class with "
            "accelerate launch --fsdp_transformer_layer_cls_to_wrap."
        )
    mixed = MixedPrecisionPolicy()
    if compute != torch.float32:
        mixed = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    options: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (workers.count,)),
        "reshard_after_forward": bool(plugin.reshard_after_forward),
        "mp_policy": mixed,
        "offload_policy": plugin.cpu_offload,
    }
    for layer in layers:
        fully_shard(layer, **options)
    fully_shard(module, **{**options, "reshard_after_forward": True})


def layer_names(model: nn.Module, asked: Sequence[str] | None = None) -> set[str]:
    """Classes that are sharded one by one: those asked for, else the family's own."""
    return set(asked or unwrap(model)._no_split_modules or ())


def named_layers(model: nn.Module, names: set[str]) -> list[nn.Module]:
    """The modules of these classes."""
    return [part for part in model.modules() if type(part).__name__ in names]


def whole(value: Tensor) -> Tensor:
    """All of a tensor, on every process; a collective where it is sharded."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def parted_like(value: Tensor, like: Tensor) -> Tensor:
    """`value` (the same on every process) cut up as `like` is."""
    if not isinstance(like, DTensor):
        return value
    value = value.to(like.device, like.dtype)
    return distribute_tensor(value, like.device_mesh, like.placements)


def on_cpu(values: Iterable[Tensor], *, keep: bool) -> list[Tensor]:
    """All of each tensor, or, for a process that only takes part, nothing; a collective."""
    found = []
    for value in values:
        one = whole(value.detach())
        if keep:
            found.append(one.cpu())
    return found


def whole_optimizer(optimizer: torch.optim.Optimizer, *, keep: bool = True) -> dict[str, Any]:
    """Its state as that of a single process, on the CPU; a collective, as `on_cpu`."""
    state = optimizer.state_dict()
    moments = {}
    for index, values in state["state"].items():
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        whole_ones = on_cpu(tensors.values(), keep=keep)
        moments[index] = {**values, **dict(zip(tensors, whole_ones, strict=keep))}
    return {**state, "state": moments if keep else {}}


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Put back what `whole_optimizer` gave, in parts where the parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        index: {
            name: parted_like(value, parameters[index])
            if isinstance(value, Tensor) and value.shape == parameters[index].shape
            else value
            for name, value in values.items()
        }
        for index, values in saved["state"].items()
    }
    optimizer.load_state_dict({**saved, "state": moments})
