import contextlib
import threading

import pytest

from agents.policies import PolicySpec
from agents.rollouts import Budget, JobBudget, run_rollouts
from agents.rollouts.attempts import Attempts, Plan
from agents.rollouts.budget import Meter
from agents.rollouts.episode import Stopped
from agents.rollouts.job import JobFolder, load_trajectory
from agents.rollouts.leases import Leases
from swe_env.errors import ConfigError, ModelError
from tests.agents.rollouts.fake_world import GuessEnv, Guesser, make_tasks


def test_what_fails_because_the_run_is_stopped_is_no_result(tmp_path):
    stop = threading.Event()

    class Closed(Guesser):
        def act(self, episode):
            stop.set()
            raise ModelError("The policy was closed.")

    kept, tasks = [], make_tasks(1)
    with contextlib.closing(Leases(tmp_path)) as leases:
        attempts = Attempts(
            plan=Plan(seed=0, budget=Budget(), retries=0, provenance={}), policy=Closed(),
            folder=JobFolder(tmp_path), leases=leases, meter=Meter(JobBudget()),
            slots=threading.Semaphore(1), stop=stop,
        )  # fmt: skip
        with pytest.raises(Stopped):
            attempts.run(GuessEnv(tasks), ("guess/0", 0), kept.append)
    assert kept == []
    assert JobFolder(tmp_path).result("guess/0", 0) is None


def test_an_episode_that_cannot_begin_is_one_bad_rollout_not_the_end(tmp_path):
    class Broken(GuessEnv):
        def reset(self, **options):
            if options["options"]["instance_id"] == "guess/1":
                raise RuntimeError("bug in the reset")
            return super().reset(**options)

    tasks = make_tasks(3)
    report = run_rollouts(
        Guesser(), tasks, out=tmp_path / "a", make_env=lambda: Broken(tasks), retries=0
    )
    assert (report.failures, len(report.scored)) == ({"crash": 1}, 2)
    record = load_trajectory(tmp_path / "a" / "guess%2F1" / "0" / "trajectory.json.zst")
    assert record.failure.message == "RuntimeError: bug in the reset"


@pytest.mark.parametrize("error", [KeyError("no such tool"), ConfigError("the format needs tools")])
def test_a_prompt_that_breaks_is_a_crash_and_a_wrong_setting_ends_the_job(tmp_path, error):
    class Prompts(Guesser):
        def system_prompt(self, tools):
            raise error

    tasks = make_tasks(2)
    if isinstance(error, ConfigError):
        with pytest.raises(ConfigError, match="the format needs tools"):
            run_rollouts(Prompts(), tasks, out=tmp_path, make_env=lambda: GuessEnv(tasks))
    else:
        report = run_rollouts(
            Prompts(), tasks, out=tmp_path, make_env=lambda: GuessEnv(tasks), retries=0
        )
        assert report.failures == {"crash": 2}


class Closable(Guesser):
    closed = 0

    def close(self):
        Closable.closed += 1


@pytest.mark.parametrize("made", [True, False])
def test_a_policy_that_was_made_for_the_run_is_closed_with_it(tmp_path, monkeypatch, made):
    monkeypatch.setattr(Closable, "closed", 0)
    policy = PolicySpec(f"{__name__}:Closable") if made else Closable()
    tasks = make_tasks(1)
    run_rollouts(policy, tasks, out=tmp_path, make_env=lambda: GuessEnv(tasks))
    assert Closable.closed == made
