"""The model card and the machine-readable record beside a finished adapter."""

from __future__ import annotations

import importlib.metadata
import json
import logging
from pathlib import Path
from typing import Any

from learners.data.report import DropReport
from learners.training.config import TrainConfig
from learners.training.results import TrainResult
from swe_env.disk import sync_folder, write_atomically

log = logging.getLogger(__name__)

_RECORD = "training.json"
_WHAT = {
    "lora": "LoRA adapter for",
    "qlora": "LoRA adapter (on 4-bit weights) for",
    "full": "All weights of",
}
_LOADING = {
    "adapter": (
        'Load it with `peft.PeftModel.from_pretrained(base, "<this folder>")`, or serve it with '
        "vLLM's\n`--lora-modules`."
    ),
    "full": (
        "Load it with "
        '`transformers.AutoModelForCausalLM.from_pretrained("<this folder>")`, or serve the folder '
        "with\nvLLM."
    ),
}


def write_card(folder: Path, config: TrainConfig, record: dict[str, Any]) -> None:
    """Write ``README.md`` (for readers and model hubs) and ``training.json`` (everything).

    Both are made to be published, so folders of this machine are given by their last name only:
    what was in them is told by the digests. The second is the last file of a run, written whole or
    not at all once the others are on the disk: where it is, the run is finished.
    """
    shown = public_settings(config)
    record = {**record, "config": shown, "versions": versions()}
    settings = "\n".join(f"| {k} | `{v}` |" for k, v in shown.items() if v is not None)
    figures = "\n".join(f"| {k} | {v:.6g} |" for k, v in sorted(record["metrics"].items()))
    start = shown["init_adapter"] or "none"
    if record["init_adapter_digest"]:
        start += f"@sha256:{record['init_adapter_digest']}"
    installed = ", ".join(f"{k} {v}" for k, v in record["versions"].items())
    (folder / "README.md").write_text(
        f"""---
library_name: {"transformers" if config.mode == "full" else "peft"}
base_model: {shown["model"]}
tags: [swe-env, {config.loss}, {"full" if config.mode == "full" else "lora"}]
---

# {_WHAT[config.mode]} {shown["model"]}, trained with {config.loss}

Trained by `swe train` on {record["samples"]} samples (data digest `{record["data_digest"]}`) for
{record["steps"]} steps. {record["data_report"]}.

{_LOADING["full" if config.mode == "full" else "adapter"]}

Base weights `{record["base_fingerprint"]}`, starting adapter `{start}`,
code `{record["commit"] or "not a checkout"}`, {installed}.

## Last step

| metric | value |
|---|---|
{figures}

## Settings

| setting | value |
|---|---|
{settings}
"""
    )
    sync_folder(folder)
    write_atomically(folder / _RECORD, (json.dumps(record, indent=2) + "\n").encode())


def read_record(folder: Path) -> dict[str, Any] | None:
    """``training.json`` of a finished run, None where there is none or it is damaged."""
    path = folder / _RECORD
    if not path.is_file():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        if not isinstance(record, dict):
            raise ValueError("it holds no record")
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read (%s): it is taken for missing.", path, error)
        return None
    return record


def read_result(folder: Path) -> TrainResult | None:
    """What a finished run in `folder` gave, None where there is none."""
    record = read_record(folder)
    if record is None:
        return None
    report = DropReport.from_record(record.get("report", {"kept": record["samples"]}))
    return TrainResult(folder, record["steps"], record["metrics"], report, record["stopped"])


def public_settings(config: TrainConfig) -> dict[str, Any]:
    """The settings as JSON data, of every folder only its name."""
    shown: dict[str, Any] = json.loads(config.model_dump_json())
    for name in ("buffer", "eval_buffer", "out", "init_adapter"):
        if shown[name] is not None:
            shown[name] = Path(shown[name]).expanduser().resolve().name
    shown["model"] = public_model(config.model)
    return shown


def public_model(model: str) -> str:
    """A hub id or alias as it is, the name of a folder."""
    folder = Path(model).expanduser()
    return folder.resolve().name if folder.is_dir() else model


def versions() -> dict[str, str]:
    """Installed versions of what the result depends on."""
    names = ("swe-env", "torch", "transformers", "peft", "accelerate")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
