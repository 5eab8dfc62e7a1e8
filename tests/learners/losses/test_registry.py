import sys

import pytest
import torch

from learners.losses import LossOutput, get_loss, losses, sft
from learners.training.step import try_loss
from swe_env.errors import ConfigError


def test_every_built_in_loss_says_what_it_learns_from():
    kinds = {name: get_loss(name).kind for name in losses.names()}
    assert kinds == {
        "dpo": "pairs", "entropo-dpo": "pairs", "entropo-dpo-normalized": "pairs",
        "entropo-kto": "kto", "entropo-kto-normalized": "kto", "entropo-kto-released": "kto",
        "h-dpo": "pairs", "kto": "kto", "sft": "sft", "spl": "pairs",
    }  # fmt: skip
    assert [name for name in kinds if not get_loss(name).needs_reference] == ["sft"]


def test_an_own_loss_plugs_in_by_decorator_and_gets_what_it_names():
    @losses.register("simpo")
    def simpo(policy_chosen_logps, policy_rejected_logps, *, zeta, chosen_num_tokens):
        margin = zeta * (policy_chosen_logps / chosen_num_tokens - policy_rejected_logps)
        return LossOutput(-torch.nn.functional.logsigmoid(margin).mean())

    loss = get_loss("simpo")
    assert loss.kind == "pairs"
    assert not loss.needs_reference
    one = torch.tensor([-1.0])
    out = loss(
        policy_chosen_logps=one, policy_rejected_logps=one, zeta=1.0,
        chosen_num_tokens=torch.tensor([2]), gamma=3.0, ref_chosen_logps=one,
    )  # fmt: skip
    assert out.loss.item() == pytest.approx(0.474077, abs=1e-5)


def test_an_installed_package_gives_a_loss_a_name(tmp_path, monkeypatch):
    """By an entry point, as pip leaves it: a dist-info folder on the path."""
    info = tmp_path / "own_loss-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-loss\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[swe_env.losses]\nown-loss = own_loss:mine\nbroken = own_loss:gone\n"
    )
    (tmp_path / "own_loss.py").write_text(
        "from learners.losses import LossOutput\n\n\n"
        "def mine(policy_chosen_logps, policy_rejected_logps, *, gamma):\n"
        "    return LossOutput(gamma * (policy_rejected_logps - policy_chosen_logps).mean())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(losses, "_objects", {})
    monkeypatch.delitem(sys.modules, "own_loss", raising=False)
    assert "own-loss" in losses.names()
    loss = get_loss("own-loss")
    assert (loss.name, loss.kind, loss.needs_reference) == ("own-loss", "pairs", False)
    try_loss(loss, {"gamma": 0.5})
    one = torch.tensor([-1.0])
    out = loss(policy_chosen_logps=one, policy_rejected_logps=3 * one, gamma=0.5, zeta=1.0)
    assert out.loss.item() == -1.0
    with pytest.raises(ConfigError, match="Did you mean 'own-loss'"):
        get_loss("own-los")
    with pytest.raises(
        ConfigError, match="loss 'broken' could not be imported from 'own_loss:gone"
    ):
        get_loss("broken")


def test_unknown_and_unfit_losses_are_one_sentence():
    with pytest.raises(ConfigError, match="Did you mean 'entropo-kto'"):
        get_loss("entropo-ktoo")
    with pytest.raises(ConfigError, match="takes none of"):
        get_loss("math:floor")


def test_sft_weighs_every_token_the_same():
    logps = torch.tensor([-10.0, -2.0], requires_grad=True)
    out = sft(logps, torch.tensor([4, 2]))
    out.loss.backward()
    assert out.loss.item() == 2.0
    assert logps.grad.tolist() == pytest.approx([-1 / 6, -1 / 6])


def test_sft_of_no_tokens_is_a_differentiable_zero():
    logps = torch.zeros(1, requires_grad=True)
    out = sft(logps * 1.0, torch.tensor([0]))
    out.loss.backward()
    assert out.loss.item() == 0
    assert torch.isfinite(logps.grad).all()
