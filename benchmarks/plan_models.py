"""The plan for the paper's four models on its longest pair, as the table of docs/plan.md.

    python benchmarks/plan_models.py

A buffer of as many tasks as GPUs, each with one resolved and one unresolved trajectory of 18,000
token ids, a fifth of them sampled, with the first prompt of 720 tokens in common: a step has a pair
for each GPU. No weights are loaded.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from learners.training.config import TrainConfig
from learners.training.plan import Plan, plan_training
from swe_env.replay import ReplayBuffer
from swe_env.replay.trajectory import Agent, Metrics, Step, StepObservation, ToolCall, Trajectory

TOKENS, TURNS = 18_000, 20
CASES = [
    ("Qwen3-4B", "A100-80", 1, "lora"),
    ("Gemma-3-27b", "H100-80", 1, "lora"),
    ("Qwen3-Coder-30B-A3B", "H100-80", 1, "lora"),
    ("GLM-4.5-Air", "H100-80", 8, "lora"),
    ("GLM-4.5-Air", "H100-80", 8, "qlora"),  # the paper's
]
GIB = 1 << 30


def trajectory(task: int, resolved: bool) -> Trajectory:
    """`TURNS` turns of the same length, a fifth of each sampled; the first prompt is the task's."""
    reply, seen = TOKENS // TURNS // 5, TOKENS // TURNS * 4 // 5
    turns = [
        Step(
            step_id=number + 3,
            source="agent",
            message="x",
            tool_calls=(ToolCall(function_name="bash", arguments={"command": f"{number}"}),),
            observation=StepObservation(content="x"),
            metrics=Metrics(
                prompt_prefix=number * (reply + seen),
                prompt_token_ids=(2 + resolved if number else 1,) * seen,
                completion_token_ids=(2 + resolved,) * reply,
            ),
        )
        for number in range(TURNS)
    ]
    first = [
        Step(step_id=1, source="system", message="x"),
        Step(step_id=2, source="user", message="x"),
    ]
    return Trajectory(
        instance_id=f"task-{task}",
        steps=(*first, *turns),
        resolved=resolved,
        finished=True,
        reward=float(resolved),
        attempt=int(resolved),
        agent=Agent(name="made"),
    )


def verdict(plan: Plan) -> str:
    """Whether it fits, where there is something to say."""
    if not plan.fits:
        return ": does not fit"
    return ": little to spare" if plan.memory.total > 0.97 * plan.usable else ""


def longest(plan: Plan) -> str:
    """The longest pair that fits."""
    return f"2 × {plan.longest_fits:,}" if plan.longest_fits else "none"


def main() -> None:
    """Print the table's rows."""
    for model, gpu, gpus, method in CASES:
        with tempfile.TemporaryDirectory() as folder:
            with ReplayBuffer(folder) as buffer:
                buffer.extend(trajectory(n, good) for n in range(gpus) for good in (True, False))
            config = TrainConfig(
                model=model, buffer=folder, out=str(Path(folder, "out")), batch_size=gpus,
                gradient_checkpointing=True,
            )  # fmt: skip
            plan = plan_training(config, gpu=gpu, gpus=gpus, method=method)
            print(
                f"| {model}, {'QLoRA' if method == 'qlora' else 'LoRA'} | {gpus} × {gpu} "
                f"| {plan.memory.fixed / GIB:.1f} | {plan.memory.total / GIB:.1f}{verdict(plan)} "
                f"| {plan.memory_other.total / GIB:,.0f} | {longest(plan)} "
                f"| {plan.tokens_per_second:,.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
