import json
import threading

import pytest

from agents.rollouts import Budget, JobBudget, run_rollouts
from agents.rollouts.commands import summary
from swe_env.errors import ConfigError
from swe_env.replay import ReplayBuffer
from tests.agents.rollouts.fake_world import GuessEnv, Guesser, make_tasks


class Paid(Guesser):
    """A guesser whose turns take tokens and money that only its server knows."""

    def act(self, episode):
        action = {key: v for key, v in super().act(episode).items() if key != "completion"}
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "cost": 0.25}
        return {**action, "usage": usage}


def roll(out, tasks, policy=None, **options):
    return run_rollouts(
        policy or Guesser(), tasks, out=out, make_env=lambda: GuessEnv(tasks), **options
    )


@pytest.mark.parametrize(
    ("budget", "done"),
    [
        (JobBudget(steps=7), 3),  # an attempt has three steps and four tokens
        (JobBudget(tokens=8), 2),
        (JobBudget(), 6),
        (JobBudget(steps=18), 6),
    ],
)
def test_no_attempt_begins_when_the_jobs_budget_is_spent(tmp_path, budget, done):
    tasks = make_tasks(3)
    report = roll(tmp_path / "job", tasks, attempts=2, job_budget=budget, buffer=tmp_path / "b")
    assert len(report.results) == len(ReplayBuffer(tmp_path / "b")) == done
    assert all(result.finished for result in report.results)
    assert report.interrupted == bool(report.spent) == (done < 6)
    assert not list((tmp_path / "job").glob("*/*/lease"))


def test_a_job_goes_on_with_a_larger_budget_and_counts_what_was_spent(tmp_path):
    tasks = make_tasks(6)
    first = roll(tmp_path, tasks, job_budget=JobBudget(tokens=8))
    assert (len(first.results), first.spent) == (2, "tokens")
    assert "budget of tokens is spent" in summary(first)
    same = roll(tmp_path, tasks, job_budget=JobBudget(tokens=8))
    assert (len(same.results), same.skipped, same.spent) == (2, 2, "tokens")
    more = roll(tmp_path, tasks, job_budget=JobBudget(tokens=16))
    assert (len(more.results), more.skipped) == (4, 2)
    rest = roll(tmp_path, tasks)
    assert (len(rest.results), rest.skipped, rest.interrupted, rest.spent) == (6, 4, False, "")
    whole = roll(tmp_path / "whole", tasks)
    assert [r.trajectory_id for r in rest.results] == [r.trajectory_id for r in whole.results]


def test_what_the_server_counts_is_recorded_summed_and_limited(tmp_path):
    tasks = make_tasks(4)
    report = roll(tmp_path / "a", tasks, Paid(), buffer=tmp_path / "b")
    assert {(r.tokens, r.cost) for r in report.results} == {(15, 0.75)}
    (record, *_) = ReplayBuffer(tmp_path / "b")
    usage = {"prompt_tokens": 30, "completion_tokens": 15, "cost": 0.75}
    assert record.provenance["usage"] == usage
    document = json.loads((tmp_path / "a" / "guess%2F0" / "0" / "report.json").read_text())
    assert document["result"]["cost"] == 0.75
    dear = roll(tmp_path / "c", tasks, Paid(), job_budget=JobBudget(cost=1.0))
    assert (len(dear.results), dear.spent) == (2, "cost")
    cut = roll(tmp_path / "d", tasks, Paid(), budget=Budget(cost=0.5))
    assert {(r.truncation, r.steps) for r in cut.results} == {("cost", 2)}
    few = roll(tmp_path / "e", tasks, Paid(), budget=Budget(tokens=5))
    assert {(r.truncation, r.steps) for r in few.results} == {("tokens", 1)}


def test_time_ends_a_job_and_running_episodes_play_on(tmp_path):
    started = threading.Event()

    class Slow(Guesser):
        def act(self, episode):
            if not started.is_set():
                started.set()
                threading.Event().wait(0.4)
            return super().act(episode)

    report = roll(tmp_path, make_tasks(5), Slow(), job_budget=JobBudget(seconds=0.2))
    assert (len(report.results), report.spent) == (1, "seconds")
    assert report.results[0].finished


def test_a_job_of_before_costs_were_counted_goes_on(tmp_path):
    tasks = make_tasks(2)
    roll(tmp_path, tasks)
    assert "cost" not in (tmp_path / "config.toml").read_text()
    with pytest.raises(ConfigError, match=r"budget\.cost"):
        roll(tmp_path, tasks, budget=Budget(cost=1.0))


def test_a_budget_below_nothing_is_refused():
    with pytest.raises(ConfigError, match="tokens, cost"):
        JobBudget(tokens=-1, cost=float("nan"))
    with pytest.raises(ConfigError, match="episode's budget of seconds"):
        Budget(seconds=-1.0)


@pytest.mark.parametrize("options", [{"retries": -1}, {"cpu_slots": 0}])
def test_numbers_that_no_job_can_have_are_refused_by_name(tmp_path, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        roll(tmp_path, make_tasks(1), **options)
