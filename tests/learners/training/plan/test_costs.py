import re

import pytest

from learners.losses import get_loss
from learners.training.config import TrainConfig
from learners.training.plan.advice import advise, longest_that_fits, usable
from learners.training.plan.assumptions import GIB, Assumptions
from learners.training.plan.costs import Costs, Setup
from learners.training.plan.gpus import GPUS, gpu
from learners.training.plan.models import model_config
from learners.training.plan.samples import MicroBatch
from swe_env.errors import ConfigError
from tests.learners.training.plan.test_trace import tiny

CONFIG = TrainConfig(model="", buffer="", out="")


def one(tokens, loss_tokens=None):
    return MicroBatch((tokens,), loss_tokens or tokens)


@pytest.fixture(scope="module")
def qwen():
    """Qwen3-4B with LoRA."""
    return Costs(model_config("qwen3-4b"), CONFIG, "lora", Assumptions())


@pytest.fixture(scope="module")
def small():
    return Costs(tiny("qwen3"), CONFIG, "lora", Assumptions())


# Seconds of one 32k sequence on an H100 at 400 TFLOP/s with LoRA and full checkpointing, worked
# out before there was a planner.
@pytest.mark.parametrize(
    ("shapes", "seconds"),
    [
        ({}, 5.5),
        ({"hidden_size": 4096, "intermediate_size": 12_288, "tie_word_embeddings": False}, 7.2),
        (
            {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
             "num_attention_heads": 16},
            1.65,
        ),
    ],
    ids=["4B", "8B", "0.6B"],
)  # fmt: skip
def test_the_work_of_a_long_sequence_is_the_known_one(shapes, seconds):
    config = model_config("qwen3-4b")
    config.update(shapes)
    config.layer_types = config.layer_types[: config.num_hidden_layers]
    costs = Costs(config, TrainConfig(model="", buffer="", out="", lora_r=1), "lora", Assumptions())
    work = costs.flops(Setup("lora", 1, True), one(32_768))
    assert work / 400e12 == pytest.approx(seconds, rel=0.03)


def test_memory_is_the_sum_that_the_docstring_says(qwen):
    memory = qwen.memory(Setup("lora", 1, True), one(1000))
    assert memory.weights == 4_022_468_096 * 2
    assert memory.gradients == 16_515_072 * 4
    assert memory.adapter == 16_515_072 * (4 + 6)  # and three halves of bfloat16 of each
    assert memory.optimizer == 16_515_072 * 8
    assert memory.activations == 36 * 1000 * 2560 * 2 + 4 * 1000 * 2560 * 2
    step = memory.activations + max(memory.layer, memory.logps)
    assert memory.total == memory.fixed + max(step, memory.reference)
    without = qwen.memory(Setup("lora", 1, False), one(1000))
    assert without.activations == 36 * 104_968 * 1000 + 40 * 1000 * 2560 * 2
    assert without.fixed == memory.fixed


def test_what_is_free_holds_layers_that_are_not_computed_again(qwen):
    """Of 8,192 tokens a layer keeps 0.8 GiB, of 65,536 attention gives 0.5."""
    filled = Setup("lora", 1, True, selective=True)
    found = {}
    for tokens in (8192, 65_536):
        batch = one(tokens)
        layer, given = 104_968 * tokens, tokens * (2 * 4096 + 4 * 32) if tokens > 10_000 else 0
        for name in ("RTX4090-24", "A100-80", "H200-141"):
            room = usable(gpu(name), Assumptions()) - qwen.memory(filled, batch).total
            attention = 0 < 36 * given < 0.8 * room
            room -= 36 * given * attention
            layers = min(max(int(0.8 * room / (layer - given * attention)), 0), 36)
            found[name, tokens] = qwen.keeps(filled, gpu(name), batch)
            assert found[name, tokens] == (attention, layers)
            whole = qwen.keeps(Setup("lora", 1, True), gpu(name), batch)
            assert whole == (attention, 0)
    assert found["H200-141", 8192] == (False, 36)
    assert found["H200-141", 65_536].attention
    assert 0 < found["H200-141", 65_536].layers < 36
    assert found["RTX4090-24", 65_536] == (False, 0)
    assert qwen.keeps(Setup("lora", 1, False, selective=True), gpu("H200-141"), one(9)) == (
        False,
        0,
    )
    whole, none = (qwen.flops(Setup("lora", 1, how), one(8192)) for how in (True, False))
    assert qwen.flops(filled, one(8192), kept_layers=36) == pytest.approx(none)
    assert qwen.flops(filled, one(8192), kept_layers=9) == pytest.approx(
        none + (whole - none) * 0.75
    )


def test_shared_beginnings_cost_copies_of_keys_and_values(qwen):
    """8 key heads of 128, two bytes, keys and values, of every path: kept, and their gradients."""
    alone, shared = MicroBatch((700, 600), 100), MicroBatch((1000, 300 + 500), 100, shared=(500,))
    assert alone.tokens == shared.tokens
    copies = 2 * 8 * 128 * 2 * 1800
    without = [qwen.memory(Setup("lora", 1, False), batch) for batch in (alone, shared)]
    assert without[1].activations - without[0].activations == 36 * copies
    assert without[1].layer - without[0].layer == copies
    again = [qwen.memory(Setup("lora", 1, True), batch) for batch in (alone, shared)]
    assert again[1].activations == again[0].activations
    assert again[1].layer - again[0].layer == 2 * copies


def test_qlora_quantises_linear_layers_only(qwen):
    small, rest = 3_633_315_840, 4_022_468_096 - 3_633_315_840
    assert qwen.weight_bytes("qlora") == pytest.approx(small * 4.127 / 8 + rest * 2)


def test_experts_stay_in_bfloat16_unless_taken_to_be_quantised():
    config = tiny("qwen3_moe")
    as_is = Costs(config, CONFIG, "qlora", Assumptions())
    quantised = Costs(config, CONFIG, "qlora", Assumptions(quantised_experts=True))
    experts = 2 * 4 * 3 * 32 * 64
    difference = as_is.weight_bytes("qlora") - quantised.weight_bytes("qlora")
    assert difference == pytest.approx(experts * (2 - 4.127 / 8))


MATRICES = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96
"""Weights of the matrices of a layer of `tiny("llama")`: it has two layers, and 300 words."""


@pytest.fixture(scope="module")
def full():
    return Costs(tiny("llama", tie_word_embeddings=False), CONFIG, "full", Assumptions())


def test_full_training_takes_sixteen_bytes_a_weight_and_the_copies_of_autocast(full):
    memory = full.memory(Setup("full", 1, True), one(8))
    weights = 2 * (MATRICES + 2 * 64) + 2 * 300 * 64 + 64
    assert memory.weights + memory.gradients + memory.optimizer == 16 * weights
    assert memory.adapter == 0
    # All layers' copies while the forward pass lasts, the head's (as off CUDA a float32 block of
    # it), and a chunk of logits.
    copies = 2 * 2 * MATRICES + (2 + 4) * 300 * 64 + 8 * 300 * 4
    assert copies < memory.casts < copies + 20_000
    assert memory.total >= memory.fixed + memory.activations + memory.casts
    # Without checkpointing they stay until their layer's backward pass.
    without = full.memory(Setup("full", 1, False), one(8))
    assert without.casts == 0
    kept = sum(layer.kept.per_token for layer in full._wide_layers)
    assert without.activations == 8 * kept + 2 * 2 * MATRICES + 6 * 8 * 64 * 4
    # Hidden states are float32.
    assert memory.activations == 6 * 8 * 64 * 4


def test_full_training_in_float32_copies_nothing():
    config = CONFIG.model_copy(update={"dtype": "float32"})
    costs = Costs(tiny("llama"), config, "full", Assumptions())
    assert costs.memory(Setup("full", 1, True), one(8)).casts == 0


def test_a_trained_head_has_a_gradient_in_float32_and_in_its_own_type(full):
    heads = 300 * 64
    # The head's copy, its gradient and that in the copy's type; or, before, a block in float32.
    assert (2 + 4 + 2) * heads < full._logps_pass(one(8, 1), cast=True).peak < 11 * heads
    frozen = Costs(tiny("llama"), CONFIG, "lora", Assumptions())
    assert frozen._logps_pass(one(8, 1), cast=False).peak < 5 * heads
    setup = Setup("full", 1, True)
    assert full.flops(setup, one(8, 5)) - full.flops(setup, one(8, 4)) == 2 * heads * 4


def test_sharded_full_training_holds_a_layers_gradients_and_what_stands_in_none(full):
    alone, four = (full.memory(Setup("full", n, True), one(8)) for n in (1, 4))
    layer, outside = MATRICES + 2 * 64, 2 * 300 * 64 + 64
    weights = 2 * layer + outside
    assert four.weights == weights * 4 // 4 + 2 * (2 * layer + outside)
    assert four.gradients == weights * 4 // 4 + 2 * (layer + outside) + 4 * max(layer, outside)
    assert four.optimizer == alone.optimizer // 4
    assert four.casts == 0  # FSDP casts what it gathers
    assert four.activations == 6 * 8 * 64 * 2


@pytest.mark.parametrize("checkpointing", [True, False])
def test_memory_and_work_grow_with_the_tokens(small, checkpointing):
    setup = Setup("lora", 1, checkpointing)
    lengths = (64, 65, 500, 5_000, 50_000)
    totals = [small.memory(setup, one(n, 10)).total for n in lengths]
    work = [small.flops(setup, one(n, 10)) for n in lengths]
    assert totals == sorted(totals)
    assert len(set(totals[1:])) == 4
    assert work == sorted(set(work))


def test_checkpointing_saves_memory_and_costs_a_forward_pass(small):
    on, off = Setup("lora", 1, True), Setup("lora", 1, False)
    batch = one(4000)
    assert small.memory(on, batch).activations < small.memory(off, batch).activations / 2
    forward = small.flops(on, batch, train=False) - 2 * small.counts.head * 4000
    assert small.flops(on, batch) - small.flops(off, batch) == pytest.approx(forward)


def test_more_gpus_share_what_is_fixed_and_nothing_of_a_sample(qwen):
    one_gpu = qwen.memory(Setup("lora", 1, True), one(1000))
    four = qwen.memory(Setup("lora", 4, True), one(1000))
    assert four.optimizer == one_gpu.optimizer // 4
    assert four.activations == one_gpu.activations
    embeddings = 151_936 * 2560 + 2560  # with the last norm; the head is the same
    layer = (4_022_468_096 - embeddings) // 36
    assert four.weights == one_gpu.weights // 4 + 2 * layer * 2 + embeddings * 2
    adapter = 16_515_072
    assert four.adapter == adapter * 4 // 4 + 2 * adapter // 36 * 4 + adapter * 6
    # One layer's before they are parted, and the buffer in which they are.
    assert four.gradients == adapter * 4 // 4 + 2 * adapter // 36 * 4


def test_weights_in_4_bits_are_whole_on_every_gpu(qwen):
    """As `check_mode` has it: a run with them sharded is refused."""
    one_gpu, four = (qwen.memory(Setup("qlora", gpus, True), one(1000)) for gpus in (1, 4))
    assert four == one_gpu


def test_a_shared_beginning_is_planned_once(small):
    setup = Setup("lora", 1, True)
    apart, joined = MicroBatch((100, 80), 1), MicroBatch((100, 80), 1, (60,))
    assert apart.tokens == 180
    assert joined.tokens == 120
    assert small.memory(setup, joined).activations * 3 == small.memory(setup, apart).activations * 2
    saved = small.flops(setup, apart, train=False) - small.flops(setup, joined, train=False)
    head = 2 * small.counts.head
    assert saved == pytest.approx(small.flops(setup, MicroBatch((60,), 1), train=False) - head)


def test_a_window_shortens_what_is_attended_to():
    windowed = Costs(
        tiny("gemma3_text", sliding_window=4, num_hidden_layers=6), CONFIG, "lora", Assumptions()
    )
    full = sum(range(1, 11))
    five_short = 5 * (1 + 2 + 3 + 4 * 7)
    assert windowed._attention(one(10)) == 4 * 4 * 16 * (full + five_short)


def test_compressed_attention_is_as_wide_as_its_queries_and_values():
    """DeepSeek's: keys are 8 + 16 wide, values 12; `head_dim` is 8, the rotated part."""
    config = tiny(
        "deepseek_v3", num_key_value_heads=4, q_lora_rank=20, kv_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=16, v_head_dim=12, head_dim=8, first_k_dense_replace=2,
        n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, n_group=1,
        topk_group=1,
    )  # fmt: skip
    costs = Costs(config, CONFIG, "lora", Assumptions())
    assert costs._attention(one(10)) == 2 * 2 * 4 * (24 + 12) * sum(range(1, 11))
    shared, alone = MicroBatch((10, 8), 4, shared=(6,)), MicroBatch((10, 2), 4)
    setup = Setup("lora", 1, False)
    copies = costs.memory(setup, shared).activations - costs.memory(setup, alone).activations
    assert copies == 2 * 2 * 4 * (24 + 12) * 18


def test_linear_attention_attends_to_no_pairs_of_tokens():
    config = tiny(
        "qwen3_next", num_hidden_layers=4, linear_num_value_heads=2, linear_num_key_heads=2,
        linear_key_head_dim=8, linear_value_head_dim=8, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=32, shared_expert_intermediate_size=32,
        layer_types=["linear_attention"] * 3 + ["full_attention"],
    )  # fmt: skip
    costs = Costs(config, CONFIG, "lora", Assumptions())
    assert costs._attention(one(10)) == 4 * 4 * 16 * sum(range(1, 11))


def test_a_window_that_no_layer_names_is_every_layers():
    from transformers import MistralConfig

    config = TrainConfig(model="m", buffer="b", out="o")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 300}
    shape = MistralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, sliding_window=5)
    assert Costs(shape, config, "lora", Assumptions()).windows == [5, 5]


def test_a_short_sample_takes_as_long_as_reading_the_weights(qwen):
    card = gpu("A100-80")
    setup = Setup("lora", 1, True)
    read = 3 * qwen.weight_bytes("lora") / (2.039e12 * 0.8)
    assert qwen.seconds(setup, card, ((one(1, 1),),)) == pytest.approx(read)
    assert qwen.seconds(setup, card, ((one(20_000),),)) > 5 * read


def test_float32_has_a_peak_of_its_own(small):
    config = CONFIG.model_copy(update={"dtype": "float32"})
    wide = Costs(tiny("qwen3"), config, "lora", Assumptions())
    setup, card, batch = Setup("lora", 1, True), gpu("H100-80"), one(5_000)
    assert wide.flops(setup, batch) == small.flops(setup, batch)
    work = wide.flops(setup, batch)
    assert wide.seconds(setup, card, ((batch,),)) == pytest.approx(work / (66.9e12 * 0.4))
    assert small.seconds(setup, card, ((batch,),)) == pytest.approx(work / (989.4e12 * 0.4))


def test_a_step_ends_when_the_last_gpu_is_done(qwen):
    """Sharded ones wait for each other in every pass, others once."""
    card = gpu("A100-80")
    long, middle, short = one(9_000), one(6_000), one(5_000)
    shares = ((long, short), (middle, middle))
    alone = Setup("lora", 1, True)
    times = {b: qwen.seconds(alone, card, ((b,),)) for b in (long, middle, short)}
    sharded = qwen.seconds(Setup("lora", 2, True), card, shares)
    assert sharded == pytest.approx((times[long] + times[middle]) / 0.9)
    whole = Costs(model_config("qwen3-4b"), CONFIG, "qlora", Assumptions())
    times = {
        b: whole.seconds(Setup("qlora", 1, True), card, ((b,),)) for b in (long, middle, short)
    }
    found = whole.seconds(Setup("qlora", 2, True), card, shares)
    assert found == pytest.approx(max(times[long] + times[short], 2 * times[middle]) / 0.9)


def test_merged_experts_have_their_whole_gradient_computed():
    config = tiny("qwen3_moe")
    found = {}
    for targets in (["q_proj"], "all-linear"):
        changed = CONFIG.model_copy(update={"lora_targets": targets})
        costs = Costs(config, changed, "lora", Assumptions())
        setup, tokens = Setup("lora", 1, False), 100
        found[targets == "all-linear"] = (
            costs.flops(setup, one(tokens, 1)) - 6 * costs.counts.adapter_active * tokens
        )
    experts = 2 * 2 * 3 * 64 * 32  # layers, experts a token is sent to
    assert found[True] - found[False] == 2 * experts * 100


def test_the_longest_that_fits_does_and_a_longer_one_does_not(qwen):
    setup, room = Setup("lora", 1, False), usable(gpu("A100-80"), Assumptions())
    tokens = longest_that_fits(qwen, setup, get_loss("sft"), room, 0.2)
    assert 12_000 < tokens < 20_000  # 62 GiB over 36 layers of 110 kB a token
    fits = qwen.memory(setup, one(tokens, round(tokens * 0.2))).total
    longer = qwen.memory(setup, one(round(tokens * 1.01), round(tokens * 0.202))).total
    assert fits <= room < longer
    pair = longest_that_fits(qwen, setup, get_loss("dpo"), room, 0.2)
    assert pair == pytest.approx(tokens / 2, rel=0.01)


def verdict(costs, setup, card, *passes, loss="dpo"):
    shapes = model_config("qwen3-4b")
    return advise(costs, setup, gpu(card), passes, get_loss(loss), shapes, CONFIG)


def test_the_verdict_says_that_it_fits(qwen):
    said = verdict(qwen, Setup("lora", 1, True), "A100-80", one(8000), loss="sft")
    assert said.startswith("Fits on one A100-80: ")
    assert said.count(". ") == 0
    room = usable(gpu("A100-80"), Assumptions())
    tight = longest_that_fits(qwen, Setup("lora", 1, True), get_loss("sft"), room, 1.0)
    said = verdict(qwen, Setup("lora", 1, True), "A100-80", one(tight), loss="sft")
    assert said.startswith("Fits on one A100-80, with little to spare: ")


def test_the_verdict_says_what_would_make_it_fit(qwen):
    pair = MicroBatch((32_000, 32_000), 10_000)
    said = verdict(qwen, Setup("lora", 1, False), "A100-80", pair)
    assert said.startswith("Does not fit on one A100-80: 2 x 32,000 tokens need ")
    assert "it would fit with gradient checkpointing (" in said

    said = verdict(qwen, Setup("lora", 1, True), "RTX4090-24", pair)
    assert "QLoRA" not in said  # the activations alone are too large
    assert "GPUs" not in said
    assert "max_tokens=" in said
    tokens = int(said.split("max_tokens=")[1].split()[0].rstrip(".,"))
    batch = MicroBatch((tokens, tokens), round(tokens * 2 * 10 / 64))
    room = usable(gpu("RTX4090"), Assumptions())
    assert qwen.memory(Setup("lora", 1, True), batch).total <= room


def test_the_verdict_is_of_the_pass_that_is_the_worst_with_each_change(qwen):
    """Copies of a shared beginning's keys are kept in all layers, with checkpointing in one."""
    shared, alone = MicroBatch((9000, 9000), 100, shared=(8000,)), MicroBatch((10_500,), 100)
    off, on = ([qwen.memory(Setup("lora", 1, how), b).total for b in (shared, alone)]
               for how in (False, True))  # fmt: skip
    assert off[0] > off[1]
    assert on[0] < on[1]
    said = verdict(qwen, Setup("lora", 1, False), "A100-40", shared, alone)
    assert f"9,000 tokens need {off[0] / GIB:.1f} GiB" in said
    assert f"gradient checkpointing ({on[1] / GIB:.1f} GiB)" in said


def test_the_verdict_names_two_changes_where_neither_alone_is_enough(qwen):
    """As of 70B on one A100-80: weights are too large for one card, the sample for any."""
    assume = Assumptions(context_bytes=15 * GIB)
    crowded = Costs(model_config("qwen3-4b"), CONFIG, "lora", assume)
    room = usable(gpu("RTX4090"), assume)
    assert crowded.memory(Setup("lora", 1, True), one(1)).fixed > room
    assert crowded.memory(Setup("lora", 64, True), one(200_000)).total > room
    said = verdict(crowded, Setup("lora", 1, True), "RTX4090-24", one(200_000), loss="sft")
    found = re.search(r"it would fit with (\d+) GPUs and FSDP and max_tokens=(\d+)\.$", said)
    gpus, tokens = map(int, found.groups())
    most = longest_that_fits(crowded, Setup("lora", 64, True), get_loss("sft"), room, 1.0)
    assert most / 2 - 256 < tokens <= most
    assert crowded.memory(Setup("lora", gpus, True), one(tokens)).total <= room
    said = verdict(crowded, Setup("lora", 1, False), "RTX4090-24", one(200_000), loss="sft")
    assert said.endswith(" and gradient checkpointing.")
    none = Costs(model_config("qwen3-4b"), CONFIG, "lora", Assumptions(context_bytes=30 * GIB))
    said = verdict(none, Setup("lora", 1, True), "RTX4090-24", one(2000), loss="sft")
    least = none.memory(Setup("lora", 64, True), one(1)).fixed
    assert said.endswith(f"optimizer alone take {least / GIB:.1f} GiB on each of 64 GPUs.")


def test_the_verdict_offers_lora_for_full_training_and_sharding():
    config = tiny("llama", hidden_size=2048, intermediate_size=8192, vocab_size=32_000,
                  num_hidden_layers=24)  # fmt: skip
    costs = Costs(config, CONFIG, "full", Assumptions())
    card = gpu("RTX4090")
    said = advise(costs, Setup("full", 1, True), card, [one(512)], get_loss("sft"), config, CONFIG)
    assert "LoRA (" in said
    assert "2 GPUs and FSDP (" in said
    assert "max_tokens" not in said  # not even a short sample fits


def test_the_verdict_offers_sharded_lora_for_qlora_which_is_whole_on_every_gpu():
    costs = Costs(model_config("qwen3-4b"), CONFIG, "qlora", Assumptions())
    setup, room = Setup("qlora", 1, True), usable(gpu("RTX4090"), Assumptions())
    most = longest_that_fits(costs, setup, get_loss("sft"), room, 1.0)
    said = verdict(costs, setup, "RTX4090-24", one(round(1.02 * most)), loss="sft")
    assert re.search(r"fit with LoRA on \d+ GPUs and FSDP \(", said)


def test_the_verdict_offers_lora_for_qlora_which_keeps_more_a_token(qwen):
    costs = Costs(model_config("qwen3-4b"), CONFIG, "qlora", Assumptions())
    said = verdict(costs, Setup("qlora", 1, True), "H200-141", one(288_000), loss="sft")
    need = qwen.memory(Setup("lora", 1, True), one(288_000)).total
    assert f"fit with LoRA ({need / GIB:.1f} GiB), or max_tokens=" in said


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (MicroBatch((18_000,), 9), "18,000"),
        (MicroBatch((18_000, 18_000), 9), "2 x 18,000"),
        (MicroBatch((18_000, 2_000), 9), "18,000 + 2,000"),
        (MicroBatch((18_000, 2_000), 9, padded=True), "2 x 18,000"),
        (MicroBatch((18_000, 2_000, 500), 9), "3 contexts of together 20,500"),
    ],
)
def test_tokens_are_named_as_they_are(batch, words):
    assert batch.sizes == words


def test_the_verdict_names_both_sides_of_an_uneven_pair(qwen):
    pair = MicroBatch((60_000, 4_000), 10_000)
    said = verdict(qwen, Setup("lora", 1, True), "RTX4090-24", pair)
    assert said.startswith("Does not fit on one RTX4090-24: 60,000 + 4,000 tokens need ")


def test_the_verdict_blames_weights_only_where_they_do_not_fit(qwen):
    assume = Assumptions(context_bytes=11 * GIB)  # 20 GiB with weights and optimizer
    crowded = Costs(model_config("qwen3-4b"), CONFIG, "lora", assume)
    setup, room = Setup("lora", 64, True), usable(gpu("RTX4090"), assume)
    most = longest_that_fits(crowded, setup, get_loss("sft"), room, 1.0)
    assume = Assumptions(context_bytes=11 * GIB + room - crowded.memory(setup, one(500)).total)
    crowded = Costs(model_config("qwen3-4b"), CONFIG, "lora", assume)
    assert most > 2000
    said = verdict(crowded, setup, "RTX4090-24", one(2000), loss="sft")
    fixed = crowded.memory(setup, one(2000)).fixed
    assert fixed < room
    assert "nothing short of another" not in said
    assert f"beside the {fixed / GIB:.1f} GiB of weights and optimizer" in said
    tokens = int(re.search(r"room for sequences of (\d+) tokens", said)[1])
    assert 490 <= tokens <= 500

    none = Costs(model_config("qwen3-4b"), CONFIG, "lora", Assumptions(context_bytes=30 * GIB))
    said = verdict(none, setup, "RTX4090-24", one(2000), loss="sft")
    assert "nothing short of another model, method or card changes that" in said


def test_gpus_are_found_by_name():
    assert gpu("h100").name == "H100-80"
    assert gpu("rtx4090").memory == 24 * 10**9
    with pytest.raises(ConfigError, match="Did you mean A100-40 or A100-80"):
        gpu("A100")
    with pytest.raises(ConfigError, match="no GPU 'TPU'"):
        gpu("TPU")
    assert all(card.memory / GIB < 200 and card.peak > 1e14 for card in GPUS.values())
    # A tensor core gives twice to thirty times what others do.
    assert all(1.9 < card.peak / card.float32_peak < 30 for card in GPUS.values())


def test_an_assumption_is_replaced_by_name():
    assert Assumptions().changed(utilisation=0.5).utilisation == 0.5
    with pytest.raises(ConfigError, match="assumes no 'utilization'"):
        Assumptions().changed(utilization=0.5)
    with pytest.raises(ConfigError, match="must be a number"):
        Assumptions().changed(utilisation="half")


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("utilisation", 0, "a share above 0 and at most 1"),
        ("utilisation", 50, "0.4 for 40%"),
        ("bandwidth_utilisation", float("nan"), "a share above 0"),
        ("scaling", -0.9, "a share above 0"),
        ("fragmentation", 2, "a share of the memory below 1"),
        ("attention_backward", 0, "above 0"),
        ("characters_per_token", 0, "above 0"),
        ("quantised_bits", float("inf"), "above 0"),
        ("quantised_experts", 2, "0 or 1"),
        ("context_bytes", -1, "at least 0"),
    ],
)
def test_an_assumption_that_makes_no_sense_is_refused(name, value, wanted):
    with pytest.raises(ConfigError, match=rf"'{name}' must be .*{wanted}.*, not"):
        Assumptions().changed(**{name: value})
