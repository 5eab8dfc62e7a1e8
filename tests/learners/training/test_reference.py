"""What a killed run or another buffer had scored is read, and only the rest is scored."""

import errno
import json
import os
from dataclasses import replace

import pytest
import torch

from learners import TrainConfig, train
from learners.data.encode import encode
from learners.ops.context import Context
from learners.training import reference
from learners.training.passes import Packing, Passes
from learners.training.reference import reference_logps
from learners.training.score import PolicySums, Scorer
from learners.training.step import run_batch
from learners.training.workers import Workers
from swe_env.errors import InfrastructureError
from tests.learners.models import tiny_llama
from tests.learners.ops.launched import two_processes
from tests.learners.records import mixed_buffer, rewritten, sampled
from tests.learners.training.conftest import Killed, write_buffer
from tests.learners.training.test_passes import CPU, SEQUENCES, objective, pair, scorer_of

SAMPLES = [pair(20, 60 + 3 * n, 20 + 5 * n, task=n) for n in range(20)]


def flat(samples):
    return [sequence for sample in samples for sequence in sample.sequences]


def score(samples, progress=None):
    scorer = scorer_of(tiny_llama(), Packing())
    return reference_logps(
        scorer, flat(samples), key=["test"], width=2, progress=progress
    ).logps.view(-1, 2)


def uncached(samples):
    return scorer_of(tiny_llama(), Packing()).all(flat(samples), 2).logps.view(-1, 2)


def kill_at(sequences):
    def kill(done, total):
        if done == sequences:
            raise Killed

    return kill


@pytest.fixture
def scored(monkeypatch):
    """How many sequences were scored together, time after time."""
    real, found = Scorer.__call__, []

    def call(self, sequences, width=1):
        found.append(len(sequences))
        return real(self, sequences, width)

    monkeypatch.setattr(Scorer, "__call__", call)
    return found


@pytest.fixture
def files(tmp_path):
    """The files of sums, the oldest first."""

    def find():
        found = (tmp_path / "cache" / "reference").rglob("*.jsonl")
        return sorted(found, key=lambda file: file.stat().st_mtime_ns)

    return find


def test_the_reference_makes_the_passes_of_the_policy():
    """At step 0 with lambda = 0 the margin is 0 to the last digit, with a shared prompt too."""
    samples = [pair(20, 6, 9), pair(12, 3, 5, task=1), pair(20, 4, 2)]
    whole = objective(tiny_llama(), Packing(min_share=0.0))
    logps = reference_logps(whole.scorer, flat(samples), key=["test"], width=2).logps.view(-1, 2)
    assert whole.scorer.shared_tokens == 20 + 12 + 20
    result = run_batch(whole, samples, logps, None)
    assert torch.equal(result.logps, logps)


def test_a_reference_is_of_one_way_of_making_passes(tmp_path, monkeypatch):
    model = tiny_llama()
    monkeypatch.setattr(reference, "_score", lambda _, missing, *__: {one: [0] for one in missing})
    ways = [
        (False, Workers()), (True, Workers()), (True, Workers(context=Context(2, 0))),
        (True, Workers(fsdp=object())), (True, Workers(deepspeed=object())),
    ]  # fmt: skip
    for together, workers in [*ways, *ways]:
        passes = Passes(model, CPU, together=together)
        scorer = Scorer(PolicySums(model), passes, workers)
        reference_logps(scorer, SEQUENCES[:1], key=["test"])
    assert len(list((tmp_path / "cache" / "reference").iterdir())) == len(ways)


def test_a_killed_scoring_goes_on(scored):
    with pytest.raises(Killed):
        score(SAMPLES, kill_at(22))
    assert len(scored) == 11
    scored.clear()
    seen = []
    found = score(SAMPLES, lambda *now: seen.append(now))
    assert seen == [(done, 40) for done in range(18, 41, 2)]  # the first block was kept
    assert len(scored) == 12
    assert torch.equal(found, uncached(SAMPLES))
    scored.clear()
    assert torch.equal(score(SAMPLES, kill_at(40)), found)
    assert scored == []


@pytest.mark.parametrize(
    ("damage", "again"),
    [
        (lambda written: written[:-9], 1),
        (lambda written: b'\0\0\n"\xff"\n[3]\n\n["\n' + written, 0),
    ],
)
def test_lines_that_cannot_be_read_are_scored_again(scored, files, damage, again):
    found = score(SAMPLES[:4])
    (file,) = files()
    file.write_bytes(damage(file.read_bytes()))
    scored.clear()
    assert torch.equal(score(SAMPLES[:4]), found)
    assert len(scored) == again


def test_samples_of_another_buffer_are_not_scored_again(scored, files):
    score(SAMPLES[:5])
    scored.clear()
    samples = [*SAMPLES[3:8], SAMPLES[7], SAMPLES[3]]
    found = score(samples)
    assert len(scored) == 3
    assert torch.equal(found, uncached(samples))
    assert [len(file.read_bytes().splitlines()) for file in files()] == [5, 3]


def test_a_sample_is_known_by_all_that_its_sums_depend_on(scored):
    (chosen, rejected) = SAMPLES[0].sequences
    later = encode(rewritten(sampled(replies=("look", "done")), {1: (*range(30, 60), 9)}), None)
    other = replace(later.later[0], kept=later.later[0].kept + 1)
    sides = [
        (chosen, rejected), (rejected, chosen), (chosen, chosen),
        (replace(chosen, loss_mask=(False, *chosen.loss_mask[:-1])), rejected),
        (later, rejected), (replace(later, later=(other,)), rejected),
    ]  # fmt: skip
    samples = [replace(SAMPLES[0], sequences=one) for one in sides]
    found = [score([sample]) for sample in samples]
    assert len(scored) == len(samples)
    assert torch.equal(torch.cat(found), uncached(samples))


def test_sums_are_on_the_disk_before_the_next_are_computed(scored, files, monkeypatch):
    real, synced = os.fsync, []
    monkeypatch.setattr(os, "fsync", lambda at: synced.append(len(scored)) or real(at))
    score(SAMPLES)
    assert sorted(set(synced)) == [8, 16, 20]
    (file,) = files()
    assert len(file.read_bytes().splitlines()) == 20


def test_a_cache_that_fails_is_one_sentence(files, monkeypatch):
    def full(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(reference, "sync_folder", full)
        with pytest.raises(InfrastructureError, match=r"cache .* \(No space left .*: free space"):
            score(SAMPLES[:1])
    (file,) = files()
    file.unlink()
    file.mkdir()
    with pytest.raises(InfrastructureError, match=r"jsonl in the cache .* \(Is a dir.*: remove it"):
        score(SAMPLES[:1])


def test_two_processes_go_on_with_what_one_scored(files, tmp_path):
    with pytest.raises(Killed):
        score(SAMPLES, kill_at(22))
    told = two_processes("tests.learners.training.reference_launched", tmp_path / "told.json")
    first, second = (torch.tensor(one, dtype=torch.float64) for one in told["logps"])
    assert torch.equal(first, second)
    # Processes of one thread each may add up in another order.
    torch.testing.assert_close(first, uncached(SAMPLES), atol=1e-4, rtol=1e-6)
    assert told["done"] == list(range(20, 41, 4))
    lines = [[json.loads(line) for line in file.open()] for file in files()]
    assert [len(one) for one in lines] == [8, 12]
    assert len({name for one in lines for name, _ in one}) == 20


def progress_of(settings, **changes):
    """How many sequences were scored, each time that it was told."""
    seen = []
    train(TrainConfig(**{**settings, **changes}), on_progress=seen.append)
    return [told.done for told in seen if told.stage == "reference"]


def test_a_run_killed_before_its_first_step_goes_on(settings):
    def kill(progress):
        if progress.stage == "reference" and progress.done == 12:
            raise Killed

    settings |= {"loss": "entropo-kto", "max_steps": 1}
    with pytest.raises(Killed):
        train(TrainConfig(**settings), on_progress=kill)
    assert progress_of(settings, resume=True) == list(range(9, 17))


def test_a_buffer_that_grew_has_only_what_is_new_to_score(settings, tmp_path):
    settings |= {"loss": "entropo-kto", "max_steps": 1}
    small = write_buffer(tmp_path / "small", mixed_buffer()[:6])
    assert progress_of(settings, buffer=small, out=str(tmp_path / "a")) == list(range(1, 7))
    assert progress_of(settings, out=str(tmp_path / "b")) == list(range(7, 17))
