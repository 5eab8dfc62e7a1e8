import sys

import pytest

from agents import check_policy
from agents.policies import BasePolicy, make_policy, policies
from agents.policies.base import Episode, EpisodeOver, Policy
from swe_env.errors import ConfigError
from swe_env.tools import toolset
from swe_env.types import Task

PATH = {"path": {"type": "string"}}
TOOL = {"type": "function", "function": {"name": "view", "parameters": {"properties": PATH}}}


def an_episode(**more):
    task = Task(instance_id="t", repo="r", base_commit="0", problem_statement="The parser fails")
    first = {"text": "see src/a.py", "tool": "", "exit_code": 0, "steps_left": 9}
    return Episode(task=task.public(), first=first, **{"tools": [TOOL], **more})


class Own(BasePolicy):
    def __init__(self, word="hi"):
        self.word = word

    def act(self, episode):
        return {"tool": "view", "arguments": {}, "message": self.word}


def test_a_policy_comes_by_name_by_dotted_path_or_as_it_is():
    assert make_policy("random", submit=0.5).agent.settings["submit"] == 0.5
    own = make_policy("tests.agents.policies.test_policies:Own", word="ho")
    assert own.act(an_episode())["message"] == "ho"
    assert make_policy(own) is own
    assert isinstance(own, Policy)
    assert own.agent.name == "Own"
    assert {"oracle", "random", "scripted", "transformers"} <= set(policies)


def test_an_installed_package_gives_a_policy_a_name(tmp_path, monkeypatch):
    """By an entry point, as pip leaves it: a dist-info folder on the path."""
    info = tmp_path / "own_agent-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-agent\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[swe_env.policies]\nown-agent = own_agent:Mine\nbroken = own_agent:Gone\n"
    )
    (tmp_path / "own_agent.py").write_text(
        "from agents.policies import BasePolicy\n\n\nclass Mine(BasePolicy):\n"
        "    def __init__(self, word='hi'):\n        self.word = word\n\n"
        "    def act(self, episode):\n"
        "        return {'tool': 'view', 'arguments': {}, 'message': self.word}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(policies, "_objects", {})
    monkeypatch.delitem(sys.modules, "own_agent", raising=False)
    made = make_policy("own-agent", word="ho")
    check_policy(made)
    assert made.act(an_episode())["message"] == "ho"
    assert "own-agent" in policies.names()
    with pytest.raises(ConfigError, match="'own-agent'"):
        make_policy("own-agnt")
    with pytest.raises(ConfigError, match="'broken' could not be imported from 'own_agent:Gone'"):
        make_policy("broken")


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("oracel", {}, "Did you mean 'oracle'"),
        ("random", {"sumbit": 1}, "sumbit"),
        ("collections:Counter", {}, "is no policy"),
    ],
)
def test_what_is_no_policy_is_said_in_one_sentence(spec, options, message):
    with pytest.raises(ConfigError, match=message):
        make_policy(spec, **options)


def test_a_script_ends_with_its_actions():
    policy = make_policy("scripted", actions={"t": [{"tool": "view", "arguments": {}}]})
    assert policy.act(an_episode())["tool"] == "view"
    with pytest.raises(EpisodeOver):
        make_policy("scripted", actions=[]).act(an_episode())


def test_random_calls_depend_on_the_seed_alone():
    policy = make_policy("random", submit=0.0)
    drawn = [policy.act(an_episode(seed=seed)) for seed in range(20)]
    assert drawn == [policy.act(an_episode(seed=seed)) for seed in range(20)]
    assert {action["tool"] for action in drawn} == {"view"}


@pytest.mark.parametrize(
    ("tools", "drawn"),
    [
        ("default", {"view", "search", "submit"}),
        ("r2e", {"file_editor", "search", "finish"}),
        (["bash", "submit"], {"submit"}),
        (["edit", "view"], {"view"}),
    ],
)
def test_random_calls_are_valid_calls_of_the_tools_offered(tools, drawn):
    offered = toolset(tools)
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in offered.schemas}
    found = set()
    for seed in range(40):
        action = make_policy("random").act(an_episode(seed=seed, tools=offered.schemas))
        parameters = schemas[action["tool"]]
        assert set(parameters["required"]) <= action["arguments"].keys()
        assert action["arguments"].keys() <= parameters["properties"].keys()
        found.add(action["tool"])
    assert found == drawn
