from __future__ import annotations

import json

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from agents.viewer.commands import register
from swe_env.errors import ConfigError, ReplayError
from swe_env.replay import ReplayBuffer
from tests.agents.made import attempt


@pytest.fixture
def swe():
    app = typer.Typer()
    register(app)

    def call(*arguments: object) -> str:
        result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    return call


@pytest.fixture
def buffer(tmp_path):
    path = tmp_path / "buffer"
    with ReplayBuffer(path) as opened:
        opened.extend([attempt(i, task=t, resolved=i == 0) for t in ("a", "b") for i in range(2)])
    return path


def test_view_lists_a_buffer_and_shows_one(swe, buffer):
    assert "2 of 4 resolved" in swe("view", buffer)
    assert "1 of 2 resolved" in swe("view", buffer, "--task", "a")
    one = attempt(1, task="b")
    assert "It returns the wrong value." in swe("view", buffer, "--id", one.trajectory_id[:10])


def test_view_writes_json_for_machines(swe, buffer):
    rows = [json.loads(line) for line in swe("view", buffer, "--json").splitlines()]
    assert [(r["instance_id"], r["attempt"]) for r in rows] == [
        ("a", 0),
        ("a", 1),
        ("b", 0),
        ("b", 1),
    ]
    (whole,) = swe("view", buffer, "--json", "--id", rows[0]["trajectory_id"]).splitlines()
    assert json.loads(whole) == attempt(0, task="a", resolved=True).to_dict() | {
        "steps": json.loads(whole)["steps"],
        "tools": [],
    }


def test_view_reads_files_and_writes_pages(swe, tmp_path):
    rows = [attempt(i).to_dict() for i in range(2)]
    lines, single = tmp_path / "rows.jsonl", tmp_path / "one.json"
    lines.write_bytes(b"\n".join(map(msgspec.json.encode, rows)) + b"\n")
    single.write_bytes(msgspec.json.encode(rows[0]))
    assert "0 of 2 resolved" in swe("view", lines)
    assert "It returns the wrong value." in swe("view", single)
    page = tmp_path / "page.html"
    assert swe("view", lines, "--html", page).strip() == str(page)
    assert page.read_text().count("<article") == 2


def test_a_buffer_may_be_a_url(swe, buffer, tmp_path):
    url = f"file://{buffer}"
    assert "2 of 4 resolved" in swe("view", url)
    out = tmp_path / "page.html"
    swe("view", url, "--html", out)
    assert "Trajectories of buffer" in out.read_text()
    swe("report", f"a={url}", "--out", out)
    assert "50.0%" in out.read_text()


def test_report_compares_buffers(swe, buffer, tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1, "loss": 0.5, "phase": "sft"}\n{"step": 2, "loss": 0.25}\n')
    out = tmp_path / "r.html"
    swe("report", f"base={buffer}", f"trained={buffer}", "--out", out, "--metrics", f"m={metrics}")
    html = out.read_text()
    assert "trained" in html
    assert "50.0%" in html
    assert 'aria-label="Loss"' in html


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("view", "nowhere"), ConfigError, "nothing at nowhere"),
        (("view", "{buffer}", "--task", "zz"), ConfigError, "No trajectory has task zz"),
        (("view", "{bad}"), ReplayError, "is not JSON"),
        (("report", "nope"), ConfigError, "NAME=PATH"),
        (("report", "a={buffer}", "a={buffer}"), ConfigError, "'a' is given twice"),
        (("report", "a={buffer}", "--metrics", "m=nowhere"), ConfigError, "metrics nowhere"),
    ],
)
def test_mistakes_are_one_sentence(swe, buffer, tmp_path, arguments, error, words):
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    with pytest.raises(error, match=words):
        swe(*(a.format(buffer=buffer, bad=bad) for a in arguments))
