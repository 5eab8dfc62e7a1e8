"""A row shared by two processes (gloo, on the CPU) gives the sums and gradients of one."""

import pytest
import torch

from learners.ops import pack
from learners.ops.context import Context, flex_part, part_of
from learners.ops.kernels import masked
from tests.learners.ops.context_launched import row
from tests.learners.ops.launched import two_processes

pytestmark = pytest.mark.timeout(300)


def test_two_processes_give_the_sums_and_gradients_of_one(tmp_path):
    found = two_processes("tests.learners.ops.context_launched", tmp_path / "found.json")
    assert len(found) == 6
    for family, worst in found.items():
        # These families but GPT-2 compute norms in float32 whatever the weights are.
        tolerance = 1e-10 if family == "gpt2" else 1e-4
        assert worst["sums"] < tolerance, family
        assert worst["gradients"] < tolerance, family
        assert worst["alone"] > 1e-2, family  # one process has a part only


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_parts_of_a_row_are_the_row(count):
    whole = row()
    parts = [part_of(whole, Context(count, index)) for index in range(count)]
    sizes = {part.input_ids.shape[1] for part in parts}
    assert len(sizes) == 1
    assert sum(sizes) * count - whole.input_ids.shape[1] < 2 * count
    tokens = sorted(int(at) for part in parts for at in part.layout.mine)
    assert tokens == list(range(sum(sizes) * count))
    predicted = [
        (int(part.layout.mine[source]), int(target))
        for part in parts
        for source, target in zip(part.sources, part.targets, strict=True)
    ]
    assert sorted(predicted) == sorted(
        zip(whole.sources.tolist(), whole.targets.tolist(), strict=True)
    )
    learned = sorted(row for part in parts for row in part.rows.tolist())
    assert learned == sorted(whole.rows.tolist())


def test_early_and_late_tokens_are_mixed_so_that_all_have_equally_much_to_attend_to():
    whole = pack([(list(range(3, 203)), [False] + [True] * 199)], torch.device("cpu"))
    parts = [part_of(whole, Context(4, index)) for index in range(4)]
    seen = [int(part.layout.mask(None).sum()) for part in parts]
    assert max(seen) - min(seen) <= 0.01 * max(seen)


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_flex_attention_of_a_part_is_the_masks(window, softcap):
    """Forward only: it has no gradients on a CPU."""
    part = part_of(row(), Context(2, 1))
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, len(part.layout.mine), 16, generator=generator)
    key, value = torch.randn(2, 1, 2, len(part.layout.ends), 16, generator=generator)
    settings = (0.25, window, softcap)
    found = flex_part(query, key, value, part.layout, *settings)
    expected = masked(query, key, value, part.layout.mask(window), 0.25, softcap)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
