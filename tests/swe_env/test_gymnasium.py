"""What Gymnasium promises of an environment: checker, specs, vectors, wrappers, seeds, bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import warnings
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit

import swe_env
from swe_env.errors import TaskError
from swe_env.replay import Trajectory
from swe_env.sandbox import get
from swe_env.tasks import dump
from swe_env.wrappers import RecordTrajectory

SANDBOXES = [name for name in ("local", "process") if not get(name).available()]
FIX = {
    "tool": "edit",
    "arguments": {"path": "shop.py", "old_str": "100 + discount", "new_str": "100 - discount"},
}
LOOK = {"tool": "view", "arguments": {"path": "shop.py"}}
SUBMIT = {"tool": "submit", "arguments": {}}

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def call(command):
    return {"tool": "bash", "arguments": {"command": command}}


@pytest.mark.parametrize("sandbox", SANDBOXES)
@pytest.mark.parametrize("tools", ["default", "r2e", "full"])
def test_check_env_is_clean(source, sandbox, tools, capsys):
    """Rendering, seeding and closing included; the passive checker of `gym.make`, too."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = gym.make(
            "SWE-v0",
            tasks=source,
            sandbox=sandbox,
            tools=tools,
            render_mode="ansi",
            disable_env_checker=False,
        )
        check_env(made.unwrapped)
        made.reset(seed=1)
        made.action_space.seed(1)
        for _ in range(3):
            made.step(made.action_space.sample())
        assert made.render()
        made.close()
    complaints = [str(w.message) for w in caught if "does NOT isolate" not in str(w.message)]
    assert complaints == []


@pytest.mark.parametrize("name", ["SWE-v0", "SWE-bench-Lite-v0"])
def test_an_environment_works_after_a_first_reset_that_failed(source, name):
    made = gym.make(name, tasks=source)
    with pytest.raises(TaskError, match="There is no task 'wrong'"):
        made.reset(options={"instance_id": "wrong"})
    made.reset(seed=0)
    observation, *_ = made.step(LOOK)
    assert "100 + discount" in observation["text"]
    made.close()


def test_the_spec_survives_json(source):
    made = gym.make("SWE-v0", tasks=source, max_episode_steps=7)
    text = made.spec.to_json()
    again = gym.make(EnvSpec.from_json(text))
    assert json.loads(text)["kwargs"]["tasks"] == source
    assert again.unwrapped.max_episode_steps == 7
    made.close()
    again.close()


def test_a_wrapped_environment_is_made_again_from_json(source, tmp_path):
    made = RecordTrajectory(
        gym.make("SWE-v0", tasks=source), tmp_path / "buffer", agent={"name": "me"}
    )
    made = RecordEpisodeStatistics(made)
    again = gym.make(EnvSpec.from_json(made.spec.to_json()))
    layers, env = [], again
    while isinstance(env, gym.Wrapper):
        layers.append(type(env).__name__)
        env = env.env
    assert layers[:3] == ["RecordEpisodeStatistics", "RecordTrajectory", "GradeOnTimeLimit"]
    made.close()
    again.close()


def test_an_id_for_each_source(source):
    ids = {name for name, spec in gym.registry.items() if spec.entry_point == "swe_env.env:SWEEnv"}
    assert {"SWE-v0", "SWE-quickstart-v0", "SWE-bench-Verified-v0", "SWE-smith-v0"} <= ids
    quick = gym.make("SWE-quickstart-v0")
    assert quick.unwrapped.settings["tasks"] == "quickstart"
    assert json.loads(quick.spec.to_json())["id"] == "SWE-quickstart-v0"
    quick.close()
    other = gym.make("SWE-bench-Lite-v0", tasks=source, max_episode_steps=3)
    assert other.reset(seed=0)[0]["steps_left"] == 3
    other.close()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_vectors_of_long_observations_with_their_defaults(source, mode):
    """30,000 characters of any script, each environment its own; an ended episode starts anew."""
    made = gym.make_vec(
        "SWE-v0", num_envs=2, vectorization_mode=mode, tasks=source, output_limit=60_000
    )
    observations, infos = made.reset(seed=[3, 4])
    assert observations["steps_left"].tolist() == [100, 100]
    assert list(infos["instance_id"]) == ["shop-1", "shop-1"]
    long = call("printf 'é%.0s' $(seq 30000)"), call("printf '文%.0s' $(seq 20000)")
    observations, *_ = made.step(long)
    assert observations["text"] == ("é" * 30_000, "文" * 20_000)
    observations, rewards, *_ = made.step((LOOK, FIX))
    assert "100 + discount" in observations["text"][0]
    assert "100 - discount" in observations["text"][1]
    _, rewards, ended, _, infos = made.step((SUBMIT, SUBMIT))
    assert rewards.tolist() == [0.0, 1.0]
    assert ended.tolist() == [True, True]
    assert [report.resolved for report in infos["report"]] == [False, True]
    observations, _, ended, _, _ = made.step((LOOK, LOOK))
    assert observations["steps_left"].tolist() == [100, 100]
    assert ended.tolist() == [False, False]
    made.close()


def test_a_vector_environment_by_default_and_with_wrappers(source):
    made = gym.make_vec("SWE-v0", num_envs=1, tasks=source, wrappers=[RecordEpisodeStatistics])
    made.reset(seed=0)
    made.step((FIX,))
    *_, infos = made.step((SUBMIT,))
    assert infos["episode"]["l"].tolist() == [2]
    assert infos["episode"]["r"].tolist() == [1.0]
    made.close()


def test_time_limit_statistics_and_recording_agree(source):
    """Whatever stands inside or outside, the step limit is graded, counted and recorded once."""
    records: list[Trajectory] = []
    inner = gym.make("SWE-v0", tasks=source, max_episode_steps=-1)
    made = RecordEpisodeStatistics(
        RecordTrajectory(TimeLimit(inner, 2), records, agent={"name": "me"})
    )
    made.reset(seed=0)
    made.step(FIX)
    _, reward, terminated, truncated, info = made.step(LOOK)
    assert (reward, terminated, truncated) == (1.0, False, True)
    assert info["report"].resolved
    assert (info["episode"]["r"], info["episode"]["l"]) == (1.0, 2)
    assert [(t.resolved, t.finished, t.truncation) for t in records] == [(True, False, "steps")]
    made.close()


@pytest.fixture(scope="module")
def several(shop_task, tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks") / "several.jsonl"
    dump([replace(shop_task, instance_id=f"shop-{n}") for n in range(8)], path)
    return f"jsonl:{path}"


def test_seeds_draw_the_tasks_and_the_sampled_actions(several):
    def drawn(seed):
        made = swe_env.SWEEnv(several)
        first = made.reset(seed=seed)[1]["instance_id"]
        rest = [made.reset()[1]["instance_id"] for _ in range(4)]
        made.action_space.seed(seed)
        actions = [made.action_space.sample() for _ in range(5)]
        made.close()
        return [first, *rest], actions

    assert drawn(5) == drawn(5)
    assert drawn(5)[0] != drawn(6)[0]
    assert len(set(drawn(5)[0])) > 1


def test_a_named_task_does_not_change_what_later_seeds_draw(several):
    made = swe_env.SWEEnv(several)
    made.reset(seed=1)
    expected = made.reset()[1]["instance_id"]
    assert made.reset(seed=1, options={"instance_id": "shop-7"})[1]["instance_id"] == "shop-7"
    assert made.reset()[1]["instance_id"] == expected
    made.close()


EPISODE = """
    import dataclasses, json, sys, warnings
    warnings.simplefilter("ignore")
    import gymnasium as gym, swe_env

    def plain(value):
        return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else repr(value)

    env = gym.make("SWE-v0", tasks=sys.argv[1], sandbox=sys.argv[2], tools="full")
    lines = [env.reset(seed=11)]
    for tool, arguments in [
        ("view", {}),
        ("view", {"path": "shop.py"}),
        ("view", {"path": "gone"}),
        ("outline", {}),
        ("search", {"query": "total", "context": 1}),
        ("bash", {"command": "ls -a; cat shop.py; python -c 'import gone'; (exit 3)"}),
        ("edit", {"path": "shop.py", "old_str": "sum(prices)", "new_str": "("}),
        ("edit", {"path": "shop.py", "old_str": "100 + d", "new_str": "100 - d"}),
        ("undo", {}),
        ("edit_lines", {"path": "tests/test_shop.py", "first": 5, "last": 5, "text": "    gone()"}),
        ("run_tests", {}),
        ("bash", {"command": "sleep 9", "timeout": 0.3}),
        ("bash", {"command": "ctrl+c"}),
        ("fly", {}),
        ("view", {"path": 3, "range": "x"}),
        # From here on what a sandbox is shows.
        ("bash", {"command": "pwd; echo $HOME $TMPDIR; env | sort; id -u; hostname; umask"}),
        ("bash", {"command": "python -c 'import shop; shop.total(1)'; mktemp -u | wc -c; exit 4"}),
        ("submit", {}),
    ]:
        lines.append(env.step({"tool": tool, "arguments": arguments}))
    env.close()
    print("\\n".join(json.dumps(line, default=plain, sort_keys=True) for line in lines))
"""
SAME_EVERYWHERE = slice(0, 16)


def test_the_same_seed_and_actions_give_the_same_bytes(source):
    """In two processes for each sandbox; and in all sandboxes, but for what names a place."""
    runs = [(sandbox, folder) for sandbox in SANDBOXES for folder in ("/", Path.home())]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(EPISODE), source, sandbox],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONHASHSEED": str(n), "PYTHONPATH": str(ROOT)},
        )
        for n, (sandbox, folder) in enumerate(runs)
    ]
    seen = []
    for process in started:
        output, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
        seen.append(output.splitlines())
    for one, other in zip(seen[::2], seen[1::2], strict=True):
        assert one == other
    assert all(lines[SAME_EVERYWHERE] == seen[0][SAME_EVERYWHERE] for lines in seen)
    assert len(seen[0]) == 19


ROOT = Path(__file__).parents[2]
