from __future__ import annotations

import json
from dataclasses import replace

import gymnasium as gym
import pytest

import swe_env
from swe_env.errors import SandboxError, TaskError
from swe_env.replay import Trajectory
from swe_env.sandbox import get, running
from swe_env.wrappers import RecordTrajectory

SANDBOXES = [name for name in ("local", "process") if not get(name).available()]
FIX = {
    "tool": "edit",
    "arguments": {"path": "shop.py", "old_str": "100 + discount", "new_str": "100 - discount"},
}
SUBMIT = {"tool": "submit", "arguments": {}}

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(params=SANDBOXES)
def env(request, source):
    made = gym.make("SWE-v0", tasks=source, sandbox=request.param)
    yield made
    made.close()


def test_an_episode_that_fixes_the_bug(env, shop_task):
    observation, info = env.reset(seed=0, options={"instance_id": "shop-1"})
    assert shop_task.problem_statement in observation["text"]
    assert info["instance_id"] == "shop-1"
    observation, reward, terminated, truncated, info = env.step(
        {"tool": "view", "arguments": {"path": "shop.py"}}
    )
    assert "100 + discount" in observation["text"]
    assert (reward, terminated, truncated) == (0.0, False, False)
    observation, *_ = env.step(FIX)
    assert observation["exit_code"] == 0
    _, reward, terminated, _, info = env.step(SUBMIT)
    assert (reward, terminated) == (1.0, True)
    assert info["report"].resolved
    assert info["report"].fail_to_pass == {"tests/test_shop.py::test_discount": "passed"}
    assert "+    return amount * (100 - discount) / 100" in info["patch"]
    with pytest.raises(gym.error.ResetNeeded):
        env.unwrapped.step(SUBMIT)


def test_an_empty_submission_is_unresolved(env):
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step(SUBMIT)
    assert (reward, terminated, info["patch"]) == (0.0, True, "")
    assert info["report"].fail_to_pass == {"tests/test_shop.py::test_discount": "failed"}


def test_the_time_of_the_tests_is_in_the_record_and_changes_nothing_else(env):
    """Each run takes its own time; `info` and the record's id are the same all the same."""
    records, infos = [], []
    recorder = RecordTrajectory(env, records, agent={"name": "tester"})
    for _ in range(2):
        recorder.reset(seed=0)
        infos.append(recorder.step(SUBMIT)[-1])
        timings = env.unwrapped.timings
        assert 0 < timings["tests"] <= timings["grading"]
        assert records[-1].report.seconds == round(timings["tests"], 3) > 0
    assert infos[0] == infos[1]
    assert infos[0]["report"].seconds == 0
    assert records[0].trajectory_id == replace(records[1], attempt=0).trajectory_id
    assert Trajectory.from_dict(records[0].to_dict()) == records[0]


def test_nothing_of_the_answer_is_in_reach(env):
    env.reset(seed=0)
    observation, *_ = env.step(
        {
            "tool": "bash",
            "arguments": {"command": "grep -rn test_disc . ; git log --oneline | wc -l"},
        }
    )
    assert "test_discount" not in observation["text"]
    assert observation["text"].strip().splitlines()[0] == "1"


def test_a_change_made_by_bash_is_in_the_patch(env):
    env.reset(seed=0)
    env.step(
        {
            "tool": "bash",
            "arguments": {"command": "sed -i 's/100 + d/100 - d/' shop.py; echo x > note.txt"},
        }
    )
    _, reward, _, _, info = env.step(SUBMIT)
    assert reward == 1.0
    assert "note.txt" in info["patch"]


def test_no_temporary_path_is_observed(source):
    texts = []
    for _ in range(2):
        made = gym.make("SWE-v0", tasks=source, sandbox="process")
        made.reset(seed=0)
        command = "pwd; echo $HOME/x $TMPDIR; cd && pwd; dirname $(mktemp -u); cd ..; pwd"
        observation, *_ = made.step({"tool": "bash", "arguments": {"command": command}})
        texts.append(observation["text"])
        made.close()
    assert texts == [".\n~/x $TMPDIR\n~\n$TMPDIR\n$TMPDIR/.."] * 2


def test_gym_makes_step_limit_grades_and_counts_down(source):
    made = gym.make("SWE-v0", tasks=source, max_episode_steps=2)
    observation, _ = made.reset(seed=0)
    assert observation["steps_left"] == 2
    observation, _, _, truncated, _ = made.step(FIX)
    assert (observation["steps_left"], truncated) == (1, False)
    _, reward, terminated, truncated, info = made.step({"tool": "view", "arguments": {}})
    assert (terminated, truncated, info["truncation"]) == (False, True, "steps")
    assert reward == 1.0
    assert info["report"].resolved
    made.close()


@pytest.mark.parametrize(
    "action",
    [
        {"tool": "veiw", "arguments": {}},
        {"tool": "view", "arguments": {"path": "/etc/passwd"}},
        {"tool": "view", "arguments": {"file": "shop.py"}},
        {"tool": "edit", "arguments": {"path": "shop.py", "old_str": "nowhere", "new_str": "x"}},
        {"tool": "invalid", "arguments": {"reason": "No tool call was found."}},
    ],
)
def test_a_wrong_call_is_an_observation(env, action):
    env.reset(seed=0)
    observation, reward, terminated, truncated, _ = env.step(action)
    assert observation["exit_code"] == 1
    assert observation["text"].strip()
    assert (reward, terminated, truncated) == (0.0, False, False)


def test_a_lost_sandbox_is_a_failure_and_never_a_verdict(env, monkeypatch):
    env.reset(seed=0)

    def lost(*_args, **_kwargs):
        raise SandboxError("the sandbox is gone")

    monkeypatch.setattr(type(env.unwrapped._context.sandbox), "exec", lost)
    _, reward, terminated, truncated, info = env.step(
        {"tool": "bash", "arguments": {"command": "true"}}
    )
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert info["failure"] == {"kind": "sandbox", "message": "the sandbox is gone"}
    assert "report" not in info


@pytest.mark.parametrize(
    ("header", "failed"), [("shop.py", True), ("../shop.py", False), (".git/config", False)]
)
def test_a_diff_that_does_not_apply_is_a_failure_unless_refused(env, monkeypatch, header, failed):
    env.reset(seed=0)
    patch = f"--- a/{header}\n+++ b/{header}\n@@ -1 +1 @@\n-nothing\n+else\n"
    monkeypatch.setattr(type(env.unwrapped._context.sandbox), "diff", lambda self: patch)
    _, reward, _, _, info = env.step(SUBMIT)
    assert reward == 0.0
    assert ("failure" in info, "report" in info) == (failed, not failed)
    if failed:
        assert info["failure"]["kind"] == "grading"
    else:
        assert not info["report"].patch_applied


def test_a_diff_that_is_too_large_is_a_verdict(env, monkeypatch):
    monkeypatch.setattr(running, "MOST_CHANNEL", 1 << 20)
    env.reset(seed=0)
    env.step(FIX)
    many = {"tool": "bash", "arguments": {"command": "seq 1000000 > numbers.txt"}}
    env.step(many)
    _, reward, terminated, _, info = env.step(SUBMIT)
    assert (reward, terminated, info["patch"]) == (0.0, True, "")
    assert not info["report"].resolved
    assert "The diff is larger than 1 MiB" in info["report"].error


@pytest.mark.skipif("local" not in SANDBOXES, reason="`process` limits no processes")
def test_a_full_process_table_costs_no_episode(source):
    env = gym.make("SWE-v0", tasks=source, sandbox="local", limits={"processes": 40})
    env.reset(seed=0)
    env.step(FIX)
    # The subshell waits for room for some 15 s, so none is left to others.
    many = "for i in {1..60}; do sleep 500 & done & while (( SECONDS < 2 )); do :; done"
    env.step({"tool": "bash", "arguments": {"command": many}})
    observation, *_ = env.step({"tool": "run_tests", "arguments": {}})
    assert observation["exit_code"] == 1
    assert "could not be started" in observation["text"]
    assert "limit on the number of processes was reached" in observation["text"]
    _, reward, _, _, info = env.step(SUBMIT)
    env.close()
    assert (reward, info["report"].resolved) == (1.0, True)


def test_fork_branches_files_steps_and_tool_state(env):
    env.reset(seed=0)
    env.step({"tool": "bash", "arguments": {"command": "echo shared > a.txt"}})
    twin = env.unwrapped.fork()
    twin.step(FIX)
    observation, *_ = env.step({"tool": "bash", "arguments": {"command": "cat a.txt shop.py"}})
    assert observation["text"].startswith("shared")
    assert "100 + discount" in observation["text"]
    *_, left = twin.step(SUBMIT)
    *_, right = env.step(SUBMIT)
    assert (left["report"].resolved, right["report"].resolved) == (True, False)
    twin.close()


def test_reset_with_an_unknown_instance_names_the_nearest(env):
    with pytest.raises(TaskError, match="shop-1"):
        env.reset(options={"instance_id": "shop-l"})


def test_settings_make_the_environment_again_and_name_the_sandbox_used(source):
    made = swe_env.SWEEnv(
        source,
        sandbox="auto",
        reward="fraction",
        grade_timeout=61.0,
        limits={"processes": 100},
        grade_cache=True,
    )
    assert made.settings["sandbox_used"] == ""
    made.reset(seed=0)
    settings = json.loads(json.dumps(made.settings))
    made.close()
    assert settings.pop("sandbox_used") == SANDBOXES[0]
    again = swe_env.SWEEnv(**settings)
    assert again.settings == settings | {"sandbox_used": ""}
    assert (settings["reward"], settings["grade_timeout"]) == ("fraction", 61.0)
    assert settings["limits"]["processes"] == 100
    assert settings["grade_cache"] is True


def test_ansi_rendering_shows_call_and_answer(source):
    made = gym.make("SWE-v0", tasks=source, render_mode="ansi")
    made.reset(seed=0)
    made.step({"tool": "view", "arguments": {"path": "shop.py"}})
    assert "> view" in made.render()
    made.close()


def test_the_id_with_its_module(source):
    made = gym.make("swe_env:SWE-v0", tasks=source)
    assert isinstance(made.unwrapped, swe_env.SWEEnv)
    made.close()


def test_a_sandbox_that_cannot_work_here_is_one_sentence(source, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SandboxError, match="apt-get install bubblewrap"):
        gym.make("SWE-v0", tasks=source, sandbox="local")
