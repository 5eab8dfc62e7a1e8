"""A command over several calls: left running, polled, fed, interrupted, killed."""

from __future__ import annotations

import pytest

WAITS = "echo ready; read line; echo got $line; exit_code() { return 3; }; exit_code"
DEAF = "trap '' INT; echo deaf; while :; do sleep 0.05; done"


def test_a_command_that_is_not_done_in_time_goes_on_and_is_polled(desk):
    result = desk.call("bash", command="echo one; sleep 0.6; echo two", timeout=0.2)
    assert result.exit_code == -1
    assert result.text.startswith("one\n[still running")
    assert 'an empty command waits on, stdin feeds it, "ctrl+c" ends it' in result.text
    result = desk.call("bash", command="")
    assert (result.text, result.exit_code) == ("two", 0)
    assert "none is running" in desk.call("bash", command="").text


def test_another_command_meanwhile_is_refused_and_says_what_to_do(desk):
    desk.call("bash", command="sleep 30", timeout=0.2)
    result = desk.call("bash", command="echo two")
    assert result.exit_code == 1
    assert 'end it with "ctrl+c"' in result.text
    assert desk.call("search", query="x").exit_code == 0
    assert desk.call("bash", command="ctrl+c").exit_code == 130
    assert desk.call("bash", command="echo two").text == "two"


def test_a_running_command_is_fed_lines(desk):
    assert desk.call("bash", command=WAITS, timeout=0.3).text.startswith("ready\n[still running")
    result = desk.call("bash", stdin="a word")
    assert (result.text, result.exit_code) == ("got a word\n[exit code 3]", 3)


def test_an_interpreter_answers_each_line_without_waiting_for_the_time_out(desk):
    desk.call("bash", command="python3 -qi 2>&1", timeout=0.5)
    result = desk.call("bash", stdin="print(6 * 7)")
    assert "42" in result.text
    assert result.exit_code == -1
    assert desk.call("bash", stdin="raise SystemExit(4)").exit_code == 4


@pytest.mark.parametrize(
    ("command", "stdin", "text"),
    [
        ("wc -c", "abc\n", "4"),
        ("cat > f; cat f", "first\nsecond", "first\nsecond"),
        ("python3 -", "print(6 * 7)\n", "42"),
        ("read x; echo got $x", "val", "got val"),
    ],
)
def test_a_new_command_takes_its_input_to_the_end(desk, command, stdin, text):
    result = desk.call("bash", command=command, stdin=stdin, timeout=10)
    assert (result.text, result.exit_code) == (text, 0)


def test_a_command_whose_input_has_ended_cannot_be_fed_and_the_next_one_can(desk):
    desk.call("bash", command="cat; sleep 30", stdin="all\n", timeout=0.3)
    result = desk.call("bash", stdin="more")
    assert result.exit_code == 1
    assert "whole input" in result.text
    assert desk.call("bash", command="ctrl+c").exit_code == 130
    desk.call("bash", command="read line; echo got $line", timeout=0.2)
    assert desk.call("bash", stdin="a word").text == "got a word"


def test_a_time_out_that_is_no_number_is_refused(desk):
    for timeout in (float("nan"), 0, -1):
        result = desk.call("bash", command="echo on", timeout=timeout)
        assert (result.exit_code, "more than 0" in result.text) == (1, True)


def test_a_command_deaf_to_ctrl_c_is_killed_by_the_second(desk, monkeypatch):
    from swe_env.tools import terminal

    monkeypatch.setattr(terminal, "_HEEDED", 0.2)
    desk.call("bash", command=DEAF, timeout=0.3)
    assert desk.call("bash", command="ctrl+c").exit_code == -1
    result = desk.call("bash", command="Ctrl+C")
    assert result.exit_code == -1
    assert "was killed with all it had started" in result.text
    assert desk.call("bash", command="echo on").text == "on"


def test_ctrl_c_without_a_command_is_told(desk):
    result = desk.call("bash", command="ctrl+c")
    assert (result.exit_code, result.text) == (1, "Error: no command is running: give one to run.")


def test_a_fork_does_not_take_the_running_command_along(desk):
    desk.call("bash", command="sleep 30", timeout=0.2)
    parent, desk.box = desk.box, desk.box.fork()
    desk.ctx.sandbox = desk.box
    try:
        assert desk.call("bash", command="echo on").text == "on"
        assert "none is running" in desk.call("bash", command="").text
    finally:
        parent.close()


@pytest.mark.parametrize("limit", [2000, 400])
def test_long_output_is_shortened_once_and_is_no_kill(desk, limit):
    desk.ctx.output_limit = limit
    result = desk.call("bash", command="seq 1 3000; echo 3 passed; (exit 1)")
    assert result.text.count("left out") == 1
    assert result.text.endswith("3 passed\n[exit code 1]")
    assert "killed" not in result.text
    assert len(result.text) <= limit
