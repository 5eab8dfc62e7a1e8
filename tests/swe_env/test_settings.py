"""What is given wrongly to the environment is one sentence that names it, and never a traceback."""

from __future__ import annotations

import math
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import swe_env
from swe_env.errors import ConfigError

LOOK = {"tool": "view", "arguments": {"path": "shop.py"}}

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        *[
            ("command_timeout", value, "command_timeout is a number of seconds above 0")
            for value in ("x", 0, -1, None, math.inf, math.nan, True)
        ],
        ("grade_timeout", None, "grade_timeout is a number of seconds above 0"),
        ("output_limit", -5, "output_limit is a whole number of characters, at least 1"),
        ("output_limit", "a", "output_limit is a whole number of characters"),
        ("max_episode_steps", 0, "max_episode_steps is a whole number, at least 1"),
        ("max_episode_steps", 2.5, "max_episode_steps is a whole number"),
        ("max_episode_steps", 1 << 31, "at most 2,147,483,647, not 2147483648"),
        ("limits", {"memory": -1}, r"limits\['memory'\] is a whole number of bytes"),
        ("limits", {"memory": "4G"}, "whole number of bytes, .* not '4G'"),
        ("limits", {"processes": 1.5}, r"limits\['processes'\] is a whole number,"),
        ("limits", {"memroy": 1}, "no limit 'memroy'. Did you mean 'memory'"),
        ("limits", "4G", "limits is a mapping .* not '4G'"),
        ("network", "yes", "network is True or False, not 'yes'"),
        ("grade_cache", 1, "grade_cache is True or False, not 1"),
        ("tools", [], "tools is empty, .* name a preset"),
        ("tools", 5, "tools is a preset such as 'default' or a list of names, not 5"),
        ("tools", ["view", 5], "tools is a preset such as 'default' or a list of names"),
        ("tasks", 5, "tasks is a task source such as 'quickstart' .* not 5"),
        ("tasks", Path("a.jsonl"), "tasks is a task source such as"),
        ("tasks", ["quickstart"], "a list of Task objects, .* one of these is 'quickstart'"),
        ("tasks", [], "tasks is an empty list"),
        ("render_mode", "rgb_array", "render_mode is 'ansi' or 'human' or None"),
        ("reward", 5, "reward is a name such as 'resolved', not 5"),
        ("sandbox", None, "sandbox is a name such as 'auto', not None"),
    ],
)
def test_a_wrong_argument_is_refused_at_once(shop_task, name, value, said):
    with pytest.raises(ConfigError, match=said):
        swe_env.SWEEnv(**{"tasks": [shop_task], name: value})


def test_numbers_of_every_kind_are_taken(shop_task):
    made = swe_env.SWEEnv(
        (task for task in [shop_task]),
        command_timeout=np.float32(2.5),
        grade_timeout=60,
        max_episode_steps=np.int64(7),
        limits={"memory": np.int64(1 << 30)},
    )
    settings = made.settings
    assert (settings["command_timeout"], settings["grade_timeout"]) == (2.5, 60.0)
    assert (settings["max_episode_steps"], settings["limits"]["memory"]) == (7, 1 << 30)
    assert made.tasks == [shop_task]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"instance": "shop-1"}, "reset has no option 'instance'. Did you mean 'instance_id'?"),
        ({"seed": 3}, "reset has no option 'seed'. Known: instance_id."),
        ({"instance_id": 7}, "instance_id is a task's id, a text, not 7"),
        ("shop-1", "reset's options are a mapping .* not 'shop-1'"),
    ],
)
def test_a_wrong_option_of_reset_is_refused(shop_task, options, said):
    made = swe_env.SWEEnv([shop_task], sandbox="process")
    with pytest.raises(ConfigError, match=said):
        made.reset(seed=0, options=options)


@pytest.mark.parametrize("action", [None, "view", 7, ["view", {}], {"tool": None}, {}])
def test_an_action_of_another_kind_is_an_observation(source, action):
    made = gym.make("SWE-v0", tasks=source, sandbox="process", render_mode="ansi")
    made.reset(seed=0)
    observation, reward, terminated, truncated, info = made.step(action)
    assert 'An action is {"tool": name, "arguments": {...}}' in observation["text"]
    assert observation["exit_code"] == 1
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert (info["invalid_actions"], observation["steps_left"]) == (1, 99)
    assert observation in made.observation_space
    assert made.step(LOOK)[0]["exit_code"] == 0
    made.close()


def test_an_episode_is_graded_once_and_not_before_it_began(shop_task):
    made = swe_env.SWEEnv([shop_task], sandbox="process")
    with pytest.raises(gym.error.ResetNeeded, match="no running episode to grade"):
        made.finish()
    made.reset(seed=0)
    assert made.finish("policy")[1]["truncation"] == "policy"
    with pytest.raises(gym.error.ResetNeeded, match="no running episode to grade"):
        made.finish()
    made.close()
