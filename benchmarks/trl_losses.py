"""What TRL's own trainers say of given log-probabilities: the figures our losses are held to.

pip install trl==1.16.0 && python benchmarks/trl_losses.py tests/data/trl_losses.json

Runs `DPOTrainer._compute_loss` and `KTOTrainer._compute_loss` as they are, on a model that gives
back the log-probabilities it was made with, and writes these with TRL's loss and its gradient.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import trl
from torch import Tensor
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

TOKENS = 12


def main(path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    record = {
        "trl": trl.__version__,
        "dpo": [dpo(beta, generator) for beta in (0.05, 0.1, 0.5)],
        "kto": [
            kto(beta, kind, generator)
            for beta in (0.05, 0.1, 0.5)
            for kind in ("kto", "apo_zero_unpaired")
        ],
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(path)


def dpo(beta: float, generator: torch.Generator) -> dict[str, Any]:
    """One batch of four pairs; TRL stacks the rejected ones below the chosen ones."""
    policy, reference = _logps(8, generator), _logps(8, generator)
    trainer = _trainer(
        beta=beta, ld_alpha=None, loss_types=["sigmoid"], loss_weights=[1.0], label_smoothing=0.0,
        f_divergence_type="reverse_kl", use_weighting=False,
    )  # fmt: skip
    chosen, rejected = reference.detach().sum(1).chunk(2)
    inputs = _inputs(8) | {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    loss = DPOTrainer._compute_loss(trainer, _model(policy), inputs, False)
    return _result(beta, policy, reference, loss)


def kto(beta: float, kind: str, generator: torch.Generator) -> dict[str, Any]:
    """One batch of eight rows, with mismatched completions for the reference point."""
    policy, reference = _logps(8, generator), _logps(8, generator)
    # The policy has moved towards them, so that TRL's clamp does not always hide the estimate.
    mismatched = _logps(8, generator).detach()
    ref_mismatched = mismatched.sum(1) - 1.5 * torch.rand(8, generator=generator)
    label = torch.tensor([True, False, True, True, False, False, True, False])
    trainer = _trainer(
        beta=beta, loss_type=kind, calculate_KL=kind == "kto", desirable_weight=1.0,
        undesirable_weight=1.3,
    )  # fmt: skip
    trainer._compute_kl_logps = lambda *_: mismatched.sum(1) if kind == "kto" else None
    inputs = _inputs(8) | {
        "label": label, "ref_logps": reference.detach().sum(1), "ref_KL_logps": ref_mismatched
    }  # fmt: skip
    loss = KTOTrainer._compute_loss(trainer, _model(policy), inputs, False)
    return _result(beta, policy, reference, loss) | {
        "kind": kind,
        "label": label.tolist(),
        "undesirable_weight": 1.3,
        "mismatched": mismatched.sum(1).tolist(),
        "ref_mismatched": ref_mismatched.tolist(),
    }


def _trainer(**settings: Any) -> Any:
    """What the two methods read of a trainer."""
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x
    )
    return SimpleNamespace(
        model=SimpleNamespace(training=False), accelerator=accelerator, aux_loss_enabled=False,
        precompute_ref_logps=True, _metrics={"eval": defaultdict(list)}, _total_train_tokens=0,
        **settings,
    )  # fmt: skip


def _model(log_probs: Tensor) -> Any:
    zeros = torch.zeros_like(log_probs).detach()
    outputs = SimpleNamespace(
        log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
    )
    return lambda **_: outputs


def _inputs(rows: int) -> dict[str, Tensor]:
    ids = torch.ones(rows, TOKENS + 1, dtype=torch.long)
    return {"input_ids": ids, "attention_mask": ids, "completion_mask": ids}


def _logps(rows: int, generator: torch.Generator) -> Tensor:
    return (-2 * torch.rand(rows, TOKENS, generator=generator)).requires_grad_()


def _result(beta: float, policy: Tensor, reference: Tensor, loss: Tensor) -> dict[str, Any]:
    loss.backward()
    assert policy.grad is not None
    return {
        "beta": beta,
        "logps": policy.detach().sum(1).tolist(),
        "ref_logps": reference.detach().sum(1).tolist(),
        "loss": loss.item(),
        "gradient": policy.grad[:, 0].tolist(),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
