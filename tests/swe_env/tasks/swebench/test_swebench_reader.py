"""Rows from files of every kind, and one sentence where they cannot be had."""

from __future__ import annotations

import json
import sys

import pytest
import zstandard

from swe_env.errors import TaskError
from swe_env.tasks import load
from swe_env.tasks.swebench.reader import read_rows

ROWS = [
    {"instance_id": "a", "FAIL_TO_PASS": ["t.py::x", "t.py::ü"], "meta": {"n": 1}},
    {"instance_id": "b", "FAIL_TO_PASS": [], "meta": {"n": 2}},
]


def test_every_kind_of_file_gives_the_same_rows(tmp_path):
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "rows.jsonl").write_text(lines)
    (tmp_path / "rows.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    (tmp_path / "data").mkdir()
    for name in ("rows.parquet", "data/test-00000-of-00001.parquet"):
        parquet.write_table(arrow.Table.from_pylist(ROWS), tmp_path / name)
    for name in ("rows.jsonl", "rows.jsonl.zst", "rows.json", "rows.parquet", "data"):
        found = list(read_rows(str(tmp_path / name), split="test"))
        assert [row.values for row in found] == ROWS, name
        assert found[1].where.endswith("row 2")


def test_a_split_that_is_not_there_says_which_are(tmp_path):
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    parquet.write_table(arrow.Table.from_pylist(ROWS), tmp_path / "train-0.parquet")
    with pytest.raises(TaskError, match=r"no parquet file of the split 'test'\. It has train"):
        list(read_rows(str(tmp_path), split="test"))


def test_broken_files_are_one_sentence(tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(TaskError, match=r"bad\.parquet cannot be read as parquet"):
        list(read_rows(str(tmp_path / "bad.parquet"), split=""))
    with pytest.raises(TaskError, match="There is no parquet file"):
        list(read_rows(str(tmp_path / "none.parquet"), split=""))
    (tmp_path / "bad.jsonl").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(TaskError, match=r"bad\.jsonl, row 2: "):
        list(read_rows(str(tmp_path / "bad.jsonl"), split=""))
    (tmp_path / "bad.json").write_text('{"a": 1}')
    with pytest.raises(TaskError, match=r"bad\.json: .*array"):
        list(read_rows(str(tmp_path / "bad.json"), split=""))


@pytest.mark.parametrize(
    ("missing", "spec"),
    [("pyarrow", "swebench:{}/x.parquet"), ("huggingface_hub", "swebench:lite")],
)
def test_a_missing_package_says_how_to_get_it(monkeypatch, tmp_path, missing, spec):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(TaskError, match=rf"needs the package {missing}: install it with `pip"):
        load(spec.format(tmp_path))


def test_no_network_is_one_sentence(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(TaskError, match=r"SWE-bench_Lite could not be fetched .*a file of its row"):
        load("swebench:lite")
