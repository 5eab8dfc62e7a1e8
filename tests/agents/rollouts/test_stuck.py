import pytest

from agents.policies.base import BasePolicy, Turn
from agents.policies.scripted import ScriptedPolicy
from agents.rollouts import Budget, run_episode
from agents.rollouts.report import AttemptResult
from agents.rollouts.stuck import is_stuck
from swe_env.replay import Agent
from swe_env.types import INVALID_TOOL
from tests.agents.rollouts.fake_world import GuessEnv, make_tasks

OFF = {"repeats": 0, "errors": 0, "failures": 0, "invalid": 0}


def turn(tool, arguments, text="no", code=1):
    observation = {"text": text, "tool": tool, "exit_code": code, "steps_left": 9}
    return Turn(action={"tool": tool, "arguments": arguments}, observation=observation)


def stuck(turns, **limits):
    return is_stuck(turns, **{**OFF, **limits})


WAITS = [("bash", {"command": ""}), ("bash", {"command": " ", "timeout": 60}), ("bash", {}),
         ("execute_bash", {"cmd": ""})]  # fmt: skip


@pytest.mark.parametrize(("tool", "arguments"), WAITS)
def test_waiting_for_a_running_command_is_no_sign_of_anything(tool, arguments):
    begun = turn(tool, {"command": "pytest"}, "[still running]", -1)
    waits = [turn(tool, arguments, "[still running]", -1)] * 20
    assert not stuck([begun, *waits], repeats=2, errors=2, failures=2, invalid=2)
    again = [begun, *waits, turn(tool, arguments, "1 failed")] * 4
    assert stuck(again, repeats=4)  # what it waits for goes round in circles
    assert stuck(again, failures=8)


def test_failures_count_whatever_the_words_until_one_turn_succeeds():
    failing = [turn("edit", {"old_str": f"line {k}"}, f"no line {k}") for k in range(9)]
    assert not stuck(failing, repeats=4, errors=4, invalid=4)
    assert not stuck(failing, failures=10)
    assert stuck(failing, failures=9)
    seen = [*failing, turn("view", {"path": "a"}, "a", 0), *failing]
    assert not stuck(seen, failures=10)


def test_malformed_replies_count_however_they_are_malformed():
    broken = [turn(INVALID_TOOL, {"reason": f"Expecting ',' at character {k}"}) for k in range(3)]
    empty = [turn("bash", {"command": blank}) for blank in ("", " ", "\n")]
    assert stuck(broken + empty, invalid=6)
    assert not stuck(broken + empty, invalid=7)
    assert not stuck([*broken, turn("bash", {"command": "ls"}, "ls: no"), *empty], invalid=6)
    assert not stuck([turn("run_tests", {}, f"{k} failed") for k in range(9)], invalid=3)


class Garbled(BasePolicy):
    """Replies that are malformed in a new way each time."""

    agent = Agent(name="garbled")

    def act(self, episode):
        return {"tool": INVALID_TOOL, "arguments": {"reason": f"at {len(episode.turns)}"}}


class Answers(GuessEnv):
    def step(self, action):
        if action["tool"] != INVALID_TOOL:
            return super().step(action)
        self.steps += 1
        return self._see(action["arguments"]["reason"], 1), 0.0, False, False, {}


def test_malformed_replies_are_limited_and_counted():
    env = Answers(make_tasks(1))
    record = run_episode(env, Garbled(), instance_id="guess/0")
    assert (record.truncation, len(record.agent_steps)) == ("stuck", Budget().invalid)
    assert AttemptResult.of(record).invalid == Budget().invalid
    assert record.report is not None


def test_a_slow_command_is_waited_for_in_a_real_shell(shop_task):
    import gymnasium as gym

    import swe_env  # noqa: F401 - registers SWE-v0

    wait = {"tool": "bash", "arguments": {"command": "", "timeout": 0.1}}
    script = [{"tool": "bash", "arguments": {"command": "sleep 30", "timeout": 0.1}}, *[wait] * 6]
    env = gym.make("SWE-v0", tasks=[shop_task], sandbox="process", disable_env_checker=True)
    policy = ScriptedPolicy([*script, {"tool": "submit", "arguments": {}}])
    record = run_episode(env, policy, instance_id=shop_task.instance_id)
    env.close()
    assert [step.observation.exit_code for step in record.agent_steps[:7]] == [-1] * 7
    assert record.finished
