import itertools
import json
from dataclasses import replace

import pytest
import typer
from typer.testing import CliRunner

from agents.policies.base import BasePolicy, EpisodeOver
from agents.policies.scripted import ScriptedPolicy
from agents.rollouts import branch, branch_commands, replay, run_branches, run_rollouts
from agents.rollouts.attempts import attempt_seed
from swe_env.errors import ConfigError, ModelError, ReplayError
from swe_env.replay import Agent, Branch, ReplayBuffer, Trajectory
from swe_env.tasks import dump
from swe_env.types import Failure
from tests.agents.models import save_tiny

FIX = {"path": "shop.py", "old_str": "(100 + discount)", "new_str": "(100 - discount)"}
ACTIONS = [
    {"tool": "bash", "arguments": {"command": "mkdir -p notes; cd notes; echo seen > a.txt"}},
    {"tool": "view", "arguments": {"path": "shop.py"}},
    {"tool": "edit", "arguments": FIX},
    {"tool": "submit", "arguments": {}},
]


class Sampler(BasePolicy):
    """Fixes the bug or not by the episode's seed, and says the tokens it used."""

    agent = Agent(name="sampler", model_name="none", settings={"tokenizer": "t"})

    def __init__(self, prompt=""):
        self.prompt, self.seen = prompt, []

    def system_prompt(self, tools):
        return self.prompt

    def act(self, episode):
        self.seen.append(episode)
        turn = len(episode.turns)
        script = [*ACTIONS[:2], ACTIONS[2] if episode.seed % 2 else ACTIONS[1], ACTIONS[3]]
        before = [1, 2]
        for past in episode.turns:
            before += past.action.get("completion", {}).get("token_ids", [])
        tokens = [10 + turn, episode.seed % 97]
        completion = {"token_ids": tokens, "logprobs": [-1.0, -0.5], "prompt_token_ids": before}
        return {**script[turn], "message": f"Turn {turn}.", "completion": completion}


@pytest.fixture(scope="module")
def parent(shop_task, tmp_path_factory):
    """A recorded attempt of the sampler."""
    out = tmp_path_factory.mktemp("runs")
    with ReplayBuffer(out / "buffer") as buffer:
        run_rollouts(
            Sampler(), [shop_task], out=out / "job", buffer=buffer,
            env_kwargs={"sandbox": "process", "max_episode_steps": 20},
        )  # fmt: skip
        (found,) = buffer
    assert found.finished
    return out, found


def mixed_seed(record, at_step, n):
    """A job's seed under which some of `n` branches mend the bug and some do not.

    The record's id, and so the branches' seeds, depend on the task's temporary folder.
    """

    def outcomes(seed):
        base = attempt_seed(seed, record.trajectory_id, at_step)
        return {attempt_seed(base, record.instance_id, k) % 2 for k in range(n)}

    return next(seed for seed in itertools.count() if len(outcomes(seed)) == 2)


def test_branches_share_the_prefix_and_are_graded_for_themselves(parent, shop_task):
    _, record = parent
    policy = Sampler()
    found = branch(record, 2, 4, policy=policy, task=shop_task, seed=mixed_seed(record, 2, 4))
    assert [t.attempt for t in found] == [0, 1, 2, 3]
    assert len({t.seed for t in found}) == 4
    assert {t.resolved for t in found} == {True, False}
    for trajectory in found:
        assert trajectory.branch == Branch(parent=record.trajectory_id, at_step=2)
        assert trajectory.resolved == bool(trajectory.seed % 2) == bool(trajectory.reward)
        assert trajectory.agent_steps[:2] == record.agent_steps[:2]
        assert [s.message for s in trajectory.own_steps] == ["Turn 2.", "Turn 3."]
        assert trajectory.report.fail_to_pass
        assert "notes/a.txt" in trajectory.patch  # what the prefix did is in the state
        assert (trajectory.finished, trajectory.failure) == (True, None)
        tokens = [t for s in trajectory.agent_steps for t in s.metrics.completion_token_ids]
        assert list(trajectory.prompt_ids())[-1][1] == (1, 2, *tokens[:-2])
        assert Trajectory.from_dict(trajectory.to_dict()) == trajectory
    first = next(e for e in policy.seen if len(e.turns) == 2)
    assert [t.observation["exit_code"] for t in first.turns] == [0, 0]
    assert first.observation["steps_left"] == 18
    assert first.turns[1].action["message"] == "Turn 1."


def test_the_same_arguments_give_the_same_records_whatever_the_workers(parent, shop_task):
    _, record = parent
    runs = [
        branch(record, 1, 3, policy=Sampler(), task=shop_task, workers=workers, seed=seed)
        for workers, seed in [(1, 0), (3, 0), (3, 1)]
    ]
    ids = [[t.trajectory_id for t in run] for run in runs]
    assert ids[0] == ids[1]
    assert not set(ids[0]) & set(ids[2])


def test_a_branch_is_whole_for_every_reader(parent, shop_task, tmp_path):
    _, record = parent
    first = branch(record, 3, 2, policy=Sampler(), task=shop_task)
    assert replay(first[0], shop_task) == ()
    again = branch(first[0], 1, 1, policy=Sampler(), task=shop_task)[0]
    assert again.branch == Branch(parent=first[0].trajectory_id, at_step=1)
    with ReplayBuffer(tmp_path / "b") as buffer:
        buffer.extend([record, *first, again])
        assert list(buffer.filter(parent="")) == [record]
        assert list(buffer.filter(parent=record.trajectory_id)) == list(first)
        assert buffer.verify() == []


def test_another_kind_of_policy_goes_on_without_the_tokens(parent, shop_task):
    _, record = parent
    policy = Sampler("Be brief.")
    (found,) = branch(record, 2, 1, policy=policy, task=shop_task)
    assert [s.source for s in found.steps[:3]] == ["system", "user", "agent"]
    assert [s.step_id for s in found.steps] == [1, 2, 3, 4, 5, 6]
    assert [s.metrics is None for s in found.agent_steps] == [True, True, False, False]
    assert "completion" not in policy.seen[0].turns[0].action
    assert next(iter(found.prompt_ids()))[1] == (1, 2)


def test_a_policy_that_stops_or_a_model_that_is_gone(parent, shop_task, tmp_path):
    _, record = parent

    class Stops(Sampler):
        def act(self, episode):
            raise EpisodeOver("context")

    class Gone(Sampler):
        def act(self, episode):
            raise ModelError("server gone")

    (stopped,) = branch(record, 3, 1, policy=Stops(), task=shop_task)
    assert (stopped.truncation, stopped.own_steps) == ("context", ())
    assert stopped.report is not None
    job = {"task": shop_task, "out": tmp_path, "buffer": tmp_path / "b"}
    (failed,) = branch(record, 3, 1, policy=Gone(), retries=0, **job)
    assert (failed.failure.kind, failed.branch.at_step) == ("model", 3)
    (healed,) = branch(record, 3, 1, policy=Sampler(), **job)
    assert healed.failure is None


def test_a_job_goes_on_with_what_is_missing(parent, shop_task, tmp_path):
    _, record = parent
    job = {"policy": Sampler(), "task": shop_task, "out": tmp_path, "buffer": tmp_path / "b"}
    assert run_branches(record, 2, 1, **job).skipped == 0
    more = run_branches(record, 2, 2, **job)
    assert (more.skipped, len(more.results), len(ReplayBuffer(tmp_path / "b"))) == (1, 2, 2)
    assert [result.tokens for result in more.results] == [4, 4]  # its own steps' alone
    assert [result.steps for result in more.results] == [2, 2]
    assert ReplayBuffer(tmp_path / "b").column("n_tokens").tolist() == [4, 4]
    with pytest.raises(ConfigError, match=r"branch\.at_step"):
        run_branches(record, 1, 2, **job)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random model that samples: its replies are no calls, but they are its own tokens."""
    from agents.policies.transformers import TransformersPolicy

    folder = save_tiny(tmp_path_factory.mktemp("model"))
    with TransformersPolicy(
        folder, temperature=1, top_k=0, top_p=0, max_new_tokens=12, dtype="float32", device="cpu"
    ) as made:
        yield made


def test_a_local_model_goes_on_from_its_own_tokens(tiny, shop_task, tmp_path):
    settings = {"sandbox": "process", "max_episode_steps": 4}
    run_rollouts(
        tiny, [shop_task], out=tmp_path / "job", buffer=tmp_path / "b", env_kwargs=settings
    )
    (record,) = ReplayBuffer(tmp_path / "b")
    runs = [branch(record, 2, 3, policy=tiny, task=shop_task, workers=w) for w in (1, 3)]
    replies, others = (
        [[s.metrics.completion_token_ids for s in t.agent_steps] for t in run] for run in runs
    )
    assert (
        replies == others
    )  # log-probabilities are equal up to rounding: batches have other shapes
    kept = [s.metrics.completion_token_ids for s in record.agent_steps[:2]]
    assert [reply[:2] for reply in replies] == [kept] * 3
    assert len({reply[2] for reply in replies}) == 3
    for trajectory in runs[0]:
        length = 0
        for step in trajectory.agent_steps:  # one sequence, of which nothing is rewritten
            assert step.metrics.prompt_prefix == length
            length += len(step.metrics.prompt_token_ids + step.metrics.completion_token_ids)
        assert trajectory.truncation == "steps"


def test_what_cannot_be_branched_is_one_sentence(parent, shop_task):
    _, record = parent
    failed = replace(record, failure=Failure(kind="sandbox", message="lost"))
    changed = list(record.steps)
    seen = replace(changed[2].observation, content="something else")
    changed[2] = replace(changed[2], observation=seen)
    other = replace(record, steps=tuple(changed))
    unknown = replace(record, provenance={})
    cases = [
        (record, 4, ConfigError, r"after step 4: its 4 steps .* steps 0 to 3"),
        (record, -1, ConfigError, "steps 0 to 3"),
        (failed, 1, ConfigError, r"failure of the machinery \(sandbox\)"),
        (other, 3, ReplayError, r"step 2 of .* otherwise \(observation\)"),
        (unknown, 1, ConfigError, "does not say its environment's"),
    ]
    for trajectory, at_step, kind, words in cases:
        with pytest.raises(kind, match=words):
            branch(trajectory, at_step, 1, policy=Sampler(), task=shop_task)
    with pytest.raises(ConfigError, match="does not say where its task"):
        branch(record, 1, 1, policy=Sampler())
    with pytest.raises(ConfigError, match="at least one branch"):
        branch(record, 1, 0, policy=Sampler(), task=shop_task)


def test_a_command_left_running_is_not_branched_over(shop_task, tmp_path):
    actions = [{"tool": "bash", "arguments": {"command": "sleep 20", "timeout": 0.2}}]
    run_rollouts(
        ScriptedPolicy(actions), [shop_task], out=tmp_path / "job", buffer=tmp_path / "b",
        env_kwargs={"sandbox": "process"},
    )  # fmt: skip
    (record,) = ReplayBuffer(tmp_path / "b")
    with pytest.raises(ConfigError, match="leaves a command running"):
        branch(record, 1, 1, policy=Sampler(), task=shop_task)


def test_old_records_keep_their_ids_and_read_as_before(parent):
    _, record = parent
    data = record.to_dict()
    del data["branch"]
    assert Trajectory.from_dict(data) == record
    # Written by the version before the field was there.
    old = {"instance_id": "a", "agent": {"name": "x"}, "steps": [], "schema_version": 1}
    assert Trajectory.from_dict(old).trajectory_id == OLD_ID


OLD_ID = "cff0c4dbe82e93ace6198cd7061ea8c7"


def test_the_command_branches_prints_and_continues(parent, shop_task, tmp_path):
    out, record = parent
    dump([shop_task], tmp_path / "tasks.jsonl")
    app = typer.Typer()
    app.callback()(lambda: None)
    branch_commands.register(app)

    def call(*more, trajectory=record.trajectory_id[:9]):
        arguments = [
            "branch", "--buffer", f"{out}/buffer", "--trajectory", trajectory, "--at-step", "2",
            "--policy", "random", "-p", "submit=1.0", "--tasks", f"jsonl:{tmp_path}/tasks.jsonl",
            "--out", f"{tmp_path}/job", *more,
        ]  # fmt: skip
        return CliRunner().invoke(app, arguments)

    shown = call("--n", "1", "--json")
    assert shown.exit_code == 0, (shown.output, shown.exception)
    assert json.loads(shown.stdout)["scored"] == 1
    assert "1 attempts were finished before" in call("--n", "2").stdout
    assert "budget of steps is spent" in call("--n", "3", "--job-steps", "2").stdout
    assert r"(budget.cost differ)" in str(call("--n", "3", "--max-cost", "1").exception)
    found = list(ReplayBuffer(tmp_path / "job" / "buffer"))
    assert [t.branch.parent for t in found] == [record.trajectory_id] * 2
    assert [len(t.own_steps) for t in found] == [1, 1]
    with pytest.raises(ConfigError, match="no trajectory whose id starts with 'zz'"):
        raise call("--n", "1", trajectory="zz").exception
