"""Small trajectories: sampled (with token ids) and scripted (without)."""

from __future__ import annotations

import random
from dataclasses import replace

from swe_env.prefix import common_prefix
from swe_env.replay.trajectory import (
    Agent,
    Metrics,
    Step,
    StepObservation,
    ToolCall,
    Trajectory,
)
from swe_env.types import Failure

SYSTEM = "You mend bugs."
TOOLS = ({"type": "function", "function": {"name": "view", "parameters": {}}},)


def sampled(task="t-1", *, replies=("look", "done"), resolved=True, attempt=0, **changes):
    """A trajectory with recorded ids (the bytes of ChatML text, roughly)."""
    rng = random.Random(f"{task}{replies}")
    issue = f"Issue of {task}."
    steps = [
        Step(step_id=1, source="system", message=SYSTEM),
        Step(step_id=2, source="user", message=issue),
    ]
    first = tuple(40 + ord(c) % 100 for c in SYSTEM + issue)
    length = 0
    for turn, reply in enumerate(replies):
        prompt = first if turn == 0 else tuple(rng.randrange(40, 200) for _ in range(6))
        completion = tuple((ord(c) - ord("!")) % 200 for c in reply)  # as `byte_tokenizer` has it
        metrics = Metrics(
            prompt_prefix=length,
            prompt_token_ids=prompt,
            completion_token_ids=completion,
            logprobs=(-0.5,) * len(completion),
        )
        length += len(prompt) + len(completion)
        steps.append(
            Step(
                step_id=turn + 3,
                source="agent",
                message=reply,
                tool_calls=(ToolCall(function_name="view", arguments={"path": reply}),),
                observation=StepObservation(content=f"saw {turn}"),
                metrics=metrics,
            )
        )
    fields = {"finished": True, "reward": float(resolved), "tools": TOOLS, "agent": Agent(name="p")}
    return Trajectory(
        instance_id=task,
        steps=tuple(steps),
        resolved=resolved,
        attempt=attempt,
        **{**fields, **changes},
    )


def rewritten(trajectory, prompts):
    """The trajectory, of which each turn in `prompts` was sampled from the prompt given there."""
    steps, context = list(trajectory.steps), ()
    for at, step in enumerate(steps):
        if step.metrics is None:
            continue
        turn = trajectory.agent_steps.index(step)
        prompt = prompts.get(turn, context + step.metrics.prompt_token_ids)
        kept = common_prefix(context, prompt)
        metrics = replace(step.metrics, prompt_prefix=kept, prompt_token_ids=prompt[kept:])
        steps[at] = replace(step, metrics=metrics)
        context = prompt + metrics.completion_token_ids
    return replace(trajectory, steps=tuple(steps))


def scripted(task="t-1", *, actions=None, **changes):
    """A trajectory of an agent that samples nothing."""
    actions = actions or [("view", {"path": "a.py"}), ("submit", {})]
    steps = [Step(step_id=1, source="user", message=f"Issue of {task}.")]
    for turn, (tool, arguments) in enumerate(actions):
        steps.append(
            Step(
                step_id=turn + 2,
                source="agent",
                message=f"Now {tool}.",
                tool_calls=(ToolCall(function_name=tool, arguments=arguments),),
                observation=StepObservation(content=f"result {turn}\nline two"),
            )
        )
    fields = {"finished": True, "resolved": True, "tools": TOOLS, "agent": Agent(name="oracle")}
    return Trajectory(instance_id=task, steps=tuple(steps), **{**fields, **changes})


def mixed_buffer(tasks=4, each=4, seed=0):
    """Resolved and unresolved attempts of several tasks."""
    rng = random.Random(seed)
    found = []
    for task in range(tasks):
        for attempt in range(each):
            words = ["".join(rng.choices("abcdefgh", k=rng.randrange(3, 9))) for _ in range(3)]
            replies = tuple(words[: rng.randrange(1, 4)])
            found.append(
                sampled(f"t-{task}", replies=replies, resolved=attempt % 2 == 0, attempt=attempt)
            )
    return found


def rewriting_buffer(**changes):
    """The same, but the last of several turns was sampled from a prompt without those before it."""
    found = []
    for one in mixed_buffer(**changes):
        turns, first = len(one.agent_steps), one.agent_steps[0].metrics.prompt_token_ids
        found.append(rewritten(one, {turns - 1: (*first, 7, 8, 9)}) if turns > 1 else one)
    return found


FAILURE = Failure(kind="sandbox", message="lost")
