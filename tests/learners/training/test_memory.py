"""A GPU's memory that runs out, played on the CPU: layers raise what CUDA's allocator does."""

import pytest
import torch

from learners.losses import get_loss
from learners.ops import keeping
from learners.ops.keeping import checkpoint_settings
from learners.training import OutOfMemory, TrainConfig, train
from learners.training.checkpoint import checkpoints
from learners.training.passes import Passes
from learners.training.score import PolicySums, Scorer
from learners.training.step import Objective, run_batch
from learners.training.workers import Workers
from tests.learners.models import tiny_llama
from tests.learners.training.conftest import train_and_kill
from tests.learners.training.test_passes import CPU
from tests.learners.training.test_step import PAIRS, SETTINGS
from tests.learners.training.test_train import same, weights


class Card:
    """A model's layers on a GPU that holds the activations of a few."""

    def __init__(self, monkeypatch, holds, *, count=8, free=1 << 50):
        self.model = tiny_llama(num_hidden_layers=count).train()
        settings = checkpoint_settings(self.model, selective=True)
        self.model.gradient_checkpointing_enable(settings)
        self.kept, self.holds, self.seen = settings["context_fn"], holds, []
        monkeypatch.setattr(keeping, "_free", lambda _: free)
        for layer in self.model.model.layers:
            layer.mlp.register_forward_hook(self._noise)
        self.model.model.layers[-1].register_forward_hook(self._full)

    def _noise(self, _module, _args, out):
        return out * (1 + 0.1 * torch.rand_like(out))  # as dropout would

    def _full(self, *_):
        if torch.is_grad_enabled():
            self.seen.append(self.kept.layers)
            if self.kept.layers > self.holds:
                raise torch.OutOfMemoryError(
                    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0"
                )

    def gradient(self, workers=None):
        """Of the second of two batches: the first one tells what a layer keeps."""
        scorer = Scorer(
            PolicySums(self.model), Passes(self.model, CPU, together=True), workers or Workers()
        )
        objective = Objective(get_loss("entropo-dpo"), SETTINGS, scorer, 1)
        references = torch.full((len(PAIRS), 2), -20.0, dtype=torch.float64)
        torch.manual_seed(0)
        for _ in range(2):
            self.model.zero_grad()
            found = run_batch(objective, PAIRS, references, None)
        return found, [parameter.grad for parameter in self.model.parameters()]


def test_a_pass_that_does_not_fit_is_made_again_with_fewer_layers(monkeypatch):
    """To the same gradients and figures, random draws included."""
    wanted, gradients = Card(monkeypatch, 8).gradient()
    card = Card(monkeypatch, 2)
    found, others = card.gradient()
    assert card.seen[:2] == [1, 8]  # of the first batch; it is begun again where one did not fit
    assert all(1 <= layers <= 2 for layers in card.seen[-len(PAIRS) :])
    assert sum(layers > 2 for layers in card.seen) <= 3
    assert found.metrics == wanted.metrics
    assert all(torch.equal(*pair) for pair in zip(others, gradients, strict=True))


@pytest.mark.parametrize("sharded", [False, True])
def test_a_pass_that_never_fits_ends_the_batch(monkeypatch, sharded):
    workers = Workers()
    if sharded:
        monkeypatch.setattr(Workers, "sharded", property(lambda _: True))
    card = Card(monkeypatch, -1)
    with pytest.raises(torch.OutOfMemoryError):
        card.gradient(workers)
    assert card.seen == ([1] if sharded else [1, 0])


def test_a_run_that_runs_out_says_what_takes_less_and_goes_on(settings, monkeypatch, tmp_path):
    settings |= {"loss": "entropo-dpo", "save_every": 2, "max_steps": 4}
    whole = train(TrainConfig(**settings)).out
    settings["out"] = str(tmp_path / "short")
    real, calls = torch.nn.functional.linear, []

    def short(*args):
        calls.append(0)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    def after_three(progress):
        if progress.stage == "training" and progress.done == 3:
            monkeypatch.setattr(torch.nn.functional, "linear", short)

    said = r"step 4 \(Tried to allocate 2\.00 GiB\)\. A step takes less with gradient_checkpointing"
    with pytest.raises(OutOfMemory, match=said):
        train(TrainConfig(**settings, gradient_checkpointing=False), on_progress=after_three)
    assert calls
    monkeypatch.setattr(torch.nn.functional, "linear", real)
    out = train(TrainConfig(**settings, resume=True, gradient_checkpointing=True)).out
    assert [path.name for path in checkpoints(out)] == [path.name for path in checkpoints(whole)]
    assert same(weights(whole), weights(out))


def test_layers_kept_by_default_change_no_run(settings, monkeypatch, tmp_path):
    """A whole run as on CUDA, beside one that never recomputes; each may go on as the other."""
    settings |= {"loss": "kto", "z0": "mismatched", "max_steps": 4, "save_every": 2}
    wanted = weights(train(TrainConfig(**settings, gradient_checkpointing=False)).out)
    seen = []
    monkeypatch.setattr(TrainConfig, "checkpoints_on", lambda *_: True)
    monkeypatch.setattr(keeping, "_free", lambda _: 1 << 50)
    real = keeping.Kept.weigh

    def weigh(self, *args):
        real(self, *args)
        seen.append(self.layers)

    monkeypatch.setattr(keeping.Kept, "weigh", weigh)
    settings["out"] = str(tmp_path / "auto")
    assert same(weights(train(TrainConfig(**settings)).out), wanted)
    assert set(seen) == {0, 1, 2}  # no gradients, the first pass, all others
    begun = {**settings, "out": str(tmp_path / "begun"), "gradient_checkpointing": False}
    train_and_kill(begun, after=3)
    resumed = train(TrainConfig(**{**begun, "gradient_checkpointing": "auto", "resume": True}))
    assert same(weights(resumed.out), wanted)
