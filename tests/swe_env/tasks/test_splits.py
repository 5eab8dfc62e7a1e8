"""No package, or no function, lies on both sides; the same seed gives the same sides."""

from __future__ import annotations

import itertools

import pytest

from swe_env.errors import ConfigError
from swe_env.tasks.splits import HELDOUT, TRAIN, split
from swe_env.types import Task


def task(number, repo, *functions):
    bugs = [{"path": "m.py", "function": name} for name in functions]
    metadata = bugs[0] if len(bugs) == 1 else {**bugs[0], "bugs": bugs}
    return Task(
        instance_id=str(number),
        repo=repo,
        base_commit="",
        problem_statement="",
        metadata=metadata,
    )


TASKS = [task(f"{repo}{name}{n}", repo, name) for repo in "ab" for name in "fghij" for n in "12"]


def sides(tasks, key):
    found = {}
    for one in tasks:
        found.setdefault(key(one), set()).add(one.metadata["split"])
    return found


def test_functions_are_not_shared_and_the_share_is_about_right():
    made = split(TASKS, by="function", heldout=0.3)
    by_function = sides(made, lambda one: (one.repo, one.metadata["function"]))
    assert all(len(found) == 1 for found in by_function.values())
    assert sum(one.metadata["split"] == HELDOUT for one in made) == 6
    assert [one.instance_id for one in made] == [one.instance_id for one in TASKS]


def test_packages_are_not_shared():
    by_package = sides(split(TASKS, by="package", heldout=0.1), lambda one: one.repo)
    assert sorted(map(tuple, by_package.values())) == [(HELDOUT,), (TRAIN,)]


def test_a_task_with_two_bugs_ties_their_functions_together():
    tied = [*TASKS, task("both", "a", "f", "g")]
    for seed in range(8):
        made = split(tied, by="function", seed=seed)
        group = {one.metadata["split"] for one in made if one.repo == "a"
                 and one.metadata["function"] in "fg"}  # fmt: skip
        assert len(group) == 1


def test_the_seed_decides():
    made = [[one.metadata["split"] for one in split(TASKS, by="function", seed=seed)]
            for seed in (0, 0, 1, 2, 3)]  # fmt: skip
    assert made[0] == made[1]
    assert any(first != second for first, second in itertools.pairwise(made[1:]))


@pytest.mark.parametrize(
    ("tasks", "by", "share", "said"),
    [
        (TASKS, "color", 0.2, "package or function, not by 'color'"),
        (TASKS, "package", 1.5, "between 0 and 1"),
        (TASKS[:4], "package", 0.2, "are of one package"),
    ],
)
def test_what_cannot_be_split_is_one_sentence(tasks, by, share, said):
    with pytest.raises(ConfigError, match=said):
        split(tasks, by=by, heldout=share)
