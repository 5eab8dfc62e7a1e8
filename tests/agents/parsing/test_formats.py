import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.parsing import ParseError, formats, get_format, parse_reply
from agents.parsing.base import call_ends
from swe_env.errors import ConfigError

# What breaks naive parsers: the formats' own marks, newlines at the ends, nested brackets.
TAGS = ["</parameter>", "<parameter=a>", "</function>", "<function=f>", "<", ">", "</", "a<b>c"]
FENCES = ["```", "````", "```bash\n", '{"tool": "x"}', '"', "\\", "{"]
marks = st.sampled_from([*TAGS, *FENCES, "\n", "\n\n", " ", "\t", "\r", "é"])
texts = st.lists(marks | st.text(max_size=5), max_size=8).map("".join)
names = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
calls = st.builds(
    lambda tool, arguments, message: {"tool": tool, "arguments": arguments, "message": message},
    names.filter(lambda n: n != "submit"),
    st.dictionaries(names, texts, max_size=4),
    texts,
)
HEREDOC = "cat > README.md <<'EOF'\nInstall:\n```\npip install x\n```\nEOF"
plain_code = st.lists(
    st.sampled_from(
        ["if a < b:\n", "    return List[<T>]\n", "\n", "x", "</div>", "  ", "\\", "'"]
    ),
    max_size=10,
).map("".join)


@pytest.mark.parametrize("name", ["r2e", "r2e-gym", "json"])
@given(call=calls)
def test_what_renders_reads_back_the_same(name, call):
    fmt = get_format(name)
    try:
        text = fmt.render(call)
    except ParseError:
        return  # refused, never silently changed
    found = fmt.parse(text)
    assert (found["tool"], found["arguments"]) == (call["tool"], call["arguments"])
    assert found["message"] == text


@pytest.mark.parametrize("name", ["r2e", "r2e-gym", "json"])
@given(values=st.dictionaries(names, plain_code, max_size=3))
def test_code_is_never_refused(name, values):
    fmt = get_format(name)
    call = {"tool": "edit", "arguments": values, "message": "Mend a < b."}
    assert fmt.parse(fmt.render(call))["arguments"] == values


@given(command=plain_code.filter(lambda c: c.strip() != "submit"), message=plain_code)
def test_bash_reads_back_the_same(command, message):
    fmt = get_format("bash")
    call = {"tool": "bash", "arguments": {"command": command}, "message": message}
    assert fmt.parse(fmt.render(call))["arguments"] == {"command": command}


@given(text=texts)
def test_any_reply_is_an_action(text):
    for name in ("r2e", "json", "bash"):
        action = parse_reply(get_format(name), text)
        assert isinstance(action["tool"], str)
        assert isinstance(action["arguments"], dict)
        assert action["message"] == text


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("<function=view><parameter=path>a.py</parameter></function>", {"path": "a.py"}),
        ("Look.\n<function=view>\n<parameter=path>\na.py\n</parameter>\n", {"path": "a.py"}),
        ("<function=view>\n</function> trailing words", {}),
        ("<function=view>", {}),
        (
            "<function=view>\n  <parameter=view_range>[1, 40]</parameter>\n</function>",
            {"view_range": "[1, 40]"},
        ),
        (
            "<function=view><parameter=a>\n\nx\n\n</parameter></function>",
            {"a": "\nx\n"},
        ),
        (
            "<function=view><parameter=a>x</parameter></function>"
            "<function=edit><parameter=b>y</parameter></function>",
            {"a": "x"},
        ),
    ],
)
def test_r2e_is_tolerant_where_it_is_safe(text, arguments):
    action = get_format("r2e").parse(text)
    assert action["tool"] == "view"
    assert action["arguments"] == arguments


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r2e", "I would look at a.py.", "no tool call"),
        ("r2e", "<function=edit><parameter=path>a.py", "not closed"),
        ("r2e", "<function=edit>path: a.py</function>", "only parameters may stand"),
        (
            "r2e",
            "<function=e><parameter=a>1</parameter><parameter=a>2</parameter></function>",
            "given twice",
        ),
        ("json", '{"tool": "view", "arguments": {"path": "a.py"', "no JSON tool call"),
        ("json", '{"tool": "view", "arguments": [1]}', "must be a string"),
        ("bash", "ls", "exactly one bash block, found 0"),
        ("bash", "```bash\nls\n```\n```bash\nls\n```", "found 2"),
        ("bash", f"```bash\n{HEREDOC}\n```", "between ````bash and ````"),
    ],
)
def test_a_malformed_reply_says_how_to_do_it_right(name, text, message):
    with pytest.raises(ParseError, match=message):
        get_format(name).parse(text)
    action = parse_reply(get_format(name), text)
    assert action["tool"] == "invalid"
    assert message in action["arguments"]["reason"]


@given(call=calls)
def test_a_reply_renders_as_itself(call):
    for name in ("r2e", "json"):
        fmt = get_format(name)
        try:
            text = fmt.render(call)
        except ParseError:
            continue
        assert fmt.render(fmt.parse(text)) == text


@pytest.mark.parametrize("name", ["r2e", "json", "bash"])
def test_a_malformed_reply_renders_as_what_was_said(name):
    fmt = get_format(name)
    assert fmt.render(parse_reply(fmt, "I am not sure.")) == "I am not sure."


def test_bash_submits():
    fmt = get_format("bash")
    text = fmt.render({"tool": "submit", "arguments": {}, "message": "Done."})
    assert fmt.parse(text)["tool"] == "submit"
    with pytest.raises(ParseError, match="no way to call 'view'"):
        fmt.render({"tool": "view", "arguments": {}})
    with pytest.raises(ParseError, match="cannot express"):
        fmt.render({"tool": "bash", "arguments": {"command": "submit"}})


def test_a_bash_command_that_holds_a_fence_stands_in_a_longer_one():
    fmt = get_format("bash")
    text = fmt.render({"tool": "bash", "arguments": {"command": HEREDOC}})
    assert text.startswith("````bash\n")
    assert fmt.parse(text)["arguments"] == {"command": HEREDOC}
    assert "````" in fmt.system_prompt([])


def test_a_bash_reply_may_have_the_line_breaks_of_windows():
    action = get_format("bash").parse("Look.\r\n```bash\r\ncd src\r\nls\r\n```\r\n")
    assert action["arguments"] == {"command": "cd src\nls"}
    assert get_format("bash").parse("```bash\r\nsubmit\r\n```")["tool"] == "submit"


def test_json_keeps_types():
    fmt = get_format("json")
    call = {"tool": "view", "arguments": {"path": "a.py", "view_range": [1, 40], "all": True}}
    assert fmt.parse(fmt.render(call))["arguments"] == call["arguments"]
    assert fmt.parse('Sure: {"tool": "submit"}')["arguments"] == {}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[" * 1100 + "]" * 1100, "levels of brackets"),
        ('{"a": ' * 200 + "1" + "}" * 200, "levels of brackets"),
        ("1" * 5000, "digits"),
        ("NaN", "not JSON compliant"),
        ("1e999", "not JSON compliant"),
        (r'"\ud83d"', "surrogate"),
    ],
)
def test_a_value_that_no_record_could_hold_is_a_malformed_reply(value, message):
    action = parse_reply(get_format("json"), f'{{"tool": "x", "arguments": {{"a": {value}}}}}')
    assert action["tool"] == "invalid"
    assert message in action["arguments"]["reason"]


def test_the_prompt_comes_from_the_schemas():
    tools = [
        {
            "type": "function",
            "function": {
                "name": "lint",
                "description": "Check a file. Slow on large ones.\n\nMore.",
                "parameters": {
                    "type": "object",
                    "properties": {"path": {"type": "string"}, "fix": {"type": "boolean"}},
                    "required": ["path"],
                },
            },
        }
    ]
    for name in ("r2e", "json"):
        prompt = get_format(name).system_prompt(tools)
        assert "lint(path, fix?): Check a file" in prompt
        assert "Slow" not in prompt


@pytest.mark.parametrize("name", formats.names())
def test_a_call_ends_with_the_formats_stop(name):
    """Sampling may end there: the call is whole, and nothing of it comes before."""
    fmt = get_format(name)
    text = fmt.render({"tool": "bash", "arguments": {"command": "ls"}})
    assert text.endswith(fmt.stop)
    assert fmt.stop == ("</function>" if name.startswith("r2e") else "")


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("<function=view>\n<parameter=path>a.py</parameter>\n</function>", True),
        ("<function=bash><parameter=command>grep '</function>", False),
        ("<function=view>a.py</function>", True),
        ("As I said: </function>", True),
    ],
)
def test_a_stop_inside_an_argument_ends_no_call(text, ends):
    assert call_ends(get_format("r2e"), text) is ends


def test_an_unknown_format_names_a_near_one():
    with pytest.raises(ConfigError, match="Did you mean 'r2e'"):
        get_format("r2")
    assert formats.names() == ["bash", "json", "r2e", "r2e-gym"]
