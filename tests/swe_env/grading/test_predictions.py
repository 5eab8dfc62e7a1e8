import json
import threading
import time
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from swe_env.cli import build
from swe_env.errors import ConfigError, SandboxError, TaskError
from swe_env.grading import predictions
from swe_env.grading.predictions import Prediction, grade_predictions, read_predictions
from swe_env.sandbox import get
from swe_env.tasks import dump
from swe_env.types import Task, TestReport


def prediction(task, patch=None, **more):
    return Prediction(
        **{"instance_id": task.instance_id, "model_patch": patch, "model_name_or_path": "m", **more}
    )


def statuses(found):
    return [one.status for one in found.graded]


def test_a_prediction_is_graded_and_the_rest_is_named(shop_task):
    other = replace(shop_task, instance_id="shop-2")
    third = replace(shop_task, instance_id="shop-3")
    found = grade_predictions(
        [shop_task, other, third],
        [
            prediction(shop_task, shop_task.patch),
            prediction(other, "  \n"),
            Prediction(instance_id="elsewhere", model_patch="x"),
        ],
        sandbox="process",
    )
    assert statuses(found) == ["resolved", "empty"]
    assert found.missing == ("shop-3",)
    assert found.unknown == ("elsewhere",)
    assert found.graded[0].report.resolved


def drifted(patch):
    """The patch with a line of context that is no longer so, which GNU patch alone takes."""
    lines = patch.splitlines(keepends=True)
    first = next(k for k, line in enumerate(lines) if line.startswith(" ") and line.strip())
    lines[first] = " # a comment that is no longer there\n"
    return "".join(lines)


def test_drifted_patches_are_taken_as_the_harness_takes_them_unless_strict(shop_task):
    wanted = [prediction(shop_task, drifted(shop_task.patch))]
    loose = grade_predictions([shop_task], wanted, sandbox="process")
    assert statuses(loose) == ["resolved"]
    assert "patch --fuzz=5" in loose.graded[0].report.tampering[0]
    tight = grade_predictions([shop_task], wanted, sandbox="process", fuzzy=False)
    assert statuses(tight) == ["unresolved"]
    assert not tight.graded[0].report.patch_applied


HOOK = "+def pytest_itemcollected(item):\n+    item.obj = lambda *a, **k: None\n"


@pytest.mark.parametrize(
    "more",
    [
        f"Index: a/conftest.py\n@@ -0,0 +1,2 @@\n{HOOK}",
        f"--- /dev/null\n+++ b/conftest.py x\n@@ -0,0 +1,2 @@\n{HOOK}",
    ],
)
def test_no_header_that_git_does_not_know_brings_a_file_in(shop_task, more):
    """Else the guard would never look at it."""
    wrong = shop_task.patch.replace("(100 - discount)", "(100 + discount + 0)")
    assert wrong != shop_task.patch
    patch = drifted(wrong) + more
    found = grade_predictions([shop_task], [prediction(shop_task, patch)], sandbox="process")
    assert statuses(found) == ["unresolved"]


def test_what_leads_out_is_never_tried_loosely(shop_task, tmp_path):
    outside = tmp_path / "outside.txt"
    outside.write_text("one\n")
    patch = f"--- a/../../..{outside}\n+++ b/../../..{outside}\n@@ -1 +1 @@\n-one\n+two\n"
    found = grade_predictions([shop_task], [prediction(shop_task, patch)], sandbox="process")
    assert statuses(found) == ["unresolved"]
    assert outside.read_text() == "one\n"


def test_a_second_call_goes_on_and_failures_are_tried_again(shop_task, tmp_path):
    record, calls = tmp_path / "graded.jsonl", []

    def broken(spec):
        calls.append(spec)
        raise SandboxError("The sandbox is out of order.")

    wanted = [prediction(shop_task, shop_task.patch)]
    first = grade_predictions([shop_task], wanted, sandbox=broken, record=record)
    assert statuses(first) == ["failed"]
    assert first.graded[0].error == "The sandbox is out of order."
    with record.open("ab") as file:
        file.write(b'{"torn')
    second = grade_predictions([shop_task], wanted, sandbox="process", record=record)
    assert statuses(second) == ["resolved"]
    written = record.read_bytes()
    third = grade_predictions([shop_task], wanted, sandbox="process", record=record)
    assert third.graded == second.graded
    assert record.read_bytes() == written
    changed = [prediction(shop_task, shop_task.patch + "\n")]
    assert statuses(grade_predictions([shop_task], changed, sandbox=broken, record=record)) == [
        "failed"
    ]


def test_a_verdict_under_other_conditions_or_with_an_error_is_made_anew(shop_task, tmp_path):
    record = tmp_path / "graded.jsonl"

    def lines(patch, **settings):
        given = {"sandbox": "process", "timeout": 60, "record": record} | settings
        grade_predictions([shop_task], [prediction(shop_task, patch)], **given)
        return len(record.read_bytes().splitlines())

    unfit = shop_task.patch.replace("amount", "quantity")
    assert [lines(unfit), lines(unfit)] == [1, 2]
    assert [lines(shop_task.patch), lines(shop_task.patch)] == [3, 3]
    assert lines(shop_task.patch, timeout=61) == 4
    assert lines(shop_task.patch, sandbox=get("process")) == 5


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ConfigError("No."), OSError(5, "Broken")])
def test_what_stops_a_call_leaves_the_queue_and_keeps_what_was_begun(tmp_path, monkeypatch, error):
    blank = Task(instance_id="", repo="", base_commit="", problem_statement="")
    tasks = [replace(blank, instance_id=str(number)) for number in range(9)]
    stopped, begun = threading.Event(), []

    def grade(task, patch, **_):
        begun.append(task.instance_id)
        if task.instance_id == "1":
            stopped.set()
            raise error
        stopped.wait(20)
        time.sleep(0.2)
        return TestReport(resolved=True, fraction=1.0, fail_to_pass={}, pass_to_pass={})

    monkeypatch.setattr(predictions, "grade", grade)
    wanted, record = [prediction(task, "x") for task in tasks], tmp_path / "graded.jsonl"
    with pytest.raises(type(error)) as raised:
        grade_predictions(tasks, wanted, sandbox="process", workers=2, record=record)
    assert raised.value is error
    kept = [json.loads(line)["instance_id"] for line in record.read_text().splitlines()]
    assert kept == [name for name in begun if name != "1"]
    assert len(begun) < 5


def test_a_record_that_cannot_be_written_is_named(shop_task, tmp_path):
    record = tmp_path / "missing" / "graded.jsonl"
    with pytest.raises(TaskError, match=f"{record} cannot be written: No such file"):
        grade_predictions([shop_task], [], sandbox="process", record=record)


@pytest.mark.parametrize("form", ["lines", "list", "object"])
def test_the_three_forms_of_a_file_are_read(tmp_path, form):
    rows = [{"instance_id": "a", "model_patch": "p"}, {"instance_id": "b", "model_patch": None}]
    text = {
        "lines": "\n".join(map(json.dumps, rows)) + "\n",
        "list": json.dumps(rows, indent=1),
        "object": json.dumps(
            {row["instance_id"]: {"model_patch": row["model_patch"]} for row in rows}
        ),
    }[form]
    (tmp_path / "preds").write_text(text)
    found = read_predictions(tmp_path / "preds")
    assert [(p.instance_id, p.model_patch) for p in found] == [("a", "p"), ("b", None)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read: No such file"),
        (b"\xff", "cannot be read: it is not UTF-8"),
        (b'{"instance_id": "a"}\n{"inst', "line 2, is not JSON"),
        (b'[{"model_patch": ""}]', "row 1, is no prediction"),
        (b'{"instance_id": "a"}\n{"instance_id": "a"}\n', "several predictions for a"),
    ],
)
def test_a_file_that_is_wrong_is_one_sentence(tmp_path, text, words):
    path = tmp_path / "preds.jsonl"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(ConfigError, match=words) as error:
        read_predictions(path)
    assert "\n" not in str(error.value)


def test_the_command_prints_and_continues(shop_task, tmp_path):
    dump([shop_task], tmp_path / "tasks.jsonl")
    row = {"instance_id": "shop-1", "model_patch": shop_task.patch, "model_name_or_path": "m"}
    (tmp_path / "preds.jsonl").write_text(json.dumps(row) + "\n")
    arguments = [
        "grade", str(tmp_path / "preds.jsonl"), "--tasks", f"jsonl:{tmp_path}/tasks.jsonl",
        "--sandbox", "process", "--out", str(tmp_path / "graded.jsonl"),
    ]  # fmt: skip
    told = CliRunner().invoke(build(), arguments)
    assert told.exit_code == 0, told.output
    assert "shop-1: resolved" in told.stdout
    assert "1 of 1 tasks resolved" in told.stdout
    again = CliRunner().invoke(build(), [*arguments, "--json"])
    assert json.loads(again.stdout)["counts"] == {"resolved": 1}
    assert len((tmp_path / "graded.jsonl").read_text().splitlines()) == 1
