"""Plans for the paper's four models, held to arithmetic done here; no weights are loaded."""

import functools

import pytest

from learners.training.config import TrainConfig
from learners.training.plan import costs, plan_training
from learners.training.plan.counts import adapted
from tests.learners.records import sampled
from tests.learners.training.conftest import write_buffer

GIB = 1 << 30


def gated(width, inner):
    """Weights of a gated feed-forward block."""
    return 3 * width * inner


def attention(width, heads, keys):
    """Weights of attention with heads of 128."""
    return width * 128 * (heads + 2 * keys) + heads * 128 * width


# What QLoRA quantises is what stands in linear layers: no embeddings, no head, no stacked experts,
# no routers.
VISION = 27 * (4 * 1152**2 + 2 * 1152 * 4304)
LINEAR = {
    "Qwen3-4B": 36 * (attention(2560, 32, 8) + gated(2560, 9728)),
    "Gemma-3-27b": 62 * (attention(5376, 32, 16) + gated(5376, 21_504)) + VISION,
    "Qwen3-Coder-30B-A3B": 48 * attention(2048, 32, 4),
    "GLM-4.5-Air": 46 * attention(4096, 96, 8) + gated(4096, 10_944) + 45 * gated(4096, 1408),
}
LARGEST = {
    "Qwen3-4B": 2560 * 9728, "Gemma-3-27b": 5376 * 21_504, "Qwen3-Coder-30B-A3B": 2048 * 4096,
    "GLM-4.5-Air": 4096 * 96 * 128,
}  # fmt: skip
BILLIONS = {"Qwen3-4B": 4.0, "Gemma-3-27b": 27.4, "Qwen3-Coder-30B-A3B": 30.5, "GLM-4.5-Air": 106.9}
FITS = {  # one card of 80 GB, a short pair
    ("Qwen3-4B", "lora"), ("Qwen3-4B", "qlora"), ("Qwen3-4B", "full"), ("Gemma-3-27b", "lora"),
    ("Gemma-3-27b", "qlora"), ("Qwen3-Coder-30B-A3B", "lora"), ("Qwen3-Coder-30B-A3B", "qlora"),
}  # fmt: skip


@pytest.fixture(scope="module")
def buffer(tmp_path_factory):
    pair = [sampled(attempt=0), sampled(attempt=1, replies=("look", "lost"), resolved=False)]
    return write_buffer(tmp_path_factory.mktemp("plans") / "buffer", pair)


@pytest.fixture(scope="module", autouse=True)
def _traced_once():
    """What is the same in a plan and its advice is traced once."""
    built = {}

    def once(model, config, method):
        key = config.model, method, next(model.parameters()).dtype
        if key not in built:
            built[key] = adapted(model, config, method)
        return built[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "adapted", once)
        patch.setattr(costs, "layer_costs", functools.cache(costs.layer_costs))
        yield


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
@pytest.mark.parametrize("model", LINEAR)
def test_a_plan_for_a_model_of_the_paper_is_what_arithmetic_says(model, method, buffer):
    config = TrainConfig(model=model, buffer=buffer, out="", gradient_checkpointing=True)
    plan = plan_training(config, gpu="H100-80", method=method)
    counts, memory = plan.counts, plan.memory
    total, linear = counts.total, LINEAR[model]
    assert round(total / 1e9, 1) == BILLIONS[model]
    assert counts.linear == linear
    assert counts.trainable == (total if method == "full" else counts.adapter)
    assert memory.gradients == 4 * counts.trainable
    assert memory.optimizer == 8 * counts.trainable
    four_bit = (total - linear) * 2 + linear * 4.127 / 8 + 2 * LARGEST[model]  # one is widened
    weights = {"lora": 2 * total, "qlora": four_bit, "full": 4 * total}[method]
    assert memory.weights == pytest.approx(weights, abs=1)
    if method != "full":  # r = 8 on every linear layer and expert
        assert 0.002 * total < counts.adapter < 0.02 * total
        assert 4 <= memory.adapter / counts.adapter <= 10

    fixed = weights + memory.adapter + 12 * counts.trainable + GIB
    assert memory.fixed == pytest.approx(fixed, abs=1)
    assert memory.total > memory.fixed
    room = 80e9 * 0.95
    assert plan.fits == (memory.total <= room) == ((model, method) in FITS)
    said = {True: "Fits on one H100-80", False: "Does not fit on one H100-80: 2 x "}[plan.fits]
    assert plan.verdict.startswith(said)
    assert f"{memory.total / GIB:,.1f}" in plan.verdict
    assert f"{room / GIB:.1f}" in plan.verdict
    assert plan.longest_fits > 1000 if plan.fits else plan.longest_fits == 0
