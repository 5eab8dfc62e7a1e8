"""Memory of one GPU and time of a run, as arithmetic on counts and traced layers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from learners.ops.keeping import SHARE, WORTH, keepable_layers
from learners.ops.lora import SPLIT_BYTES
from learners.ops.packed import layer_windows
from learners.ops.sequence import output_layer, unwrap
from learners.training.plan.assumptions import Assumptions
from learners.training.plan.counts import Counts, adapted, count, meta_model
from learners.training.plan.gpus import Gpu
from learners.training.plan.samples import MicroBatch
from learners.training.plan.trace import LayerCosts, layer_costs, logps_bytes

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

    from learners.training.config import TrainConfig


@dataclass(frozen=True, slots=True)
class Setup:
    """One way to run."""

    method: str
    """``lora``, ``qlora`` or ``full``."""
    gpus: int
    """1, or more with weights, gradients and optimizer state sharded over them (FSDP); QLoRA's
    4-bit weights are whole on each, see `sharded`."""
    checkpointing: bool
    selective: bool = False
    """With checkpointing: whether the last layers are not computed again where a GPU has room for
    what they keep (`learners.ops.keeping`); not of a sharded model."""

    @property
    def sharded(self) -> bool:
        """Whether each GPU holds a part of the model."""
        return self.gpus > 1 and self.method != "qlora"


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one GPU at the worst moment of a run."""

    weights: int
    """Of the base model, and while sharded the whole layers that are in use."""
    adapter: int
    optimizer: int
    gradients: int
    activations: int
    """Kept for the backward pass of the longest micro-batch."""
    layer: int
    """Used by one layer's backward pass beyond them; not at the same time as `logps`."""
    logps: int
    """Used by the log-probability pass: chosen hidden states, gradients, one chunk of logits."""
    reference: int
    """Used by the reference pass, which keeps nothing; over before the first step. There is no
    second model: the reference is the policy as it starts."""
    overhead: int
    """CUDA context and the like."""

    @property
    def fixed(self) -> int:
        """What is there whatever the samples are."""
        return self.weights + self.adapter + self.optimizer + self.gradients + self.overhead

    @property
    def total(self) -> int:
        """At the worst moment."""
        step = self.activations + max(self.layer, self.logps)
        return self.fixed + max(step, self.reference)


class Keeps(NamedTuple):
    """What checkpointed layers keep where memory is free."""

    attention: bool
    layers: int
    """Layers that are not computed again at all."""


class Costs:
    """What a model costs with one method of training, traced once."""

    def __init__(
        self, model_config: PretrainedConfig, config: TrainConfig, method: str, assume: Assumptions
    ) -> None:
        """Build the model on the meta device and trace its layers.

        Raises:
            ConfigError: the model or the adapter cannot be built.
        """
        dtype = torch.float32 if config.dtype == "float32" else torch.bfloat16
        model = adapted(meta_model(model_config, dtype), config, method)
        self.size = dtype.itemsize
        self.method = method
        self.assume = assume
        self.counts: Counts = count(model)
        self.layers: list[LayerCosts] = layer_costs(model)
        self.keepable = bool(keepable_layers(unwrap(model)))
        text = model_config.get_text_config()
        self.width: int = text.hidden_size
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        self._heads: int = text.num_attention_heads
        self._heads_width: int = self._heads * head
        keys = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        self._keys_width: int = keys * head
        self.windows = layer_windows(model_config)
        self._head, _, shape = output_layer(unwrap(model))
        self._softcap: float | None = shape["softcap"]
        self._logps: dict[tuple[int, int], int] = {}

    def memory(self, setup: Setup, batch: MicroBatch) -> Memory:
        """Bytes on one GPU while `batch` is the micro-batch.

        Sizes are those of bfloat16; ``dtype = "float32"`` doubles what is not float32 already.
        With P weights of the base, A of the adapter, T tokens computed and L layers:
        weights = 2 P bytes (or QLoRA's, see `weight_bytes`); adapter, gradients and optimizer =
        4 A, 4 A and 8 A, and 6 for each of A's weights that is split into halves of bfloat16 for
        the passes between two optimizer steps (whole on every GPU, none in float32); activations =
        L inputs of 2 x width x T and what the L layers keep at T beside them (nothing with
        checkpointing), plus the last norm's input, output and float32 copy (8 x width x T). Where
        beginnings are shared, attention keeps the keys and values of each context's whole path,
        4 x (key heads x head size) bytes a token, and their gradients in the backward pass. On N
        GPUs everything but activations and halves is divided by N, and two whole layers in
        bfloat16 are added (also for full training on one GPU, whose weights
        are float32); with QLoRA nothing is divided. Each GPU has a micro-batch of its own.
        """
        assume, counts = self.assume, self.counts
        share = 1 / setup.gpus if setup.sharded else 1.0
        trained = counts.trainable
        size = self.size
        hidden = batch.tokens * self.width * size
        whole = setup.sharded or setup.method == "full"
        gathered = assume.gathered_layers * counts.layer_total * size if whole else 0
        inputs = len(self.layers) * hidden
        paths = self._paths(batch)
        own = [layer.kept(batch.tokens) + paths for layer in self.layers]
        kept = inputs + sum(own)
        worst = max(layer.backward(batch.tokens) for layer in self.layers) + paths
        if setup.checkpointing:
            worst += max(own)
            kept = inputs
        widened = counts.largest_linear * size if setup.method == "qlora" else 0
        split = setup.method == "lora" and size == torch.bfloat16.itemsize
        forward = max(layer.forward(batch.tokens) for layer in self.layers) + paths
        logps = self._logps_pass(batch)
        return Memory(
            weights=round(self.weight_bytes(setup.method) * share) + gathered + widened,
            adapter=round(counts.adapter * assume.trained_bytes * share)
            + (counts.split * SPLIT_BYTES if split else 0),
            optimizer=round(trained * assume.optimizer_bytes * share),
            gradients=round(trained * assume.gradient_bytes * share),
            activations=round(kept + 4 * hidden),
            layer=round(worst),
            logps=logps,
            reference=round(max(forward, logps) + 2 * hidden),
            overhead=assume.context_bytes,
        )

    def keeps(self, setup: Setup, card: Gpu, batch: MicroBatch) -> Keeps:
        """What of a checkpointed micro-batch `learners.ops.keeping` does not compute again.

        Attention where it is worth it, then whole layers unless the model is sharded, in what
        memory is free beyond what `memory` says.
        """
        count = len(self.layers)
        if not setup.checkpointing:
            return Keeps(attention=False, layers=0)
        room = usable(card, self.assume) - self.memory(setup, batch).total
        given = batch.tokens * (self.size * self._heads_width + 4 * self._heads)
        work = self._attention(batch) / count
        attention = work >= WORTH and count * given < SHARE * room
        if not setup.selective or not self.keepable or setup.sharded:
            return Keeps(attention, layers=0)
        largest = max(layer.kept(batch.tokens) for layer in self.layers) + self._paths(batch)
        if attention:
            room, largest = room - count * given, largest - given
        layers = max(min(int(SHARE * room / largest), count), 0)
        return Keeps(attention and layers < count, layers)

    def _paths(self, batch: MicroBatch) -> int:
        """Copies of keys and values in one layer."""
        return 2 * self._keys_width * self.size * sum(batch.lengths) if batch.shared else 0

    def weight_bytes(self, method: str) -> float:
        """Of the base model on all GPUs together.

        LoRA: 2 bytes a weight. QLoRA: 4.127 bits for weights of linear layers, 2 bytes for all
        others (embeddings, head, norms; experts too, unless they are taken to be quantised). Full
        training: 4 bytes, of which bfloat16 copies of a layer are made while it is in use.
        """
        counts, assume = self.counts, self.assume
        if method == "full":
            return float(counts.total * assume.trained_bytes)
        if method == "lora":
            return float(counts.total * self.size)
        small = counts.linear + (counts.experts if assume.quantised_experts else 0)
        return (counts.total - small) * self.size + small * assume.quantised_bits / 8

    def seconds(self, setup: Setup, card: Gpu, batches: Iterable[MicroBatch]) -> float:
        """Time of these micro-batches, forward and backward, spread over the GPUs."""
        return sum(self._seconds(setup, card, batch, train=True) for batch in batches) / _speed(
            setup, self.assume
        )

    def reference_seconds(self, setup: Setup, card: Gpu, batches: Iterable[MicroBatch]) -> float:
        """Time of these micro-batches, forward only, spread over the GPUs."""
        return sum(self._seconds(setup, card, batch, train=False) for batch in batches) / _speed(
            setup, self.assume
        )

    def flops(
        self,
        setup: Setup,
        batch: MicroBatch,
        *,
        train: bool = True,
        kept_attention: bool = False,
        kept_layers: int = 0,
    ) -> float:
        """Floating-point operations of one micro-batch, shared tokens once.

        With W weights a token meets in the layers, A of the adapter, H of the head, n loss tokens
        and F = sum over sequences and layers of 4 x (heads x head size) x (tokens attended to,
        summed over tokens): forward = 2 (W + A) T + F + 2 H n. Backward = 2 W T for the gradients
        of inputs (again 2 W T for those of weights where W is trained), 4 A T, 2.5 F, and 4 H n,
        in which the logits are computed again. Checkpointing adds one forward of the layers but
        for `kept_layers`, or with `kept_attention` (see `learners.ops.keeping`) all of it but F.
        """
        counts = self.counts
        linear = 2.0 * counts.layers_active * batch.tokens
        adapter = 2.0 * counts.adapter_active * batch.tokens
        attention = self._attention(batch)
        head = 2.0 * counts.head * batch.loss_tokens
        layers = linear + adapter + attention
        if not train:
            return layers + head
        backward = linear * (2 if setup.method == "full" else 1) + 2 * adapter
        backward += self.assume.attention_backward * attention + 2 * head
        again = layers - (attention if kept_attention else 0) if setup.checkpointing else 0
        return layers + again * (1 - kept_layers / len(self.layers)) + head + backward

    def _seconds(self, setup: Setup, card: Gpu, batch: MicroBatch, *, train: bool) -> float:
        """The longer of computing and reading the weights once for each pass through them."""
        assume = self.assume
        kept = self.keeps(setup, card, batch)
        work = self.flops(
            setup, batch, train=train, kept_attention=kept.attention, kept_layers=kept.layers
        )
        peak = card.peak if self.size == torch.bfloat16.itemsize else card.float32_peak
        compute = work / (peak * assume.utilisation)
        passes = 1 if not train else 3 if setup.checkpointing else 2
        read = passes * self.weight_bytes(setup.method)
        return max(compute, read / (card.bandwidth * assume.bandwidth_utilisation))

    def _attention(self, batch: MicroBatch) -> float:
        """Operations of all layers' attention, forward."""
        attended = sum(self._attended(tokens) for tokens in batch.computed)
        attended -= sum(self._attended(tokens) for tokens in batch.shared)
        return 4.0 * self._heads_width * attended

    def _attended(self, width: int) -> float:
        """Tokens attended to, summed over the tokens of a row and over layers."""
        total = 0.0
        for window in self.windows:
            reach = min(window or width, width)
            total += reach * (reach + 1) / 2 + (width - reach) * reach
        return total

    def _logps_pass(self, batch: MicroBatch) -> int:
        key = batch.loss_tokens, batch.tokens
        if key not in self._logps:
            head: Tensor = self._head
            self._logps[key] = logps_bytes(head, *key, self._softcap)
        return self._logps[key]


def usable(card: Gpu, assume: Assumptions) -> int:
    """Bytes of a card that a run can have: all but what the allocator loses."""
    return round(card.memory * (1 - assume.fragmentation))


def _speed(setup: Setup, assume: Assumptions) -> float:
    return 1.0 if setup.gpus == 1 else setup.gpus * assume.scaling
