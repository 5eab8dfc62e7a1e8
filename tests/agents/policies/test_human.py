import io

import pytest

from agents.policies import Episode, EpisodeOver, Turn
from agents.policies.human import HumanPolicy
from agents.rollouts import run_rollouts
from swe_env.replay import ReplayBuffer
from swe_env.tools import toolset

PLAYED = """\
?
veiw path=shop.py
view shop.py [1,2] total more
view shop.py view_range=[1,2]
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
    assert "'more' is one value too many" in text
    assert "test_shop.py" in text


def test_the_end_of_input_is_a_named_truncation(shop_task, tmp_path):
    report = run_rollouts(
        HumanPolicy(io.StringIO("view path=shop.py\n"), io.StringIO()), [shop_task],
        out=tmp_path / "job", env_kwargs={"sandbox": "process"},
    )  # fmt: skip
    assert report.truncations == {"human": 1}


def read(line, tools, shop_task):
    """What comes of a line: the call, or None and what is said."""
    policy = HumanPolicy(io.StringIO(f"{line}\n"), shown := io.StringIO())
    first = {"text": "Issue.", "tool": "", "exit_code": 0, "steps_left": 3}
    try:
        return policy.act(Episode(task=shop_task.public(), first=first, tools=tools)), ""
    except EpisodeOver:
        return None, shown.getvalue()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"arguments": {}}', 'no "tool"'),
        ('{"tool": "view", "arguments": [1]}', '"arguments" are no JSON object'),
        ('{"tool": "view", "arguments": null}', '"arguments" are no JSON object'),
        ('{"tool": "veiw"}', "no tool 'veiw'"),
        ("view 'a", "No closing quotation"),
        ("! ls", "no tool 'execute_bash'"),
    ],
)
def test_a_line_that_is_no_call_is_asked_for_again(shop_task, line, problem):
    tools = toolset(["view", "submit"]).schemas
    call, said = read(line, tools, shop_task)
    assert call is None
    assert problem in said


@pytest.mark.parametrize(
    ("tools", "line", "call"),
    [
        ("default", "search x=1 path=src", ("search", {"query": "x=1", "path": "src"})),
        ("default", "view", ("view", {})),
        ("default", '{"tool": "submit"}', ("submit", {})),
        ("r2e", "! ls", ("execute_bash", {"cmd": "ls"})),
        ("r2e", "file_editor view a.py", ("file_editor", {"command": "view", "path": "a.py"})),
    ],
)
def test_values_go_by_name_or_in_order(shop_task, tools, line, call):
    found, _ = read(line, toolset(tools).schemas, shop_task)
    assert (found["tool"], found["arguments"]) == call


def test_an_exit_code_is_shown_before_the_next_call(shop_task):
    policy = HumanPolicy(io.StringIO(), shown := io.StringIO())
    seen = {"text": "No such file.", "tool": "view", "exit_code": 1, "steps_left": 3}
    turn = Turn(action={"tool": "view", "arguments": {}}, observation=seen)
    with pytest.raises(EpisodeOver):
        policy.act(Episode(task=shop_task.public(), first=seen, tools=[], turns=[turn]))
    assert shown.getvalue() == "No such file.\n[exit code 1, 3 steps left]> "
