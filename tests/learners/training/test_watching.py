"""Evaluation on a held-out buffer, and the rules that end a run early."""

from itertools import pairwise
from math import exp, log

import pytest
import torch
from peft import PeftModel

from agents.selection.diversity import effective_correct
from learners import StopTraining, TrainConfig, read_metrics, train
from learners.data import encode
from learners.ops import sequence_logps
from learners.training.solutions import attempts, spread
from learners.training.stopping import StopRule
from swe_env.errors import ConfigError
from swe_env.replay import ReplayBuffer
from tests.learners.models import byte_tokenizer, tiny_llama
from tests.learners.records import FAILURE, mixed_buffer, sampled
from tests.learners.training.conftest import Killed, write_buffer


@pytest.fixture
def held_out(tmp_path):
    return write_buffer(tmp_path / "held-out", mixed_buffer(tasks=2, seed=9))


@pytest.mark.parametrize("loss", ["entropo-dpo", "entropo-kto", "kto", "sft"])
def test_a_held_out_buffer_is_evaluated_and_changes_nothing(settings, held_out, loss, tmp_path):
    settings |= {"loss": loss, "lora_dropout": 0.2}
    plain = read_metrics(train(TrainConfig(**settings)).out)
    settings |= {"eval_buffer": held_out, "eval_every": 2, "out": str(tmp_path / "second")}
    watched = read_metrics(train(TrainConfig(**settings)).out)
    assert [r["loss"] for r in plain] == [r["loss"] for r in watched]
    evaluated = [r["step"] for r in watched if "eval/entropy" in r]
    assert evaluated == [2, 4, 6]
    names = {name for name in watched[-1] if name.startswith("eval/")}
    assert {"eval/loss", "eval/entropy"} <= names
    if loss != "sft":
        assert {"eval/rewards/margins", "eval/rewards/accuracies", "eval/kl_bound"} <= names


def test_the_held_out_figures_are_those_of_the_finished_policy(settings, held_out):
    settings |= {"loss": "dpo", "ties": 0, "eval_buffer": held_out}
    out = train(TrainConfig(**settings)).out
    last = read_metrics(out)[-1]
    model = PeftModel.from_pretrained(tiny_llama(), out)
    from learners.data.dataset import pair_samples

    tokenizer = byte_tokenizer()
    pairs = pair_samples(list(ReplayBuffer(held_out)), lambda t: encode(t, tokenizer)).samples

    def sums(sequence):
        ids, mask = torch.tensor([sequence.input_ids]), torch.tensor([sequence.loss_mask])
        with torch.no_grad():
            return sequence_logps(model, ids, mask)

    margins, entropies, tokens = [], 0.0, 0
    for pair in pairs:
        chosen, rejected = (sums(s) for s in pair.sequences)
        with model.disable_adapter():
            first, second = (sums(s).logps for s in pair.sequences)
        margins.append(0.1 * ((chosen.logps - rejected.logps) - (first - second)).item())
        entropies += (chosen.entropies + rejected.entropies).item()
        tokens += (chosen.num_tokens + rejected.num_tokens).item()
    assert last["eval/rewards/margins"] == pytest.approx(sum(margins) / len(margins), abs=1e-5)
    assert last["eval/rewards/accuracies"] == sum(m > 0 for m in margins) / len(margins)
    assert last["eval/entropy"] == pytest.approx(entropies / tokens, rel=1e-5)


def diff(line):
    return f"--- a/m.py\n+++ b/m.py\n@@ -1 +1 @@\n-x = 0\n+x = {line}\n"


def several(task, patches):
    """Attempts at a task: (patch, resolved) of each."""
    return [
        sampled(
            task, replies=(f"try {at}", "done"), resolved=resolved, attempt=at, patch=diff(line)
        )
        for at, (line, resolved) in enumerate(patches)
    ]


def test_diversity_over_correct_solutions_is_of_the_policy_as_it_is(settings, tmp_path):
    records = [
        *several("a", [("1", True), ("1", True), ("2", True), ("3", False)]),
        *several("b", [("5", True), ("5", True), ("6", False)]),  # one solution: says nothing
    ]
    records += mixed_buffer(tasks=2, seed=9)
    held_out = write_buffer(tmp_path / "held-out", records)
    settings |= {"loss": "sft", "eval_buffer": held_out, "eval_every": 1, "max_steps": 4}
    last = read_metrics(train(TrainConfig(**settings)).out)[-1]
    before = exp(-(2 / 3 * log(2 / 3) + 1 / 3 * log(1 / 3)))
    assert last["eval/solutions/effective_before"] == pytest.approx(before, rel=1e-9)
    assert last["eval/solutions/effective_before"] == pytest.approx(effective_correct(records[:4]))
    model = PeftModel.from_pretrained(tiny_llama(), settings["out"])
    sums = []
    for record in records[:4]:
        encoded = encode(record, byte_tokenizer())
        batch = torch.tensor([encoded.input_ids]), torch.tensor([encoded.loss_mask])
        with torch.no_grad(), model.disable_adapter():
            start = sequence_logps(model, *batch).logps.item()
        with torch.no_grad():
            sums.append(sequence_logps(model, *batch).logps.item() - start)
    weights = [exp(s) / sum(map(exp, sums)) for s in sums]
    masses = [weights[0] + weights[1], weights[2]]
    shares = [mass / sum(masses) for mass in masses]
    expected = {
        "effective": exp(-sum(p * log(p) for p in shares)),
        "resolved": sum(masses),
        "distinct@8": sum(1 - (1 - mass) ** 8 for mass in masses),
        "sample_size": 1 / sum(w * w for w in weights),
    }
    for name, value in expected.items():
        assert last[f"eval/solutions/{name}"] == pytest.approx(value, rel=1e-4), name
    assert abs(expected["effective"] - before) > 1e-4  # training moved it


def test_an_evaluation_is_shown_as_it_goes_and_may_ask_for_the_end(settings, tmp_path):
    records = [*several("a", [("1", True), ("2", True), ("3", False)])]
    held_out = write_buffer(tmp_path / "held-out", [*records, *mixed_buffer(tasks=2, seed=9)])
    settings |= {"loss": "dpo", "eval_buffer": held_out, "eval_every": 2}
    seen = []

    def show(progress):
        seen.append(progress)
        if progress.stage == "evaluation":
            raise StopTraining("seen enough")

    result = train(TrainConfig(**settings), on_progress=show)
    pairs = [p for p in seen if p.stage == "evaluation"]
    assert {p.total for p in pairs} == {15}  # both sides of six pairs, and three attempts
    assert [p.done for p in pairs] == [2, 4, 6, 8, 10, 12, 13, 14, 15]
    assert (result.steps, result.stopped) == (2, "seen enough")
    assert "eval/loss" in result.metrics


def test_attempts_that_say_nothing_of_diversity_are_counted():
    records = [*several("a", [("1", True), ("2", True)]), *several("b", [("1", True)])]
    records += [sampled("a", failure=FAILURE), sampled("a", finished=False)]
    found = attempts(records, lambda t: encode(t, byte_tokenizer()))
    assert found.solutions in ((0, 1), (1, 0))
    assert found.dataset.report.dropped == {"one-solution": 1, "failure": 1, "unfinished": 1}


def test_mass_on_one_solution_is_one_effective_solution():
    groups, solutions = torch.zeros(4, dtype=torch.long), torch.tensor([0, 1, 2, -1])
    even = spread(torch.zeros(4, dtype=torch.float64), groups, solutions)
    assert even["effective"] == pytest.approx(3)
    assert even["resolved"] == pytest.approx(0.75)
    assert even["distinct@8"] == pytest.approx(3 * (1 - 0.75**8))
    assert even["sample_size"] == pytest.approx(4)
    log_weights = torch.tensor([900.0, 0.0, -900.0, -900.0], dtype=torch.float64)
    one = spread(log_weights, groups, solutions)
    assert one == {"effective": 1.0, "resolved": 1.0, "distinct@8": 1.0, "sample_size": 1.0}
    lost = spread(-log_weights.flip(0), groups, torch.tensor([-1, 0, 1, -1]))
    assert lost["resolved"] == pytest.approx(0.5)


def test_a_collapse_of_entropy_ends_the_run_and_a_resumed_one(settings):
    settings |= {
        "loss": "sft", "mode": "full", "learning_rate": 1e-2, "max_steps": 40,
        "stop_entropy": 0.9, "stop_window": 2, "save_every": 50,
    }  # fmt: skip
    result = train(TrainConfig(**settings))
    assert result.steps < 40
    assert result.stopped.startswith("the entropy fell to ")
    entropies = [r["entropy"] for r in read_metrics(result.out)]
    means = [(a + b) / 2 for a, b in pairwise(entropies)]
    assert means[-1] < 0.9 * means[0] <= min(means[:-1])
    again = train(TrainConfig(**settings, resume=True))
    assert (again.steps, again.stopped) == (result.steps, result.stopped)


def test_a_kl_budget_ends_the_run(settings):
    settings |= {"loss": "dpo", "stop_kl": 0.02, "stop_window": 1, "max_steps": 40}
    result = train(TrainConfig(**settings))
    distances = [r["kl_bound"] for r in read_metrics(result.out)]
    assert distances[0] == 0
    assert distances[-1] > 0.02 >= max(distances[:-1])
    assert "from the reference, over the budget of 0.02" in result.stopped
    with pytest.raises(ConfigError, match="which sft has none of"):
        train(TrainConfig(**{**settings, "loss": "sft"}))


def test_a_rule_goes_on_where_it_was(settings):
    config = TrainConfig(**settings, stop_entropy=0.5, stop_window=3)
    whole, before = StopRule(config), StopRule(config)
    reasons = []
    for entropy in [2.0, 2.0, 2.0, 1.5, 0.8, 0.8, 0.8]:
        whole.see({"entropy": entropy})
        after = StopRule(config)
        after.load_state_dict(before.state_dict())
        after.see({"entropy": entropy})
        before = after
        assert after.reason() == whole.reason()
        reasons.append(bool(whole.reason()))
    assert reasons == [False] * 6 + [True]


def test_a_run_that_a_rule_ends_is_evaluated_where_it_ends(settings, held_out):
    settings |= {"loss": "dpo", "stop_kl": 0.02, "stop_window": 1, "max_steps": 40}
    settings |= {"eval_buffer": held_out}
    seen = []
    result = train(TrainConfig(**settings), on_eval=lambda model, step: seen.append(step) or {})
    assert "over the budget" in result.stopped
    assert seen == [result.steps]
    evaluated = [r["step"] for r in read_metrics(result.out) if "eval/loss" in r]
    assert evaluated == [result.steps]
    assert result.metrics["eval/loss"] > 0


def test_a_run_killed_in_the_evaluation_that_a_rule_asked_for_repeats_it_alone(settings):
    settings |= {"loss": "dpo", "stop_kl": 0.02, "stop_window": 1, "max_steps": 40}
    settings |= {"save_every": 50}

    def killed(model, step):
        raise Killed

    with pytest.raises(Killed):
        train(TrainConfig(**settings), on_eval=killed)
    seen, steps = [], []
    result = train(
        TrainConfig(**settings, resume=True),
        on_eval=lambda model, step: seen.append(step) or {"x": 1.0},
        on_progress=lambda p: steps.append(p.done) if p.stage == "training" else None,
    )
    assert "over the budget" in result.stopped
    assert seen == [result.steps]
    assert steps == []  # none was taken, and of a run that is over none is shown
    assert read_metrics(result.out)[-1]["eval/x"] == 1.0


@pytest.mark.parametrize("stage", ["data", "reference"])
def test_a_stop_before_the_first_step_is_heeded_after_it(settings, stage):
    seen = []

    def show(progress):
        seen.append(progress.stage)
        if progress.stage == stage:
            raise StopTraining(f"enough of {stage}")

    result = train(TrainConfig(**settings, loss="dpo"), on_progress=show)
    assert (result.steps, result.stopped) == (1, f"enough of {stage}")
    assert {"data", "reference"} <= set(seen)
    assert (result.out / "adapter_model.safetensors").is_file()
