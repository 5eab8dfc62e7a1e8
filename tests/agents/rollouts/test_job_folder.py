"""A job's folder holds a report and the trajectory it belongs to, whatever was there before."""

import json
import math
import os
import time
import tomllib
from dataclasses import replace

import pytest
import zstandard

import agents.rollouts.job as job_module
from agents.rollouts import Budget, run_episode, run_rollouts
from agents.rollouts.job import JobFolder, to_toml
from agents.rollouts.leases import Leases
from swe_env.errors import ReplayError
from swe_env.replay import ReplayBuffer
from tests.agents.rollouts.fake_world import GuessEnv, Guesser, make_tasks

(TASK,) = make_tasks(1)


def roll(out, env=None, policy=None, **options):
    return run_rollouts(
        policy or Guesser(), [TASK], out=out, make_env=lambda: env or GuessEnv([TASK]), **options
    )


class Killed(BaseException):
    """Stands for SIGKILL between two writes."""


@pytest.mark.parametrize("write", ["report.json", "trajectory.json.zst"])
def test_a_kill_while_a_retried_failure_is_saved_leaves_it_to_be_tried_again(
    tmp_path, monkeypatch, write
):
    job, store = tmp_path / "job", tmp_path / "buffer"
    failed = roll(job, GuessEnv([TASK], fails={TASK.instance_id: 9}), retries=0, buffer=store)
    assert failed.failures == {"sandbox": 1}
    real = job_module._replace

    def dying(file, data, **options):
        if file.name == write:
            raise Killed
        real(file, data, **options)

    with monkeypatch.context() as death:
        death.setattr(job_module, "_replace", dying)
        with pytest.raises(Killed):
            roll(job, buffer=store)
    assert JobFolder(job).result(TASK.instance_id, 0) is None
    (result,) = roll(job, buffer=store).results
    kept = JobFolder(job).trajectory(TASK.instance_id, 0)
    assert kept.trajectory_id == result.trajectory_id
    assert not result.failure
    assert result.trajectory_id in ReplayBuffer(store).column("id").tolist()


class NoNumber(GuessEnv):
    def finish(self, truncation):
        _, info = super().finish(truncation)
        return math.nan, info


def test_a_record_that_cannot_be_stored_is_a_failure_and_the_job_goes_on(tmp_path):
    job, store = tmp_path / "job", tmp_path / "buffer"
    (result,) = roll(job, NoNumber([TASK]), buffer=store).results
    assert result.failure == "crash"
    (record,) = ReplayBuffer(store)
    assert "cannot be stored" in record.failure.message
    (healed,) = roll(job, buffer=store).results
    assert not healed.failure


def test_what_is_there_is_left_where_a_record_cannot_be_stored(tmp_path):
    roll(tmp_path)
    folder = JobFolder(tmp_path)
    before = folder.trajectory(TASK.instance_id, 0)
    with pytest.raises(ReplayError, match="cannot be stored"):
        folder.save(replace(before, reward=math.inf), "")
    assert folder.trajectory(TASK.instance_id, 0) == before


ZEROES = bytes(99)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        pytest.param("report.json", b"", id="report-empty"),
        pytest.param("report.json", ZEROES, id="report-zeroes"),
        pytest.param("report.json", b'{"result": {}}', id="report-other"),
        pytest.param("report.json", None, id="report-gone"),
        pytest.param("trajectory.json.zst", b"", id="trajectory-empty"),
        pytest.param("trajectory.json.zst", ZEROES, id="trajectory-zeroes"),
    ],
)
@pytest.mark.parametrize("stored", [False, True])
def test_a_finished_attempt_with_a_damaged_file_does_not_end_the_job(
    tmp_path, caplog, name, data, stored
):
    """What a power cut leaves: empty files and zeroes; the record is stored once in any case."""
    job, store = tmp_path / "job", tmp_path / "buffer"
    (before,) = roll(job, buffer=store if stored else None).results
    file = JobFolder(job).attempt(TASK.instance_id, 0) / name
    if data is None:
        file.unlink()
    else:
        file.write_bytes(data)
    (result,) = roll(job, buffer=store).results
    assert result.trajectory_id == before.trajectory_id
    assert ReplayBuffer(store).column("id").tolist() == [before.trajectory_id]
    known = stored and name == "trajectory.json.zst"  # report and record say it all
    assert known or str(file) in caplog.text
    aside = file.with_name(f"{file.name}.damaged")
    assert aside.exists() == (name == "trajectory.json.zst" and not stored)
    assert roll(job, buffer=store).skipped == 1
    if not known:
        assert JobFolder(job).trajectory(TASK.instance_id, 0).trajectory_id == before.trajectory_id
        assert JobFolder(job).result(TASK.instance_id, 0) == result


def test_a_record_of_another_version_is_no_damage(tmp_path):
    roll(tmp_path)
    file = JobFolder(tmp_path).attempt(TASK.instance_id, 0) / "trajectory.json.zst"
    newer = json.dumps({"schema_version": 99}).encode()
    file.write_bytes(zstandard.ZstdCompressor().compress(newer))
    with pytest.raises(ReplayError, match="schema version 99"):
        roll(tmp_path, buffer=tmp_path / "buffer")
    assert file.exists()


def test_no_two_tasks_share_a_folder(tmp_path):
    folder = JobFolder(tmp_path)
    names = ["a", ".a", "%2Ea", "..", "a/b", "a%2Fb"]
    places = {folder.attempt(name, 0) for name in names}
    assert len(places) == len(names)
    assert all(place.parent.parent == tmp_path for place in places)


def test_nothing_in_a_list_is_written_and_told_apart():
    lists = [[1, None], [1], [None], [1, 0]]
    assert len({str(tomllib.loads(to_toml({"view_range": x}))) for x in lists}) == len(lists)


def test_time_is_counted_from_the_end_of_the_reset():
    class SlowReset(GuessEnv):
        def reset(self, **options):
            time.sleep(0.3)
            return super().reset(**options)

    record = run_episode(
        SlowReset([TASK]), Guesser(), instance_id=TASK.instance_id, budget=Budget(seconds=0.25)
    )
    assert record.finished


def test_a_renewal_that_fails_does_not_end_the_next_ones(tmp_path, monkeypatch, caplog):
    renewed, real = [], os.utime

    def sometimes(path, *arguments, **options):
        renewed.append(path)
        if len(renewed) == 1:
            raise OSError(116, "Stale file handle")
        real(path, *arguments, **options)

    monkeypatch.setattr("agents.rollouts.leases.os.utime", sometimes)
    leases = Leases(tmp_path, stale_after=0.2)
    try:
        assert leases.claim(tmp_path / "a" / "lease")
        deadline = time.monotonic() + 10
        while len(renewed) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        leases.close()
    assert len(renewed) >= 3
    assert "Stale file handle" in caplog.text
