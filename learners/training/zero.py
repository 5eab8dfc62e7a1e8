"""DeepSpeed: ZeRO's sharding of optimizer state, gradients and weights, under the loop's own steps.

The loop decides how many backward passes a step has and when it ends, which DeepSpeed allows with
``managed_gradient_accumulation`` off (0.19). Of its configuration the sharding and what belongs to
it are used; precision, batch sizes, optimizer and schedule are `TrainConfig`'s.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from learners.ops.sequence import unwrap
from learners.training.shard import on_cpu
from swe_env.errors import ConfigError

if TYPE_CHECKING:
    from accelerate.utils import DeepSpeedPlugin

_OURS = (
    "optimizer", "scheduler", "fp16", "bf16", "amp", "torch_autocast",
    "gradient_accumulation_steps", "gradient_clipping", "train_batch_size",
    "train_micro_batch_size_per_gpu",
)  # fmt: skip
"""What a DeepSpeed configuration may say and the loop decides."""

_MOMENTS = ("exp_avg", "exp_avg_sq")


def deepspeed_settings(device: str) -> DeepSpeedPlugin:
    """Accelerate's settings, from the environment that its launcher makes.

    Raises:
        ConfigError: the package is missing or too old, or the stage shards nothing.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(
            "accelerate launch asks for DeepSpeed, which is not installed: pip install deepspeed, "
            "or shard with FSDP2 (--use_fsdp --fsdp_version 2)."
        )
    version = importlib.metadata.version("deepspeed")
    if tuple(map(int, version.split(".")[:2])) < (0, 19):
        raise ConfigError(
            f"DeepSpeed {version} ends its steps by a fixed count of passes, which differs from "
            "step to step here: install 0.19 or later, or shard with FSDP2."
        )
    if device == "cpu" or not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from accelerate.utils import DeepSpeedPlugin

    plugin = DeepSpeedPlugin()
    if _zero_settings(plugin).get("stage") not in (1, 2, 3):
        raise ConfigError("DeepSpeed without ZeRO shards nothing: give --zero_stage 1, 2 or 3.")
    return plugin


class Zero:
    """A model whose states DeepSpeed spreads over the processes."""

    def __init__(
        self,
        module: nn.Module,
        model: nn.Module,
        parameters: Sequence[nn.Parameter],
        plugin: DeepSpeedPlugin,
        *,
        max_grad_norm: float,
        weight_decay: float,
    ) -> None:
        """Spread it; a collective.

        Args:
            module: What is called for a forward pass; holds `model`.
            model: A causal language model, bare or wrapped by peft.
            parameters: What the optimizer moves, in a fixed order.
            plugin: From `deepspeed_settings`.
            max_grad_norm: Gradients are cut to this norm.
            weight_decay: AdamW's.
        """
        import deepspeed

        shapes = [torch.empty(0) for _ in parameters]
        self._groups = torch.optim.AdamW(shapes, lr=0.0, weight_decay=weight_decay).state_dict()
        self._parameters = list(parameters)
        given = {k: v for k, v in plugin.hf_ds_config.config.items() if k not in _OURS}
        config = given | {
            "managed_gradient_accumulation": False,
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": max_grad_norm,
            "zero_optimization": _zero_settings(plugin),
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 1 << 60,
        }
        self.stage = int(config["zero_optimization"]["stage"])
        self.engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=torch.optim.AdamW(parameters, lr=0.0, weight_decay=weight_decay),
            config=config,
            dist_init_required=False,
        )
        if self.stage == 3:
            _read_directly(module, model)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one pass; every process must make as many."""
        self.engine.backward(loss)

    def step(self, rate: float) -> float:
        """One optimizer step; the norm of the gradients before they are cut."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        self.engine.step()
        return float(self.engine.get_global_grad_norm())

    def whole(self, value: Tensor) -> Tensor:
        """All of a parameter, on every process; anything else as it is. A collective."""
        from deepspeed.utils import safe_get_full_fp32_param

        if not isinstance(value, nn.Parameter) or not value.requires_grad:
            return value
        found: Tensor = safe_get_full_fp32_param(value)
        return found.view(self._shape(value)).to(value.dtype)

    def parameters(self, *, keep: bool) -> list[Tensor]:
        """The trained parameters, whole, on the CPU; a collective, as `shard.on_cpu`."""
        return on_cpu(map(self.whole, self._parameters), keep=keep)

    def optimizer_state(self, *, keep: bool) -> dict[str, Any]:
        """AdamW's state as that of a single process, on the CPU; a collective likewise."""
        from deepspeed.utils import safe_get_full_optimizer_state

        steps = [state["step"] for state in self._base.state.values() if "step" in state]
        if not steps:
            return {**self._groups, "state": {}}
        found = {}
        for index, parameter in enumerate(self._parameters):
            moments = (safe_get_full_optimizer_state(parameter, k) for k in _MOMENTS)
            shaped = (moment.view(self._shape(parameter)) for moment in moments)
            found[index] = dict(zip(_MOMENTS, on_cpu(shaped, keep=keep), strict=keep))
            found[index]["step"] = torch.as_tensor(steps[0]).clone().cpu()
        return {**self._groups, "state": found}

    def load(self, parameters: Sequence[Tensor], optimizer: Mapping[str, Any]) -> None:
        """Put back what `parameters` and `optimizer_state` gave."""
        states = optimizer["state"]
        if states:
            self._make_moments(next(iter(states.values()))["step"])
        with torch.no_grad():
            for index, (parameter, value) in enumerate(
                zip(self._parameters, parameters, strict=True)
            ):
                self._put(parameter, value, None)
                for name in _MOMENTS if states else ():
                    self._put(parameter, states[index][name], name)

    def fits(self, parameters: Sequence[Tensor]) -> bool:
        """Whether saved parameters are of this model's shapes."""
        return [self._shape(p) for p in self._parameters] == [p.shape for p in parameters]

    @property
    def _base(self) -> torch.optim.Optimizer:
        found: torch.optim.Optimizer = self.engine.optimizer.optimizer
        return found

    def _make_moments(self, step: Tensor) -> None:
        """AdamW makes its state in its first step; a run that goes on has none."""
        zero = self.engine.optimizer
        flat = zero.fp32_partitioned_groups_flat if self.stage == 3 else None
        for part in flat or zero.single_partition_of_fp32_groups:
            moments = {name: torch.zeros_like(part) for name in _MOMENTS}
            self._base.state[part] = {"step": torch.as_tensor(step).clone(), **moments}
        if self.stage != 3:
            zero._lazy_init_hp_params_optimizer_state()

    def _put(self, parameter: nn.Parameter, value: Tensor, moment: str | None) -> None:
        from deepspeed import utils

        value = value.to(self.engine.device)
        if self.stage != 3:
            if moment is None:
                parameter.data.copy_(value)
                utils.safe_set_full_fp32_param(parameter, value)
            else:
                utils.safe_set_full_optimizer_state(parameter, value, moment)
            return
        partition: Any = parameter
        size, rank = partition.ds_tensor.numel(), self.engine.global_rank
        padded = value.new_zeros(size * self.engine.world_size)
        padded[: value.numel()] = value.flatten()
        mine = padded[size * rank : size * (rank + 1)]
        if moment is None:
            partition.ds_tensor.data.copy_(mine)
            utils.safe_set_local_fp32_param(parameter, mine)
        else:
            utils.safe_set_local_optimizer_state(parameter, mine, moment)

    @staticmethod
    def _shape(parameter: Tensor) -> torch.Size:
        found: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
        return found


def _read_directly(module: nn.Module, model: nn.Module) -> None:
    """Tell DeepSpeed, which gathers a layer's weights when it is called, what is read without.

    `token_logps` reads the head's weight, and layers whose forward was replaced by one that
    computes less read those of the layers inside them.
    """
    from deepspeed.runtime.zero import register_external_parameter

    head: Any = unwrap(model).get_output_embeddings()  # type: ignore[no-untyped-call]
    for parameter in head.parameters():
        register_external_parameter(module, parameter)
    for layer in model.modules():
        if "forward" in vars(layer):
            own = set(layer.parameters(recurse=False))
            for parameter in layer.parameters():
                if parameter not in own:
                    register_external_parameter(layer, parameter)


def _zero_settings(plugin: DeepSpeedPlugin) -> dict[str, Any]:
    found = plugin.hf_ds_config.config.get("zero_optimization", {})
    return {k: v for k, v in found.items() if v not in ("auto", None)}
