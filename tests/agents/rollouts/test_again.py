import json
from dataclasses import replace

import pytest
import typer
from typer.testing import CliRunner

from agents.policies.scripted import ScriptedPolicy
from agents.rollouts import regrade, replay, run_rollouts
from agents.rollouts.commands import register
from swe_env.errors import ConfigError
from swe_env.replay import Agent, ReplayBuffer, Trajectory
from swe_env.tasks import dump
from swe_env.types import Failure

FIX = {"path": "shop.py", "old_str": "(100 + discount)", "new_str": "(100 - discount)"}
ACTIONS = [
    {"tool": "view", "arguments": {"path": "shop.py"}},
    {"tool": "bash", "arguments": {"command": "ls; exit 3"}},
    {"tool": "edit", "arguments": FIX},
    {"tool": "run_tests", "arguments": {}},
]


@pytest.fixture(scope="module")
def recorded(shop_task, tmp_path_factory):
    """Two attempts, one submitted and one cut off by its script, in a buffer."""
    out = tmp_path_factory.mktemp("runs")
    submit = {"tool": "submit", "arguments": {}}
    with ReplayBuffer(out / "buffer") as buffer:
        for name, actions in {"whole": [*ACTIONS, submit], "cut": ACTIONS[:3]}.items():
            run_rollouts(
                ScriptedPolicy(actions), [shop_task], out=out / name, buffer=buffer,
                env_kwargs={"sandbox": "process"},
            )  # fmt: skip
        found = list(buffer)
    dump([shop_task], out / "tasks.jsonl")
    return out, found


def test_a_record_is_reproduced_to_the_byte(recorded, shop_task):
    for trajectory in recorded[1]:
        assert trajectory.resolved
        assert replay(trajectory, shop_task) == ()


def test_what_came_out_otherwise_is_told(recorded, shop_task):
    trajectory = recorded[1][0]
    steps = list(trajectory.steps)
    seen = replace(steps[1].observation, content="something else", exit_code=7)
    steps[1] = replace(steps[1], observation=seen)
    changed = replace(trajectory, steps=tuple(steps), resolved=False)
    found = [(d.step, d.what) for d in replay(changed, shop_task)]
    assert found == [(2, "observation"), (2, "exit_code"), (0, "resolved")]


def test_another_task_or_a_record_without_settings_is_refused(recorded, shop_task):
    with pytest.raises(ConfigError, match="not the one"):
        replay(recorded[1][0], replace(shop_task, problem_statement="Another."))
    with pytest.raises(ConfigError, match="does not say"):
        regrade(replace(recorded[1][0], provenance={}), shop_task)


def test_a_patch_is_graded_again_by_the_tasks_tests(recorded, shop_task):
    worse = replace(recorded[1][0], patch="", resolved=True)
    again = regrade(worse, shop_task)
    assert (again.resolved, again.reward) == (False, 0.0)
    assert again.report.fail_to_pass == {"tests/test_shop.py::test_discount": "failed"}
    assert regrade(recorded[1][1], shop_task).resolved


def test_the_commands_tell_and_keep_the_source(recorded):
    out, found = recorded
    app = typer.Typer()
    register(app)
    tasks = ["--tasks", f"jsonl:{out}/tasks.jsonl"]
    shown = CliRunner().invoke(app, ["replay", f"{out}/buffer", *tasks, "--json"])
    assert shown.exit_code == 0, shown.output
    assert [json.loads(line)["differences"] for line in shown.stdout.splitlines()] == [[], []]
    one = ["--id", found[0].trajectory_id, "--out", f"{out}/again"]
    shown = CliRunner().invoke(app, ["regrade", f"{out}/buffer", *tasks, *one])
    assert shown.stdout == "1 graded again, 0 verdicts changed.\n"
    assert len(ReplayBuffer(out / "again")) == 1
    assert len(ReplayBuffer(out / "buffer")) == 2


@pytest.fixture
def command(recorded):
    """Runs `replay` or `regrade` on a source with the recorded tasks."""
    app = typer.Typer()
    register(app)
    tasks = f"jsonl:{recorded[0]}/tasks.jsonl"

    def run(name, source, *options):
        return CliRunner().invoke(app, [name, str(source), "--tasks", tasks, *options])

    return run


@pytest.mark.parametrize("name", ["replay", "regrade"])
def test_nothing_to_look_at_is_no_success(recorded, command, name):
    out, _ = recorded
    shown = command(name, f"{out}/buffer", "--id", "no-such-id")
    assert "no trajectory whose id starts with 'no-such-id'" in str(shown.exception)
    shown = command(name, f"{out}/whole")  # the job's folder, not its buffer
    assert "no replay buffer at" in str(shown.exception)


@pytest.mark.parametrize("written", ["{}/buffer/", "file://{}/buffer"])
def test_regraded_records_do_not_go_to_their_source(recorded, command, written):
    place = written.format(recorded[0])
    shown = command("regrade", f"{recorded[0]}/buffer", "--out", place)
    assert f"--out {place} is the source" in str(shown.exception)


def test_a_buffers_url_is_a_source(recorded, command):
    shown = command("replay", f"file://{recorded[0]}/buffer")
    assert shown.stdout.endswith("2 of 2 came out the same.\n"), shown.output


def test_a_failed_record_is_left_out_and_a_failing_one_ends_nothing(recorded, command, tmp_path):
    """A patch that does not fit is the machinery's failure and no verdict."""
    failure = Failure(kind="sandbox", message="no sandbox today")
    gone = Trajectory(
        instance_id="shop-1", agent=Agent(name="a"), steps=(), truncation="failure", failure=failure
    )
    torn = replace(recorded[1][0], patch=recorded[1][0].patch.replace("100 +", "17 +"))
    with ReplayBuffer(tmp_path / "b") as buffer:
        buffer.extend([replace(gone, instance_id=torn.instance_id), torn, recorded[1][1]])
    shown = command("regrade", tmp_path / "b", "--out", str(tmp_path / "again"))
    assert shown.exit_code == 3
    assert "1 graded again, 0 verdicts changed. 1 left out. 1 could not be done." in shown.output
    shown = command("regrade", tmp_path / "b", "--out", str(tmp_path / "again"))
    assert "0 graded again, 0 verdicts changed. 2 left out. 1 could not be done." in shown.output
    assert len(ReplayBuffer(tmp_path / "again")) == 1
    shown = command("replay", tmp_path / "b")
    assert "1 left out" in shown.output
