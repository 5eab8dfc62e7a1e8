import io
import re
import sys
import time

import pytest

from agents.rollouts import AttemptResult, JobBudget, LiveProgress, run_rollouts
from agents.rollouts.budget import Meter
from tests.agents.rollouts.fake_world import GuessEnv, Guesser, make_tasks


def result(**outcome):
    return AttemptResult(instance_id="a", attempt=0, trajectory_id="1", **outcome)


@pytest.fixture
def at():
    """The seconds on the clock."""
    return [1000.0]


@pytest.fixture
def meter():
    meter = Meter(JobBudget())
    meter.add(steps=0, tokens=10**6, cost=0.0)  # of earlier runs
    return meter


def test_a_resumed_job_of_slow_episodes_tells_when_it_will_be_done(at, meter, capsys):
    """28 of 40 were done before; one episode ends every five minutes."""
    progress = LiveProgress("rollouts", clock=lambda: at[0])
    progress.start(total=40, meter=meter)
    for _ in range(28):
        progress.update(result(resolved=True), skipped=True)
    assert progress.figures()["left"] == "?"
    for outcome in ({"resolved": True}, {"failure": "sandbox"}):
        at[0] += 300
        progress.update(result(**outcome), skipped=False)
    meter.add(steps=5, tokens=1200, cost=0.0)  # an episode that still runs
    progress.close()
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == (
        "rollouts: attempts 30/40, finished before 28, resolved 29 (100%), failures sandbox 1, "
        "tokens/s 2, elapsed 0:10:00, left 0:50:00\n"
    )


def test_without_a_terminal_a_line_comes_now_and_then(meter, capsys):
    progress = LiveProgress(every=0.02)
    progress.start(total=2, meter=meter)
    deadline = time.monotonic() + 20
    lines = []
    while len(lines) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
        lines += capsys.readouterr().err.splitlines()
    progress.close()
    assert all(line.startswith("rollouts: attempts 0/2, resolved 0, ") for line in lines)


def test_a_terminal_shows_a_table(at, meter, monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    for name, value in {"FORCE_COLOR": "1", "COLUMNS": "120", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    progress = LiveProgress("openai", clock=lambda: at[0])
    progress.start(total=4, meter=meter)
    at[0] += 60
    progress.update(result(resolved=True), skipped=False)
    progress.draining()
    progress.close()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.getvalue())
    assert "openai (ending; Ctrl-C again stops at once)" in text
    head, row = text.splitlines()[-4], text.splitlines()[-2]
    assert head.split() == ["attempts", "resolved", "failures", "tokens/s", "elapsed", "left"]
    assert row.split() == ["1/4", "1", "(100%)", "0", "0", "0:01:00", "0:03:00"]


def test_a_run_tells_what_its_running_episodes_sample(tmp_path, capsys):
    seen = []

    class Watching(Guesser):
        def act(self, episode):
            seen.append(progress.figures()["tokens/s"])
            return super().act(episode)

    tasks, at = make_tasks(1), iter(range(99))
    progress = LiveProgress(clock=lambda: float(next(at)))
    run_rollouts(
        Watching(), tasks, out=tmp_path, make_env=lambda: GuessEnv(tasks), progress=progress
    )
    assert seen == ["0", "1", "1"]  # two tokens a turn, a second a look
    assert "attempts 1/1" in capsys.readouterr().err
