"""A small real environment with SWEEnv's surface: guess a number; used in place of a repository."""

import time
from types import SimpleNamespace

import gymnasium as gym

from agents.policies.base import BasePolicy
from swe_env.errors import SandboxError
from swe_env.replay import Agent
from swe_env.spaces import ToolCallSpace, UnicodeText
from swe_env.types import Task, TestReport

GUESS = {
    "type": "function",
    "function": {
        "name": "guess",
        "description": "Guess the number.",
        "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}},
    },
}


def make_tasks(count):
    return [
        Task(
            instance_id=f"guess/{k}", repo="r", base_commit="0", problem_statement="Guess.",
            metadata={"number": k % 3},
        )
        for k in range(count)
    ]  # fmt: skip


class GuessEnv(gym.Env):
    observation_space = gym.spaces.Dict({"text": UnicodeText(99)})
    action_space = ToolCallSpace([GUESS], [{"tool": "guess", "arguments": {"n": 0}}])

    def __init__(self, tasks, *, delay=0.0, fails=None):
        self.tasks = {task.instance_id: task for task in tasks}
        self.toolset = SimpleNamespace(schemas=[GUESS])
        self.settings = {"delay": delay}
        self.delay = delay
        self.fails = fails if fails is not None else {}
        """instance_id → how many more resets fail."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.task = self.tasks[options["instance_id"]]
        if self.fails.get(self.task.instance_id, 0) > 0:
            self.fails[self.task.instance_id] -= 1
            raise SandboxError("no sandbox today")
        self.steps, self.last = 0, None
        return self._see("Guess a number from 0 to 2."), {"instance_id": self.task.instance_id}

    def _see(self, text, code=0):
        return {"text": text, "tool": "guess", "exit_code": code, "steps_left": 20 - self.steps}

    def step(self, action):
        time.sleep(self.delay)
        self.steps += 1
        if action["tool"] == "submit":
            return self._see("Submitted."), *self._end(True, "")
        self.last = action["arguments"].get("n")
        if self.steps >= 20:
            return self._see("too late"), *self._end(False, "steps")
        return self._see(f"you said {self.last}", 1), 0.0, False, False, {}

    def _end(self, terminated, truncation):
        reward, info = self.finish(truncation)
        return reward, terminated, not terminated, info

    def finish(self, truncation):
        good = self.last == self.task.metadata["number"]
        report = TestReport(
            resolved=good, fraction=float(good), fail_to_pass={}, pass_to_pass={}, seconds=0.0
        )
        info = {"report": report, "patch": f"+{self.last}\n", "truncation": truncation}
        return float(good), info


class Guesser(BasePolicy):
    """Guesses by the episode's seed, `turns` times, then submits."""

    agent = Agent(name="guesser", settings={"turns": 2})

    def __init__(self, turns=2):
        self.turns = turns

    def act(self, episode):
        turn = len(episode.turns)
        if turn >= self.turns:
            return {"tool": "submit", "arguments": {}, "message": "That is it."}
        n = (episode.seed + turn) % 3
        completion = {"token_ids": [turn, n], "logprobs": [-0.5, -1.0], "prompt_token_ids": [1]}
        return {"tool": "guess", "arguments": {"n": n}, "message": "", "completion": completion}
