"""Which trajectories to learn from: pairs, KTO rows and SFT rows out of a buffer."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations, product, takewhile

from learners.data.encode import explained_anew, format_name, recorded
from learners.data.report import DropReport
from swe_env.cache import digest
from swe_env.replay.trajectory import Step, Trajectory


@dataclass(frozen=True, slots=True)
class Pair:
    """Two trajectories of one task from the same first state."""

    chosen: Trajectory
    rejected: Trajectory
    tie: bool = False
    """Both resolved the task or neither did: neither is to be preferred."""

    @property
    def shared_steps(self) -> int:
        """Agent steps with which both begin, observations included, but never the last of either.

        Above 0 the pair is step-level: both sides are in the same state there, of which branches
        of one episode are made, and the choice is between what they did from there on.
        """
        sides = self.chosen.agent_steps, self.rejected.agent_steps
        most = min(map(len, sides)) - 1
        same = (_like(a) == _like(b) for a, b in zip(*sides, strict=False))
        return sum(1 for _ in zip(range(most), takewhile(bool, same), strict=False))


@dataclass(frozen=True, slots=True)
class Row:
    """One trajectory with its label."""

    trajectory: Trajectory
    desirable: bool


Refusal = Callable[[Trajectory], str]
"""Why a trajectory cannot be learned from, a key of `REASONS`, or empty."""


def _nothing_refused(_: Trajectory) -> str:
    return ""


def pairs(
    trajectories: Iterable[Trajectory],
    *,
    per_task: int = 1,
    ties: int = 0,
    seed: int = 0,
    refusal: Refusal = _nothing_refused,
    text_format: str | None = None,
) -> tuple[list[Pair], DropReport]:
    """Pair resolved with unresolved trajectories of the same task and first state.

    Only what the agent itself finished takes part (arXiv 2509.12434, section 4); infrastructure
    failures never do. Both sides are of one generator (`generator`); only where a task gives no
    such pair are different ones compared, and so with its ties. Trajectories are spread over the
    pairs as evenly as their number allows, and where they can be chosen freely, those that share
    most steps (branches of one episode) are paired: see `Pair.shared_steps`.

    Args:
        trajectories: A buffer or any iterable.
        per_task: At most so many resolved × unresolved pairs a task and generator, or a task where
            generators are compared.
        ties: At most so many tie pairs as well, resolved × resolved and unresolved × unresolved by
            turns; two trajectories with the same steps make none.
        seed: The same trajectories in any order and the same seed give the same pairs.
        refusal: Asked of what a pair would hold; what is refused leaves its place to others.
        text_format: The one format that all without token ids will be written in; None where each
            is written in its record's.

    Returns:
        The pairs, ordered by task, and what was left out: of trajectories those that are in no
        pair, of whole tasks none twice.
    """
    report = DropReport()
    found: list[Pair] = []
    for task in _by_task(_finished(trajectories, report)):
        while True:
            states = _by_first_state(task, text_format)
            made = _pairs_of(states, per_task, ties, seed)
            used = {id(t): t for pair in made for t in (pair.chosen, pair.rejected)}
            refused = {key: why for key, t in used.items() if (why := refusal(t))}
            if not refused:
                break
            for why in refused.values():
                report.drop(why)
            task = [t for t in task if id(t) not in refused]
        for why in _why_unpaired(states, made):
            report.drop(why)
        found += made
    report.kept = len(found)
    return found, report


def kto_rows(
    trajectories: Iterable[Trajectory],
    *,
    per_task: int | None = None,
    seed: int = 0,
    refusal: Refusal = _nothing_refused,
) -> tuple[list[Row], DropReport]:
    """Every finished trajectory with its label, at most `per_task` of each label a task."""
    report = DropReport()
    found: list[Row] = []
    for task in _by_task(_finished(trajectories, report)):
        for group in _split(task, seed):
            found += _rows_of(group, per_task, refusal, report)
    report.kept = len(found)
    return found, report


def sft_rows(
    trajectories: Iterable[Trajectory],
    *,
    per_task: int | None = None,
    seed: int = 0,
    refusal: Refusal = _nothing_refused,
) -> tuple[list[Row], DropReport]:
    """Every finished trajectory that resolved its task, at most `per_task` a task."""
    report = DropReport()
    found: list[Row] = []
    for task in _by_task(_finished(trajectories, report)):
        good, bad = _split(task, seed)
        report.drop("unresolved", len(bad))
        found += _rows_of(good, per_task, refusal, report)
    report.kept = len(found)
    return found, report


def generator(trajectory: Trajectory) -> str:
    """Digest of who sampled it: the agent's name, model, adapter and settings."""
    agent = trajectory.agent
    return digest([agent.name, agent.model_name, agent.adapter, agent.settings])


def first_state(trajectory: Trajectory, text_format: str | None = None) -> str:
    """Digest of s_1: everything said before the first action, and the tools on offer.

    V*_1 cancels in a pair only between trajectories with the same s_1 (Lemma 3.1). Where no token
    ids were recorded and no system message, or one for another format, the text format (by default
    the record's) writes one, and so belongs to s_1.
    """
    name = text_format or format_name(trajectory)
    ours = not recorded(trajectory) and explained_anew(trajectory, name)
    before = []
    for step in trajectory.steps:
        if step.source == "agent":
            break
        if step.source != "system" or not ours:
            before.append((step.source, step.message))
    start: object = ()
    if recorded(trajectory):
        start = next((ids for _, ids in trajectory.prompt_ids()), ())
    elif all(source != "system" for source, _ in before):
        start = name
    return digest([before, trajectory.tools, start])


def _finished(trajectories: Iterable[Trajectory], report: DropReport) -> list[Trajectory]:
    kept = []
    for trajectory in trajectories:
        report.seen += 1
        if trajectory.failure is not None:
            report.drop("failure")
        elif not trajectory.finished:
            report.drop("unfinished")
        elif not trajectory.agent_steps:
            report.drop("no-agent-tokens")
        else:
            kept.append(trajectory)
    return kept


def _by_task(trajectories: Sequence[Trajectory]) -> list[list[Trajectory]]:
    groups: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        groups.setdefault(trajectory.instance_id, []).append(trajectory)
    return [groups[name] for name in sorted(groups)]


def _by_first_state(task: Sequence[Trajectory], text_format: str | None) -> list[list[Trajectory]]:
    groups: dict[str, list[Trajectory]] = {}
    for trajectory in task:
        groups.setdefault(first_state(trajectory, text_format), []).append(trajectory)
    return [groups[name] for name in sorted(groups)]


@dataclass(slots=True)
class _Group:
    """Trajectories of one first state that may be paired, and whose quota their pairs count to."""

    quota: str
    good: list[Trajectory] = field(default_factory=list)
    bad: list[Trajectory] = field(default_factory=list)


def _pairs_of(
    states: Iterable[Sequence[Trajectory]], per_task: int, ties: int, seed: int
) -> list[Pair]:
    whole = [_Group("", *_split(state, seed)) for state in states]
    parts = [part for group in whole for part in _by_generator(group)]
    wins = _within(parts, per_task, _wins) or _within(whole, per_task, _wins)
    return wins + (_within(parts, ties, _ties) or _within(whole, ties, _ties))


def _by_generator(group: _Group) -> list[_Group]:
    found: dict[str, _Group] = {}
    for trajectory in (*group.good, *group.bad):
        name = generator(trajectory)
        part = found.setdefault(name, _Group(name))
        (part.good if trajectory.resolved else part.bad).append(trajectory)
    return [found[name] for name in sorted(found)]


def _within(
    groups: Iterable[_Group], count: int, choose: Callable[[_Group, int], list[Pair]]
) -> list[Pair]:
    """At most `count` pairs for each quota, of which several first states may have a part."""
    made: dict[str, list[Pair]] = {}
    for group in groups:
        so_far = made.setdefault(group.quota, [])
        so_far += choose(group, count - len(so_far))
    return list(chain.from_iterable(made.values()))


def _wins(group: _Group, count: int) -> list[Pair]:
    return [Pair(g, b) for g, b in _spread(product(group.good, group.bad), count)]


def _ties(group: _Group, count: int) -> list[Pair]:
    """Resolved and unresolved ones by turns, resolved first."""
    good, bad = (_spread(combinations(one, 2), count) for one in (group.good, group.bad))
    mixed = []
    for i in range(max(len(good), len(bad))):
        mixed += good[i : i + 1] + bad[i : i + 1]
    return [Pair(a, b, tie=True) for a, b in mixed[:count]]


def _why_unpaired(states: Sequence[Sequence[Trajectory]], made: Sequence[Pair]) -> Iterator[str]:
    """The reason of each trajectory of a task that is in none of its pairs."""
    used = {id(side) for pair in made for side in (pair.chosen, pair.rejected)}
    labels = {one.resolved for state in states for one in state}
    apart = any(
        not pair.tie and generator(pair.chosen) == generator(pair.rejected) for pair in made
    )
    for state in states:
        names = {id(one): generator(one) for one in state}
        for one in state:
            if id(one) in used:
                continue
            others = [t for t in state if t.resolved != one.resolved]
            partners = [t for t in others if _differ(t, one)]
            if len(labels) == 1:
                yield "no-partner"
            elif not others:
                yield "other-first-state"
            elif not partners:
                yield "same-steps"
            elif apart and all(names[id(t)] != names[id(one)] for t in partners):
                yield "other-generator"
            else:
                yield "over-quota"


def _rows_of(
    group: Sequence[Trajectory], per_task: int | None, refusal: Refusal, report: DropReport
) -> list[Row]:
    """Rows of the first `per_task` that are not refused; the others are counted."""
    kept: list[Row] = []
    for trajectory in group:
        if len(kept) == per_task:
            report.drop("over-quota")
        elif why := refusal(trajectory):
            report.drop(why)
        else:
            kept.append(Row(trajectory, trajectory.resolved))
    return kept


def _split(task: Sequence[Trajectory], seed: int) -> tuple[list[Trajectory], list[Trajectory]]:
    """(resolved, unresolved), each in an order that depends on content and seed alone."""
    ordered = sorted(task, key=lambda t: t.trajectory_id)
    random.Random(f"{seed}:{task[0].instance_id}").shuffle(ordered)
    return [t for t in ordered if t.resolved], [t for t in ordered if not t.resolved]


def _spread(
    candidates: Iterable[tuple[Trajectory, Trajectory]], count: int
) -> list[tuple[Trajectory, Trajectory]]:
    """`count` of the candidates, each time one whose two sides were used least so far.

    Of those, one that shares most steps; of those, the first.
    """
    left = [(a, b) for a, b in candidates if _differ(a, b)] if count > 0 else []
    left.sort(key=lambda p: -Pair(*p).shared_steps)
    used: dict[int, int] = {}
    chosen: list[tuple[Trajectory, Trajectory]] = []
    while left and len(chosen) < count:
        best = min(left, key=lambda p: used.get(id(p[0]), 0) + used.get(id(p[1]), 0))
        left.remove(best)
        chosen.append(best)
        for side in best:
            used[id(side)] = used.get(id(side), 0) + 1
    return chosen


def _differ(one: Trajectory, other: Trajectory) -> bool:
    """Whether a pair of the two would have anything to prefer."""
    return list(map(_like, one.steps)) != list(map(_like, other.steps))


def _like(step: Step) -> tuple[object, ...]:
    """What two steps have in common where they lead from one state to the same next one.

    Not their log-probabilities, whose last digits depend on the batch they were sampled in, nor the
    ids by which a server tells calls apart.
    """
    seen = step.metrics
    ids = seen and (seen.prompt_prefix, seen.prompt_token_ids, seen.completion_token_ids)
    calls = [(call.function_name, call.arguments) for call in step.tool_calls]
    return step.source, step.message, calls, step.observation, ids
