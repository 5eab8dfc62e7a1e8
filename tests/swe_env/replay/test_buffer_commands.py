"""`swe buffer …` as a user runs it, and the files it writes."""

import json

import pytest
from typer.testing import CliRunner

from swe_env.cli import build
from swe_env.errors import ConfigError
from swe_env.replay import ReplayBuffer
from swe_env.replay.card import card, digest
from swe_env.replay.export import FORMATS, write
from tests.swe_env.replay.conftest import make_trajectory
from tests.swe_env.replay.test_imports import mini_2


@pytest.fixture
def folder(tmp_path):
    """Two tasks with two resolved and two unresolved attempts, one failure, one unfinished."""
    with ReplayBuffer(tmp_path / "buffer") as buffer:
        for k in range(8):
            buffer.append(make_trajectory(f"t-{k % 2}", k, resolved=k % 4 < 2, text=f"<view {k}>"))
        buffer.append(make_trajectory("t-0", 8, failure="sandbox"))
        buffer.append(make_trajectory("t-1", 9, finished=False))
    return tmp_path / "buffer"


def swe(*arguments, code=0):
    """Standard output, read as JSON where `--json` asked for it."""
    result = CliRunner().invoke(build(), ["buffer", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if "--json" in arguments else result.stdout


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_stats_of_all_and_of_some(folder):
    found = swe("stats", folder, "--json")
    assert (found["records"], found["tasks"], found["resolved"]) == (10, 2, 4)
    assert found["failures"] == {"sandbox": 1}
    assert swe("stats", folder, "-w", "resolved=true", "-w", "instance_id=t-0", "--json")[
        "records"
    ] == (2)
    assert swe("stats", folder, "-w", "attempt=[1, 2, 77]", "--json")["records"] == 2
    assert "records: 10\n" in swe("stats", folder)
    with pytest.raises(ConfigError, match="no column 'resolve'"):
        swe("stats", folder, "-w", "resolve=true")
    with pytest.raises(ConfigError, match="no replay buffer at"):
        swe("stats", folder / "nowhere")
    assert not (folder / "nowhere").exists()


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("finished=False", "finished takes true or false, not 'False'"),
        ("resolved=2", "resolved takes true or false, not 2"),
        ("attempt=first", "attempt takes whole numbers, not 'first'"),
        ("attempt=[1, true]", "attempt takes whole numbers, not True"),
        ("reward=half", "reward takes numbers, not 'half'"),
    ],
)
def test_a_value_that_no_record_of_the_column_has_is_refused(folder, where, said):
    with pytest.raises(ConfigError, match=said):
        swe("stats", folder, "-w", where)


def test_texts_take_what_looks_like_something_else(tmp_path):
    with ReplayBuffer(tmp_path) as buffer:
        for name in ("17", "true", "b"):
            buffer.append(make_trajectory(name, resolved=True))
    for where in ("instance_id=17", "instance_id=true", "reward=1", "attempt=0"):
        count = 1 if where.startswith("instance") else 3
        assert swe("stats", tmp_path, "-w", where, "--json")["records"] == count


def test_verify_names_damage_and_repair_takes_it_out(folder):
    assert swe("verify", folder) == "10 records, 0 damages.\n"
    (shard,) = folder.glob("*.zst")
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    offset = int(ReplayBuffer(folder).column("offset")[-1])
    said = swe("verify", folder, code=1)
    assert said.startswith(f"{shard.name} at byte {offset}: ")
    found = swe("verify", folder, "--json", code=1)
    assert found["damages"][0]["offset"] == offset
    assert swe("repair", folder, "--json")["kept"] == 9
    assert swe("verify", folder) == "9 records, 0 damages.\n"


def test_merge_split_and_compact(folder, tmp_path):
    done = swe("merge", tmp_path / "all", folder, folder, "--json")
    assert (done["copied"], done["duplicates"]) == (10, 10)
    parts = swe("split", folder, tmp_path / "parts", "train=1", "dev=1", "--seed", 3, "--json")
    tasks = [set(ReplayBuffer(p["path"]).column("instance_id")) for p in parts.values()]
    assert tasks[0] | tasks[1] == {"t-0", "t-1"}
    assert not tasks[0] & tasks[1]
    with pytest.raises(ConfigError, match="holds records already"):
        swe("split", folder, tmp_path / "parts", "train=1", "dev=1", "--seed", 3)
    swe("merge", tmp_path / "all", folder, "--keep-duplicates")
    assert swe("compact", tmp_path / "all", "--deduplicate", "--json")["duplicates"] == 10
    assert len(ReplayBuffer(tmp_path / "all")) == 10


def test_a_preference_export_pairs_within_a_task(folder, tmp_path):
    out = tmp_path / "out" / "pairs.jsonl"
    done = swe("export", folder, "-f", "trl-preference", "--out", out, "--per-task", 2, "--json")
    rows = lines(out)
    assert done["rows"] == len(rows) == 4
    assert done["left_out"] == {"unfinished, failed or without verdict": 2}
    good = {f"<view {k}>" for k in (0, 1, 4, 5)}
    for row in rows:
        assert row["chosen"][0]["content"] in good
        assert row["rejected"][0]["content"] not in good
        assert int(row["chosen"][0]["content"][6]) % 2 == int(row["rejected"][0]["content"][6]) % 2
    sides = [row[side][0]["content"] for row in rows for side in ("chosen", "rejected")]
    assert len(set(sides)) == 8  # spread: no trajectory twice while others are left
    again = tmp_path / "again.jsonl"
    swe("export", folder, "-f", "trl-preference", "--out", again, "--per-task", 2)
    assert again.read_bytes() == out.read_bytes()


def test_labelled_and_good_exports(folder, tmp_path):
    write(ReplayBuffer(folder), "trl-kto", tmp_path / "kto.jsonl")
    assert sorted(row["label"] for row in lines(tmp_path / "kto.jsonl")) == [False] * 4 + [True] * 4
    done = write(ReplayBuffer(folder), "trl-kto", tmp_path / "kto.jsonl", per_task=1)
    assert (done.rows, done.left_out["over the limit a task"]) == (4, 4)
    write(ReplayBuffer(folder), "trl-sft", tmp_path / "sft.jsonl")
    assert len(lines(tmp_path / "sft.jsonl")) == 4


def test_a_damaged_record_costs_an_export_no_other_row(folder, tmp_path):
    (shard,) = folder.glob("*.zst")
    data = bytearray(shard.read_bytes())
    data[int(ReplayBuffer(folder).column("offset")[1]) - 5] ^= 255
    shard.write_bytes(data)
    for kind, per_task in (("trl-kto", 1), ("trl-preference", 2)):
        done = write(ReplayBuffer(folder), kind, tmp_path / "out.jsonl", per_task=per_task)
        assert done.rows == 4


def test_llamafactory_rows_alternate_and_are_described(folder, tmp_path):
    for kind in ("preference", "kto", "sft"):
        write(ReplayBuffer(folder), f"llamafactory-{kind}", tmp_path / f"{kind}.jsonl")
    (pair, _) = lines(tmp_path / "preference.jsonl")
    assert [turn["from"] for turn in pair["conversations"]] == ["human"]
    assert pair["chosen"]["from"] == pair["rejected"]["from"] == "gpt"
    row = lines(tmp_path / "kto.jsonl")[0]
    assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt"]
    assert row["kto_tag"] is True
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    assert set(info) == {"preference", "kto", "sft"}
    assert info["preference"]["ranking"] is True


def test_predictions_need_one_attempt_a_task(folder, tmp_path):
    with pytest.raises(ConfigError, match="several trajectories"):
        swe("export", folder, "-f", "preds", "--out", tmp_path / "preds.jsonl")
    assert list(tmp_path.glob("*preds*")) == []  # all rows or no file
    swe("export", folder, "-f", "preds", "--out", tmp_path / "p.jsonl", "-w", "attempt=[0, 1]")
    assert {row["instance_id"] for row in lines(tmp_path / "p.jsonl")} == {"t-0", "t-1"}


def test_failures_are_no_predictions(folder, tmp_path):
    """Attempt 0 at t-2 failed, and its retry has the same number."""
    out = tmp_path / "preds.jsonl"
    with ReplayBuffer(folder) as buffer:
        buffer.append(make_trajectory("t-2", 0, failure="sandbox"))
        buffer.append(make_trajectory("t-2", 0, resolved=True))
        buffer.append(make_trajectory("t-3", 0, failure="sandbox"))
    done = swe("export", folder, "-f", "preds", "--out", out, "-w", "attempt=0", "--json")
    rows = {row["instance_id"]: row["model_patch"] for row in lines(out)}
    assert rows.keys() == {"t-0", "t-2"}
    assert rows["t-2"]
    assert done["left_out"] == {"failed": 2}


def test_exports_that_cannot_be_are_refused_in_a_sentence(folder, tmp_path):
    with pytest.raises(ConfigError, match=f"no export format 'hf'.*{FORMATS[0]}"):
        swe("export", folder, "-f", "hf", "--out", tmp_path / "x")
    with pytest.raises(ConfigError, match="nothing to export"):
        swe("export", folder, "-f", "trl-sft", "--out", tmp_path / "x", "-w", "resolved=false")
    assert not (tmp_path / "x").exists()


def test_atif_is_a_document_a_file(folder, tmp_path):
    assert swe("export", folder, "-f", "atif", "--out", tmp_path / "atif", "--json")["rows"] == 10
    documents = [json.loads(p.read_text()) for p in (tmp_path / "atif").iterdir()]
    assert {d["trajectory_id"] for d in documents} == set(ReplayBuffer(folder).column("id"))


def test_import_appends_and_says_what_it_skipped(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a.traj.json").write_text(json.dumps(mini_2()))
    (tmp_path / "runs" / "b.traj.json").write_text("{")
    report = swe("import", tmp_path / "runs", tmp_path / "buffer", "--json")
    assert (report["trajectories"], len(report["skipped"])) == (1, 1)
    assert ReplayBuffer(tmp_path / "buffer")[0].instance_id == "a"
    with pytest.raises(ConfigError, match="No trajectory was found"):
        swe("import", tmp_path / "runs" / "b.traj.json", tmp_path / "buffer")


def test_what_is_imported_again_is_left_out_and_counted(tmp_path):
    runs, buffer = tmp_path / "runs", tmp_path / "buffer"
    runs.mkdir()
    (runs / "a.traj.json").write_text(json.dumps(mini_2()))
    assert swe("import", runs, buffer, "--json")["duplicates"] == 0
    (runs / "b.traj.json").write_text(json.dumps(mini_2()))
    report = swe("import", runs, buffer, "--json")
    assert (report["trajectories"], report["duplicates"]) == (2, 1)
    assert [t.instance_id for t in ReplayBuffer(buffer)] == ["a", "b"]
    assert "duplicates: 2\n" in swe("import", runs, buffer)


def test_a_folder_that_has_grown_gives_only_what_is_new_numbered_on(tmp_path):
    def attempts():
        return [(t.attempt, t.steps[1].message) for t in ReplayBuffer(tmp_path / "buffer")]

    def grow(place, issue):
        (tmp_path / place).mkdir(parents=True)
        data = mini_2()
        data["messages"][1]["content"] = issue
        (tmp_path / place / "t.traj.json").write_text(json.dumps(data))

    grow("runs/a", "first")
    grow("runs/c", "second")
    swe("import", tmp_path / "runs", tmp_path / "buffer")
    grow("runs/b", "third")
    grow("more", "fourth")
    grow("copy", "fourth")
    added = [(0, "first"), (1, "second"), (2, "third"), (3, "fourth")]
    for folder, duplicates, there in (
        ("runs", 2, added[:3]),
        ("runs", 3, added[:3]),
        ("more", 0, added),
        ("copy", 1, added),
    ):
        report = swe("import", tmp_path / folder, tmp_path / "buffer", "--json")
        assert (report["duplicates"], attempts()) == (duplicates, there)


def test_a_verdict_given_later_is_added_under_the_same_number(tmp_path):
    for place in ("runs/a", "runs/b"):  # equal to the byte and yet two attempts
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "t.traj.json").write_text(json.dumps(mini_2()))
    (tmp_path / "report.json").write_text('{"resolved_ids": ["t"]}')
    graded = ("--verdicts", tmp_path / "report.json")
    duplicates = [
        swe("import", tmp_path / "runs", tmp_path / "buffer", *more, "--json")["duplicates"]
        for more in ((), graded, graded, ())
    ]
    assert duplicates == [0, 0, 2, 2]
    found = [(t.attempt, t.report is not None) for t in ReplayBuffer(tmp_path / "buffer")]
    assert found == [(0, False), (1, False), (0, True), (1, True)]


def test_the_card_says_what_is_in_the_buffer(folder, tmp_path):
    out = tmp_path / "card" / "README.md"
    swe("card", folder, "--out", out, "--title", "Proof")
    text = out.read_text()
    assert "# Proof\n" in text
    assert "10 trajectories of coding agents on 2 tasks" in text
    assert "9 records have one: 4 resolved (44.4%" in text
    assert "Of 2 tasks, 0 were resolved always, 0 never, 2 sometimes" in text
    assert "| `maker` | `none` |  | 10 | 2 | 44.4% |" in text
    assert "Infrastructure failures, no evidence about the agent: sandbox 1" in text
    assert "10 records carry the sampled token ids" in text
    assert "Calls: view 10" in text
    assert digest(ReplayBuffer(folder)) in text
    assert digest(ReplayBuffer(folder)) != digest(ReplayBuffer(folder)[1:])
    (shard,) = folder.glob("*.zst")
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert f"- {shard.name} at byte" in swe("card", folder)
    with ReplayBuffer(tmp_path / "empty") as empty:
        assert "No record has a verdict." in card(empty, title="Empty")
