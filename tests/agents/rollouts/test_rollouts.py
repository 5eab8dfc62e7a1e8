import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agents.policies.base import EpisodeOver
from agents.rollouts import Budget, attempt_seed, run_episode, run_rollouts
from agents.rollouts.job import load_trajectory, to_toml
from swe_env.errors import ConfigError, ModelError, PolicyError, ReplayError
from swe_env.replay import ReplayBuffer
from tests.agents.rollouts.fake_world import GuessEnv, Guesser, make_tasks


def roll(out, tasks, policy=None, *, env=None, **options):
    return run_rollouts(
        policy or Guesser(),
        tasks,
        out=out,
        make_env=lambda: GuessEnv(tasks, **(env or {})),
        **options,
    )


def ids(report):
    return {(r.instance_id, r.attempt): r.trajectory_id for r in report.results}


def test_every_attempt_is_in_folder_buffer_and_report(tmp_path):
    tasks = make_tasks(3)
    report = roll(tmp_path / "job", tasks, attempts=4, workers=3, buffer=tmp_path / "buffer")
    buffer = ReplayBuffer(tmp_path / "buffer")
    assert sorted(t.trajectory_id for t in buffer) == sorted(ids(report).values())
    assert len(report.results) == 12
    assert report.resolved == len(buffer.filter(resolved=True)) > 0
    assert not report.interrupted
    assert {r.tokens for r in report.results} == {4}
    assert report.counts()["guess/0"][0] == 4
    for (name, attempt), identity in ids(report).items():
        folder = tmp_path / "job" / name.replace("/", "%2F") / str(attempt)
        trajectory = load_trajectory(folder / "trajectory.json.zst")
        assert trajectory.trajectory_id == identity
        assert trajectory.seed == attempt_seed(0, name, attempt)
        assert (folder / "patch.diff").read_text() == trajectory.patch
        document = json.loads((folder / "report.json").read_text())
        assert document["report"]["resolved"] == trajectory.resolved
        assert "submit" in (folder / "log").read_text()
        assert not (folder / "lease").exists()
    json.dumps(report.to_dict())


def test_the_records_do_not_depend_on_the_number_of_workers(tmp_path):
    tasks = make_tasks(5)
    one = roll(tmp_path / "one", tasks, attempts=3, workers=1)
    many = roll(tmp_path / "many", tasks, attempts=3, workers=6)
    other = roll(tmp_path / "other", tasks, attempts=3, workers=6, seed=1)
    assert ids(one) == ids(many)
    assert [r.instance_id for r in one.results] == [r.instance_id for r in many.results]
    assert ids(one) != ids(other)


def test_a_second_start_does_only_what_is_missing(tmp_path):
    tasks = make_tasks(4)
    roll(tmp_path / "job", tasks, attempts=2, buffer=tmp_path / "b")
    more = roll(tmp_path / "job", tasks, attempts=3, buffer=tmp_path / "b")
    assert (more.skipped, len(more.results)) == (8, 12)
    assert len(ReplayBuffer(tmp_path / "b")) == 12
    again = roll(tmp_path / "job", tasks, attempts=3, buffer=tmp_path / "b")
    assert (again.skipped, len(ReplayBuffer(tmp_path / "b"))) == (12, 12)
    into_another = roll(tmp_path / "job", tasks, attempts=3, buffer=tmp_path / "c")
    assert ids(into_another) == ids(more)
    assert {t.trajectory_id for t in ReplayBuffer(tmp_path / "c")} == set(ids(more).values())


def test_each_task_may_have_its_own_number_of_attempts(tmp_path):
    tasks = make_tasks(2)
    one, two = (task.instance_id for task in tasks)
    report = roll(tmp_path / "job", tasks, attempts={one: 1, two: 3}, workers=2)
    assert {name: count for name, (count, _) in report.counts().items()} == {one: 1, two: 3}
    more = roll(tmp_path / "job", tasks, attempts={one: 2, two: 3}, workers=2)
    assert (more.skipped, len(more.results)) == (4, 5)
    even = roll(tmp_path / "even", tasks, attempts=3)
    assert ids(report).items() <= ids(even).items()
    for wrong, said in (({one: 1}, "missing"), ({one: 1, two: 1, "x": 1}, "not among the tasks")):
        with pytest.raises(ConfigError, match=said):
            roll(tmp_path / "wrong", tasks, attempts=wrong)


def test_another_configuration_is_refused_by_name(tmp_path):
    tasks = make_tasks(2)
    roll(tmp_path, tasks)
    with pytest.raises(ConfigError, match=r"another configuration \(seed differ\)"):
        roll(tmp_path, tasks, seed=5)
    with pytest.raises(ConfigError, match=r"budget\.tokens"):
        roll(tmp_path, tasks, budget=Budget(tokens=9))
    with pytest.raises(ConfigError, match=r"tasks\.count, tasks\.digest"):
        roll(tmp_path, make_tasks(3))


def test_infrastructure_failures_are_retried_and_kept_apart(tmp_path):
    tasks = make_tasks(3)
    fails = {"guess/0": 1, "guess/1": 99}
    report = roll(tmp_path, tasks, env={"fails": fails}, retries=1, buffer=tmp_path / "b")
    assert report.failures == {"sandbox": 1}
    assert [r.instance_id for r in report.scored] == ["guess/0", "guess/2"]
    assert fails["guess/1"] == 97
    healed = roll(tmp_path, tasks, buffer=tmp_path / "b")
    assert (healed.skipped, healed.failures, len(healed.scored)) == (2, {}, 3)
    assert len(ReplayBuffer(tmp_path / "b").filter(failure="")) == 3


class Breaks(Guesser):
    def __init__(self, error):
        super().__init__()
        self.error = error
        self.calls = 0

    def act(self, episode):
        self.calls += 1
        if episode.turns:
            raise self.error
        return super().act(episode)


@pytest.mark.parametrize("error", [PolicyError("no idea"), ZeroDivisionError("oops")])
def test_a_broken_policy_is_its_own_fault_and_graded(tmp_path, error):
    policy = Breaks(error)
    report = roll(tmp_path, make_tasks(1), policy, retries=3)
    (result,) = report.scored
    assert (result.truncation, result.finished, result.failure) == ("policy", False, "")
    assert policy.calls == 2
    trajectory = load_trajectory(tmp_path / "guess%2F0" / "0" / "trajectory.json.zst")
    assert trajectory.report is not None
    assert str(error) in trajectory.provenance["policy_error"]


class Gives(Guesser):
    def __init__(self, action):
        super().__init__()
        self.action = action

    def act(self, episode):
        return self.action if episode.turns else super().act(episode)


def nested(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


def sampled(ids, logprobs):
    completion = {"token_ids": ids, "logprobs": logprobs}
    return {"tool": "guess", "arguments": {"n": 1}, "completion": completion}


@pytest.mark.parametrize(
    ("action", "problem"),
    [
        ("guess 1", "gave a str for an action"),
        (None, "gave a NoneType for an action"),
        ({"tool": "guess", "arguments": "abc"}, "arguments is of type str, not mapping"),
        ({"tool": 7, "arguments": {}}, "tool is of type int, not str"),
        ({"tool": "guess"}, "has no arguments"),
        ({"arguments": {}}, "has no tool"),
        ({"tool": "guess", "arguments": {}, "message": 3}, "message is of type int"),
        ({"tool": "guess", "arguments": {"n": object()}}, "cannot be written as JSON"),
        ({"tool": "guess", "arguments": {"n": float("nan")}}, "cannot be written as JSON"),
        ({"tool": "guess", "arguments": {"n": nested(5000)}}, "cannot be written as JSON"),
        (sampled([1, 2], [-1.0, float("-inf")]), "Log-probability 1 of the action's completion is"),
        (sampled([1], [None]), "Log-probability 0 of the action's completion is None"),
        (sampled([1, 2], [-1.0]), "1 logprobs for 2 token_ids"),
    ],
)
def test_a_malformed_action_is_the_policys_fault_and_the_job_goes_on(tmp_path, action, problem):
    report = roll(tmp_path / "job", make_tasks(2), Gives(action), buffer=tmp_path / "b")
    assert [result.truncation for result in report.scored] == ["policy", "policy"]
    for trajectory in ReplayBuffer(tmp_path / "b"):
        assert problem in trajectory.provenance["policy_error"]
        assert len(trajectory.agent_steps) == 1
        assert trajectory.report is not None


def test_a_message_of_none_is_no_message(tmp_path):
    action = {"tool": "submit", "arguments": {}, "message": None, "completion": None}
    report = roll(tmp_path / "job", make_tasks(1), Gives(action), buffer=tmp_path / "b")
    assert [result.finished for result in report.scored] == [True]
    (trajectory,) = ReplayBuffer(tmp_path / "b")
    assert trajectory.agent_steps[-1].message == ""


def test_a_model_that_does_not_answer_is_no_evidence(tmp_path):
    policy = Breaks(ModelError("server gone"))
    report = roll(tmp_path, make_tasks(1), policy, retries=1)
    assert (report.failures, report.scored) == ({"model": 1}, ())
    assert policy.calls == 4


def run_one(policy, **options):
    tasks = make_tasks(1)
    return run_episode(GuessEnv(tasks), policy, instance_id="guess/0", **options)


def test_a_policy_ends_its_episode_with_a_named_truncation():
    trajectory = run_one(Breaks(EpisodeOver("context")))
    assert (trajectory.truncation, trajectory.finished) == ("context", False)
    assert trajectory.report is not None


def test_a_reply_that_was_cut_off_is_the_last_step_without_a_call():
    completion = {"token_ids": [5, 6], "logprobs": [-1.0, -2.0], "prompt_token_ids": [1, 0, 2]}
    cut = {"tool": "guess", "arguments": {}, "message": "I thi", "completion": completion}
    trajectory = run_one(Breaks(EpisodeOver("tokens", cut)))
    first, last = trajectory.agent_steps
    assert (first.tool_calls[0].function_name, last.tool_calls) == ("guess", ())
    assert (last.message, last.observation) == ("I thi", None)
    assert last.metrics.completion_token_ids == (5, 6)
    assert (trajectory.truncation, trajectory.finished) == ("tokens", False)


def test_an_environment_that_breaks_is_one_bad_rollout_not_the_end(tmp_path):
    class Broken(GuessEnv):
        def step(self, action):
            if self.task.instance_id == "guess/1":
                raise RuntimeError("bug in the environment")
            return super().step(action)

    tasks = make_tasks(3)
    report = run_rollouts(Guesser(), tasks, out=tmp_path, make_env=lambda: Broken(tasks), retries=0)
    assert (report.failures, len(report.scored)) == ({"crash": 1}, 2)


class Same(Guesser):
    def __init__(self, numbers):
        self.numbers = numbers

    def act(self, episode):
        n = self.numbers[len(episode.turns) % len(self.numbers)]
        return {"tool": "guess", "arguments": {"n": n}, "message": ""}


@pytest.mark.parametrize(
    ("numbers", "budget", "truncation", "steps"),
    [
        ([1], Budget(repeats=4), "stuck", 4),
        ([1, 2], Budget(repeats=4), "stuck", 8),
        ([0, 1, 2], Budget(repeats=4), "steps", 20),
        ([1], Budget(repeats=0, errors=6), "stuck", 6),
        ([1], Budget(repeats=0, errors=0), "steps", 20),
    ],
)
def test_going_round_in_circles_is_stuck(numbers, budget, truncation, steps):
    trajectory = run_one(Same(numbers), budget=budget)
    assert (trajectory.truncation, len(trajectory.agent_steps)) == (truncation, steps)


def test_budgets_of_tokens_and_time():
    assert run_one(Guesser(turns=9), budget=Budget(tokens=5)).truncation == "tokens"
    tasks = make_tasks(1)
    slow = GuessEnv(tasks, delay=0.03)
    late = run_episode(slow, Guesser(turns=9), instance_id="guess/0", budget=Budget(seconds=0.05))
    assert late.truncation == "time"
    assert len(late.agent_steps) == 2


def test_cpu_slots_bound_the_environments_not_the_policies(tmp_path):
    busy, most, thinking, most_thinking = 0, 0, 0, 0
    lock = threading.Lock()

    class Counting(GuessEnv):
        def step(self, action):
            nonlocal busy, most
            with lock:
                busy += 1
                most = max(most, busy)
            try:
                time.sleep(0.005)
                return super().step(action)
            finally:
                with lock:
                    busy -= 1

    class Slow(Guesser):
        def act(self, episode):
            nonlocal thinking, most_thinking
            with lock:
                thinking += 1
                most_thinking = max(most_thinking, thinking)
            time.sleep(0.02)
            with lock:
                thinking -= 1
            return super().act(episode)

    tasks = make_tasks(8)
    run_rollouts(
        Slow(), tasks, workers=8, out=tmp_path, cpu_slots=2, make_env=lambda: Counting(tasks)
    )
    assert most == 2
    assert most_thinking > 3


WORLD = """
import sys, logging
from agents.rollouts import run_rollouts
from tests.agents.rollouts.fake_world import Guesser, GuessEnv, make_tasks
tasks = make_tasks(10)
report = run_rollouts(Guesser(), tasks, attempts=3, workers=4, out=sys.argv[1], buffer=sys.argv[2],
                      make_env=lambda: GuessEnv(tasks, delay=float(sys.argv[3])))
print(len(report.results), report.interrupted)
"""


def start(out, buffer, delay):
    return subprocess.Popen(
        [sys.executable, "-c", WORLD, str(out), str(buffer), str(delay)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def done(out):
    return len(list(Path(out).glob("*/*/trajectory.json.zst")))


def test_a_killed_run_is_readable_and_resumes_to_the_same_set(tmp_path):
    tasks, rng = make_tasks(10), random.Random(0)
    plain = roll(tmp_path / "plain", tasks, attempts=3, workers=4, env={"delay": 0.02})
    job, store = tmp_path / "job", tmp_path / "buffer"
    for kill in range(3):
        run = start(job, store, 0.02)
        before = done(job)
        wait_for(lambda n=before: done(job) > n)
        time.sleep(rng.random() * 0.05)
        run.send_signal(signal.SIGKILL)
        run.communicate()
        assert done(job) < 30, f"run {kill} finished before it was killed"
        assert {t.trajectory_id for t in ReplayBuffer(store)} <= set(ids(plain).values())
    final = roll(job, tasks, attempts=3, workers=2, env={"delay": 0.02}, buffer=store)
    assert final.skipped >= 3
    assert ids(final) == ids(plain)
    found = [t.trajectory_id for t in ReplayBuffer(store)]
    assert sorted(found) == sorted(ids(plain).values())  # nothing lost, nothing twice
    assert not list(job.glob("*/*/lease"))


def test_two_runs_over_one_folder_share_the_work(tmp_path):
    runs = [start(tmp_path / "job", tmp_path / "buffer", 0.01) for _ in range(2)]
    outputs = [run.communicate(timeout=60) for run in runs]
    assert [out for out, _ in outputs] == ["30 False\n", "30 False\n"], outputs
    keys = [(t.instance_id, t.attempt) for t in ReplayBuffer(tmp_path / "buffer")]
    assert len(keys) == len(set(keys)) == 30


def test_ctrl_c_lets_running_episodes_end_and_the_second_stops_them(tmp_path):
    job = tmp_path / "job"
    run = start(job, tmp_path / "buffer", 0.1)
    wait_for(lambda: done(job) >= 1)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=20)
    assert run.returncode == 0, err
    finished = done(job)
    assert out == f"{finished} True\n"
    assert 1 <= finished < 30
    assert len(ReplayBuffer(tmp_path / "buffer")) == finished
    run = start(job, tmp_path / "buffer", 2.0)
    wait_for(lambda: list(job.glob("*/*/lease")))
    run.send_signal(signal.SIGINT)
    time.sleep(0.2)
    began = time.monotonic()
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=20)
    assert run.returncode != 0
    assert time.monotonic() - began < 4.5
    assert done(job) == finished


def test_a_full_buffer_ends_the_run_with_the_reason(tmp_path):
    class Full(ReplayBuffer):
        def append(self, trajectory):
            raise ReplayError("disk full")

    with pytest.raises(ReplayError, match="disk full"):
        roll(tmp_path / "job", make_tasks(3), workers=2, buffer=Full(tmp_path / "b"))


def test_toml_reads_back():
    import tomllib

    data = {
        "a": 1,
        "x y": [1, "é\n\x7f", {"b": True}],
        "t": {"f": 0.5, "deep": {"q": 'a"b'}, "empty": {}},
        "inf": float("inf"),
    }
    assert tomllib.loads(to_toml(data)) == data
