"""Proofs find what is wrong and what flakes; they can be stopped, and go on."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from typer.testing import CliRunner

from swe_env.cli import build
from swe_env.errors import ConfigError, SandboxError
from swe_env.tasks import dump, load
from swe_env.tasks.validate import validate
from swe_env.types import Source, Task
from tests.conftest import BAD, GOOD, HIDDEN, VISIBLE, unified

pytestmark = [
    pytest.mark.network,
    pytest.mark.usefixtures("cached"),
    pytest.mark.filterwarnings("ignore:The process sandbox"),
]

FLAKY = """

import os


def test_ran_before():
    mark = os.environ["COUNTER"]
    with open(mark, "a+") as file:
        file.seek(0)
        ran = len(file.read())
        file.write("x")
    assert ran % 2 == 0
"""
ORDERED = """

_seen = []


def test_first():
    _seen.append(1)


def test_second():
    assert _seen
"""


def with_tests(task: Task, more: str, *, wanted=(), kept=()) -> Task:
    """The task with more hidden tests in its file."""
    ids = [f"tests/test_shop.py::{name}" for name in (*wanted, *kept)]
    return replace(
        task,
        test_patch=unified("tests/test_shop.py", VISIBLE, HIDDEN + more),
        FAIL_TO_PASS=(*task.FAIL_TO_PASS, *ids[: len(wanted)]),
        PASS_TO_PASS=(*task.PASS_TO_PASS, *ids[len(wanted) :]),
    )


def test_a_task_that_holds(shop_task):
    report = validate([shop_task], sandbox="process", repeats=2)
    (proof,) = report.proofs
    assert (report.valid, proof.status, proof.runs, proof.flaky) == (1, "valid", 4, {})
    (noted,) = report.tasks
    assert noted.metadata["validation"]["valid"] is True
    assert "quarantine" not in noted.metadata


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"patch": ""}, "The gold patch does not resolve it: tests/test_shop.py::test_discount"),
        (
            {"FAIL_TO_PASS": ("tests/test_shop.py::test_label",), "PASS_TO_PASS": ()},
            "The empty patch resolves it.",
        ),
        ({"FAIL_TO_PASS": ()}, "It has no FAIL_TO_PASS test."),
        (
            {"PASS_TO_PASS": ("tests/test_shop.py::test_gone",)},
            "Without a patch a PASS_TO_PASS test fails already: tests/test_shop.py::test_gone.",
        ),
        ({"source": Source(kind="folder", location="/not/there")}, "There is no folder /not/there"),
    ],
)
def test_what_is_wrong_is_told(shop_task, change, problem):
    report = validate([replace(shop_task, **change)], sandbox="process", repeats=1)
    assert (report.valid, report.invalid) == (0, 1)
    assert any(said.startswith(problem) for said in report.proofs[0].problems)
    assert sum(report.reasons.values()) == 1


def test_a_flaky_test_is_taken_out_and_named(shop_task, tmp_path):
    command = f"COUNTER={tmp_path / 'runs'} {shop_task.test_command}"
    flaky = with_tests(shop_task, FLAKY, kept=["test_ran_before"])
    report = validate([replace(flaky, test_command=command)], sandbox="process", repeats=2)
    (noted,) = report.tasks
    name = "tests/test_shop.py::test_ran_before"
    assert (report.valid, report.flaky_tests) == (1, 1)
    assert noted.PASS_TO_PASS == shop_task.PASS_TO_PASS
    assert noted.metadata["quarantine"][name].startswith("with the gold patch it fails in run")
    again = validate([noted], sandbox="process", repeats=1)
    assert again.valid == 1
    assert name in again.tasks[0].metadata["quarantine"]


def test_a_task_of_flaky_tests_alone_is_quarantined(shop_task, tmp_path):
    command = f"COUNTER={tmp_path / 'runs'} {shop_task.test_command}"
    flaky = with_tests(shop_task, FLAKY, wanted=["test_ran_before"])
    flaky = replace(flaky, FAIL_TO_PASS=flaky.FAIL_TO_PASS[1:], test_command=command)
    report = validate([flaky], sandbox="process", repeats=2)
    assert (report.valid, report.quarantined, report.proofs[0].status) == (0, 1, "quarantined")
    assert report.tasks[0].FAIL_TO_PASS == ()


def test_the_order_of_the_tests_is_tried(shop_task):
    """Some order of three turns these two tests around; a run in file order never would."""
    ordered = with_tests(shop_task, ORDERED, kept=["test_first", "test_second"])
    report = validate([ordered], sandbox="process", repeats=4)
    assert report.valid == 1
    assert list(report.proofs[0].flaky) == ["tests/test_shop.py::test_second"]


def test_proofs_are_kept_and_not_made_twice(shop_task, tmp_path):
    record = tmp_path / "proofs"
    other = replace(shop_task, instance_id="shop-2", patch="")
    first = validate([shop_task], sandbox="process", repeats=1, record=record)
    with record.open("ab") as file:
        file.write(b'{"instance_id": "cut')  # as a killed run leaves it
    done = []
    second = validate(
        [shop_task, other],
        sandbox="process",
        repeats=1,
        record=record,
        progress=lambda _, now, total: done.append((now, total)),
    )
    assert second.proofs[0] == first.proofs[0]
    assert done == [(1, 2), (2, 2)]
    assert (second.valid, second.invalid) == (1, 1)
    changed = replace(shop_task, patch=unified("shop.py", BAD, GOOD + "\n# more\n"))
    validate([changed], sandbox="process", repeats=1, record=record)
    proofs = [line for line in record.read_bytes().splitlines() if line.endswith(b"}")]
    assert len(proofs) == 3  # the changed task was proven anew
    validate([changed], sandbox="process", repeats=1, record=record, timeout=60)
    assert len(record.read_bytes().splitlines()) == 5  # and so it is with more or less time


def test_a_broken_sandbox_says_nothing_of_the_task(shop_task, tmp_path):
    def broken(spec):
        raise SandboxError("The sandbox was lost.")

    record = tmp_path / "proofs"
    report = validate([shop_task], sandbox=broken, repeats=1, record=record)
    assert (report.failed, report.invalid, report.proofs[0].status) == (1, 0, "failed")
    assert validate([shop_task], sandbox="process", repeats=1, record=record).valid == 1


def test_senseless_numbers_and_names_are_refused(shop_task):
    with pytest.raises(ConfigError, match="1 repeat or more"):
        validate([shop_task], repeats=0)
    with pytest.raises(ConfigError, match="no sandbox named 'locl'"):
        validate([shop_task], sandbox="locl")


def test_the_command_writes_the_record_and_tells_by_its_exit_code(shop_task, tmp_path):
    source, out = tmp_path / "tasks.jsonl", tmp_path / "proven.jsonl"
    dump([shop_task, replace(shop_task, instance_id="shop-2", patch="")], source)
    asked = ["tasks", "validate", str(source), "--sandbox", "process", "--repeats", "1"]
    runner = CliRunner()
    result = runner.invoke(build(), [*asked, "--out", str(out), "--only-valid"])
    assert result.exit_code == 1
    assert "1 dropped: The gold patch does not resolve it." in result.stdout
    assert "1 of 2 tasks hold" in result.stdout
    assert [task.instance_id for task in load(str(out))] == ["shop-1"]
    result = runner.invoke(build(), [*asked, "--out", str(out), "--json"])
    report = msgspec.json.decode(result.stdout)
    assert (report["valid"], report["invalid"]) == (1, 1)
    assert report["reasons"] == {"The gold patch does not resolve it": 1}
    result = runner.invoke(build(), [*asked, "--out", str(tmp_path / "tasks.json")])
    assert "ends in .jsonl" in str(result.exception)
