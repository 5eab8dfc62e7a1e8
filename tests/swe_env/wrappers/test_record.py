import dataclasses
from types import SimpleNamespace

import gymnasium as gym
import pytest

from swe_env.errors import SandboxError
from swe_env.prefix import common_prefix
from swe_env.replay import Agent, ReplayBuffer
from swe_env.spaces import UnicodeText
from swe_env.types import Failure, Task, TestReport
from swe_env.wrappers.record import RecordTrajectory

SCHEMA = {"type": "function", "function": {"name": "say", "parameters": {"type": "object"}}}
AGENT = Agent(name="tester", model_name="m", settings={"temperature": 0.7})


class Echo(gym.Env):
    """A small real environment with the surface of SWEEnv that the recorder reads."""

    observation_space = gym.spaces.Dict(
        {"text": UnicodeText(999), "tool": UnicodeText(99), "exit_code": gym.spaces.Discrete(9)}
    )
    action_space = gym.spaces.Dict({"tool": UnicodeText(99)})

    def __init__(self):
        self.task = Task(instance_id="echo-1", repo="r", base_commit="0", problem_statement="Say")
        self.toolset = SimpleNamespace(schemas=(SCHEMA,))
        self.settings = {"tools": ["say"]}
        self.closed = False

    def _see(self, text, tool=""):
        return {"text": text, "tool": tool, "exit_code": 0, "steps_left": 9}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.said = []
        return self._see("Say the word."), {"instance_id": "echo-1"}

    def step(self, action):
        word = action["arguments"].get("word", "")
        if word == "crash":
            raise SandboxError("the sandbox was lost")
        if word == "bug":
            raise RuntimeError("boom")
        if word == "fail":
            info = {"failure": {"kind": "grading", "message": "no"}, "truncation": "failure"}
            return self._see("?", "say"), 0.0, False, True, info
        self.said.append(word)
        if word == "stop":
            reward, info = self.finish("")
            return self._see("bye", "say"), reward, True, False, info
        return self._see(f"heard {word}", "say"), 0.0, False, False, {}

    def finish(self, truncation):
        good = "magic" in self.said
        report = TestReport(resolved=good, fraction=1.0, fail_to_pass={}, pass_to_pass={})
        info = {"report": report, "patch": " ".join(self.said), "truncation": truncation}
        return float(good), info

    def close(self):
        self.closed = True


def say(word, **more):
    return {"tool": "say", "arguments": {"word": word}, **more}


@pytest.fixture
def buffer(tmp_path):
    return ReplayBuffer(tmp_path / "buffer")


def test_half_a_character_is_recorded_as_its_replacement(buffer):
    env = RecordTrajectory(Echo(), buffer, agent=AGENT)
    env.reset(seed=0)
    env.step(say("a\ud800", message="b\udc80"))
    env.step(say("fail"))
    (record,) = buffer
    assert record.steps[1].tool_calls[0].arguments == {"word": "a\ufffd"}
    assert record.steps[1].message == "b\ufffd"
    assert record.steps[1].observation.content == "heard a\ufffd"


def test_an_episode_becomes_one_record(buffer):
    env = RecordTrajectory(Echo(), buffer, agent=AGENT, system_prompt="Be brief.")
    env.reset(seed=5)
    env.step(say("magic", message="I say magic."))
    env.step(say("stop"))
    (record,) = buffer
    assert (record.instance_id, record.seed, record.attempt) == ("echo-1", 5, 0)
    assert (record.reward, record.resolved, record.finished) == (1.0, True, True)
    assert (record.truncation, record.failure, record.patch) == ("", None, "magic stop")
    assert record.agent == AGENT
    assert record.tools == (SCHEMA,)
    assert [(s.step_id, s.source, s.message) for s in record.steps] == [
        (1, "system", "Be brief."),
        (2, "user", "Say the word."),
        (3, "agent", "I say magic."),
        (4, "agent", ""),
    ]
    assert record.steps[2].tool_calls[0].arguments == {"word": "magic"}
    assert record.steps[2].observation.content == "heard magic"
    assert record.provenance["env"] == {"tools": ["say"]}
    assert len(record.provenance["task"]) == 16


def test_attempts_count_up_and_equal_episodes_have_equal_ids_but_for_it(buffer):
    env = RecordTrajectory(Echo(), buffer, agent=AGENT, attempt=3)
    for _ in range(2):
        env.reset(seed=5)
        env.step(say("stop"))
    one, two = buffer
    assert (one.attempt, two.attempt) == (3, 4)
    assert dataclasses.replace(two, attempt=3).trajectory_id == one.trajectory_id


def test_prompts_are_kept_as_increments(buffer):
    env = RecordTrajectory(Echo(), buffer, agent=AGENT)
    prompts = [[1, 2, 3], [1, 2, 3, 9, 8, 4, 5], [1, 2, 7]]
    env.reset(seed=0)
    for prompt, word in zip(prompts, ["a", "b", "stop"], strict=True):
        completion = {"prompt_token_ids": prompt, "token_ids": [9, 8], "logprobs": [-1, -0.5]}
        env.step(say(word, completion=completion))
    (record,) = buffer
    assert [list(ids) for _, ids in record.prompt_ids()] == prompts
    assert [s.metrics.prompt_prefix for s in record.agent_steps] == [0, 5, 2]
    assert [s.metrics.prompt_token_ids for s in record.agent_steps] == [(1, 2, 3), (4, 5), (7,)]
    assert record.agent_steps[0].metrics.logprobs == (-1.0, -0.5)


def test_tokens_of_none_are_no_tokens(buffer):
    env = RecordTrajectory(Echo(), buffer, agent=AGENT)
    env.reset(seed=0)
    env.step(say("a", completion={"token_ids": None}))
    env.step(say("stop", completion={"token_ids": [9], "prompt_token_ids": None, "logprobs": None}))
    (record,) = buffer
    first, second = (step.metrics for step in record.agent_steps)
    assert first is None
    assert (second.completion_token_ids, second.prompt_token_ids, second.logprobs) == ((9,), (), ())


@pytest.mark.parametrize(
    ("one", "other", "length"),
    [((), (1,), 0), ((1,), (1, 2), 1), ((1, 2), (1,), 1), ((1, 2), (1, 3), 1), ((1,), (1,), 1)],
)
def test_common_prefix(one, other, length):
    assert common_prefix(one, other) == length


def test_finish_grades_and_marks_the_truncation(buffer):
    env = RecordTrajectory(Echo(), buffer, agent=AGENT)
    env.reset()
    env.step(say("magic"))
    reward, info = env.finish("tokens")
    (record,) = buffer
    assert reward == 1.0
    assert info["report"].resolved
    assert (record.truncation, record.finished, record.resolved) == ("tokens", False, True)


def test_a_limit_inside_that_does_not_grade_is_graded(buffer):
    inner = gym.wrappers.TimeLimit(Echo(), max_episode_steps=2)
    env = RecordTrajectory(inner, buffer, agent=AGENT)
    env.reset()
    env.step(say("magic"))
    *_, truncated, info = env.step(say("more"))
    (record,) = buffer
    assert truncated
    assert info["report"].resolved
    assert (record.truncation, record.finished, record.reward) == ("steps", False, 1.0)


def test_a_failure_of_the_environment_is_no_evidence(buffer):
    env = RecordTrajectory(Echo(), buffer, agent=AGENT)
    env.reset()
    env.step(say("fail"))
    (record,) = buffer
    assert (record.failure.kind, record.truncation, record.reward) == ("grading", "failure", 0.0)


@pytest.mark.parametrize(
    ("word", "error", "kind"),
    [("crash", SandboxError, "sandbox"), ("bug", RuntimeError, "crash")],
)
def test_an_exception_leaves_a_marked_record(buffer, word, error, kind):
    env = RecordTrajectory(Echo(), buffer, agent=AGENT)
    env.reset()
    env.step(say("a"))
    with pytest.raises(error):
        env.step(say(word))
    env.close()
    (record,) = buffer
    assert record.failure.kind == kind
    assert len(record.agent_steps) == 2
    assert record.agent_steps[-1].observation is None


class Deaf(Echo):
    """Answers whatever it is given, as `SWEEnv` does."""

    def step(self, action):
        return self._see("What?"), 0.0, False, False, {}


@pytest.mark.parametrize(
    ("action", "arguments"),
    [
        ("say it", {"malformed": "'say it'"}),
        ({"tool": "say", "arguments": "abc"}, {"malformed": "'abc'"}),
        ({"tool": "say", "message": None}, {}),
    ],
)
def test_what_is_no_action_is_recorded_as_given(buffer, action, arguments):
    env = RecordTrajectory(Deaf(), buffer, agent=AGENT)
    env.reset()
    env.step(action)
    env.finish("policy")
    (record,) = buffer
    assert record.agent_steps[0].tool_calls[0].arguments == arguments
    assert record.agent_steps[0].message == ""


def test_leaving_an_episode_records_it_once_as_ungraded(buffer):
    inner = Echo()
    env = RecordTrajectory(inner, buffer, agent=AGENT)
    env.reset()
    env.step(say("a"))
    env.reset()
    env.step(say("b"))
    env.close()
    env.close()
    assert inner.closed
    assert [(r.truncation, r.failure.kind) for r in buffer] == [
        ("reset", "ungraded"),
        ("closed", "ungraded"),
    ]
    assert len(buffer.filter(failure="")) == 0


def test_an_episode_is_recorded_once_whatever_is_called_after_its_end(buffer):
    env = RecordTrajectory(Echo(), buffer, agent=AGENT)
    for end in (lambda: env.finish("tokens"), lambda: env.abort(Failure(kind="model", message=""))):
        with pytest.raises(gym.error.ResetNeeded, match="No episode is running"):
            end()
    env.reset()
    env.step(say("stop"))
    with pytest.raises(gym.error.ResetNeeded):
        env.finish("tokens")
    with pytest.raises(gym.error.ResetNeeded):
        env.abort(Failure(kind="model", message="gone"))
    env.step(say("stop"))
    (record,) = buffer
    assert (record.finished, record.failure, len(record.agent_steps)) == (True, None, 1)


def test_no_seed_is_not_seed_zero(buffer):
    env = RecordTrajectory(Echo(), buffer, agent=AGENT)
    for seed in (None, 0):
        env.reset(seed=seed)
        env.step(say("stop"))
    assert [record.seed for record in buffer] == [-1, 0]


def test_close_closes_only_a_buffer_it_opened(tmp_path):
    closed = []

    class Watched(ReplayBuffer):
        def close(self):
            closed.append(self.path)
            super().close()

    env = RecordTrajectory(Echo(), tmp_path / "own", agent=AGENT)
    env.buffer.__class__ = Watched
    env.close()
    assert closed == [str(tmp_path / "own")]
    RecordTrajectory(Echo(), Watched(tmp_path / "given"), agent=AGENT).close()
    assert len(closed) == 1


def test_a_path_and_a_mapping_do_and_a_list_is_a_sink(tmp_path):
    env = RecordTrajectory(Echo(), tmp_path / "b", agent={"name": "tester"})
    env.reset()
    env.step(say("stop"))
    assert [t.agent.name for t in ReplayBuffer(tmp_path / "b")] == ["tester"]
    assert env._saved_kwargs["agent"]["name"] == "tester"
    taken = []
    env = RecordTrajectory(Echo(), taken, agent=AGENT)
    env.reset()
    env.step(say("stop"))
    assert taken == [env.trajectory]
