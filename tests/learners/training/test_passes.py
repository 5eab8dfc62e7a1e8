import pytest
import torch

from learners.data.dataset import Sample, row_samples
from learners.data.encode import Encoded, encode
from learners.losses import get_loss
from learners.ops.kernels import KERNELS
from learners.training.config import TrainConfig
from learners.training.parts import Data, check_passes
from learners.training.passes import Packing, Passes
from learners.training.score import PolicySums, Scorer
from learners.training.step import Objective, run_batch
from learners.training.workers import Workers
from swe_env.errors import ConfigError
from tests.learners.models import tiny, tiny_llama
from tests.learners.records import rewritten, sampled

CPU = torch.device("cpu")


def sequence(prompt, reply, rest=0, task=0):
    """The prompt depends on the task alone, the reply on its own length too."""
    ids = [task * 7 + at % 50 for at in range(prompt)]
    ids += [100 + (reply * at) % 83 for at in range(1, reply + rest + 1)]
    mask = (False,) * prompt + (True,) * reply + (False,) * rest
    return Encoded(tuple(ids), mask, tuple(0 if m else -1 for m in mask))


def pair(prompt, chosen, rejected, task=0):
    return Sample(
        (sequence(prompt, chosen, task=task), sequence(prompt, rejected, task=task)), task
    )


def scorer_of(model, packing):
    return Scorer(PolicySums(model), Passes(model, CPU, packing), Workers())


LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 16,
    "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "factor": 4.0,
}  # fmt: skip
SEQUENCES = [
    sequence(9, 20, rest=5), sequence(6, 4, task=1), sequence(9, 3), sequence(6, 9, task=1),
    sequence(30, 2, task=2),
]  # fmt: skip


@pytest.mark.parametrize("kernel", ["auto", "segments", "dense"])
@pytest.mark.parametrize("together", [False, True])
def test_sums_do_not_depend_on_how_sequences_are_put_together(kernel, together):
    model = tiny_llama()
    plain = scorer_of(model, Packing("none"))(SEQUENCES)
    scorer = scorer_of(model, Packing(kernel, min_share=0.0))
    scorer.passes.together = together
    for one, other in zip(scorer(SEQUENCES, width=3), plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert scorer.shared_tokens == (9 + 6 if together else 9)


@pytest.mark.parametrize("kernel", ["none", "dense"])
def test_sums_lose_nothing_of_small_terms(monkeypatch, kernel):
    """In float32, 2 ** 24 + 1 is 2 ** 24."""
    scorer = scorer_of(tiny_llama(), Packing(kernel, min_share=0.0))

    def large_then_small(hidden, weight, targets, **_):
        logps = -torch.ones(len(targets))
        logps[0] = -(2.0**24)
        return logps, -logps

    monkeypatch.setattr("learners.ops.sequence.token_logps", large_then_small)
    monkeypatch.setattr("learners.ops.packed.token_logps", large_then_small)
    scorer.passes.together = True
    sums = scorer([sequence(9, 20)])
    assert sums.logps.tolist() == [-(2**24) - 19]
    assert sums.entropies.tolist() == [2**24 + 19]


@pytest.mark.parametrize("packing", [Packing("none"), Packing(min_share=0.0), Packing("dense")])
@pytest.mark.parametrize("together", [False, True])
def test_a_trajectory_with_rewritten_prompts_is_the_sum_of_its_turns(packing, together):
    """Each turn scored alone, behind the prompt that it was sampled from: sums and gradients."""
    trajectory = rewritten(
        sampled(replies=("look", "edit", "done")), {1: (*range(30, 60), 9), 2: (*range(30, 60), 8)}
    )
    other = sampled(replies=("look", "stop"))
    model = tiny_llama()
    alone = scorer_of(model, Packing("none"))
    turns = [
        Encoded(prompt + reply, (False,) * len(prompt) + (True,) * len(reply), ())
        for step, prompt in trajectory.prompt_ids()
        for reply in (step.metrics.completion_token_ids,)
    ]
    (weight, *_) = model.parameters()
    expected = alone(turns)
    (wanted,) = torch.autograd.grad(expected.logps.sum(), weight)
    scorer = scorer_of(model, packing)
    scorer.passes.together = together
    encoded = [encode(one, None) for one in (trajectory, other)]
    found = scorer(encoded, width=2)
    (gradient,) = torch.autograd.grad(found.logps[0], weight)
    for column, values in zip(found, expected, strict=True):
        torch.testing.assert_close(column[0], values.sum(), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(gradient, wanted, atol=1e-4, rtol=1e-4)
    for mine, theirs in zip(found, alone(encoded[1:]), strict=True):
        torch.testing.assert_close(mine[1], theirs[0], atol=1e-4, rtol=1e-5)
    found = scorer.all(encoded, 2)
    torch.testing.assert_close(found.logps[0], expected.logps.sum().detach(), atol=1e-4, rtol=1e-5)


def test_processes_that_share_a_model_cannot_have_uneven_passes():
    several = rewritten(sampled(replies=("look", "done")), {1: tuple(range(30, 60))})
    one = sampled(replies=("look", "stop"), resolved=False, attempt=1)

    def check(packing, trajectories, **workers):
        model = tiny_llama(rope_parameters=LONGROPE)
        passes = Passes(model, CPU, packing, together=True)
        scorer = Scorer(PolicySums(model), passes, Workers(**workers))
        dataset = row_samples(trajectories, lambda t: encode(t, None), kind="kto")
        check_passes(scorer, Data(dataset, None, None, []))

    fsdp = {"count": 2, "fsdp": object()}
    check(Packing(), [several, one])
    check(Packing(), [one], **fsdp)
    with pytest.raises(ConfigError, match=r"1 sequences have prompts that rewrite.*--use_fsdp"):
        check(Packing(), [several, one], **fsdp)


def test_on_a_cpu_only_a_sample_that_shares_enough_has_a_pass_together():
    near, far = pair(20, 6, 9).sequences, pair(12, 30, 50, task=1).sequences
    passes = Passes(tiny_llama(), CPU, Packing(min_share=0.4))
    sequences = [*near, *far]
    assert passes.groups(contexts(sequences), 2) == [list(near), [far[0]], [far[1]]]
    assert passes.groups(contexts(sequences), 1) == [[sequence] for sequence in sequences]
    never = Passes(tiny_llama(), CPU, Packing(min_share=2.0))
    assert never.groups(contexts(near), 2) == [[s] for s in near]
    passes.together = True
    assert passes.groups(contexts(sequences), 2) == [sequences]


def test_neighbours_in_a_task_are_those_that_share_most():
    def branch(episode, end):
        ids = (*range(10), *[100 + episode] * 30, *[200 + end] * 5)
        mask = (False,) * 10 + (True,) * 35
        return Sample((Encoded(ids, mask, tuple(0 if m else -1 for m in mask)),), 0)

    samples = [branch(0, 0), branch(1, 0), branch(0, 1), branch(1, 1)]
    passes = Passes(tiny_llama(), CPU, together=True)
    assert passes.microbatches(samples, 60) == [[0, 2], [1, 3]]


def contexts(sequences):
    return [sequence.contexts for sequence in sequences]


def test_a_model_that_cannot_be_packed_is_scored_all_the_same(caplog):
    model = tiny("gemma3")
    model.config.layer_types = ["chunked_attention"] * 2
    passes = Passes(model, CPU)
    assert passes.kernel == ""
    assert "not packed: it has layers of the kind chunked_attention" in caplog.text
    assert passes.groups(contexts(SEQUENCES), 5) == [[sequence] for sequence in SEQUENCES]
    with pytest.raises(ConfigError, match="cannot be packed with dense: it has layers of the kind"):
        Passes(model, CPU, Packing("dense"))
    with pytest.raises(ConfigError, match="'flex' needs a GPU"):
        Passes(tiny_llama(), CPU, Packing("flex"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU that is not there")
def test_the_kernel_of_a_model_that_waits_to_be_sharded_is_tried_on_its_gpu():
    there = {"place": CPU, "dtype": torch.bfloat16}
    with pytest.raises(ConfigError, match=r"packed with segments: .*(CUDA|NVIDIA)"):
        Passes(tiny_llama(), torch.device("cuda"), Packing("segments"), **there)


@pytest.mark.parametrize("packing", [Packing(), Packing("none")])
def test_rotary_frequencies_that_depend_on_length_are_each_sequences_own(packing):
    """Of sequences on both sides of the length that the model was first trained with."""
    model = tiny_llama(rope_parameters=LONGROPE)
    passes = Passes(model, CPU, packing, together=True)
    assert passes.kernel == ""
    scorer = Scorer(PolicySums(model), passes, Workers())
    both = scorer(SEQUENCES, width=1).logps
    alone = torch.cat([scorer([one]).logps for one in SEQUENCES])
    torch.testing.assert_close(both, alone, atol=0, rtol=0)
    samples = [Sample((one,), task) for task, one in enumerate(SEQUENCES)]
    assert len(passes.microbatches(samples, 10_000)) == len(samples)
    assert Passes(tiny_llama(), CPU, packing, together=True).together
    with pytest.raises(ConfigError, match=r"dense: its rotary frequencies \(longrope\)"):
        Passes(model, CPU, Packing("dense"))


@pytest.mark.parametrize("packing", [Packing(), Packing("none")])
def test_frequencies_do_not_depend_on_what_was_scored_before(packing):
    """Of lengths beyond the one that the model was first trained with."""
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    longest, shorter = SEQUENCES[4], SEQUENCES[0]
    scorers = [
        scorer_of(tiny_llama(rope_parameters=rope, max_position_embeddings=16), packing)
        for _ in range(2)
    ]
    first = scorers[0]([shorter])
    scorers[1]([longest])
    for column, other in zip(scorers[1]([shorter]), first, strict=True):
        torch.testing.assert_close(column, other, atol=0, rtol=0)


def test_an_unknown_packing_is_one_sentence():
    with pytest.raises(ConfigError, match="no packing 'tiles'; there are: auto, none, segments"):
        Packing("tiles")


def test_every_kernel_can_be_asked_for_by_the_settings():
    for kernel in {*KERNELS, "auto", "none"} - {"context"}:  # that of `cp_size`, not to be chosen
        assert TrainConfig(model="m", buffer="b", out="o", packing=kernel).packing == kernel


def objective(model, packing, micro_batch_tokens=4096):
    settings = {"gamma": 0.1, "zeta": 0.11, "beta": 0.1, "label_smoothing": 0.1}
    return Objective(
        get_loss("entropo-dpo"), settings, scorer_of(model, packing), micro_batch_tokens
    )


def test_a_batch_gives_the_same_gradient_and_says_what_was_shared():
    samples = [pair(20, 6, 9), pair(12, 3, 5, task=1), pair(20, 4, 2)]
    references = torch.full((3, 2), -20.0, dtype=torch.float64)
    found = {}
    for packing in (Packing("none"), Packing(min_share=0.0)):
        model = tiny_llama()
        result = run_batch(objective(model, packing), samples, references, None)
        gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
        found[packing.kernel] = result, gradients
    plain, packed = found["none"], found["auto"]
    torch.testing.assert_close(packed[0].logps, plain[0].logps, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(packed[1], plain[1], atol=1e-5, rtol=1e-4)
    assert plain[0].metrics["shared_tokens"] == 0
    assert packed[0].metrics["shared_tokens"] == 20 + 12 + 20


def test_micro_batches_count_what_is_computed_and_keep_tasks_together():
    samples = [pair(20, 6, 9), pair(12, 3, 5, task=1), pair(20, 4, 2), pair(12, 30, 1, task=1)]
    passes = Passes(tiny_llama(), CPU, Packing(min_share=0.0))
    # Each in passes of its own: two at once would only keep twice the activations.
    assert sorted(passes.microbatches(samples, 10_000)) == [[0], [1], [2], [3]]
    passes.together = True
    assert sorted(map(sorted, passes.microbatches(samples, 55))) == [[0, 2], [1, 3]]
    assert [sorted(rows) for rows in passes.microbatches(samples, 10_000)] == [[0, 1, 2, 3]]
    assert sorted(map(tuple, passes.microbatches(samples, 1))) == [(0,), (1,), (2,), (3,)]
    for rows in passes.microbatches(samples, 55):
        together = [s for row in rows for s in samples[row].sequences]
        assert passes.grow(together).computed <= 55
