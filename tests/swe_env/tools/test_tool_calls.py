"""Schemas come from signatures; what a model gets wrong comes back as one line, never raised."""

from __future__ import annotations

import json
import os
import random
import re

import pytest

from swe_env.errors import ConfigError, SandboxError, ToolError
from swe_env.tools import ToolContext, ToolResult, shorten, tool, tools, toolset
from swe_env.tools.describe import function_text
from swe_env.tools.schema import bind


def repeat(ctx: ToolContext, word: str, times: int = 2, places: list[int] | None = None) -> str:
    """Say a word
    several times.

    Args:
        word: What to say,
            exactly.
        times: How often.
        places: Where.
    """
    return f"{word * times} {places}"


@pytest.fixture
def box(desk, make_tool):
    desk.tools = type(desk.tools)((make_tool(repeat),))
    return desk


def test_the_schema_is_made_from_signature_and_docstring(make_tool):
    assert make_tool(repeat).schema == {
        "type": "function",
        "function": {
            "name": "repeat",
            "description": "Say a word several times.",
            "parameters": {
                "type": "object",
                "properties": {
                    "word": {"type": "string", "description": "What to say, exactly."},
                    "times": {"type": "integer", "description": "How often.", "default": 2},
                    "places": {
                        "type": "array",
                        "items": {"type": "integer"},
                        "description": "Where.",
                    },
                },
                "required": ["word"],
                "additionalProperties": False,
            },
        },
    }


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"word": "a", "times": 3}, "aaa None"),
        ({"word": "a", "times": "3"}, "aaa None"),
        ({"word": "a", "places": "[1, 40]"}, "aa [1, 40]"),
        ({"word": "a", "places": ["1", 2]}, "aa [1, 2]"),
        ({"word": "a", "places": "None", "times": ""}, "aa None"),
        ({"word": "12", "times": 1}, "12 None"),
        ({"word": "null", "times": 1}, "null None"),
        ({"word": "a", "times": None}, "aa None"),
    ],
)
def test_arguments_given_as_text_are_converted(box, arguments, text):
    assert box.call("repeat", **arguments) == ToolResult(text)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({}, "needs the argument 'word'"),
        ({"word": "a", "time": 3}, "no argument 'time'"),
        ({"word": "a", "times": "many"}, "'times' is wrong"),
        ({"word": "a", "places": "[1, 'x']"}, "'places' is wrong"),
        ({"word": 3}, "'word' is wrong"),
        ({"word": "a", "places": {"a": 1}}, "'places' is wrong"),
        ({"word": "a\ud800"}, "'word' is wrong: it holds half a character ('\\ud800')"),
        ({"word": "a\udc80"}, "half a character"),
        ({"word": "a", "places": ["\ud800"]}, "half a character"),
    ],
)
def test_wrong_arguments_are_a_result_with_the_reason_and_the_form(box, arguments, reason):
    result = box.call("repeat", **arguments)
    assert result.exit_code == 1
    assert reason in result.text
    assert "repeat(word: str, times: int (optional)" in result.text
    assert "\n" not in result.text


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("bash", {"command": "echo \ud800"}),
        ("edit", {"path": "new.txt", "old_str": "", "new_str": "\ud800"}),
        ("view", {"path": "\ud800"}),
        ("search", {"query": "\ud800", "regex": True}),
        ("run_tests", {"targets": "\ud800"}),
    ],
)
def test_half_a_character_is_a_wrong_argument(desk, tool, arguments):
    result = desk.call(tool, **arguments)
    assert result.exit_code == 1
    assert "half a character" in result.text
    result.text.encode()


def test_an_unknown_tool_is_a_result(desk):
    result = desk.call("fly")
    assert result.exit_code == 1
    assert "no tool 'fly'" in result.text
    assert "view, outline" in result.text


def test_a_lost_sandbox_is_not_blamed_on_the_call(desk, make_tool):
    def lost(ctx: ToolContext) -> str:
        """Lose it."""
        raise SandboxError("gone")

    desk.tools = type(desk.tools)((make_tool(lost),))
    with pytest.raises(SandboxError):
        desk.call("lost")


def test_default_tools_and_presets():
    assert toolset().names == ("view", "edit", "search", "bash", "run_tests", "submit")
    assert toolset(["default", "undo"]).names[-1] == "undo"
    assert toolset("r2e").names == ("file_editor", "execute_bash", "search", "finish")
    for schema in (*toolset().schemas, *toolset("r2e").schemas):
        function = schema["function"]
        assert function["description"]
        assert "ctx" not in json.dumps(schema)
        assert all(p.get("description") for p in function["parameters"]["properties"].values())


def test_whoever_asks_for_the_schemas_may_change_them():
    offered = toolset()
    changed = offered.schemas
    changed.pop()["function"]["parameters"]["properties"].clear()
    assert offered.schemas == [tool.schema for tool in offered.tools] == toolset().schemas


def test_an_unknown_name_says_what_was_near():
    with pytest.raises(ConfigError, match="'search'"):
        toolset(["serch"])


def test_a_tool_plugs_in_by_decorator_and_by_dotted_path():
    @tool(name="test_only_shout")
    def shout(ctx: ToolContext, word: str) -> str:
        """Shout."""
        return word.upper()

    assert toolset(["test_only_shout"]).tools == (shout,)
    assert toolset(["swe_env.tools.undo:undo"]).tools == (tools.get("undo"),)


def test_an_argument_without_a_type_is_refused_when_the_tool_is_made(make_tool):
    def bad(ctx, word):
        """Bad."""

    with pytest.raises(ConfigError, match="'word'"):
        make_tool(bad)


def test_long_output_keeps_head_and_tail(desk):
    desk.ctx.output_limit = 100
    result = desk.call("bash", command="seq 1 1000")
    assert result.text.startswith("1\n2\n")
    assert "999\n1000" in result.text
    assert "left out" in result.text
    assert shorten("a" * 30 + "b" * 30, 10) == "aaaaa\n[... 50 characters left out ...]\nbbbbb"


def test_submit(desk):
    assert desk.call("submit") == ToolResult("Submitted.", 0, True)


@pytest.mark.parametrize("names", ["default", "r2e", "full"])
def test_function_calling_and_r2e_text_say_the_same(names):
    """Both come from one signature: reading the text back gives the schemas' own contents."""
    schemas = toolset(names).schemas
    text = function_text(schemas)
    functions = re.findall(
        r"–– BEGIN FUNCTION #(\d+): (\w+) ––\nDescription:\n(.+)\n\nParameters:\n(.*?)\n\n"
        r"–– END FUNCTION #\1 ––",
        text,
        re.DOTALL,
    )
    assert [name for _, name, _, _ in functions] == list(toolset(names).names)
    for (_, _, description, parameters), schema in zip(functions, schemas, strict=True):
        function = schema["function"]
        assert description == function["description"]
        properties = function["parameters"]["properties"]
        listed = re.findall(r"^  \d+\. (\w+) \((.+), (required|optional)\)$", parameters, re.M)
        assert [(name, needed == "required") for name, _, needed in listed] == [
            (name, name in function["parameters"]["required"]) for name in properties
        ]
        for name, kind, _ in listed:
            entry = properties[name]
            either = " or ".join(one["type"] for one in entry.get("anyOf", ()))
            assert kind == entry.get("type", "string" if "enum" in entry else either)
            assert entry["description"] in parameters
            for value in entry.get("enum", ()):
                assert f"{value}" in parameters


ODD = [
    *("", ".", "..", "/", "/testbed", "a.py", "d", "d/l.txt", "pipe", "gone", "a.py/x", "~"),
    *("a\0b", "x" * 5000, "é\n", "\udcff", "-1", "[1, 2]", "null", "    return 1", "def f"),
    *(0, -1, 1, 10**30, 1.5, True, None, [], {}, [1, -1], [1, 2, 3], ["a"], {"a": 1}),
    *("view", "create", "str_replace", "insert", "undo_edit"),
]


def fits(parameter, value):
    try:
        bind("tool", (parameter,), {parameter.name: value})
    except ToolError:
        return False
    return True


def test_no_call_whatever_it_holds_raises(desk):
    """All tools that start no process, with every kind of value in every argument."""
    desk.put("a.py", "def f():\n    return 1\n")
    desk.put("d/l.txt", b"\xff\r\n\0")
    os.mkfifo(f"{desk.box.workdir}/pipe")
    drawn = random.Random(0)
    answers = set()
    for names in ("full", "r2e"):
        desk.tools = toolset(names)
        for found in desk.tools.tools:
            if found.name in ("bash", "execute_bash", "run_tests", "apply_diff"):
                continue
            right = {p.name: [value for value in ODD if fits(p, value)] for p in found.parameters}
            for _ in range(150):
                wanted = [p.name for p in found.parameters if p.required or drawn.random() < 0.5]
                pools = {name: right[name] if drawn.random() < 0.95 else ODD for name in wanted}
                given = {name: drawn.choice(pool) for name, pool in pools.items()}
                result = desk.call(found.name, **given)
                result.text.encode()
                answers.add((found.name, result.exit_code))
    for name in ("view", "edit", "edit_lines", "file_editor", "search"):
        assert {(name, 0), (name, 1)} <= answers
