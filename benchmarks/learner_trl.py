"""One run of TRL's DPO or KTO trainer for `learner.py`, on the same ids; imports nothing of ours.

The trainers are TRL's own, but for the preparation of the data: it is tokenised already. TRL's
fused LM head is on (it has no switch), its precomputed reference log-probabilities are, and so is
what the job names.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from learner_meter import Meter
from peft import LoraConfig, load_peft_weights, set_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference


class Tokenised:
    """The data are ids already."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = None


class Dpo(Tokenised, DPOTrainer):
    """TRL's."""


class Kto(Tokenised, KTOTrainer):
    """TRL's."""


class AgentOnly(DataCollatorForPreference):
    """TRL's collator, with the completion mask of the tokens that the agent sampled."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """As TRL's, then the mask."""
        batch = super().torch_call(examples)
        rows = [
            (e["prompt_ids"], e[f"{side}_agent"])
            for side in ("chosen", "rejected")
            for e in examples
        ]
        for row, (prompt, mask) in enumerate(rows):
            whole = torch.tensor([0] * len(prompt) + mask)
            batch["completion_mask"][row, : len(whole)] = whole
        return batch


class Watch(TrainerCallback):
    """Tells the meter of the steps."""

    def __init__(self, meter: Meter) -> None:
        self.meter, self.losses = meter, list[float]()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Everything before is not timed: load, reference, optimizer."""
        self.meter.start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """One optimizer step."""
        self.meter.step()

    def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
        """Each step's loss."""
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])


def rows(pairs: list[dict[str, Any]], kind: str, batch: int) -> Dataset:
    """What the trainers get from their own preparation."""
    if kind == "dpo":
        return Dataset.from_list(pairs)
    found = [
        {
            "prompt_ids": pair["prompt_ids"], "completion_ids": pair[f"{side}_ids"],
            "label": side == "chosen",
        }
        for pair in pairs for side in ("chosen", "rejected")
    ]  # fmt: skip
    # Of like length, so that little is padded; TRL then rotates completions within each batch.
    found.sort(key=lambda row: -len(row["prompt_ids"]) - len(row["completion_ids"]))
    for start in range(0, len(found), batch):
        part = found[start : start + batch]
        for row, other in zip(part, [part[-1], *part[:-1]], strict=True):
            row["KL_completion_ids"] = other["completion_ids"]
    return Dataset.from_list(found)


def main(job: dict[str, Any]) -> None:
    """Train and print the figures."""
    torch.set_num_threads(job["threads"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
    torch.manual_seed(0)
    lora = LoraConfig(
        r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    kind, size = job["loss"], job["device_batch"]
    samples = job["batch"]
    given = {
        "output_dir": tempfile.mkdtemp(dir=Path(job["out"]).parent),
        "per_device_train_batch_size": size, "gradient_accumulation_steps": samples // size,
        "max_steps": job["steps"], "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "cosine", "warmup_steps": 0, "weight_decay": 0.0, "max_grad_norm": 1.0,
        "beta": job["beta"], "max_length": None, "precompute_ref_log_probs": True,
        "gradient_checkpointing": job["checkpointing"], "bf16": job["dtype"] == "bfloat16",
        "use_cpu": True, "save_strategy": "no", "report_to": "none", "logging_steps": 1,
        "disable_tqdm": True, "remove_unused_columns": False, "seed": 0,
    }  # fmt: skip
    meter = Meter()
    watch = Watch(meter)
    data = rows(json.loads(Path(job["rows"]).read_text()), kind, size)
    if kind == "dpo":
        collator = DataCollatorForPreference if not job["agent_only"] else AgentOnly
        trainer: Any = Dpo(
            model=model, args=DPOConfig(**given), train_dataset=data, processing_class=tokenizer,
            data_collator=collator(pad_token_id=0), callbacks=[watch], peft_config=lora,
        )  # fmt: skip
    else:
        trainer = Kto(
            model=model, args=KTOConfig(**given), train_dataset=data, processing_class=tokenizer,
            data_collator=DataCollatorForUnpairedPreference(pad_token_id=0), callbacks=[watch],
            peft_config=lora,
        )  # fmt: skip
    set_peft_model_state_dict(trainer.model, load_peft_weights(job["adapter"], device="cpu"))
    trainer.train()
    print(json.dumps({**meter.figures(), "losses": watch.losses, "trl": trl.__version__}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
