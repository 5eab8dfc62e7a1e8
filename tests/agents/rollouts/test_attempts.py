import contextlib
import threading

import pytest

from agents.rollouts import Budget, JobBudget
from agents.rollouts.attempts import Attempts, Plan
from agents.rollouts.budget import Meter
from agents.rollouts.episode import Stopped
from agents.rollouts.job import JobFolder
from agents.rollouts.leases import Leases
from swe_env.errors import ModelError
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
