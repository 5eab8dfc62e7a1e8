"""Options that `swe run` and `swe branch` share."""

from __future__ import annotations

from typing import Annotated

import typer

from agents.rollouts.episode import Budget

Workers = Annotated[int, typer.Option(min=1, help="Episodes in flight.")]
Seed = Annotated[int, typer.Option(help="Seed of everything drawn.")]
PolicyOption = Annotated[
    list[str] | None, typer.Option("--policy-option", "-p", help="NAME=VALUE, repeatable.")
]
MaxTokens = Annotated[int, typer.Option(help="Sampled tokens per episode; 0: any.")]
MaxSeconds = Annotated[float, typer.Option(help="Seconds per episode; 0: any.")]
MaxCost = Annotated[float, typer.Option(help="Dollars per episode; 0: any.")]
Repeats = Annotated[
    int | None,
    typer.Option(
        min=0, help="Same call and answer in a row that end it; 0: any.", show_default="4"
    ),
]
Errors = Annotated[
    int | None,
    typer.Option(min=0, help="Same error in a row that ends it; 0: any.", show_default="8"),
]
Failures = Annotated[
    int | None,
    typer.Option(min=0, help="Failed calls in a row that end it; 0: any.", show_default="30"),
]
Invalid = Annotated[
    int | None,
    typer.Option(min=0, help="Malformed replies in a row that end it; 0: any.", show_default="8"),
]
JobSteps = Annotated[int, typer.Option(help="Steps of the whole job; 0: any.")]
JobTokens = Annotated[int, typer.Option(help="Sampled tokens of the whole job; 0: any.")]
JobSeconds = Annotated[float, typer.Option(help="Seconds of this run; 0: any.")]
JobCost = Annotated[float, typer.Option(help="Dollars of the whole job; 0: any.")]
Retries = Annotated[int, typer.Option(min=0, help="Trials after infrastructure failures.")]
Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]


def plays_here(policy: str) -> bool:
    """Whether a person plays at this terminal: one episode at a time, and no live table over it."""
    from agents.policies import policies

    return bool(getattr(policies.get(policy), "interactive", False))


def episode_budget(
    tokens: int, seconds: float, cost: float, *, person: bool, **stuck: int | None
) -> Budget:
    """An episode's limits; those of `stuck` that are None are `Budget`'s own, a person has none."""
    usual = dict.fromkeys(stuck, 0) if person else {}
    given = {name: count for name, count in stuck.items() if count is not None}
    return Budget(tokens=tokens, seconds=seconds, cost=cost, **usual | given)
