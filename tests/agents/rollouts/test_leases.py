"""Claims of runs that cannot be seen: other machines, or other process namespaces."""

import os
import time

import pytest

from agents.rollouts import run_rollouts
from agents.rollouts.job import JobFolder
from agents.rollouts.leases import Leases
from swe_env.replay import ReplayBuffer
from tests.agents.rollouts.fake_world import GuessEnv, Guesser, make_tasks

FOREIGN = "another-boot|pid:[1]|7|8 0123456789abcdef"
(TASK,) = make_tasks(1)


@pytest.fixture
def leases(tmp_path):
    found = Leases(tmp_path, stale_after=60)
    yield found
    found.close()


@pytest.fixture
def foreign(tmp_path):
    """A lease of a run on another machine, just renewed."""
    path = tmp_path / "task" / "0" / "lease"
    path.parent.mkdir(parents=True)
    path.write_text(FOREIGN)
    return path


def age(path, seconds):
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def test_a_foreign_lease_is_taken_over_when_it_was_not_renewed(leases, foreign):
    age(foreign, 50)
    assert not leases.claim(foreign)
    assert foreign.read_text() == FOREIGN
    age(foreign, 20)
    assert leases.claim(foreign)
    with leases.committing(foreign) as ours:
        assert ours


@pytest.mark.parametrize("ahead", [3600, -3600])
def test_a_clock_that_differs_from_the_file_systems_takes_nothing(
    leases, foreign, monkeypatch, ahead
):
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + ahead)
    assert not leases.claim(foreign)
    age(foreign, 70)
    assert leases.claim(foreign)


def test_who_lost_its_lease_drops_its_result_and_the_attempt_is_done_once(tmp_path, caplog):
    """Taken to be dead while it played, by a run that then dies itself."""
    job, lost = tmp_path / "job", []
    lease = JobFolder(job).attempt(TASK.instance_id, 0) / "lease"

    class Sleeper(GuessEnv):
        def step(self, action):
            if not lost:
                lost.append(lease.read_text())
                lease.write_text(FOREIGN)
                age(lease, 30)
            if action["tool"] == "submit":
                assert JobFolder(job).result(TASK.instance_id, 0) is None
            return super().step(action)

    report = run_rollouts(
        Guesser(), [TASK], out=job, buffer=tmp_path / "b", make_env=lambda: Sleeper([TASK]),
        stale_after=10,
    )  # fmt: skip
    assert caplog.text.count("this run's result is dropped") == 1
    assert len(lost) == len(report.results) == 1
    assert ReplayBuffer(tmp_path / "b").column("id").tolist() == [report.results[0].trajectory_id]
    assert not lease.exists()
