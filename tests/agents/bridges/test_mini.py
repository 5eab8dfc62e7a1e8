"""The bridge against mini-swe-agent's protocol (everywhere) and its own agent (where installed)."""

from __future__ import annotations

import importlib.util
import sys
from types import SimpleNamespace

import gymnasium as gym
import pytest

import swe_env  # noqa: F401 - registers SWE-v0
from agents.bridges.mini import MARKER, MiniEnvironment, run_mini
from agents.rollouts import replay
from swe_env.errors import ConfigError, ModelError
from swe_env.replay import ReplayBuffer
from swe_env.replay.export import messages as exported

installed = pytest.mark.skipif(
    importlib.util.find_spec("minisweagent") is None,
    reason="mini-swe-agent is not installed: pip install 'mini-swe-agent>=2.4'",
)
FIX = "sed -i 's/(100 + discount)/(100 - discount)/' shop.py"
SUBMIT = f"echo {MARKER}"


class Interrupt(Exception):
    def __init__(self, *messages):
        super().__init__()
        self.messages = messages


class Submitted(Interrupt):
    pass


class LimitsExceeded(Interrupt):
    pass


FLOW = SimpleNamespace(Submitted=Submitted, LimitsExceeded=LimitsExceeded)


class Loop:
    """A loop that keeps mini-swe-agent's protocol: replies of several commands each, in order."""

    def __init__(self, env, replies):
        self.env, self.replies = env, replies
        self.config = SimpleNamespace()
        self.model = SimpleNamespace(config=SimpleNamespace(model_name="replies"))
        self.messages, self.outputs = [], []

    def run(self, task="", **kwargs):
        system = "You are on {system}.".format(**self.env.get_template_vars())
        self.messages = [
            {"role": "system", "content": system},
            {"role": "user", "content": f"Please solve: {task}"},
        ]
        for reply in self.replies:
            if isinstance(reply, Exception):
                raise reply
            if isinstance(reply, dict):
                self.messages.append(reply)
                continue
            said, *commands = reply
            self.messages.append({"role": "assistant", "content": said, "tool_calls": [{}]})
            try:
                outputs = [self.env.execute({"command": command}) for command in commands]
            except Interrupt as ended:
                self.messages += ended.messages
                return ended.messages[-1]["extra"]
            self.outputs += outputs
            self.messages += [{"role": "tool", "content": o["output"]} for o in outputs]
        return {"exit_status": "TimeExceeded", "submission": ""}


@pytest.fixture
def env(shop_task):
    made = gym.make(
        "SWE-v0", tasks=[shop_task], sandbox="process", tools=["bash", "submit"],
        command_timeout=5.0, max_episode_steps=8, disable_env_checker=True,
    )  # fmt: skip
    yield made
    made.close()


def play(env, *replies, **options):
    loops = []

    def make(inner):
        loops.append(Loop(inner, replies))
        return loops[0]

    record = run_mini(env, make, instance_id="shop-1", flow=FLOW, **options)
    return record, loops[0]


def test_commands_run_in_our_sandbox_and_the_marker_submits(env, shop_task, tmp_path):
    with ReplayBuffer(tmp_path / "b") as buffer:
        record, loop = play(
            env, ("Look.", "cd tests && ls", "pwd; X=1"), ("Fix.", FIX, "echo $X; false"),
            ("Done.", SUBMIT), buffer=buffer, attempt=3, seed=7,
        )  # fmt: skip
        assert list(buffer) == [record]
    outputs = [(o["output"], o["returncode"]) for o in loop.outputs]
    # A command leaves neither folder nor variable to the next.
    assert outputs == [("test_shop.py", 0), (".", 0), ("", 0), ("", 1)]
    assert (record.resolved, record.finished, record.reward) == (True, True, 1.0)
    assert record.report.fail_to_pass == {"tests/test_shop.py::test_discount": "passed"}
    assert "100 - discount" in record.patch
    assert (record.attempt, record.seed, record.agent.model_name) == (3, 7, "replies")
    assert loop.messages[-1]["extra"]["exit_status"] == "Submitted"
    system, user, *steps = record.steps
    assert system.message == "You are on Linux."
    assert user.message == f"Please solve: {shop_task.problem_statement}"
    assert [s.message for s in steps] == ["Look.", "", "Fix.", "", "Done.", ""]
    assert steps[-1].tool_calls[0].function_name == "submit"
    assert FIX in exported(record)[6]["tool_calls"][0]["function"]["arguments"]["command"]
    assert replay(record, shop_task) == ()


def test_a_command_that_does_not_end_is_killed(env):
    env.unwrapped.command_timeout = 0.5
    record, loop = play(env, ("Wait.", "sleep 60", "echo on"))
    late, after = loop.outputs
    assert late["returncode"] == -1
    assert "killed" in late["exception_info"]
    assert (after["output"], after["exception_info"]) == ("on", "")
    assert (record.truncation, record.finished) == ("time", False)
    assert record.report is not None


def test_malformed_replies_are_recorded_and_counted(env):
    wrong = {
        "role": "user", "content": "Give one call.",
        "extra": {"interrupt_type": "FormatError", "model_response": "I am done"},
    }  # fmt: skip
    record, _ = play(env, wrong, ("Done.", SUBMIT), wrong)
    first = record.agent_steps[0]
    assert (first.tool_calls[0].function_name, first.message) == ("invalid", "I am done")
    assert first.observation.content == "Give one call."
    assert record.agent_steps[1].message == "Done."
    assert record.finished


def test_our_step_limit_ends_its_loop_and_is_graded(env):
    record, loop = play(env, ("Go.", FIX, *["true"] * 20))
    assert loop.messages[-1]["extra"]["exit_status"] == "LimitsExceeded"
    assert (record.truncation, record.resolved, len(record.agent_steps)) == ("steps", True, 8)


@pytest.mark.parametrize(
    ("error", "kind"), [(RuntimeError("no key"), "agent"), (ModelError("gone"), "model")]
)
def test_an_agent_that_breaks_is_no_evidence(env, error, kind):
    record, _ = play(env, ("Go.", FIX), error)
    assert (record.failure.kind, record.report) == (kind, None)
    assert str(error) in record.failure.message


def test_a_toolset_without_bash_is_refused(shop_task):
    env = gym.make("SWE-v0", tasks=[shop_task], sandbox="process", tools=["view", "submit"])
    with pytest.raises(ConfigError, match="needs the tool bash"):
        MiniEnvironment(env, flow=FLOW)


def test_without_mini_swe_agent_it_says_what_to_install(env, monkeypatch):
    monkeypatch.setitem(sys.modules, "minisweagent.exceptions", None)
    with pytest.raises(ConfigError, match="pip install"):
        MiniEnvironment(env)


@installed
@pytest.mark.parametrize("kind", ["text", "tools"])
def test_its_own_agent_and_configuration_resolve_a_task(env, shop_task, tmp_path, kind):
    import yaml
    from minisweagent import package_dir
    from minisweagent.agents.default import DefaultAgent
    from minisweagent.models import test_models as models

    from swe_env.replay.imports import read

    commands = [["cat shop.py", "ls tests"], [FIX], [SUBMIT]]
    if kind == "text":
        said = [
            models.make_output(f"THOUGHT: {k}", [{"command": c} for c in group])
            for k, group in enumerate(commands)
        ]
        model = models.DeterministicModel(outputs=said)
    else:
        said = []
        for k, group in enumerate(commands):
            actions = [{"command": c, "tool_call_id": f"{k}.{c}"} for c in group]
            calls = [{"id": a["tool_call_id"], "type": "function"} for a in actions]
            said.append(models.make_toolcall_output(f"THOUGHT: {k}", calls, actions))
        model = models.DeterministicToolcallModel(outputs=said)
    settings = yaml.safe_load((package_dir / "config" / "mini.yaml").read_text())["agent"]
    kept = {key: settings[key] for key in ("system_template", "instance_template")}
    file = tmp_path / "shop-1" / "shop-1.traj.json"
    with ReplayBuffer(tmp_path / "b") as buffer:
        record = run_mini(
            env,
            lambda inner: DefaultAgent(model, inner, cost_limit=0, output_path=file, **kept),
            instance_id="shop-1",
            buffer=buffer,
        )
        assert list(buffer) == [record]
    assert (record.resolved, record.finished, record.failure) == (True, True, None)
    assert record.agent.version
    assert [s.message for s in record.agent_steps] == [
        "THOUGHT: 0", "", "THOUGHT: 1", "THOUGHT: 2", "",
    ]  # fmt: skip
    assert shop_task.problem_statement in record.steps[1].message
    assert replay(record, shop_task) == ()
    (theirs,) = read(file)
    assert [s.message for s in theirs.agent_steps] == ["THOUGHT: 0", "THOUGHT: 1", "THOUGHT: 2"]
    assert theirs.finished


@installed
def test_its_own_step_limit_is_our_truncation(env):
    from minisweagent.agents.default import DefaultAgent
    from minisweagent.models.test_models import DeterministicModel, make_output

    said = [make_output(f"{k}", [{"command": f"echo {k}"}]) for k in range(9)]
    record = run_mini(
        env,
        lambda inner: DefaultAgent(
            DeterministicModel(outputs=said), inner, cost_limit=0, step_limit=2,
            system_template="Help on {{system}}.", instance_template="{{task}}",
        ),
        instance_id="shop-1",
    )  # fmt: skip
    assert (record.truncation, len(record.agent_steps)) == ("steps", 2)
    assert record.steps[2].observation.content == "0"
