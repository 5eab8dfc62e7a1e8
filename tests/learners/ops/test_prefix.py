import torch
from hypothesis import given
from hypothesis import strategies as st

from learners.ops.packing import Layout
from learners.ops.prefix import grow

SEQUENCES = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple), min_size=1, max_size=8
)


def read(forest, row):
    runs = [forest.runs[number] for number in forest.path(forest.leaves[row])]
    assert [run.position for run in runs] == [
        sum(r.stop - r.start for r in runs[:at]) for at in range(len(runs))
    ]
    return tuple(token for run in runs for token in forest.tokens[run.start : run.stop])


@given(SEQUENCES)
def test_each_distinct_beginning_is_there_once(sequences):
    forest = grow(sequences)
    assert [read(forest, row) for row in range(len(sequences))] == sequences
    beginnings = {s[:end] for s in sequences for end in range(1, len(s) + 1)}
    assert forest.computed == len(beginnings)
    assert forest.shared == sum(map(len, sequences)) - len(beginnings)


@given(SEQUENCES, st.floats(0, 1))
def test_sharing_starts_where_it_saves_enough(sequences, share):
    forest = grow(sequences, min_share=share)
    assert [read(forest, row) for row in range(len(sequences))] == sequences
    least = min((len(s) for s in sequences), default=0) * share
    assert forest.shared == 0 or forest.shared >= least


@given(SEQUENCES)
def test_runs_are_depth_first_and_whole(sequences):
    forest = grow(sequences)
    assert [run.start for run in forest.runs] == [0, *(run.stop for run in forest.runs[:-1])]
    for number, run in enumerate(forest.runs):
        assert run.parent < number
        if run.parent >= 0:
            assert forest.runs[run.parent].depth == run.position
            assert number - 1 in (run.parent, *descendants(forest, run.parent))


def descendants(forest, number):
    return [other for other in range(len(forest.runs)) if number in forest.path(other)[:-1]]


def test_nothing_is_shared_unless_it_pays():
    sequences = [(1,) * 30 + (2,) * 70, (1,) * 30 + (3,) * 70]
    assert grow(sequences, min_share=0.3).computed == 170
    assert grow(sequences, min_share=0.31).computed == 200
    assert grow(sequences, min_share=2.0).shared == 0


@given(SEQUENCES)
def test_what_most_go_on_with_stands_right_behind_and_makes_one_span(sequences):
    forest = grow(sequences)
    for number, run in enumerate(forest.runs):
        after = [at for at, other in enumerate(forest.runs) if other.parent == number]
        sizes = [
            (sum(at in forest.path(leaf) for leaf in forest.leaves), depth(forest, at))
            for at in after
        ]
        assert sizes == sorted(sizes, reverse=True)
        assert not after or after[0] == number + 1
        assert run.stop > run.start
    spans = Layout(forest, torch.device("cpu")).spans
    assert len(spans) <= len(set(sequences))
    for leaf in forest.leaves:
        runs = [forest.runs[at] for at in forest.path(leaf)]
        (last,) = [span for span in spans if span.start < runs[-1].stop <= span.stop]
        seen = [at for start, stop in last.keys for at in range(start, stop)]
        path = [at for run in runs for at in range(run.start, run.stop)]
        assert seen[: len(path)] == path


def depth(forest, number):
    """Tokens of the longest sequence that goes through the run."""
    leaves = [leaf for leaf in forest.leaves if number in forest.path(leaf)]
    return max(forest.runs[leaf].depth for leaf in leaves)


def test_contexts_that_branch_off_a_thousand_deep():
    """Each leaves the trunk a token later: one span for the trunk and one for each, no copies."""
    sequences = [(1,) * length + (2,) for length in range(1, 1500)]
    forest = grow(sequences)
    assert forest.computed == 1499 + 1499
    spans = Layout(forest, torch.device("cpu")).spans
    assert len(spans) == 1499
    assert max(len(span.keys) for span in spans) == 2
