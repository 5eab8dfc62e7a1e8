import pytest
import torch

from learners.losses import LossOutput, get_loss, losses, sft
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
