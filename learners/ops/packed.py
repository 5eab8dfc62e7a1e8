"""`packed_logps`: log-probability sums of packed sequences; `prepare` proves it fits a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from learners.ops.attention import NAMES, carrier, take_over
from learners.ops.kernels import KERNELS
from learners.ops.logps import token_logps
from learners.ops.packing import Call, Layout, Packed, pack
from learners.ops.prefix import Forest, grow
from learners.ops.rotary import moving_rotary
from learners.ops.sequence import SequenceLogps, evaluating, output_layer, plain_logps, unwrap
from swe_env.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_DROPOUT = ("attention_dropout", "attn_pdrop")
_REFUSALS = (ConfigError, RuntimeError, ImportError, TypeError, ValueError, AssertionError)
"""What transformers and the kernels raise where they do not fit a model."""
_ROUNDING = 0.1
"""Of means of standard normal values in half precision; a wrong mask is ten times as far off."""
_SEEN = 0.02
"""Nats, root mean square over the tokens that a fault touches: one that changes less matters as
little as rounding in half precision."""
_KINDS = ("full_attention", "sliding_attention")


def packed_logps(
    model: nn.Module, packed: Packed, kernel: str, *, chunk_size: int | None = None
) -> SequenceLogps:
    """As `sequence_logps`, for sequences in one row.

    Args:
        model: A causal language model that `prepare` found fit for it.
        packed: From `pack`.
        kernel: What computes attention, one of `learners.ops.kernels.KERNELS`.
        chunk_size: See `token_logps`.
    """
    causal = unwrap(model)
    packed.layout.kernel = kernel
    hidden = causal.base_model(
        input_ids=packed.input_ids,
        attention_mask=carrier(causal, packed.layout),
        position_ids=packed.layout.positions[None],
        use_cache=False,
    ).last_hidden_state[0]
    weight, bias, shape = output_layer(causal)
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):  # as autocast would have it, were the layer called
        weight = weight.to(torch.get_autocast_dtype(kind))
        bias = bias.to(weight.dtype) if bias is not None else None
    logps, entropies = token_logps(
        hidden[packed.sources].to(weight.dtype), weight, packed.targets,
        bias=bias, chunk_size=chunk_size, **shape,
    )  # fmt: skip
    # float64: see `learners.ops.sequence`.
    zeros = torch.zeros(len(packed.counts), dtype=torch.float64, device=logps.device)
    return SequenceLogps(
        zeros.index_add(0, packed.rows, logps.double()[packed.entries]),
        zeros.index_add(0, packed.rows, entropies.double()[packed.entries]),
        packed.counts,
    )


def prepare(
    model: nn.Module,
    kernel: str,
    device: torch.device,
    *,
    later: tuple[torch.device, torch.dtype] | None = None,
) -> str:
    """Let a model take packed rows, if they give what its own attention gives.

    Two sequences with a shared beginning and one without are scored packed and one by one. In half
    precision, where rounding is no smaller than what wrong positions do to a short row, they are
    also packed wrongly on purpose: of the way from each sequence by itself to such a fault, the
    packed ones must have gone less than half. Every layer must also have named the window that the
    configuration says it has, which a few tokens would not show.

    Args:
        model: A causal language model of transformers, bare or wrapped by peft.
        kernel: One of `KERNELS`.
        device: Where the model is.
        later: Where it will compute and the type of attention's inputs there, if it only waits on
            `device` to be sharded: `segments` then proves the packing, and what the layers asked
            of attention is asked of the kernel there.

    Returns:
        Empty, or why the model cannot be packed with that kernel; it is then as it was.
    """
    causal = unwrap(model)
    own = causal.config._attn_implementation
    if own not in NAMES and own not in NAMES.values():
        return f"its attention is {own!r}"
    unknown = set(layer_kinds(causal.config)) - set(_KINDS)
    if unknown:
        return f"it has layers of the kind {', '.join(sorted(unknown))}"
    config = causal.config.get_text_config()
    if kind := moving_rotary(causal):
        return f"its rotary frequencies ({kind}) depend on a pass's longest sequence"
    if any(getattr(config, name, None) for name in _DROPOUT):
        return "it drops attention out"
    undo = take_over(causal)
    try:
        with evaluating(causal), torch.no_grad():
            reason = _probe(model, kernel, device, later)
    except _REFUSALS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if reason:
        undo()
    return reason


def layer_kinds(model_config: PretrainedConfig) -> list[str]:
    """Each layer's kind of attention."""
    config = model_config.get_text_config()
    layers: int = config.num_hidden_layers
    if getattr(config, "attention_chunk_size", None):
        return ["chunked_attention"] * layers
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return list(kinds)
    windowed = getattr(config, "sliding_window", None) is not None
    return [_KINDS[windowed]] * layers


def layer_windows(model_config: PretrainedConfig) -> list[int | None]:
    """Each layer's sliding window in tokens, None where it attends to everything."""
    size = getattr(model_config.get_text_config(), "sliding_window", None)
    return [size if kind == "sliding_attention" else None for kind in layer_kinds(model_config)]


def _probe(
    model: nn.Module,
    kernel: str,
    device: torch.device,
    later: tuple[torch.device, torch.dtype] | None,
) -> str:
    causal = unwrap(model)
    vocabulary = causal.config.get_text_config().vocab_size
    # From all over it: its first tokens are special ones and bytes, which models hardly know.
    ids = [vocabulary * number // 41 for number in range(1, 41)]
    sequences = [ids[:20], ids[:9] + ids[29:12:-1], ids[::2]]
    masks = [[at > 0 for at in range(len(one))] for one in sequences]
    packed = _by_token(pack(list(zip(sequences, masks, strict=True)), device, min_share=0.1))
    tried = kernel if later is None else "segments"
    found = packed_logps(model, packed, tried).logps
    single = torch.cat([plain_logps(causal, torch.tensor(one, device=device)) for one in sequences])
    calls, expected = packed.layout.calls, layer_windows(causal.config)
    if (windows := [call.window for call in calls]) != expected:
        return f"its layers attend in windows of {windows}, not {expected}"
    exact = causal.dtype in (torch.float32, torch.float64)
    # Half precision rounds by a share of what it rounds: unlikely tokens are further apart.
    allowed = torch.tensor(1e-4) if exact else 0.1 + 0.03 * _means(single, masks).abs()
    apart = _means(found - single, masks).abs()
    if not bool((apart <= allowed.to(apart.device)).all()):
        worst = float(apart.max())
        return f"log-probabilities of its packed sequences differ by {worst:.3g} nats a token"
    forest = grow(sequences, min_share=0.1)
    like = {}
    for fault, layout in ({} if exact else _faults(forest, packed.layout)).items():
        wrong = packed_logps(model, replace(packed, layout=layout), tried).logps
        if _halfway(found, single, wrong, _untouched(packed)):
            like[fault] = float((found - wrong).norm())
    if like:
        return f"packed sequences look like ones {min(like, key=lambda name: like[name])}"
    if later is None:
        return ""
    return _probe_kernel(kernel, forest, dict.fromkeys(calls), *later)


def _by_token(packed: Packed) -> Packed:
    """The same with each loss token a row of its own."""
    rows = torch.arange(len(packed.entries), device=packed.entries.device)
    return replace(packed, rows=rows, counts=torch.ones_like(rows))


def _means(values: Tensor, masks: Sequence[Sequence[bool]]) -> Tensor:
    """Of each sequence, over its loss tokens."""
    counts = [sum(mask) for mask in masks]
    return torch.stack([one.mean() for one in torch.split(values.double(), counts)])


def _untouched(packed: Packed) -> Tensor:
    """Of each prediction, whether all before it in the row is its own path, fault or not."""
    return packed.layout.positions[packed.sources][packed.entries] == packed.sources[packed.entries]


def _halfway(found: Tensor, single: Tensor, wrong: Tensor, untouched: Tensor) -> bool:
    """Whether `found` lies nearer to `wrong` than to `single`, on the way between them.

    No where that way is no longer than rounding, which is measured where nothing can be wrong: a
    model to which positions are nothing has no fault if it ignores them.
    """
    rounding = (found - single)[untouched].square().mean().sqrt()
    way, gone = (wrong - single)[~untouched], (found - single)[~untouched]
    least = torch.clamp(3 * rounding, min=_SEEN)
    return bool(way.square().mean().sqrt() > least) and not gone @ way < 0.5 * way @ way


def _faults(forest: Forest, layout: Layout) -> dict[str, Layout]:
    """What a model or kernel does that leaves a part of the layout out of account."""
    device = layout.positions.device
    run_on, leaking = Layout(forest, device), Layout(grow([forest.tokens]), device)
    run_on.positions, leaking.positions = leaking.positions, layout.positions
    return {
        "whose positions run on over the whole row": run_on,
        "that see those before them in the row": leaking,
    }


def _probe_kernel(
    kernel: str, forest: Forest, calls: Iterable[Call], device: torch.device, dtype: torch.dtype
) -> str:
    """Empty, or how a kernel differs from `dense` where layers ask this of it, on random values."""
    layout = Layout(forest, device)
    drawn = torch.Generator().manual_seed(0)
    for call in calls:
        sizes = [
            (call.heads, call.width), (call.key_heads, call.width),
            (call.key_heads, call.value_width),
        ]  # fmt: skip
        query, key, value = (
            torch.randn(1, heads, forest.computed, width, generator=drawn).to(device, dtype)
            for heads, width in sizes
        )
        asked = (call.scale, call.window, call.softcap)
        found = KERNELS[kernel](query, key, value, layout, *asked)
        wanted = KERNELS["dense"](query.float(), key.float(), value.float(), layout, *asked)
        apart = float((found - wanted).abs().max())
        if not apart <= _ROUNDING:
            return f"what it gives on {device.type} in {dtype} is {apart:.3g} from a dense mask's"
    return ""
