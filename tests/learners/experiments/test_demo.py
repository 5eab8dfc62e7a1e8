"""The demo's whole pipeline on a tiny random model and a tiny repository."""

from __future__ import annotations

import json
from dataclasses import replace

import peft
import pytest

from agents.selection import Estimate
from learners.experiments.commands import _demo_settings
from learners.experiments.demo import DemoSettings, run_demo
from learners.experiments.demo.dev import DevWatch
from learners.experiments.demo.report import _estimate
from learners.training import StopTraining
from swe_env.errors import ConfigError
from swe_env.tasks import dump
from tests.agents.models import tiny_model
from tests.learners.models import save_model


@pytest.fixture
def settings(shop_task, tmp_path):
    splits = ("train", "train", "heldout")
    tasks = [
        replace(shop_task, instance_id=f"shop-{k}", metadata={"split": split})
        for k, split in enumerate(splits)
    ]
    dump(tasks, tmp_path / "tasks.jsonl")
    return DemoSettings(
        tasks=f"jsonl:{tmp_path / 'tasks.jsonl'}",
        model=save_model(tmp_path / "model"),
        start="sft",
        dev_tasks=1,
        dev_attempts=1,
        train_attempts=1,
        heldout_attempts=2,
        base_attempts=1,
        max_episode_steps=6,
        max_new_tokens=8,
        workers=2,
        sft_attempts=2,
        batch_size=2,
    )


def test_every_stage_runs_and_zeros_are_reported(settings, tmp_path, capsys):
    out = tmp_path / "demo"
    figures = run_demo(out, settings)
    oracle = json.loads((out / "stages" / "oracle.json").read_bytes())["result"]
    assert oracle == {
        "used": {"resolved": 3, "attempts": 3},
        "train": {"resolved": 2, "attempts": 2},
    }
    assert {arm: (f["resolved"], f["attempts"]) for arm, f in figures.items()} == {
        "base": (0, 1),
        "adapter": (0, 2),
        "trained": (0, 2),
    }
    # A random model resolves nothing, so there is nothing to prefer: said, not hidden.
    page = (out / "report.html").read_text()
    assert "could not begin" in page
    assert "Nothing was resolved by: base, adapter, trained" in page
    assert "Held-out tasks" in capsys.readouterr().out
    before = (out / "report.html").stat().st_mtime_ns
    assert run_demo(out, settings) == figures
    assert (out / "report.html").stat().st_mtime_ns > before


def test_a_missing_adapter_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("learners.experiments.demo.pipeline.ADAPTER", tmp_path / "none")
    with pytest.raises(ConfigError, match="make demo-adapter"):
        run_demo(tmp_path / "demo", DemoSettings())


def test_an_unknown_setting_is_named():
    with pytest.raises(ConfigError, match="no setting 'sed'"):
        _demo_settings(["sed=1"])
    assert _demo_settings(["seed=3", "loss=kto"]) == DemoSettings(seed=3, loss="kto")


@pytest.fixture
def adapted():
    """A tiny model whose adapter has a name of its own, as in training."""
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"])
    return peft.get_peft_model(tiny_model(), lora, adapter_name="policy")


def test_training_stops_when_development_tasks_suffer_and_the_best_is_kept(tmp_path, adapted):
    rates = {2: 0.5, 4: 0.47, 6: 0.3}
    watch = DevWatch(tmp_path, lambda _, step: rates[step], start=0.4)
    assert watch(adapted, 2) == {"dev_pass@1": 0.5}
    assert watch(adapted, 4) == {"dev_pass@1": 0.47}  # within the noise
    with pytest.raises(StopTraining, match=r"0\.500 to 0\.300"):
        watch(adapted, 6)
    assert watch.best() == (2, tmp_path / "step-2")
    assert (tmp_path / "step-2" / "adapter_config.json").exists()
    again = DevWatch(tmp_path, lambda _, step: rates[step], start=0.4)
    assert again.seen == {0: 0.4, **rates}


def test_an_estimate_without_an_interval_stands_alone_in_the_table():
    nan = float("nan")
    assert _estimate(Estimate(value=0.375, low=nan, high=nan, tasks=1)) == "0.38"
    assert _estimate(Estimate(value=0.5, low=0.25, high=0.75, tasks=4)) == "0.50 [0.25, 0.75]"
