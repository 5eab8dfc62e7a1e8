"""Verifier scores: ask a model whether an attempt is right, score = P(YES)/(P(YES)+P(NO))."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from agents.chat import Message
from swe_env.errors import ModelError
from swe_env.replay.trajectory import Step, Trajectory

ANSWERS = ("YES", "NO")
SYSTEM = (
    "You judge the work of a coding agent. You are given an issue, what the agent did about it, "
    "and the patch it made. Answer with one word: YES if the patch resolves the issue without "
    "breaking anything else, NO otherwise."
)
QUESTION = "Does this patch resolve the issue? Answer YES or NO."


class AnswerScorer(Protocol):
    """Gives log-probabilities of the two answers; `TransformersScorer` is one."""

    def __call__(self, prompts: Sequence[Sequence[Message]]) -> Sequence[tuple[float, float]]:
        """(log P(YES), log P(NO)) of each prompt, natural logarithms, in the prompts' order."""
        ...


def build_prompt(
    trajectory: Trajectory, *, step_chars: int = 600, max_chars: int = 24_000
) -> list[Message]:
    """The question about one attempt: issue, condensed steps, patch.

    Messages, arguments and observations are cut to `step_chars` characters with their middle left
    out; when the steps together are still longer than a third of `max_chars`, steps in the middle
    are left out and counted. The patch and the issue may take a third each. The verdict is not in
    the prompt.
    """
    third = max_chars // 3
    issue = "\n\n".join(s.message for s in trajectory.steps if s.source == "user")
    steps = [_describe(step, step_chars) for step in trajectory.agent_steps]
    patch = trajectory.patch.strip() or "(the agent changed nothing)"
    ending = "submitted" if trajectory.finished else f"cut off ({trajectory.truncation or '?'})"
    content = (
        f"# Issue\n{shorten(issue, third)}\n\n"
        f"# What the agent did ({len(steps)} steps, {ending})\n{_fit(steps, third)}\n\n"
        f"# Patch\n```diff\n{shorten(patch, third)}\n```\n\n{QUESTION}"
    )
    return [Message(role="system", content=SYSTEM), Message(role="user", content=content)]


def score_trajectories(
    trajectories: Iterable[Trajectory], scorer: AnswerScorer, *, batch_size: int = 8
) -> dict[str, float]:
    """trajectory_id → P(YES)/(P(YES)+P(NO)); infrastructure failures are not scored.

    Raises:
        ModelError: the scorer gave another number of answers than prompts, or no finite one.
    """
    kept = [t for t in trajectories if t.failure is None]
    scores: dict[str, float] = {}
    for start in range(0, len(kept), batch_size):
        batch = kept[start : start + batch_size]
        answers = scorer([build_prompt(t) for t in batch])
        if len(answers) != len(batch):
            raise ModelError(
                f"The verifier answered {len(answers)} of {len(batch)} prompts: "
                "a scorer must return one pair for each prompt, in their order."
            )
        for trajectory, (yes, no) in zip(batch, answers, strict=True):
            scores[trajectory.trajectory_id] = probability(yes, no)
    return scores


def probability(log_yes: float, log_no: float) -> float:
    """P(YES)/(P(YES)+P(NO)) from natural logarithms, without underflow.

    Raises:
        ModelError: neither answer has a probability, or one is NaN.
    """
    top = max(log_yes, log_no)
    if math.isnan(log_yes) or math.isnan(log_no) or math.isinf(top):
        raise ModelError(
            f"The verifier gave no usable answer (log P(YES)={log_yes}, log P(NO)={log_no}): "
            "check its prompt format and that it was trained to answer YES or NO."
        )
    yes, no = math.exp(log_yes - top), math.exp(log_no - top)
    return yes / (yes + no)


def find_answer(
    tokens: Sequence[str], top_logprobs: Sequence[Mapping[str, float]]
) -> tuple[float, float]:
    """The two log-probabilities in a sampled answer: the first token that reads YES or NO.

    For servers that return sampled tokens with their most likely alternatives. The answer's place
    is searched, since a model may open with a tag, a blank or a line break; spellings ("YES",
    " Yes") of one answer at that place are added up. An answer missing among the alternatives has
    probability 0 (−inf).

    Args:
        tokens: The sampled tokens as text.
        top_logprobs: For each token, alternative → natural log-probability.

    Raises:
        ModelError: no token reads YES or NO.
    """
    for token, alternatives in zip(tokens, top_logprobs, strict=True):
        if _reads(token) in ANSWERS:
            sums = [
                math.fsum(math.exp(lp) for text, lp in alternatives.items() if _reads(text) == name)
                for name in ANSWERS
            ]
            yes, no = (math.log(p) if p > 0 else -math.inf for p in sums)
            return yes, no
    raise ModelError(
        f"The verifier's answer {''.join(tokens)[:80]!r} has no YES or NO token: "
        "check its prompt format and that it was trained to answer YES or NO."
    )


def shorten(text: str, limit: int) -> str:
    """`text` with its middle left out, and the number of characters left out in its place."""
    if len(text) <= limit:
        return text
    head, tail = limit - limit // 2, limit // 2
    return f"{text[:head]}\n… {len(text) - limit} characters left out …\n{text[-tail:]}"


def _describe(step: Step, limit: int) -> str:
    parts = [f"[{step.step_id}] {shorten(step.message.strip(), limit)}".rstrip()]
    for call in step.tool_calls:
        arguments = msgspec.json.encode(call.arguments).decode()
        parts.append(f"→ {call.function_name} {shorten(arguments, limit)}")
    if step.observation is not None:
        content = shorten(step.observation.content.strip(), limit)
        parts.append(f"← (exit {step.observation.exit_code}) {content}")
    return "\n".join(parts)


def _fit(steps: list[str], limit: int) -> str:
    """As many first and last steps as fit, alternating from the end (it decides most)."""
    head: list[str] = []
    tail: list[str] = []
    left, used = list(steps), 0
    while left:
        last = len(tail) <= len(head)
        step = left[-1] if last else left[0]
        if used + len(step) > limit and (head or tail):
            break
        used += len(step)
        if last:
            tail.insert(0, left.pop())
        else:
            head.append(left.pop(0))
    gap = [f"… {len(left)} steps left out …"] if left else []
    return "\n\n".join(head + gap + tail) or "(nothing)"


def _reads(token: str) -> str:
    return token.strip().strip(".<>/:*\"'`").upper()
