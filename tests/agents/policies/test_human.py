import io

import pytest

from agents.policies import Episode, EpisodeOver
from agents.policies.human import HumanPolicy
from agents.rollouts import run_rollouts
from swe_env.replay import ReplayBuffer

PLAYED = """\
?
veiw path=shop.py
view path
view path=shop.py view_range=[1,2]
! ls tests
edit path=shop.py old_str="(100 + discount)" new_str=<<END
(100 - discount)
END
{"tool": "submit"}
"""


def test_a_person_plays_an_episode(shop_task, tmp_path):
    shown = io.StringIO()
    with ReplayBuffer(tmp_path / "buffer") as buffer:
        run_rollouts(
            HumanPolicy(io.StringIO(PLAYED), shown), [shop_task], out=tmp_path / "job",
            buffer=buffer, env_kwargs={"sandbox": "process"},
        )  # fmt: skip
        (trajectory,) = buffer
    assert trajectory.resolved
    calls = [step.tool_calls[0] for step in trajectory.agent_steps]
    assert [call.function_name for call in calls] == ["view", "bash", "edit", "submit"]
    assert calls[0].arguments == {"path": "shop.py", "view_range": [1, 2]}
    assert calls[2].arguments["new_str"] == "(100 - discount)"
    text = shown.getvalue()
    assert shop_task.problem_statement in text
    assert "There is no tool 'veiw'" in text
    assert "'path' is not KEY=VALUE" in text
    assert "test_shop.py" in text


def test_the_end_of_input_is_a_named_truncation(shop_task, tmp_path):
    report = run_rollouts(
        HumanPolicy(io.StringIO("view path=shop.py\n"), io.StringIO()), [shop_task],
        out=tmp_path / "job", env_kwargs={"sandbox": "process"},
    )  # fmt: skip
    assert report.truncations == {"human": 1}


def test_a_call_without_a_tool_is_asked_for_again(shop_task):
    policy = HumanPolicy(io.StringIO('{"arguments": {}}\n'), shown := io.StringIO())
    first = {"text": "Issue.", "tool": "", "exit_code": 0, "steps_left": 3}
    with pytest.raises(EpisodeOver):
        policy.act(Episode(task=shop_task.public(), first=first, tools=[]))
    assert 'no "tool"' in shown.getvalue()
