"""`next_logits`: the distribution of the next token, as near to the learner's as is cheap.

Half-precision models round their logits: bfloat16 has steps of 0.125 between 16 and 32, and a
log-probability inherits them. The learner applies the output layer in float32 to the last hidden
state. Doing so for the whole vocabulary slows a CPU's decoding step by a fifth, doing it for the
most probable tokens by a fiftieth, and they hold nearly all of the probability.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from agents.policies.sampling.packed import PackedLinear, can_pack

log = logging.getLogger(__name__)

REFINED = 64
"""Most probable tokens whose logits are computed in float32; the others keep rounded ones."""
_SHAPED = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Settings of families that cap or scale their logits: they compute them themselves."""
_ROUNDING = 1e-5
"""Sums of a row in another order differ by this share in float32."""
_PROBE = 8
"""Tokens on which the output layer alone is compared with the model."""


def next_logits(model: Any, *, rows: int = 1) -> Callable[..., torch.Tensor]:
    """A function of a forward pass's arguments: logits of what follows, (rows, vocabulary).

    Of a half-precision model with a plain linear output layer they are float32, the `REFINED`
    highest as exact as the last hidden state allows. Every other model's own logits are taken.
    On a CPU a plain output layer is packed for `rows` rows.
    """
    causal = getattr(model, "get_base_model", lambda: model)()  # peft's LoRA stays in its layers
    head = causal.get_output_embeddings()
    half = model.dtype in (torch.bfloat16, torch.float16)
    packs = can_pack(model)
    if (half or packs) and _plain(head, causal.config.get_text_config(decoder=True)):
        project = PackedLinear(head, rows) if packs else head

        def logits(**inputs: Any) -> torch.Tensor:
            hidden = causal.base_model(**inputs).last_hidden_state[:, -1]
            return _refined(head, project(hidden).float(), hidden) if half else project(hidden)

        if _same(model, logits):
            return logits
        log.warning("%s shapes its logits in its own way: they are used.", type(causal).__name__)
    return lambda **inputs: model(**inputs).logits[:, -1]


def _refined(head: nn.Linear, logits: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """`logits` (rows, vocabulary), float32, made exact where they are highest, in place."""
    highest = logits.topk(min(REFINED, logits.shape[-1]), dim=-1).indices
    exact = torch.einsum("rkd,rd->rk", head.weight[highest].float(), hidden.float())
    if head.bias is not None:
        exact = exact + head.bias[highest].float()
    return logits.scatter_(-1, highest, exact)


def _plain(head: object, config: Any) -> bool:
    shaped = any(getattr(config, name, None) not in (None, 1) for name in _SHAPED)
    return isinstance(head, nn.Linear) and not shaped


def _same(model: Any, logits: Callable[..., torch.Tensor]) -> bool:
    """Whether a family does nothing to its logits that is not known here, up to rounding."""
    size = model.config.get_text_config(decoder=True).vocab_size
    ids = torch.arange(_PROBE, device=model.device)[None] % size
    with torch.inference_mode():
        theirs = model(input_ids=ids, use_cache=False).logits[:, -1].float()
        ours = logits(input_ids=ids, use_cache=False)
    step = max(torch.finfo(model.dtype).eps, _ROUNDING) * float(theirs.abs().max())
    return float((ours - theirs).abs().max()) <= 2 * step
