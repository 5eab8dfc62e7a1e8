import peft
import pytest
import torch
from torch import nn

from agents.policies.sampling import can_pack, pack_linear
from agents.policies.sampling.packed import PackedLinear, PackedLora
from tests.agents.models import tiny_model

WIDE = {"hidden_size": 128, "intermediate_size": 256}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_gives_what_the_layer_gave_for_any_number_of_rows(dtype, bias):
    if dtype == torch.bfloat16 and not can_pack(tiny_model().bfloat16()):
        pytest.skip("this processor has no bfloat16 arithmetic to pack for")
    torch.manual_seed(0)
    layer = nn.Linear(96, 160, bias=bias).to(dtype)
    packed = PackedLinear(layer, 8)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    with torch.inference_mode():
        for shape in [(1, 96), (3, 96), (40, 96), (2, 5, 96)]:
            rows = torch.randn(shape, dtype=dtype)
            torch.testing.assert_close(packed(rows), layer(rows), atol=tolerance, rtol=tolerance)


def test_packing_a_model_changes_its_logits_by_rounding_only():
    model, ids = tiny_model(**WIDE), torch.arange(60)[None]
    assert can_pack(model)
    with torch.inference_mode():
        before = model(ids).logits
        pack_linear(model, 4, keep=model.get_output_embeddings())
        after = model(ids).logits
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(PackedLinear) == 2 * 7
    assert kinds.count(nn.Linear) == 1  # the output layer
    torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-4)


def adapted(**settings):
    model = peft.get_peft_model(
        tiny_model(**WIDE), peft.LoraConfig(r=4, lora_alpha=7, **settings)
    ).eval()
    for name, weight in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(weight, std=0.1)
    return model


def test_a_plain_adapter_is_folded_into_its_layer_and_gives_the_same():
    model, ids = adapted(target_modules=["q_proj", "down_proj"]), torch.arange(60)[None]
    with torch.inference_mode():
        before = model(ids).logits
        pack_linear(model, 4)
        after = model(ids).logits
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(PackedLora) == 2 * 2
    torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-4)


def test_an_adapter_that_does_more_keeps_its_layers():
    model, ids = adapted(target_modules=["q_proj"], use_dora=True), torch.arange(60)[None]
    with torch.inference_mode():
        before = model(ids).logits
        pack_linear(model, 4)
        after = model(ids).logits
    assert not any(isinstance(module, PackedLora) for module in model.modules())
    torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-4)
