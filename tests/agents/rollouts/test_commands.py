import json
import tomllib

import pytest
import typer
from typer.testing import CliRunner

from agents.rollouts.commands import parse_options, register, summary
from agents.rollouts.report import AttemptResult, RolloutReport
from swe_env.errors import ConfigError
from swe_env.replay import ReplayBuffer
from swe_env.tasks import dump


def test_swe_run_prints_json_on_stdout_and_continues(shop_task, tmp_path):
    dump([shop_task], tmp_path / "tasks.jsonl")
    arguments = [
        "run", "--policy", "random", "--tasks", f"jsonl:{tmp_path}/tasks.jsonl", "-p", "submit=1.0",
        "-e", "sandbox=process", "--out", f"{tmp_path}/job", "--buffer", f"{tmp_path}/b", "--json",
    ]  # fmt: skip
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    report = json.loads(first.stdout)
    assert (report["scored"], report["resolved"], report["skipped"]) == (1, 0, 0)
    again = CliRunner().invoke(app, arguments[:-1])
    assert "1 attempts were finished before" in again.stdout
    assert len(ReplayBuffer(tmp_path / "b")) == 1


def test_rays_options_without_ray_are_refused(tmp_path):
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)
    arguments = ["run", "--policy", "random", "--tasks", "x", "--out", str(tmp_path / "job")]
    shown = CliRunner().invoke(app, [*arguments, "--ray-gpus", "1"])
    assert "--ray-gpus is for --executor ray" in str(shown.exception)
    assert not (tmp_path / "job").exists()


@pytest.mark.parametrize("policy", ["scripted", "human"])
def test_limits_of_going_round_in_circles_are_options_and_a_person_has_none(
    shop_task, tmp_path, policy
):
    dump([shop_task], tmp_path / "tasks.jsonl")
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)
    arguments = ["run", "--policy", policy, "--tasks", f"jsonl:{tmp_path}/tasks.jsonl"]
    arguments += ["--out", str(tmp_path / "job"), "-e", "sandbox=process", "--errors", "5"]
    if policy == "scripted":
        arguments += ["-p", "actions=[]"]
    shown = CliRunner().invoke(app, arguments, input="view path=shop.py\n" * 9)
    assert shown.exit_code == 0, shown.output
    budget = tomllib.loads((tmp_path / "job" / "config.toml").read_text())["budget"]
    stuck = {name: budget.get(name) for name in ("repeats", "errors", "failures", "invalid")}
    if policy == "human":
        assert stuck == {"repeats": 0, "errors": 5, "failures": 0, "invalid": 0}
        assert "91 steps left" in shown.stderr  # the same call nine times is a person's right
        assert "human" in shown.stdout
    else:  # what is as ever is not written, so that older jobs go on
        assert stuck == {"repeats": 4, "errors": 5, "failures": None, "invalid": None}


def test_options_are_json_or_words():
    assert parse_options(["a=0.5", "b=[1]", "c=word", "d=x=y"]) == {
        "a": 0.5, "b": [1], "c": "word", "d": "x=y",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        parse_options(["a"])


def test_the_summary_keeps_failures_out_of_the_score():
    results = [
        AttemptResult(instance_id="a", attempt=0, trajectory_id="1", resolved=True, finished=True),
        AttemptResult(instance_id="a", attempt=1, trajectory_id="2", truncation="steps", invalid=3),
        AttemptResult(
            instance_id="b", attempt=0, trajectory_id="3", truncation="failure", failure="sandbox"
        ),
    ]
    text = summary(RolloutReport(out="job", results=tuple(results), interrupted=True))
    assert text.splitlines() == [
        "1 of 2 scored attempts resolved (50.0%).",
        "Cut off by: steps 1.",
        "Malformed replies: 3.",
        "Not scored, infrastructure failures: sandbox 1.",
        "Interrupted: run the same command again to continue.",
        "Results are in job.",
    ]
