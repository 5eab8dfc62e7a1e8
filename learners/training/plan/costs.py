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
from learners.training.plan.samples import MicroBatch, Shares
from learners.training.plan.trace import LayerCosts, LogpsBytes, layer_costs, logps_bytes

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
    """Of the base model, and while sharded what is whole on each GPU: embeddings, head, and the
    layers that are in use."""
    adapter: int
    optimizer: int
    gradients: int
    """While sharded also those of a layer before each GPU has its part of them."""
    activations: int
    """Kept by the micro-batch for its backward pass."""
    layer: int
    """Used by one layer's backward pass beyond them; not at the same time as `logps`."""
    logps: int
    """Used by the log-probability pass: chosen hidden states, gradients, one chunk of logits."""
    casts: int
    """Bfloat16 copies of weights that autocast holds until a forward pass ends, beside what
    log-probabilities take in it; not at the same time as `layer` and the worst of `logps`. 0 where
    weights are in bfloat16 or a layer's copies are `activations`."""
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
        step = self.activations + max(self.layer, self.logps, self.casts)
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
        self.width: int = model_config.get_text_config().hidden_size
        self.windows = layer_windows(model_config)
        self._head, _, shape = output_layer(unwrap(model))
        self._softcap: float | None = shape["softcap"]
        self._logps: dict[tuple[int, int, bool], LogpsBytes] = {}
        self._wide_layers, self._wide_head = self.layers, self._head
        if method == "full" and dtype == torch.bfloat16:
            wide = adapted(meta_model(model_config, torch.float32), config, method)
            self._wide_layers = layer_costs(wide, cast=True)
            self._wide_head = output_layer(unwrap(wide))[0]

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
        2 x key heads x (width of a key + of a value) bytes a token, and their gradients in the
        backward pass.

        Full training on one GPU is in float32 under autocast: hidden states take 4 bytes, and the
        bfloat16 copies of weights lie beside them, of all layers while a forward pass lasts (and
        until their backward pass without checkpointing), of one while it is computed again.

        On N GPUs everything but activations and halves is divided by N. Whole on each are what
        stands in no layer (embeddings, head) and two layers, in bfloat16, with the adapters of two
        layers in float32; and the gradients of a layer (of all that is whole but its neighbour,
        where it is trained) beside the float32 buffer in which they are parted. With QLoRA nothing
        is divided. Each GPU has a micro-batch of its own.
        """
        assume, counts, size = self.assume, self.counts, self.size
        share = 1 / setup.gpus if setup.sharded else 1.0
        trained = counts.trainable
        cast = self._cast(setup)
        layers = self._wide_layers if cast else self.layers
        hidden = batch.tokens * self.width * (assume.trained_bytes if cast else size)
        gathered, parted = self._whole(setup)
        inputs = len(layers) * hidden
        own = [layer.kept(batch.tokens) + self._paths(layer, batch) for layer in layers]
        paths = max(self._paths(layer, batch) for layer in layers)
        kept = inputs + sum(own)
        worst = max(layer.backward(batch.tokens) for layer in layers) + paths
        if setup.checkpointing:
            worst += max(own)
            kept = inputs
        widened = counts.largest_linear * size if setup.method == "qlora" else 0
        split = setup.method == "lora" and size == torch.bfloat16.itemsize
        forward = max(layer.forward(batch.tokens) for layer in layers) + paths
        logps = self._logps_pass(batch, cast=cast)
        copies = sum(layer.kept.fixed for layer in layers) if cast else 0
        adapters = assume.gathered_layers * counts.layer_adapter if setup.sharded else 0
        return Memory(
            weights=round(self.weight_bytes(setup.method) * share + gathered) + widened,
            adapter=round((counts.adapter * share + adapters) * assume.trained_bytes)
            + (counts.split * SPLIT_BYTES if split else 0),
            optimizer=round(trained * assume.optimizer_bytes * share),
            gradients=round(trained * assume.gradient_bytes * share + parted),
            activations=round(kept + 4 * hidden),
            layer=round(worst),
            logps=logps.peak,
            casts=round(copies + logps.forward) if cast and setup.checkpointing else 0,
            reference=round(copies + max(forward, logps.forward) + 2 * hidden),
            overhead=assume.context_bytes,
        )

    def worst(self, setup: Setup, passes: Iterable[MicroBatch]) -> MicroBatch:
        """The pass that needs most memory, which may be another with another setup."""
        return max(passes, key=lambda batch: self.memory(setup, batch).total)

    def _cast(self, setup: Setup) -> bool:
        """Whether weights are float32 and autocast computes in bfloat16: FSDP casts them itself."""
        return setup.method == "full" and not setup.sharded and self.size == torch.bfloat16.itemsize

    def _whole(self, setup: Setup) -> tuple[float, float]:
        """Bytes of weights, and of gradients, that are whole on every GPU of a sharded model."""
        counts, gradient = self.counts, self.assume.gradient_bytes
        if not setup.sharded:
            return 0, 0
        gathered = (counts.outside + self.assume.gathered_layers * counts.layer_total) * self.size
        if setup.method != "full":
            return gathered, 2 * counts.layer_adapter * gradient
        parts = counts.outside, counts.layer_total
        return gathered, sum(parts) * self.size + max(parts) * gradient

    def keeps(self, setup: Setup, card: Gpu, batch: MicroBatch) -> Keeps:
        """What of a checkpointed micro-batch `learners.ops.keeping` does not compute again.

        Attention where it is worth it, then whole layers unless the model is sharded, in what
        memory is free beyond what `memory` says.
        """
        count = len(self.layers)
        if not setup.checkpointing:
            return Keeps(attention=False, layers=0)
        layers = self._wide_layers if self._cast(setup) else self.layers
        room = usable(card, self.assume) - self.memory(setup, batch).total
        given = [
            batch.tokens * (self.size * layer.attention.out + 4 * layer.attention.heads)
            for layer in layers
        ]
        work = self._attention(batch) / max(sum(size > 0 for size in given), 1)
        attention = work >= WORTH and sum(given) < SHARE * room
        if not setup.selective or not self.keepable or setup.sharded:
            return Keeps(attention, layers=0)
        own = [layer.kept(batch.tokens) + self._paths(layer, batch) for layer in layers]
        if attention:
            room -= sum(given)
            own = [kept - gave for kept, gave in zip(own, given, strict=True)]
        largest = max(own)
        whole = max(min(int(SHARE * room / largest), count), 0)
        return Keeps(attention and whole < count, whole)

    def _paths(self, layer: LayerCosts, batch: MicroBatch) -> int:
        """Copies of keys and values in one layer."""
        return layer.attention.keys * self.size * sum(batch.lengths) if batch.shared else 0

    def weight_bytes(self, method: str) -> float:
        """Of the base model on all GPUs together.

        LoRA: 2 bytes a weight. QLoRA: 4.127 bits for weights of linear layers, 2 bytes for all
        others (embeddings, head, norms; experts too, unless they are taken to be quantised). Full
        training: 4 bytes; autocast's bfloat16 copies are not counted here (`Memory.casts`).
        """
        counts, assume = self.counts, self.assume
        if method == "full":
            return float(counts.total * assume.trained_bytes)
        if method == "lora":
            return float(counts.total * self.size)
        small = counts.linear + (counts.experts if assume.quantised_experts else 0)
        return (counts.total - small) * self.size + small * assume.quantised_bits / 8

    def seconds(self, setup: Setup, card: Gpu, shares: Shares, *, train: bool = True) -> float:
        """Time until every GPU is through its passes.

        GPUs with a whole model each wait for the one with most work. Sharded ones gather each
        layer's weights together, so they make their passes side by side, each as long as the
        longest of it.

        Args:
            setup: How the run is made.
            card: What on.
            shares: Each GPU's passes; equally many where the model is sharded.
            train: Forward and backward; else forward only.
        """
        times = [[self._seconds(setup, card, b, train=train) for b in share] for share in shares]
        total = sum(map(max, zip(*times, strict=True))) if setup.sharded else max(map(sum, times))
        return total / (1.0 if setup.gpus == 1 else self.assume.scaling)

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
        and F = sum over sequences and layers of 2 x heads x (width of a query + of a value) x
        (tokens attended to, summed over tokens; none in a layer of linear attention): forward =
        2 (W + A) T + F + 2 H n. Backward = 2 W T for the gradients of inputs (again for those of
        weights, 2 W T where W is trained, and 2 T for each of W's experts that are merged with
        adapters), 4 A T, 2.5 F, and 4 H n, in which the logits are computed again (and 2 H n where
        the head is trained). Checkpointing adds one forward of the layers but for `kept_layers`,
        or with `kept_attention` (see `learners.ops.keeping`) all of it but F.
        """
        counts = self.counts
        linear = 2.0 * counts.layers_active * batch.tokens
        adapter = 2.0 * counts.adapter_active * batch.tokens
        attention = self._attention(batch)
        head = 2.0 * counts.head * batch.loss_tokens
        layers = linear + adapter + attention
        if not train:
            return layers + head
        full = setup.method == "full"
        trained = linear if full else 2.0 * counts.merged_active * batch.tokens
        backward = linear + trained + 2 * adapter
        backward += self.assume.attention_backward * attention + (3 if full else 2) * head
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
        widths: dict[int | None, int] = {}
        for layer, window in zip(self.layers, self.windows, strict=True):
            widths[window] = widths.get(window, 0) + layer.attention.scores
        return sum(2.0 * width * _attended(batch, window) for window, width in widths.items())

    def _logps_pass(self, batch: MicroBatch, *, cast: bool) -> LogpsBytes:
        key = batch.loss_tokens, batch.tokens, cast
        if key not in self._logps:
            head: Tensor = self._wide_head if cast else self._head
            self._logps[key] = logps_bytes(head, *key[:2], self._softcap, cast=cast)
        return self._logps[key]


def usable(card: Gpu, assume: Assumptions) -> int:
    """Bytes of a card that a run can have: all but what the allocator loses."""
    return round(card.memory * (1 - assume.fragmentation))


def _attended(batch: MicroBatch, window: int | None) -> float:
    """Tokens attended to in one layer, summed over the tokens that are computed."""
    found = sum(_triangle(tokens, window or tokens) for tokens in batch.computed)
    return found - sum(_triangle(tokens, window or tokens) for tokens in batch.shared)


def _triangle(tokens: int, window: int) -> float:
    reach = min(window, tokens)
    return reach * (reach + 1) / 2 + (tokens - reach) * reach
