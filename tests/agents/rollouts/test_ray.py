"""Rollouts on a real Ray cluster of two nodes, which lives on this machine."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from agents.policies import PolicySpec
from agents.policies.base import BasePolicy
from agents.rollouts import JobBudget, RayExecutor, run_rollouts
from agents.rollouts.attempts import Plan
from agents.rollouts.episode import Budget
from agents.rollouts.job import JobFolder
from agents.rollouts.ray_worker import Setup, Worker
from swe_env.errors import ConfigError
from swe_env.replay import Agent, ReplayBuffer
from tests.agents.rollouts.fake_world import GuessEnv, Guesser, make_tasks

pytestmark = pytest.mark.xdist_group("ray")

HERE = "tests.agents.rollouts.test_ray"
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}


@pytest.fixture(scope="module")
def cluster():
    """Two nodes with one CPU each; the second can be killed."""
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # On a busy machine: more time than Ray gives its parts to start, and no lower priority.
        "RAY_agent_register_timeout_ms": "120000",
        "RAY_raylet_start_wait_time_s": "120",
        "RAY_worker_niceness": "0",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        head = {**NODE, "include_dashboard": False}
        found = Cluster(initialize_head=True, head_node_args=head)
        found.add_node(**NODE)
        yield found
        found.shutdown()


def roll(out, tasks, policy=None, *, executor="threads", env=None, **options):
    return run_rollouts(
        policy or Guesser(),
        tasks,
        out=out,
        make_env=partial(GuessEnv, tasks, **(env or {})),
        executor=executor,
        **options,
    )


def ids(report):
    return {(r.instance_id, r.attempt): r.trajectory_id for r in report.results}


def stored(path):
    return sorted(t.trajectory_id for t in ReplayBuffer(path))


def done(out):
    return len(list(Path(out).glob("*/*/trajectory.json.zst")))


def wait_for(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Shopper(BasePolicy):
    """Mends the shop or not by the episode's seed, once the gate is open."""

    agent = Agent(name="shopper")

    def __init__(self, gate):
        self.gate = Path(gate)

    def act(self, episode):
        wait_for(self.gate.exists)
        factor = "(100 - discount)" if episode.seed % 2 else "(101 - discount)"
        fix = {"path": "shop.py", "old_str": "(100 + discount)", "new_str": factor}
        if episode.turns:
            return {"tool": "submit", "arguments": {}}
        return {"tool": "edit", "arguments": fix}


def test_a_node_that_is_killed_loses_nothing_and_nothing_is_done_twice(
    cluster, shop_task, tmp_path, caplog
):
    """Real episodes: checkout, edit, diff, and the hidden tests, on the sandbox `process`."""
    job = {"attempts": 8, "workers": 4, "env_kwargs": {"sandbox": "process"}}
    gate = tmp_path / "gate"
    gate.touch()
    plain = run_rollouts(Shopper(gate), [shop_task], out=tmp_path / "plain", **job)
    gate.unlink()
    assert {r.resolved for r in plain.results} == {True, False}
    at = []

    def kill():
        wait_for(lambda: len(list((tmp_path / "job").glob("*/*/lease"))) == 4)  # two on each node
        gate.touch()
        wait_for(lambda: done(tmp_path / "job") >= 1)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        at.append(done(tmp_path / "job"))

    killer = threading.Thread(target=kill)
    killer.start()
    report = run_rollouts(
        PolicySpec(f"{HERE}:Shopper", {"gate": str(gate)}), [shop_task],
        out=tmp_path / "job", buffer=tmp_path / "b",
        executor=RayExecutor(address=cluster.address, episodes=2), **job,
    )  # fmt: skip
    killer.join()
    cluster.add_node(**NODE)
    assert 1 <= at[0] < 8
    assert "A Ray worker died" in caplog.text
    assert ids(report) == ids(plain)
    assert stored(tmp_path / "b") == sorted(ids(plain).values())
    assert not list((tmp_path / "job").glob("*/*/lease"))


DRIVER = """
import sys
from functools import partial
from agents.policies import PolicySpec
from agents.rollouts import RayExecutor, run_rollouts
from tests.agents.rollouts.fake_world import GuessEnv, make_tasks
tasks = make_tasks(10)
report = run_rollouts(
    PolicySpec("tests.agents.rollouts.fake_world:Guesser"), tasks, attempts=3, workers=4,
    out=sys.argv[1], buffer=sys.argv[2],
    make_env=partial(GuessEnv, tasks, delay=float(sys.argv[4])),
    executor=RayExecutor(address=sys.argv[3] or None, episodes=2),
)
print(len(report.results), report.interrupted)
import ray
assert not ray.is_initialized()
"""


def start(address, out, buffer, *, delay=0.15, **env):
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(out), str(buffer), address, str(delay)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), **env},
    )


def test_a_killed_driver_a_drained_one_and_the_rest(cluster, tmp_path):
    tasks = make_tasks(10)
    plain = roll(tmp_path / "plain", tasks, attempts=3, workers=4, env={"delay": 0.15})
    job, store = tmp_path / "job", tmp_path / "buffer"
    killed = start(cluster.address, job, store)
    wait_for(lambda: done(job) >= 3)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert set(stored(store)) <= set(ids(plain).values())
    drained = start(cluster.address, job, store)
    before = done(job)
    assert before < 20
    wait_for(lambda: done(job) > before)
    drained.send_signal(signal.SIGINT)
    out, err = drained.communicate(timeout=60)
    assert drained.returncode == 0, err
    assert out == f"{done(job)} True\n"
    assert before < done(job) == len(stored(store)) < 30
    rest = roll(job, tasks, attempts=3, workers=8, env={"delay": 0.15}, buffer=store)
    assert rest.skipped > before
    assert ids(rest) == ids(plain)
    assert stored(store) == sorted(ids(plain).values())
    assert not list(job.glob("*/*/lease"))


@pytest.mark.parametrize(("delay", "ends_at_its_step"), [(1.0, True), (60.0, False)])
def test_a_second_ctrl_c_stops_what_runs_and_the_job_can_be_continued(
    cluster, tmp_path, delay, ends_at_its_step
):
    """A running episode ends at its next step; one that has not within 5 s is killed."""
    job, store = tmp_path / "job", tmp_path / "buffer"
    run = start(cluster.address, job, store, delay=delay)
    wait_for(lambda: len(list(job.glob("*/*/lease"))) == 4)  # two in each of two workers
    begun = {path.parent for path in job.glob("*/*/lease")}
    early = done(job)  # by the first worker, while the second was on its way
    run.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert run.poll() is None  # the first lets them play on
    run.send_signal(signal.SIGINT)
    before = time.monotonic()
    out, err = run.communicate(timeout=60)
    assert time.monotonic() - before < 30
    assert run.returncode == -signal.SIGINT, err
    assert "KeyboardInterrupt" in err
    # On a busy machine Ray's own process tells of late heartbeats there, in several lines.
    assert re.sub(r"(?m)^\x1b\[33m\(raylet\).*\n(?:\t.*\n)*", "", out) == ""
    # What ended as the driver left is in the folder, and comes to the buffer when it goes on.
    assert len(stored(store)) <= done(job) < early + 4
    assert {path.parent for path in job.glob("*/*/lease")} <= begun
    if ends_at_its_step:  # its worker gave the leases back; a killed one could not
        assert not list(job.glob("*/*/lease"))
    rest = roll(job, make_tasks(10), attempts=3, workers=8, env={"delay": delay / 1000},
                buffer=store)  # fmt: skip
    assert len(rest.results) == 30
    assert not rest.interrupted
    assert stored(store) == sorted(ids(rest).values())
    assert not list(job.glob("*/*/lease"))


def test_without_an_address_ray_starts_a_cluster_and_it_ends_with_the_job(tmp_path):
    plain = roll(tmp_path / "plain", make_tasks(10), attempts=3, workers=4, env={"delay": 0.01})
    # Of its own, so that nobody else's cluster is found there; short, for its sockets' names.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        unset = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "environ", unset)
            run = start("", tmp_path / "job", tmp_path / "b", delay=0.01, RAY_TMPDIR=folder)
        out, err = run.communicate(timeout=120)
        assert run.returncode == 0, err
        assert out == "30 False\n"
        assert list(Path(folder).rglob("raylet.out"))  # it was started for this job
        wait_for(lambda: not processes_of(folder), seconds=20)
    assert stored(tmp_path / "b") == sorted(ids(plain).values())


def processes_of(folder):
    """Processes whose command line names a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if folder.encode() in path.read_bytes():
                found.append(path.parent.name)
    return found


class Fatal(Guesser):
    """Takes its whole process along on one task."""

    def act(self, episode):
        if episode.task.instance_id == "guess/1":
            os._exit(1)
        return super().act(episode)


def test_an_attempt_that_kills_its_workers_is_a_failure_and_the_others_go_on(cluster, tmp_path):
    report = roll(
        tmp_path / "job", make_tasks(3), PolicySpec(f"{HERE}:Fatal"), retries=1,
        buffer=tmp_path / "b", executor=RayExecutor(address=cluster.address),
    )  # fmt: skip
    assert report.failures == {"worker": 1}
    assert [r.instance_id for r in report.scored] == ["guess/0", "guess/2"]
    (failed,) = ReplayBuffer(tmp_path / "b").filter(failure="worker")
    assert failed.failure.message == "2 Ray workers died while they had this attempt."


def test_an_attempt_that_kills_its_worker_takes_no_neighbour_along(cluster, tmp_path):
    """Four in one worker: the others are still at work whenever it dies."""
    report = roll(
        tmp_path / "job", make_tasks(4), PolicySpec(f"{HERE}:Fatal"), retries=1, workers=4,
        env={"delay": 1.0}, executor=RayExecutor(address=cluster.address, episodes=4),
    )  # fmt: skip
    assert report.failures == {"worker": 1}
    assert [r.instance_id for r in report.scored] == ["guess/0", "guess/2", "guess/3"]


def test_the_jobs_budget_is_that_of_all_workers(cluster, tmp_path):
    job = {"attempts": 6, "buffer": tmp_path / "b"}
    first = roll(
        tmp_path / "job", make_tasks(3), job_budget=JobBudget(tokens=16), workers=2,
        executor=RayExecutor(address=cluster.address, episodes=1), **job,
    )  # fmt: skip
    assert first.spent == "tokens"
    assert 4 <= len(first.results) <= 6  # an attempt has four tokens; those that ran play on
    rest = roll(tmp_path / "job", make_tasks(3), **job)
    assert (rest.skipped, len(rest.results), rest.spent) == (len(first.results), 18, "")
    assert len(stored(tmp_path / "b")) == 18


class Locked(Guesser):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


def refused(cluster, out, policy):
    with pytest.raises(ConfigError) as found:
        roll(out, make_tasks(1), policy, executor=RayExecutor(address=cluster.address))
    return str(found.value)


def test_a_policy_that_cannot_be_had_in_the_workers_is_one_sentence(cluster, tmp_path):
    said = refused(cluster, tmp_path, Locked())
    assert "The policy cannot be sent to Ray's workers (TypeError: cannot pickle" in said
    assert "PolicySpec(name, options)" in said
    assert "no policy named 'orcale'" in refused(cluster, tmp_path, PolicySpec("orcale"))


def test_a_folder_that_a_worker_does_not_share_is_refused(tmp_path):
    setup = Setup(
        plan=Plan(seed=0, budget=Budget(), retries=0, provenance={}), policy=PolicySpec("random"),
        make_env=b"", out=str(tmp_path / "there"), identity=JobFolder(tmp_path / "here").identity(),
        cpu_slots=1, stale_after=60, record=False,
    )  # fmt: skip
    for make in (lambda: None, lambda: JobFolder(tmp_path / "there").identity()):
        make()
        with pytest.raises(ConfigError, match="must lie on a file system that all nodes share"):
            Worker().start(setup)


def test_without_ray_all_else_works_and_the_error_says_what_to_install(tmp_path):
    code = (
        "import sys; import agents, agents.rollouts; assert 'ray' not in sys.modules\n"
        "sys.modules['ray'] = None\n"
        "from agents.policies.scripted import ScriptedPolicy\n"
        "from tests.agents.rollouts.fake_world import make_tasks\n"
        "agents.run_rollouts(ScriptedPolicy([]), make_tasks(1), out=sys.argv[1], executor='ray')"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    assert "ConfigError: The executor 'ray' needs Ray" in run.stderr
    assert "pip install 'swe-env[ray]'" in run.stderr
    with pytest.raises(ConfigError, match="no executor 'slurm'"):
        roll(tmp_path, make_tasks(1), executor="slurm")
