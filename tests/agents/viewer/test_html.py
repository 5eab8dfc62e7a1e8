from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from agents.viewer import (
    ReportData,
    StageTime,
    render_report,
    render_trajectories,
    report_from_buffers,
)
from swe_env.replay.trajectory import Step, StepObservation, ToolCall
from swe_env.types import TestReport
from tests.agents.made import attempt, diff

HOSTILE = "</pre></details><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[2J\u202eevil"


class Page(HTMLParser):
    """Elements with their attributes, and the text outside style and script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open[-1:]):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page(report: ReportData, folder) -> Page:
    return Page(render_report(report, folder / "report.html").read_text(encoding="utf-8"))


def arm(solved: int, n: int = 2, tasks: int = 20) -> list:
    return [
        attempt(i, task=f"pkg__{t:02d}", resolved=t < solved)
        for t in range(tasks)
        for i in range(n)
    ]


def hostile():
    call = ToolCall(function_name=HOSTILE, arguments={HOSTILE: HOSTILE, "long": HOSTILE + "\n" * 3})
    step = Step(
        step_id=2,
        source="agent",
        message=HOSTILE,
        tool_calls=(call,),
        observation=StepObservation(content=HOSTILE, exit_code=1),
    )
    plain = attempt(0, task=HOSTILE, patch=diff("a", HOSTILE))
    verdict = TestReport(
        resolved=False,
        fraction=0.0,
        fail_to_pass={HOSTILE: HOSTILE},
        pass_to_pass={},
        tampering=(HOSTILE,),
        error=HOSTILE,
    )
    return replace(plain, steps=(step,), report=verdict, truncation=HOSTILE, finished=False)


@pytest.mark.parametrize("kind", ["report", "trajectories"])
def test_what_an_agent_wrote_is_text_and_nothing_else(tmp_path, kind):
    if kind == "report":
        report = report_from_buffers(
            {HOSTILE: [hostile()], "b": [hostile()]},
            title=HOSTILE,
            descriptions={HOSTILE: HOSTILE},
            facts={HOSTILE: HOSTILE},
            config={HOSTILE: {HOSTILE: HOSTILE}},
            training={HOSTILE: [{"step": 1, "loss": 1.0, f"loss {HOSTILE}": 2.0, HOSTILE: 3.0}]},
            stages=[StageTime(name=HOSTILE, seconds=1.0, note=HOSTILE)],
            notes=[HOSTILE],
        )
        found = page(report, tmp_path)
    else:
        path = render_trajectories([hostile(), hostile()], tmp_path / "t.html", title=HOSTILE)
        found = Page(path.read_text(encoding="utf-8"))
    assert len(found.named("script")) == 1
    assert not found.named("img")
    assert not [a for _, a in found.elements for name in a if name.startswith("on")]
    assert "alert(1)" in found.text
    assert r"\x1b[2J\u202eevil" in found.text
    assert "\x1b" not in found.text
    assert "\u202e" not in found.text


def test_the_page_asks_nobody_and_runs_only_its_own_script(tmp_path):
    path = render_report(report_from_buffers({"a": arm(2)}, title="t"), tmp_path / "deep/r.html")
    html = path.read_text(encoding="utf-8")
    found = Page(html)
    assert not re.search(r"https?://|@import|url\(", html)
    assert not [a for _, a in found.elements if "src" in a]
    assert all(a["href"].startswith("#") for _, a in found.elements if "href" in a)
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL).group(1)
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [m["content"] for m in found.named("meta") if "http-equiv" in m]
    assert f"script-src 'sha256-{allowed}'" in policy
    assert "default-src 'none'" in policy


def test_results_before_and_after(tmp_path):
    report = report_from_buffers(
        {"base": arm(0), "trained": arm(5)},
        title="Quickstart",
        facts={"Commit": "0123abc"},
        config={"train": {"gamma": 0.1}},
        stages=[StageTime(name="sft", seconds=75.0), StageTime(name="rollouts", seconds=2.5)],
        training={"kto": [{"step": s, "loss": 1 / s, "entropy": 0.5, "lr": 1.0} for s in (1, 2)]},
    )
    found = page(report, tmp_path)
    for words in (
        "Resolved at least once 5 of 20 trained; base 0 of 20",
        "pass@1 25.0% trained; base 0.0%; +25.0 points",
        "0 of 40",
        "[0.0%, 16.8%]",
        "10 of 40",
        "pkg__00 0/2 2/2 ✓",
        "pkg__19 0/2 0/2",
        "train.gamma 0.1",
        "Commit 0123abc",
        "sft 1 min 15 s",
        "Also logged: lr.",
        "Token entropy (nats)",
    ):
        assert words in found.text, words
    charts = [a for a in found.named("svg") if a.get("class") == "chart"]
    assert len(charts) == 3
    assert all(a["role"] == "img" and a["aria-label"] for a in charts)


def test_diversity_names_what_keeps_arms_from_being_compared(tmp_path):
    def text(base, trained):
        return page(report_from_buffers({"a": base, "b": trained}, title="t"), tmp_path).text

    alike = text(arm(3), arm(3))
    assert "Attempts a task 2 2 Tasks resolved at least once 3 3" in alike
    assert "The arms differ" not in alike
    assert "differ in the tasks they resolved, and more" in text(arm(3), arm(4))
    uneven = text(arm(3), arm(3, n=4)[1:])
    assert "Attempts a task 2 3–4" in uneven
    assert "differ in attempts a task, and more" in uneven


def test_nothing_resolved_is_said_as_it_is(tmp_path):
    found = page(report_from_buffers({"a": arm(0), "b": arm(0)}, title="t"), tmp_path)
    assert "0 of 20" in found.text
    assert "±0.0" in found.text
    assert "nan" not in found.text.lower()


def test_an_interval_that_cannot_be_told_is_left_out(tmp_path):
    report = report_from_buffers({"a": [attempt(0, resolved=True), attempt(1)]}, title="t")
    found = page(report, tmp_path)
    assert "1 of 2 1 of 1 tasks 50.0% 100.0% [2.5%, 100.0%]" in found.text
    assert "pass@1 50.0% over 1 tasks" in found.text
    assert "nan" not in found.text.lower()
    assert "[–" not in found.text


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (ReportData(title="Empty"), "No attempts were recorded."),
        (ReportData(title="Empty"), "Nothing was trained."),
        (ReportData(title="Empty"), "No stage was timed."),
        (ReportData(title="Empty"), "No trajectory to show."),
        (report_from_buffers({"a": [], "b": []}, title="t"), "a: no attempts that count."),
        (report_from_buffers({"a": []}, title="t", training={"s": []}), "No metrics were logged."),
        (report_from_buffers({"a": [attempt(0, failed=True)]}, title="t"), "lost"),
    ],
)
def test_without_data_the_page_says_so(tmp_path, report, said):
    found = page(report, tmp_path)
    assert said in found.text
    assert "nan" not in found.text.lower()


def test_a_trajectory_step_by_step(tmp_path):
    verdict = TestReport(
        resolved=False,
        fraction=0.5,
        fail_to_pass={"t.py::test_a": "failed", "t.py::test_b": "passed"},
        pass_to_pass={"t.py::test_c": "passed"},
        tampering=("conftest.py was changed",),
    )
    one = replace(attempt(3, steps=2, patch=diff("return a", "return b")), report=verdict)
    path = render_trajectories([one], tmp_path / "t.html")
    html = path.read_text(encoding="utf-8")
    found = Page(html)
    assert len([a for a in found.named("details") if a.get("class", "").startswith("step")]) == 3
    assert "2 of 3 hidden tests pass." in found.text
    assert "conftest.py was changed" in found.text
    assert '<span class="add">+return b' in html
    assert '<span class="del">-return a' in html
    assert "view path=f0.py" in found.text


def test_long_output_keeps_head_and_tail(tmp_path):
    step = Step(
        step_id=1,
        source="agent",
        observation=StepObservation(content="HEAD" + "x" * 1_000_000 + "TAIL"),
    )
    path = render_trajectories([replace(attempt(0), steps=(step,))], tmp_path / "t.html")
    html = path.read_text(encoding="utf-8")
    assert len(html) < 100_000
    assert "HEAD" in html
    assert "TAIL" in html
    assert "980008 characters left out" in html


def test_lone_surrogates_do_not_stop_the_page(tmp_path):
    step = Step(step_id=1, source="agent", message="bad \udc80 byte")
    path = render_trajectories([replace(attempt(0), steps=(step,))], tmp_path / "t.html")
    assert "bad" in path.read_text(encoding="utf-8")
