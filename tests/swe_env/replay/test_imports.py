"""Files in other agents' formats, written here as those agents write them."""

import json

import pytest

from swe_env.errors import ConfigError
from swe_env.replay.export import messages
from swe_env.replay.imports import Imported, read
from swe_env.replay.imports.read import read_verdicts

DIFF = "diff --git a/a.py b/a.py\n--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n-a\n+b\n"


def mini_1():
    """Version 1: the command is in the text, the observation a user message."""
    return {
        "info": {
            "exit_status": "Submitted",
            "submission": DIFF,
            "model_stats": {"instance_cost": 0.1, "api_calls": 2},
            "mini_version": "1.9.0",
            "config": {"model": {"model_name": "some/model"}},
        },
        "messages": [
            {"role": "system", "content": "You fix bugs."},
            {"role": "user", "content": "Fix it."},
            {"role": "assistant", "content": "THOUGHT: look\n\n```bash\nls -a\n```"},
            {"role": "user", "content": "<returncode>2</returncode>\n<output>\nno\n</output>"},
            {"role": "assistant", "content": "No command here."},
            {"role": "user", "content": "Give exactly one command."},
        ],
        "trajectory_format": "mini-swe-agent-1",
    }


def mini_2(status="Submitted", submission=DIFF):
    """Version 2: function calls, several in one reply."""
    calls = [{"command": "ls", "tool_call_id": "x"}, {"command": "pwd", "tool_call_id": "y"}]
    return {
        "info": {"exit_status": status, "submission": submission, "mini_version": "2.4.6"},
        "messages": [
            {"role": "system", "content": "You fix bugs."},
            {"role": "user", "content": [{"type": "text", "text": "Fix it."}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "x"}, {"id": "y"}],
                "extra": {"actions": calls},
            },
            {"role": "tool", "content": "a.py", "extra": {"returncode": 0}},
            {"role": "tool", "content": "/repo", "extra": {"returncode": 3}},
            {"role": "user", "content": "No call.", "extra": {"model_response": "I am done"}},
            {"role": "exit", "content": "bye", "extra": {"exit_status": status}},
        ],
        "trajectory_format": "mini-swe-agent-1.1",
    }


def swe_agent(status="submitted"):
    return {
        "environment": "swe_main",
        "trajectory": [
            {
                "action": "open a.py\n",
                "observation": "[File: a.py]",
                "response": "Let me look.\n```\nopen a.py\n```",
                "thought": "Let me look.",
            },
            {"action": "", "observation": "Your command is empty.", "thought": "Hm."},
            {"action": "submit\n", "observation": DIFF, "thought": "Done."},
        ],
        "history": [
            {"role": "system", "content": "SETTING"},
            {"role": "user", "content": "a demonstration", "is_demo": True},
            {"role": "assistant", "content": "demo", "is_demo": True},
            {"role": "user", "content": [{"type": "text", "text": "the issue"}]},
            {"role": "assistant", "content": "Let me look."},
        ],
        "info": {"exit_status": status, "submission": "\n" + DIFF, "model_stats": {"api_calls": 3}},
        "replay_config": json.dumps({"agent": {"model": {"name": "gpt"}}}),
    }


def r2e(reward=1.0, reason="agent"):
    step = {
        "step_idx": 0,
        "thought": "Look.",
        "action": "<function=file_editor>\n<parameter=command>view</parameter>\n"
        "<parameter=path> /testbed/a.py </parameter>\n</function>",
        "observation": "Exit code: 1\nExecution output of [file_editor]:\nno",
        "done": False,
        "info": {},
        "token_usage_prompt": 10,
    }
    return {
        "trajectory_steps": [step, {**step, "action": "", "thought": "I stop."}],
        "problem_statement": "It breaks.",
        "docker_image": "namanjain12/pkg_final:abc",
        "agent_args": {
            "system_prompt": "SYSTEM",
            "instance_prompt": "Issue: {problem_statement}",
            "llm_name": "r2e-32b",
        },
        "exit_reason": reason,
        "output_patch": DIFF,
        "reward": reward,
        "max_steps": 40,
    }


def calls(trajectory):
    return [(c.function_name, c.arguments) for s in trajectory.agent_steps for c in s.tool_calls]


def one(path, data, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    (found,) = read(path, **options)
    return found


def test_mini_swe_agent_with_fenced_commands(tmp_path):
    found = one(tmp_path / "pkg__pkg-1.traj.json", mini_1())
    assert (found.instance_id, found.finished, found.patch) == ("pkg__pkg-1", True, DIFF)
    assert (found.agent.name, found.agent.version) == ("mini-swe-agent", "1.9.0")
    assert found.agent.model_name == "some/model"
    assert calls(found) == [("bash", {"command": "ls -a"})]
    assert [s.message for s in found.steps[:3]] == ["You fix bugs.", "Fix it.", "THOUGHT: look"]
    assert found.steps[2].observation.exit_code == 2
    assert found.steps[3].message == "No command here."
    assert found.steps[3].observation.content == "Give exactly one command."
    assert found.report is None


def test_mini_swe_agent_with_function_calls(tmp_path):
    found = one(tmp_path / "t.traj.json", mini_2())
    assert calls(found) == [
        ("bash", {"command": "ls"}),
        ("bash", {"command": "pwd"}),
        ("invalid", {"reason": "No call."}),
    ]
    assert found.steps[1].message == "Fix it."
    assert found.steps[2].observation.content == "a.py\n\n/repo"
    assert found.steps[2].observation.exit_code == 3
    assert found.steps[3].message == "I am done"
    said = messages(found)
    assert said[2]["tool_calls"][1]["function"] == {"name": "bash", "arguments": {"command": "pwd"}}
    assert [m["role"] for m in said] == ["system", "user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize(
    ("status", "finished", "truncation", "failed"),
    [
        ("Submitted", True, "", False),
        ("LimitsExceeded", False, "steps", False),
        ("TimeExceeded", False, "time", False),
        ("AuthenticationError", False, "failure", True),
        ("", False, "unknown", False),
    ],
)
def test_how_mini_swe_agent_ended(tmp_path, status, finished, truncation, failed):
    found = one(tmp_path / "t.traj.json", mini_2(status, ""), verdicts={"t": False})
    assert (found.finished, found.truncation) == (finished, truncation)
    assert (found.failure is not None) is failed
    assert (found.report is None) is failed  # a failure of the machinery is never a verdict
    assert found.patch == ""


def test_swe_agent(tmp_path):
    found = one(tmp_path / "pkg__pkg-1" / "pkg__pkg-1.traj", swe_agent())
    assert [(s.source, s.message) for s in found.steps] == [
        ("system", "SETTING"),
        ("user", "the issue"),
        ("agent", "Let me look."),
        ("agent", "Hm."),
        ("agent", "Done."),
    ]
    assert calls(found) == [("bash", {"command": "open a.py"}), ("submit", {})]
    assert (found.finished, found.patch, found.agent.model_name) == (True, DIFF, "gpt")
    cut = one(tmp_path / "a.traj", swe_agent("submitted (exit_cost)"))
    assert (cut.finished, cut.truncation, cut.failure) == (False, "cost", None)
    lost = one(tmp_path / "b.traj", swe_agent("exit_environment_error"))
    assert (lost.finished, lost.failure.kind) == (False, "imported")


def test_r2e_gym(tmp_path):
    path = tmp_path / "run.jsonl"
    rows = [r2e(), r2e(0.0, "token_limit"), r2e(None)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    good, cut, ungraded = read(path)
    assert [s.message for s in good.steps] == ["SYSTEM", "Issue: It breaks.", "Look.", "I stop."]
    assert calls(good) == [("file_editor", {"command": "view", "path": "/testbed/a.py"})]
    assert good.steps[2].observation.exit_code == 1
    assert (good.instance_id, good.resolved, good.reward) == ("pkg_final:abc", True, 1.0)
    assert (cut.resolved, cut.finished, cut.truncation) == (False, False, "tokens")
    assert [t.attempt for t in (good, cut, ungraded)] == [0, 1, 2]
    assert [t.report is None for t in (good, cut, ungraded)] == [False, False, True]


def test_a_folder_of_all_kinds_and_what_is_none_is_named(tmp_path, caplog):
    one(tmp_path / "a" / "t1" / "t1.traj.json", mini_2())
    one(tmp_path / "b" / "t1" / "t1.traj.json", mini_2())
    one(tmp_path / "c" / "t2.traj", swe_agent())
    (tmp_path / "d.jsonl").write_text(json.dumps(r2e()) + "\n{broken\n\n")
    (tmp_path / "e.traj").write_text('{"history": []}')
    wrong = swe_agent()
    wrong["trajectory"][0]["action"] = {}
    (tmp_path / "f.traj").write_text(json.dumps(wrong))
    (tmp_path / "preds.json").write_text("{}")
    report = Imported()
    found = list(read(tmp_path, verdicts={"t1": True}, report=report))
    assert [(t.instance_id, t.attempt, t.resolved) for t in found] == [
        ("t1", 0, True),
        ("t1", 1, True),
        ("t2", 0, False),
        ("pkg_final:abc", 0, True),
    ]
    assert report.formats == {"mini-swe-agent": 2, "swe-agent": 1, "r2e": 1}
    places = [line.partition(": ")[0].rpartition("/")[2] for line in report.skipped]
    assert places == ["d.jsonl:2", "e.traj", "f.traj"]
    assert "none of the formats" in report.skipped[1]
    assert "$.trajectory[0].action" in report.skipped[2]
    assert all(line in caplog.text for line in places)


def test_wrong_sources_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match="no import format 'openhands'"):
        list(read(tmp_path, kind="openhands"))
    with pytest.raises(ConfigError, match="nothing at"):
        list(read(tmp_path / "missing"))
    (tmp_path / "report.json").write_text('{"resolved_ids": ["a"], "unresolved_ids": ["b"]}')
    assert read_verdicts(tmp_path / "report.json") == {"a": True, "b": False}
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ConfigError, match="no report of SWE-bench's harness"):
        read_verdicts(tmp_path / "other.json")
