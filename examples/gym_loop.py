"""One episode by hand: look, fix, submit. Run it from anywhere: python examples/gym_loop.py"""

import gymnasium as gym

import swe_env  # noqa: F401 - registers SWE-v0

env = gym.make("SWE-v0", tasks="quickstart:heldout")
observation, info = env.reset(seed=0)
print(observation["text"])

observation, reward, terminated, truncated, info = env.step(
    {"tool": "search", "arguments": {"query": "def "}}
)
print(observation["text"][:400])

observation, reward, terminated, truncated, info = env.step({"tool": "submit", "arguments": {}})
report = info["report"]
print(f"reward {reward}; still failing: {list(report.fail_to_pass)}")
env.close()
