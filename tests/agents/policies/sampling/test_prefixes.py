import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.policies.sampling.prefixes import PrefixStore

SEQUENCE = st.lists(st.integers(0, 2), min_size=1, max_size=8)


def keys_values(ids):
    column = torch.tensor(ids, dtype=torch.float32)[None, :, None]
    return [(column, -column)]


@given(st.lists(SEQUENCE, max_size=8), SEQUENCE)
def test_the_longest_known_prefix_is_found(known, wanted):
    store = PrefixStore(1000)
    for ids in known:
        store.put(ids, keys_values(ids))
    best = max((_common(ids, wanted) for ids in known), default=0)
    length, layers = store.find(wanted)
    assert length == best
    if best:
        torch.testing.assert_close(layers, keys_values(wanted[:best]))


@given(st.lists(SEQUENCE, max_size=12), st.integers(0, 20))
def test_the_store_stays_within_its_bound_and_keeps_the_newest(known, capacity):
    store = PrefixStore(capacity)
    for ids in known:
        store.put(ids, keys_values(ids))
        assert store.tokens <= capacity
        assert len(ids) > capacity or store.find(ids)[0] == len(ids)


def test_an_entry_that_another_extends_is_replaced_and_the_oldest_goes_first():
    store = PrefixStore(6)
    store.put([1, 2], keys_values([1, 2]))
    store.put([1, 2, 3], keys_values([1, 2, 3]))
    assert store.tokens == 3
    store.put([7, 8], keys_values([7, 8]))
    store.find([1, 2, 3])
    store.put([9, 9], keys_values([9, 9]))
    assert [store.find(ids)[0] for ids in ([1, 2, 3], [7, 8], [9, 9])] == [3, 0, 2]


def _common(one, other):
    length = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        length += 1
    return length
