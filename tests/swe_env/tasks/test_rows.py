"""Task files: what is written reads back, and a bad row is named."""

from __future__ import annotations

import json

import pytest

from swe_env.errors import TaskError
from swe_env.tasks import dump, find, load
from swe_env.types import Image, Recipe, Source, Task

TASK = Task(
    instance_id="pkg-1",
    repo="pkg",
    base_commit="0" * 40,
    problem_statement="It fails.\u2028Really.",
    FAIL_TO_PASS=("t.py::test_a",),
    source=Source(kind="sdist", location="pkg", version="1"),
    environment=Recipe(python="3.12", requirements=("pytest==8.4.2",)),
    metadata={"seed": 3},
)
CLASSIC = {
    "instance_id": "own__er-1",
    "repo": "own/er",
    "base_commit": "1" * 40,
    "problem_statement": "It fails.",
    "hints_text": None,
    "patch": "",
    "test_patch": "",
    "FAIL_TO_PASS": '["t.py::test_a"]',
    "PASS_TO_PASS": "[]",
    "version": "1.0",
    "created_at": "2020-01-01",
}


@pytest.mark.parametrize("name", ["tasks.jsonl", "tasks.jsonl.zst"])
def test_tasks_read_back_as_written(tmp_path, name):
    image = Task(
        instance_id="i", repo="i", base_commit="", problem_statement="", environment=Image(name="x")
    )
    dump([TASK, image], tmp_path / name)
    assert load(str(tmp_path / name)) == load(f"jsonl:{tmp_path / name}") == [TASK, image]


def test_classic_rows_of_the_benchmark_parse(tmp_path):
    (tmp_path / "lite.jsonl").write_text(json.dumps(CLASSIC) + "\n")
    (task,) = load(str(tmp_path / "lite.jsonl"))
    assert task.FAIL_TO_PASS == ("t.py::test_a",)
    assert task.source == Source(kind="git", location="own/er")
    assert task.metadata["row"] == {"created_at": "2020-01-01"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"repo": 7}, "row 2: field 'repo': expected `str`, got `int`"),
        ({"FAIL_TO_PASS": "[1]"}, "row 2: field 'FAIL_TO_PASS"),
        ({"environment": {"python": 3}}, "row 2: field 'environment.python'"),
        ({"instance_id": "own__er-1"}, "row 2: 'own__er-1' is there twice"),
    ],
)
def test_a_bad_row_is_named_with_its_field(tmp_path, change, said):
    second = {**CLASSIC, "instance_id": "own__er-2", **change}
    (tmp_path / "bad.jsonl").write_text(json.dumps(CLASSIC) + "\n" + json.dumps(second) + "\n")
    with pytest.raises(TaskError) as caught:
        load(str(tmp_path / "bad.jsonl"))
    assert said in str(caught.value)


def test_a_torn_row_and_a_missing_field_are_named(tmp_path):
    (tmp_path / "bad.jsonl").write_text(json.dumps(CLASSIC) + '\n{"repo": \n')
    with pytest.raises(TaskError, match="row 2"):
        load(str(tmp_path / "bad.jsonl"))
    (tmp_path / "bad.jsonl").write_text('{"repo": "x"}\n')
    with pytest.raises(TaskError, match=r"row 1: .*instance_id"):
        load(str(tmp_path / "bad.jsonl"))


def test_unknown_names_say_what_was_near(tmp_path):
    dump([TASK], tmp_path / "tasks.jsonl")
    with pytest.raises(TaskError, match=r"Did you mean '.*tasks\.jsonl'"):
        load(str(tmp_path / "taks.jsonl"))
    with pytest.raises(TaskError, match="Did you mean 'quickstart'"):
        load("quickstrat")
    with pytest.raises(TaskError, match="no split 'test': use one of heldout, train"):
        load("quickstart:test")
    with pytest.raises(TaskError, match="Did you mean 'pkg-1'"):
        find([TASK], "pkg-11")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("synth:", "synth needs a package"),
        ("synth:toolz", "needs a version"),
        ("synth:/not/there", "neither NAME==VERSION nor a folder"),
        ("synth:toolz==1.2.0?limt=3", "Did you mean 'limit'"),
        ("synth:toolz==1.2.0?limit=many", "wants a whole number"),
        ("synth:toolz==1.2.0?detail=patch", "symptom, function, line"),
    ],
)
def test_wrong_synth_specs_are_one_sentence(spec, said):
    with pytest.raises(TaskError, match=said):
        load(spec)


def test_a_corrupt_list_as_text_is_named(tmp_path):
    row = {**CLASSIC, "FAIL_TO_PASS": '["t.py::test_a"'}
    (tmp_path / "bad.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(TaskError, match=r"row 1: field 'FAIL_TO_PASS': it is no list as JSON text"):
        load(str(tmp_path / "bad.jsonl"))


@pytest.mark.parametrize(("family", "end"), [("", "l"), ("swebench:", "l"), ("swebench:", "")])
def test_a_byte_that_is_no_utf8_is_told(tmp_path, family, end):
    file = tmp_path / f"bad.json{end}"
    row = json.dumps(CLASSIC).encode().replace(b"It fails", b"It \xff fails")
    file.write_bytes(row if end else b"[" + row + b"]")
    with pytest.raises(TaskError, match=r"bad\.json.*: the byte 0xff in it is no valid UTF-8\.$"):
        load(f"{family}{file}")


@pytest.mark.parametrize("spec", ["bad.parquet", "rows.json", "SWE-bench/SWE-bench_Lite"])
def test_rows_without_their_family_say_how_to_name_it(spec):
    with pytest.raises(TaskError, match=f"as in 'swebench:{spec}'"):
        load(spec)
    with pytest.raises(TaskError, match="no task source named ''"):
        load("")


def test_a_jsonl_source_needs_a_file(tmp_path):
    with pytest.raises(TaskError, match=r"jsonl needs a file: jsonl:PATH"):
        load("jsonl:")
    with pytest.raises(TaskError, match=r" cannot be read: Is a directory\.$"):
        load(f"jsonl:{tmp_path}")
