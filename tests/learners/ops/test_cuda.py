"""The learner's arithmetic on a GPU, against float64 on the CPU."""

import copy

import pytest
import torch

from learners.ops import pack, packed_logps, prepare, sequence_logps, token_logps
from learners.ops.keeping import checkpoint_settings
from learners.ops.kernels import KERNELS
from learners.ops.lean import gated, rms_norm
from learners.ops.lora import lean_lora, lora_linear, unchanging
from learners.ops.prefix import grow
from learners.ops.rotary import _plainly, _rotate
from learners.training.passes import forward
from tests.learners.models import tiny
from tests.learners.ops.plain import plain_gated, plain_norm
from tests.learners.ops.test_lora import adapted
from tests.learners.ops.test_packed import branches

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
GPU = torch.device("cuda")


def apart(found, wanted):
    """Distance as a share of the wanted one's length."""
    found, wanted = (value.detach().double().cpu() for value in (found, wanted))
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-12))


def outcome(function, leaves, seed=0):
    """What `function` gives of the leaves, and their gradients of a random sum of it."""
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    out = function(*leaves)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    return [out, *torch.autograd.grad(out, leaves, weights.to(out))]


def attention(kernel, heads, width, lengths, dtype=torch.bfloat16, window=None, shared=0):
    """A kernel on the GPU and `dense` in float64: relative distances of result and gradients."""
    from learners.ops.packing import Layout

    start = list(range(shared))
    sequences = [start + list(range(1000 * n, 1000 * n + size)) for n, size in enumerate(lengths)]
    forest = grow(sequences, min_share=0.01)
    torch.manual_seed(0)
    count = len(forest.tokens)
    shapes = [(1, heads, count, width), *[(1, heads // 4, count, width)] * 2]
    leaves = [torch.randn(shape).to(dtype) for shape in shapes]

    def by(name, device):
        layout = Layout(forest, device)
        return lambda q, k, v: KERNELS[name](q, k, v, layout, None, window, None)

    cpu = torch.device("cpu")
    wanted = outcome(by("dense", cpu), [leaf.double() for leaf in leaves])
    found = outcome(by(kernel, GPU), [leaf.to(GPU) for leaf in leaves])
    return [apart(*pair) for pair in zip(found, wanted, strict=True)]


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("kernel", ["segments", "varlen", "flash", "flex"])
def test_attention_and_its_gradients(kernel, width):
    assert max(attention(kernel, 8, width, [300, 77, 512])) < 1e-2
    assert max(attention(kernel, 8, width, [300, 77, 512], shared=200)) < 1e-2
    assert max(attention(kernel, 8, width, [300, 513], shared=100)) < 1e-2


@pytest.mark.parametrize("kernel", ["varlen", "flex"])
def test_attention_in_windows(kernel):
    assert max(attention(kernel, 8, 64, [300, 77, 512], shared=120, window=50)) < 1e-2


def test_long_runs_go_through_sdpa():
    assert max(attention("flash", 4, 64, [4200, 4300])) < 1e-2


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("shape", [{}, {"softcap": 20.0, "scale": 0.7}, {"bias": True}])
def test_token_logps(dtype, tolerance, shape):
    torch.manual_seed(0)
    tokens, dim, words = 700, 96, 9001
    hidden, weight = torch.randn(tokens, dim).to(dtype), torch.randn(words, dim).to(dtype) * 0.3
    targets = torch.randint(words, (tokens,))
    shape = dict(shape)
    bias = torch.randn(words).to(dtype) if shape.pop("bias", False) else None

    def by(device, wide):
        def score(h, w):
            b = None if bias is None else bias.to(device, wide or dtype)
            logps, entropies = token_logps(
                h, w, targets.to(device), bias=b, chunk_size=256, **shape
            )  # fmt: skip
            return logps + 0.3 * entropies

        return score

    wanted = outcome(by("cpu", torch.float64), [hidden.double(), weight.double()])
    found = outcome(by(GPU, None), [hidden.to(GPU), weight.to(GPU)])
    assert apart(found[0], wanted[0]) < 1e-5  # products of half precision, sums of float32
    assert max(apart(*pair) for pair in zip(found[1:], wanted[1:], strict=True)) < tolerance
    frozen = weight.to(GPU)  # another path: no gradient of the head, no float32 of its size
    alone = outcome(lambda h: by(GPU, None)(h, frozen), [hidden.to(GPU)])
    assert apart(alone[0], wanted[0]) < 1e-5
    assert apart(alone[1], wanted[1]) < tolerance


def test_lora_keeps_the_adapters_precision():
    torch.manual_seed(0)
    x, weight = torch.randn(3000, 256).bfloat16(), torch.randn(512, 256).bfloat16() / 16
    a, b = torch.randn(8, 256) / 16, torch.randn(512, 8) / 4
    wide = [value.double() for value in (x, weight, a, b)]
    wanted = outcome(lambda x, a, b: lora_linear(x, wide[1], None, a, b, 2.0), wide[:1] + wide[2:])
    found = outcome(
        lambda x, a, b: lora_linear(x, weight.to(GPU), None, a, b, 2.0),
        [x.to(GPU), a.to(GPU), b.to(GPU)],
    )
    far = [apart(*pair) for pair in zip(found, wanted, strict=True)]
    assert max(far) < 4e-3, far  # one rounding to bfloat16: of the result, and of what comes back


def test_an_adapter_that_is_split_once_gives_the_same_as_one_split_each_time():
    model = adapted(torch.bfloat16).to(GPU)
    lean_lora(model)
    ids = torch.randint(300, (1, 500), device=GPU)

    def gradients():
        model.zero_grad()
        hidden = model.get_base_model().model(input_ids=ids, use_cache=False).last_hidden_state
        (hidden.double() ** 2).mean().backward()
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    for _ in range(2):
        alone = gradients()
        with unchanging(model):
            twice = [gradients() for _ in range(2)]
        for found in twice:
            assert all(torch.equal(*pair) for pair in zip(found, alone, strict=True))
        with torch.no_grad():  # an optimizer's step
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.mul_(1.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lean_layers(dtype):
    torch.manual_seed(0)
    rounding = 1e-6 if dtype == torch.float32 else 4e-3
    for shape in ((50, 896), (4001, 64)):
        x, weight = torch.randn(shape).to(dtype), torch.randn(shape[1]).to(dtype)
        wanted = outcome(lambda rows, w=weight: plain_norm(rows, w.double()), [x.double()])
        found = outcome(lambda rows, w=weight: rms_norm(rows, w.to(GPU), 1e-6), [x.to(GPU)])
        assert max(apart(*pair) for pair in zip(found, wanted, strict=True)) < rounding
    gate, up = torch.randn(2, 333, 200).to(dtype)
    wanted = outcome(plain_gated, [gate.double(), up.double()])
    found = outcome(gated, [gate.to(GPU), up.to(GPU)])
    assert max(apart(*pair) for pair in zip(found, wanted, strict=True)) < 2 * rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation(dtype):
    torch.manual_seed(0)
    rounding = 1e-6 if dtype == torch.float32 else 6e-3
    x = torch.randn(1, 777, 6, 64).to(dtype).transpose(1, 2)
    cos, sin = torch.randn(2, 1, 777, 64).to(dtype)
    wanted = outcome(lambda x: _plainly(x, cos.double(), sin.double()), [x.double()])
    found = outcome(lambda x: _rotate(x, cos.to(GPU), sin.to(GPU)), [x.to(GPU)])
    assert max(apart(*pair) for pair in zip(found, wanted, strict=True)) < rounding


def test_attention_that_is_kept_is_not_computed_again():
    model = tiny("qwen3", hidden_size=256, head_dim=64, intermediate_size=64)
    model = model.to(GPU, torch.bfloat16).train()
    settings = checkpoint_settings(model)
    model.gradient_checkpointing_enable(settings)
    assert prepare(model, "flash", GPU) == ""
    ids = torch.randint(300, (12_000,)).tolist()
    packed = pack([(ids, [False] + [True] * 11_999)], GPU)
    kept, found = settings["context_fn"], {}
    for worth in (0.0, float("inf")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("learners.ops.keeping.WORTH", worth)
            model.zero_grad()
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
                forward(model, packed, "flash").logps.sum().backward()
                torch.cuda.synchronize()
            assert kept.attention == (worth == 0.0)
        names = [event.key for event in seen.key_averages() for _ in range(event.count)]
        passes = sum("fprop" in name or "flash_fwd" in name for name in names)
        found[worth] = passes, [p.grad.clone() for p in model.parameters()]
    assert (found[0.0][0], found[float("inf")][0]) == (2, 4)  # layers, and those again
    for one, other in zip(found[0.0][1], found[float("inf")][1], strict=True):
        assert apart(one, other) < 2e-2


def test_as_many_layers_are_kept_as_the_card_has_room_for():
    """Passes of several lengths on a card of which little is left: none runs out of memory."""
    shape = {
        "hidden_size": 1024, "head_dim": 64, "intermediate_size": 3072, "initializer_range": 0.02,
        "num_attention_heads": 16, "num_key_value_heads": 4, "num_hidden_layers": 12,
    }  # fmt: skip
    model = adapted(torch.bfloat16, "qwen3", shape).to(GPU).train()
    lean_lora(model)
    settings = checkpoint_settings(model, selective=True)
    model.gradient_checkpointing_enable(settings)
    kept, layers, found = settings["context_fn"], [], []
    assert prepare(model, "flash", GPU) == ""
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    rest = torch.empty(free - (16 << 30), dtype=torch.uint8, device=GPU)
    for size in (2_000, 30_000, 60_000, 30_000, 100, 60_000):
        ids = torch.randint(300, (size,), generator=torch.Generator().manual_seed(size)).tolist()
        packed = pack([(ids, [False] + [True] * (size - 1))], GPU)
        model.zero_grad()
        forward(model, packed, "flash").logps.sum().backward()
        layers.append(kept.layers)
        found.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    del rest
    assert layers[0] == 1, layers
    assert layers[4] == 12, layers
    assert layers[3] > layers[2], layers
    assert 0 < layers[5] < 12, layers
    for one, other in zip(found[1] + found[2], found[3] + found[5], strict=True):
        assert apart(one, other) < 2e-2  # recomputed or not


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "mistral"])
@pytest.mark.parametrize("kernel", ["flash", "flex", "segments"])
def test_packed_models_give_what_a_cpu_gives_sequence_by_sequence(family, kernel):
    model = tiny(family, head_dim=16)  # flex attention takes no narrower one
    sequences = branches()
    parts = [
        sequence_logps(model, torch.tensor([ids]), torch.tensor([mask])) for ids, mask in sequences
    ]
    wanted = [torch.cat(column) for column in zip(*parts, strict=True)]
    half = copy.deepcopy(model).to(GPU, torch.bfloat16)
    assert prepare(half, kernel, GPU) == ""
    found = packed_logps(half, pack(sequences, GPU, min_share=0.05), kernel)
    a_token = (found.logps.cpu() - wanted[0]).abs() / wanted[2]
    assert float(a_token.max()) < 0.15  # in bfloat16; an unrelated mask is off by more than 1
    found.logps.sum().backward()
    wanted[0].sum().backward()
    theirs = dict(model.named_parameters())
    far = [
        apart(value.grad, theirs[name].grad)
        for name, value in half.named_parameters() if value.grad is not None
    ]  # fmt: skip
    assert max(far) < 0.1, far


@pytest.mark.parametrize("kernel", ["segments", "flash", "flex"])
def test_a_model_on_the_cpu_is_packed_with_what_its_gpu_can(kernel):
    there = GPU, torch.bfloat16  # as for one that waits to be sharded
    assert prepare(tiny("llama", head_dim=16), kernel, torch.device("cpu"), later=there) == ""
