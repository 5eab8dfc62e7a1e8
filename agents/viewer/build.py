"""From buffers to `ReportData`: counts, estimates, selections, and which attempts to show."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from agents.selection import (
    Counts,
    Estimate,
    bootstrap,
    bootstrap_difference,
    candidates,
    count,
    diversity,
    mean_pass_at_k,
    pass_at_k,
    regression_from_run_tests,
    selectors,
)
from agents.selection.candidates import Candidate, Regression
from agents.viewer.data import (
    Arm,
    ArmDiversity,
    Attempt,
    ReportData,
    Selected,
    Shown,
    StageTime,
    TrainingRun,
)
from agents.viewer.text import sampled
from swe_env.replay.trajectory import Trajectory

KS = (1, 2, 4, 8, 16, 32, 64)


def report_from_buffers(
    arms: Mapping[str, Iterable[Trajectory]],
    *,
    title: str,
    summary: str = "",
    descriptions: Mapping[str, str] | None = None,
    facts: Mapping[str, str] | None = None,
    config: Mapping[str, object] | None = None,
    training: Mapping[str, Sequence[Mapping[str, float]]] | None = None,
    stages: Iterable[StageTime] = (),
    notes: Iterable[str] = (),
    ks: Sequence[int] | None = None,
    selector_names: Sequence[str] = ("hybrid",),
    verifier_scores: Mapping[str, float] | None = None,
    regression: Regression | None = regression_from_run_tests,
    show: int = 2,
    seed: int = 0,
) -> ReportData:
    """Everything a report needs, computed from recorded trajectories.

    Args:
        arms: Name → trajectories (a `ReplayBuffer`, a view, or a list); the first is what the
            others are compared with. Branches are left out: they are no independent attempts.
        title: Heading of the report.
        summary: One paragraph; without it the counts are put into words.
        descriptions: Arm name → what it is.
        facts: Command, machine, commit, versions, seeds.
        config: Resolved configuration.
        training: Run name → metric rows.
        stages: Time of each stage.
        notes: Remarks and warnings, one sentence each.
        ks: k of pass@k; by default powers of two up to the most attempts a task has.
        selector_names: Selectors to evaluate, names of `agents.selection.selectors`.
        verifier_scores: trajectory_id → P(YES), over all arms.
        regression: Evidence for "breaks no regression test"; the agent's own test runs by default.
        show: How many trajectories to show step by step.
        seed: Of bootstrap and random selectors.

    Raises:
        ConfigError: an unknown selector, or verifier scores that do not cover the attempts.
    """
    held, branches = {}, 0
    for name, trajectories in arms.items():
        everything = list(trajectories)
        held[name] = [t for t in everything if t.branch is None]
        branches += len(everything) - len(held[name])
    if branches:
        notes = [*notes, f"{branches} branches left out: they start inside other attempts."]
    built: list[Arm] = []
    for name, trajectories in held.items():
        counts = count(trajectories)
        groups = {
            task: candidates(attempts, verifier_scores=verifier_scores, regression=regression)
            for task, attempts in by_task(trajectories).items()
        }
        built.append(
            Arm(
                name=name,
                description=(descriptions or {}).get(name, ""),
                attempts=tuple(attempt_of(t) for t in trajectories),
                pass_at=_pass_at(counts, ks, seed),
                selected=tuple(_selected(s, groups, seed) for s in selector_names),
                gain=_gain(count(held[built[0].name]), counts, seed) if built else None,
                diversity=_diversity(trajectories),
            )
        )
    return ReportData(
        title=title,
        summary=summary or _in_words(built),
        facts=facts or {},
        config=config or {},
        arms=tuple(built),
        training=tuple(TrainingRun(name=k, rows=tuple(v)) for k, v in (training or {}).items()),
        stages=tuple(stages),
        shown=_shown(held, show),
        notes=(*notes, *_uninformed(built)),
    )


def attempt_of(trajectory: Trajectory) -> Attempt:
    """A trajectory in a line."""
    logprobs = [
        value
        for step in trajectory.agent_steps
        if step.metrics is not None
        for value in step.metrics.logprobs
    ]
    return Attempt(
        trajectory_id=trajectory.trajectory_id,
        instance_id=trajectory.instance_id,
        attempt=trajectory.attempt,
        resolved=trajectory.resolved,
        finished=trajectory.finished,
        truncation=trajectory.truncation,
        failure=trajectory.failure.kind if trajectory.failure is not None else "",
        steps=len(trajectory.agent_steps),
        tokens=sum(sampled(step) for step in trajectory.agent_steps),
        surprisal=-math.fsum(logprobs) / len(logprobs) if logprobs else math.nan,
    )


def by_task(trajectories: Iterable[Trajectory]) -> dict[str, list[Trajectory]]:
    """instance_id → its attempts, in order of appearance."""
    found: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        found.setdefault(trajectory.instance_id, []).append(trajectory)
    return found


def _pass_at(
    counts: Mapping[str, Counts], ks: Sequence[int] | None, seed: int
) -> tuple[Estimate, ...]:
    most = max((c.n for c in counts.values()), default=0)
    wanted = sorted({*ks}) if ks else sorted({k for k in KS if k <= most} | {most})
    return tuple(mean_pass_at_k(counts, k, seed=seed) for k in wanted if 1 <= k <= most)


def _selected(name: str, groups: Mapping[str, Sequence[Candidate]], seed: int) -> Selected:
    selector = selectors.get(name)
    chosen: dict[str, str] = {}
    values: list[float] = []
    uninformed = 0
    for task, attempts in groups.items():
        selection = selector(attempts, seed)
        if selection.chosen is not None:
            uninformed += selection.uninformed
            chosen[task] = selection.chosen_id
            values.append(float(selection.chosen.resolved))
    low, high = bootstrap(values, seed=seed)
    estimate = Estimate(
        value=math.fsum(values) / len(values) if values else math.nan,
        low=low,
        high=high,
        tasks=len(values),
        left_out=len(groups) - len(values),
    )
    return Selected(selector=name, estimate=estimate, chosen=chosen, uninformed=uninformed)


def _uninformed(arms: Iterable[Arm]) -> Iterator[str]:
    for arm in arms:
        for chosen in arm.selected:
            if chosen.uninformed:
                yield (
                    f"{arm.name}: the selector {chosen.selector} had no evidence to choose by on "
                    f"{chosen.uninformed} of {chosen.estimate.tasks} tasks and took the first "
                    "attempt there, as `first` does."
                )


def _gain(
    before: Mapping[str, Counts], after: Mapping[str, Counts], seed: int
) -> tuple[float, float, float] | None:
    ones = [
        {task: pass_at_k(c.n, c.resolved, 1) for task, c in counts.items() if c.n}
        for counts in (before, after)
    ]
    if not ones[0].keys() & ones[1].keys():
        return None
    return bootstrap_difference(ones[0], ones[1], seed=seed)


def _diversity(trajectories: Iterable[Trajectory]) -> ArmDiversity:
    found = [diversity(attempts) for attempts in by_task(trajectories).values()]
    solved = [d for d in found if d.resolved]
    return ArmDiversity(
        distinct_patches=_mean([d.distinct_patches for d in found if d.attempts]),
        distinct_correct=_mean([d.distinct_correct for d in solved]),
        effective_correct=_mean([d.effective_correct for d in solved]),
        call_cosine=_mean([d.call_cosine for d in found if d.attempts > 1]),
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _shown(held: Mapping[str, Sequence[Trajectory]], limit: int) -> tuple[Shown, ...]:
    """A resolved attempt and an unresolved one of the last arm, then of the ones before.

    The longest that finished is taken: it has most to show.
    """
    wanted: tuple[tuple[str, Callable[[Trajectory], bool]], ...] = (
        ("resolved", lambda t: t.resolved),
        ("not resolved", lambda t: not t.resolved),
    )
    picked: list[Shown] = []
    for name, trajectories in reversed(list(held.items())):
        for caption, test in wanted:
            fitting = [t for t in trajectories if t.failure is None and test(t)]
            if fitting:
                best = max(fitting, key=lambda t: (t.finished, len(t.agent_steps), -t.attempt))
                picked.append(Shown(trajectory=best, arm=name, caption=caption))
    return tuple(picked[:limit])


def _in_words(arms: Sequence[Arm]) -> str:
    if not arms:
        return "No arm was recorded."
    return " ".join(_arm_in_words(arm) for arm in arms)


def _arm_in_words(arm: Arm) -> str:
    counted = [a for a in arm.attempts if not a.failure]
    if not counted:
        return f"{arm.name}: no attempts that count."
    tasks = {a.instance_id for a in counted}
    solved = {a.instance_id for a in counted if a.resolved}
    return (
        f"{arm.name}: {sum(a.resolved for a in counted)} of {len(counted)} attempts resolved, "
        f"{len(solved)} of {len(tasks)} tasks at least once."
    )
