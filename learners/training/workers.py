"""`Workers`: the processes that train together, one or those that `accelerate launch` started."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from swe_env.errors import ConfigError, SweError

if TYPE_CHECKING:
    from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin

    from learners.ops.context import Context

T = TypeVar("T")

_BUCKET = 1 << 25
"""Gradients that travel in one message: 128 MiB in float32."""


class Workers:
    """Who trains together.

    Every process has the same data and the same settings, works on its share of each optimizer
    batch, and takes the same steps. Replicated, each has the whole model and gradients are added
    up once a step; sharded (FSDP2, DeepSpeed), each has a part of what there is.
    """

    def __init__(
        self,
        count: int = 1,
        index: int = 0,
        device: torch.device | None = None,
        fsdp: FullyShardedDataParallelPlugin | None = None,
        deepspeed: DeepSpeedPlugin | None = None,
        context: Context | None = None,
    ) -> None:
        """`device` is this process's own (None: not decided).

        `fsdp` and `deepspeed` are the settings of what shards the model, if anything does;
        `context`, the processes that share every row of tokens, neighbours in order.
        """
        self.count, self.index, self.device = count, index, device
        self.fsdp, self.deepspeed, self.context = fsdp, deepspeed, context

    @property
    def main(self) -> bool:
        """Whether this process writes the files and talks to the user."""
        return self.index == 0

    @property
    def groups(self) -> int:
        """How many shares a batch is dealt out in: processes that share rows take one together."""
        return self.count // (self.context.count if self.context else 1)

    @property
    def group(self) -> int:
        """Which of the shares is this process's."""
        return self.index // (self.context.count if self.context else 1)

    @property
    def counts(self) -> bool:
        """Whether the sums of this process's share are its to report: of each group, one."""
        return self.context is None or self.context.index == 0

    @property
    def sharded(self) -> bool:
        """Whether every forward pass must be made by all processes together."""
        return self.fsdp is not None or self.deepspeed is not None

    @property
    def spread(self) -> str:
        """How a forward pass is spread over the processes, on which its rounding depends."""
        kind = (
            "fsdp" if self.fsdp is not None else "deepspeed" if self.deepspeed is not None else ""
        )
        return f"{kind} {self.count if kind else 1} {self.context.count if self.context else 1}"

    @property
    def gradient_factor(self) -> int:
        """What a loss is multiplied with, so that the gradient is the sum over processes.

        FSDP2 and DeepSpeed take the mean.
        """
        return self.count if self.sharded else 1

    def add(self, *tensors: Tensor) -> None:
        """Replace each by its sum over the processes, in place."""
        if self.count == 1:
            return
        for tensor in tensors:
            moved = tensor.to(self.device)
            distributed.all_reduce(moved)
            tensor.copy_(moved)

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add up the gradients of a replicated model; sharded ones were added as they arose.

        A parameter without a gradient anywhere stays without one, as in a single process.
        """
        if self.count == 1 or self.sharded:
            return
        used = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        distributed.all_reduce(used)
        live = [p for p, seen in zip(parameters, used.tolist(), strict=True) if seen]
        for bucket in _buckets(live):
            flat = torch.cat([_gradient(p).flatten() for p in bucket])
            distributed.all_reduce(flat)
            parts = torch.split(flat, [p.numel() for p in bucket])
            for parameter, part in zip(bucket, parts, strict=True):
                _gradient(parameter).copy_(part.view_as(parameter))

    def copy_from_main(self, parameters: Sequence[nn.Parameter]) -> None:
        """The main process's values, on all."""
        if self.count > 1:
            for parameter in parameters:
                distributed.broadcast(parameter.data, src=0)

    def agree(self, value: T) -> T:
        """The main process's value, on all."""
        if self.count == 1:
            return value
        box: list[Any] = [value]
        distributed.broadcast_object_list(box, src=0, device=self.device)
        found: T = box[0]
        return found

    def gather(self, value: T) -> list[T]:
        """Every process's value, in order."""
        if self.count == 1:
            return [value]
        box: list[Any] = [None] * self.count
        distributed.all_gather_object(box, value)
        return box

    def on_main(self, action: Callable[[], T]) -> T:
        """What `action` gives on the main process, on all.

        Raises:
            SweError: the action raised it; so all processes end with the same sentence.
        """
        if self.count == 1:
            return action()
        value, problem = None, None
        if self.main:
            try:
                value = action()
            except SweError as error:
                problem = error
        value, problem = self.agree((value, problem))
        if problem is not None:
            raise problem
        found: T = value  # type: ignore[assignment]
        return found

    def check_equal(self, what: str, value: str) -> None:
        """All processes see the same.

        Raises:
            ConfigError: one sees something else than the main process.
        """
        if any(other != value for other in self.gather(value)):
            raise ConfigError(
                f"The processes do not see the same {what}: let nothing write to it while they "
                "start, and give all machines the same folders."
            )


def start_workers(device: str) -> Workers:
    """Join the processes that a launcher started; alone, there is nothing to join.

    Args:
        device: As in `TrainConfig.device`.

    Raises:
        ConfigError: the launcher asks for something that the learner cannot do.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Workers()
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"With several processes each has a device of its own: leave device {device!r} out."
        )
    from accelerate import PartialState

    fsdp, deepspeed = _fsdp(), None
    if _flag("ACCELERATE_USE_DEEPSPEED"):
        from learners.training.zero import deepspeed_settings

        deepspeed = deepspeed_settings(device)
    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
    count, index = state.num_processes, state.process_index
    return Workers(count, index, state.device, fsdp, deepspeed, _context(count, index))


def is_main() -> bool:
    """Whether this process is alone or the first of those that were started together."""
    return os.environ.get("RANK", "0") == "0"


def stop_workers() -> None:
    """End a program that is one of several processes, once all have come here; alone, go on.

    The process is left at once: at the regular end of the interpreter one was seen to abort after
    its work was done, on threads of torch's ("terminate called without an active exception").
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    distributed.barrier()
    distributed.destroy_process_group()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _fsdp() -> FullyShardedDataParallelPlugin | None:
    """Accelerate's settings for sharding, from the environment its launcher makes."""
    if not _flag("ACCELERATE_USE_FSDP"):
        return None
    from accelerate.utils import FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        raise ConfigError(
            "swe train shards with FSDP2 only: add --fsdp_version 2 to accelerate launch."
        )
    return plugin


def _context(count: int, index: int) -> Context | None:
    """Who shares rows with this process, by accelerate's ``--parallelism_config_cp_size``.

    Raises:
        ConfigError: the processes cannot be grouped so, or another parallelism is asked for.
    """
    if not _flag("ACCELERATE_USE_PARALLELISM_CONFIG"):
        return None
    sizes = {
        name: int(os.environ.get(f"PARALLELISM_CONFIG_{name.upper()}_SIZE", "1"))
        for name in ("cp", "tp", "sp")
    }
    for name in ("tp", "sp"):
        if sizes[name] > 1:
            raise ConfigError(
                f"swe train has no {name}_size: spread long sequences with "
                "--parallelism_config_cp_size, weights with FSDP2 or DeepSpeed."
            )
    size = sizes["cp"]
    if size < 2:
        return None
    if count % size:
        raise ConfigError(
            f"{count} processes cannot share sequences by {size}: the number of processes must be "
            "a multiple of --parallelism_config_cp_size."
        )
    from learners.ops.context import Context

    # Every process must make every group.
    groups: list[Any] = [
        distributed.new_group(list(range(at, at + size))) for at in range(0, count, size)
    ]
    return Context(size, index % size, groups[index // size])


def _flag(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Neighbours of one type, up to a message's size."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        full = sum(p.numel() for p in bucket) + parameter.numel() > _BUCKET
        if bucket and (full or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket
