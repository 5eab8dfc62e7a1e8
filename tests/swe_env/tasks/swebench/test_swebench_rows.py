"""Rows of SWE-bench and its relatives become tasks; a bad one is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swe_env.errors import TaskError
from swe_env.repos.patches import apply_patch
from swe_env.tasks import load
from swe_env.types import Image, Recipe, Source, Task

DATA = Path(__file__).parents[3] / "data" / "swebench"
CONDA = "/opt/miniconda3/envs/testbed/bin/python"
PATCH = """\
diff --git a/pkg/mod.py b/pkg/mod.py
--- a/pkg/mod.py
+++ b/pkg/mod.py
@@ -1,2 +1,3 @@
 def f():
-    return 1
+    x = 2
+    return x
"""
TESTS = """\
diff --git a/tests/test_mod.py b/tests/test_mod.py
--- a/tests/test_mod.py
+++ b/tests/test_mod.py
@@ -1 +1 @@
-pass
+def test_f(): pass
"""
ROW = {
    "instance_id": "own__pkg-1",
    "repo": "own/pkg",
    "base_commit": "a" * 40,
    "problem_statement": "f is wrong",
    "hints_text": None,
    "patch": PATCH,
    "test_patch": TESTS,
    "FAIL_TO_PASS": '["tests/test_mod.py::test_f"]',
    "PASS_TO_PASS": ["tests/test_mod.py::test_g"],
    "version": "1.0",
}


def rows(tmp_path: Path, *found: dict[str, object], name: str = "rows.jsonl") -> str:
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(path)


def one(tmp_path: Path, family: str, row: dict[str, object], option: str = "") -> Task:
    (task,) = load(f"{family}:{rows(tmp_path, row)}{option}")
    return task


def test_real_lite_rows_get_the_benchmarks_recipes():
    flask, pylint, sympy = load(f"swebench:{DATA / 'lite.jsonl'}")
    assert flask.FAIL_TO_PASS == ("tests/test_config.py::test_config_from_file_toml",)
    assert len(flask.PASS_TO_PASS) == 18
    assert flask.source == Source(kind="git", location="pallets/flask")
    assert isinstance(flask.environment, Recipe)
    assert flask.environment.python == "3.11"
    assert "Werkzeug==2.3.7" in flask.environment.requirements
    assert (flask.test_command, flask.log_parser) == ("pytest -rA", "pytest")
    assert isinstance(pylint.environment, Recipe)
    assert "requirements_test.txt" in pylint.environment.install
    assert sympy.log_parser == "sympy"
    assert sympy.environment == Recipe(
        python="3.9",
        requirements=("flake8", "mpmath==1.3.0", "flake8-comprehensions"),
    )
    assert flask.metadata["row"]["created_at"].startswith("2023")


def test_an_image_can_be_asked_for_and_is_taken_where_no_recipe_serves(tmp_path):
    flask, _, sympy = load(f"swebench:{DATA / 'lite.jsonl'}?environment=image")
    assert flask.environment == Image(
        name="swebench/sweb.eval.x86_64.pallets_1776_flask-4992:latest"
    )
    assert flask.test_command == f"{CONDA} -m pytest -rA"
    assert sympy.test_command.endswith(f"{CONDA} bin/test -C --verbose")
    assert sympy.log_parser == "sympy"
    scikit = {**ROW, "repo": "scikit-learn/scikit-learn", "version": "1.3"}
    assert isinstance(one(tmp_path, "swebench", scikit).environment, Image)
    forced = one(tmp_path, "swebench", scikit, "?environment=recipe")
    assert isinstance(forced.environment, Recipe)
    assert isinstance(one(tmp_path, "swebench", ROW).environment, Image)
    with pytest.raises(TaskError, match=r"row 1: field 'version': there is no recipe of own/pkg"):
        one(tmp_path, "swebench", ROW, "?environment=recipe")


def script(*commands: str) -> str:
    body = "\n".join(commands)
    return (
        "#!/bin/bash\nset -uxo pipefail\ncd /testbed\ngit apply -v - <<'EOF'\nEOF\n"
        f": '>>>>> Start Test Output'\n{body}\n: '>>>>> End Test Output'\ngit checkout x\n"
    )


@pytest.mark.parametrize(
    ("commands", "parser", "runner", "command"),
    [
        (("pytest -rA tests/test_mod.py",), "parse_log_pytest", "pytest", f"{CONDA} -m pytest -rA"),
        (
            ("./tests/runtests.py --verbosity 2 test_mod",),
            "parse_log_django",
            "django",
            f"{CONDA} ./tests/runtests.py --verbosity 2",
        ),
        (
            ("tox --current-env -epy39 -v -- tests/test_mod.py",),
            "parse_log_sphinx",
            "parse_log_sphinx",
            ". /opt/miniconda3/bin/activate testbed && tox --current-env -epy39 -v --",
        ),
        (
            ("make x", "pytest -rA"),
            "parse_log_astropy",
            "parse_log_astropy",
            ". /opt/miniconda3/bin/activate testbed && make x && pytest -rA",
        ),
    ],
)
def test_version_5_rows_run_the_command_of_their_script(
    tmp_path, commands, parser, runner, command
):
    row = {
        **ROW,
        "image": "swebench/some.image:7",
        "eval_script": script(*commands),
        "log_parser": parser,
        "eval_type": "pass_and_fail",
    }
    task = one(tmp_path, "swebench", row)
    assert task.environment == Image(name="swebench/some.image:7")
    assert (task.log_parser, task.test_command) == (runner, command)


@pytest.mark.parametrize(
    ("commands", "parser", "command"),
    [
        (
            ("./tests/runtests.py --verbosity 2 test_mod",),
            "parse_log_django",
            f"LC_ALL=C.UTF-8 PYTHONIOENCODING=utf8 {CONDA} ./tests/runtests.py --verbosity 2",
        ),
        (
            ("make x", "pytest -rA"),
            "parse_log_astropy",
            ". /opt/miniconda3/bin/activate testbed && export LC_ALL=C.UTF-8 PYTHONIOENCODING=utf8 "
            "&& make x && pytest -rA",
        ),
    ],
)
def test_what_a_version_5_script_exports_holds_for_its_tests(tmp_path, commands, parser, command):
    exported = "export LC_ALL=C.UTF-8\nexport PATH=$PATH:/x\nexport PYTHONIOENCODING=utf8\n"
    own = script(*commands).replace("cd /testbed\n", f"cd /testbed\n{exported}")
    row = {**ROW, "eval_script": own, "log_parser": parser}
    assert one(tmp_path, "swebench", row).test_command == command


def test_rows_in_languages_without_a_runner_are_left_out_and_counted(tmp_path, caplog):
    jest = {
        **ROW,
        "instance_id": "own__js-1",
        "eval_script": script("npx jest"),
        "log_parser": "parse_log_jest",
    }
    (task,) = load(f"swebench:{rows(tmp_path, jest, ROW)}")
    assert task.instance_id == "own__pkg-1"
    assert "1 rows of" in caplog.text
    assert "parse_log_jest" in caplog.text
    with pytest.raises(TaskError, match=r"holds no task\. .*row 1: no runner .*parse_log_jest"):
        load(f"swebench:{rows(tmp_path, jest)}")


def test_a_real_rebench_row_has_its_own_recipe_and_image():
    spec = f"swerebench:{DATA / 'rebench.jsonl'}"
    (image,) = load(spec)
    assert image.environment == Image(
        name="swerebench/sweb.eval.x86_64.0b01001001_1776_spectree-64"
    )
    assert image.log_parser == "pytest"
    (task,) = load(f"{spec}?environment=recipe")
    assert isinstance(task.environment, Recipe)
    assert task.environment.python == "3.9"
    assert {"Flask==3.1.0", "pytest==8.3.5"} <= set(task.environment.requirements)
    assert "pip install -q -e '.[flask,falcon,starlette]'" in task.environment.install
    assert task.metadata["row"]["meta"]["llm_score"]["difficulty_score"] == 1


def test_swegym_rows_have_images_of_their_own(tmp_path):
    task = one(tmp_path, "swegym", {**ROW, "FAIL_TO_PASS": ["tests/test_mod.py::test_f"]})
    assert task.environment == Image(name="xingyaoww/sweb.eval.x86_64.own_s_pkg-1")
    assert task.patch == PATCH


def test_the_patch_of_a_swesmith_row_is_the_bug_and_its_reverse_the_answer(tmp_path):
    row = {
        "instance_id": "own__pkg.abc12345.func_basic__x1",
        "repo": "swesmith/own__pkg.abc12345",
        "image_name": "jyangballin/swesmith.x86_64.own_1776_pkg.abc12345",
        "patch": PATCH,
        "problem_statement": "f is wrong",
        "FAIL_TO_PASS": ["tests/test_mod.py::test_f"],
        "PASS_TO_PASS": [],
    }
    task = one(tmp_path, "swesmith", row)
    assert task.base_patch == PATCH
    assert task.base_commit == "abc12345"
    assert isinstance(task.environment, Image)
    assert task.environment.name == row["image_name"]
    tree = tmp_path / "tree"
    (tree / "pkg").mkdir(parents=True)
    (tree / "pkg" / "mod.py").write_text("def f():\n    return 1\n")
    apply_patch(tree, task.base_patch)
    assert "x = 2" in (tree / "pkg" / "mod.py").read_text()
    apply_patch(tree, task.patch)
    assert (tree / "pkg" / "mod.py").read_text() == "def f():\n    return 1\n"


def line(kind: str, content: str) -> dict[str, str]:
    return {"content": content, "type": kind}


def diff(path: str, *lines: dict[str, str]) -> dict[str, object]:
    return {
        "old_file_content": "",
        "new_file_content": "",
        "header": {"file": {"path": path}, "misc_line": None},
        "minus_file": {"path": f"a/{path}"},
        "plus_file": {"path": f"b/{path}"},
        "hunks": [
            {
                "descriptor": {
                    "old_range": {"start": 1, "length": 2},
                    "new_range": {"start": 1, "length": 2},
                    "section": "",
                },
                "line_group": {"all_lines": list(lines)},
            }
        ],
    }


def r2e_row() -> dict[str, object]:
    change = (
        line("context", "def f():"),
        line("deleted", "    return 1"),
        line("added", "    return 2"),
    )
    return {
        "repo_name": "sympy",
        "docker_image": "namanjain12/sympy_final:" + "c" * 40,
        "commit_hash": "c" * 40,
        "problem_statement": "Here it is:\n[ISSUE]\n**Title:** f is wrong\n[/ISSUE]",
        "expected_output_json": json.dumps(
            {"test_f": "PASSED", "TestG.test_g": "PASSED", "\x1b[1mtest_h\x1b[0m": "FAILED"}
        ),
        "parsed_commit_content": json.dumps(
            {
                "file_diffs": [diff("pkg/mod.py", *change), diff("pkg/tests/test_mod.py", *change)],
                "old_commit_hash": "c" * 40 + "^",
                "new_commit_hash": "c" * 40,
            }
        ),
        "execution_result_content": json.dumps(
            {
                "test_file_names": ["test_1.py"],
                "test_file_codes": ["def test_f():\n    pass\n"],
                "old_commit_res_stdout": "=== short test summary info ===\n"
                "PASSED r2e_tests/test_1.py::TestG::test_g\nFAILED r2e_tests/test_1.py::test_f",
            }
        ),
        "prompt": "write an issue for this commit",
        "modified_files": ["pkg/mod.py"],
        "num_non_test_lines": 2,
    }


def test_r2e_rows_are_commits_with_their_tests_in_the_row(tmp_path):
    task = one(tmp_path, "r2e", r2e_row())
    assert task.instance_id == "sympy__" + "c" * 40
    assert task.repo == "sympy/sympy"
    assert task.problem_statement == "**Title:** f is wrong"
    assert task.FAIL_TO_PASS == ("test_f",)
    assert task.PASS_TO_PASS == ("TestG.test_g",)
    assert task.environment == Image(name="namanjain12/sympy_final:" + "c" * 40)
    assert task.metadata["row"] == {"num_non_test_lines": 2, "commit_hash": "c" * 40}
    tree = tmp_path / "tree"
    (tree / "pkg").mkdir(parents=True)
    (tree / "pkg" / "mod.py").write_text("def f():\n    return 1\n")
    apply_patch(tree, task.patch)
    apply_patch(tree, task.test_patch)
    assert (tree / "pkg" / "mod.py").read_text() == "def f():\n    return 2\n"
    assert (tree / "r2e_tests" / "test_1.py").read_text() == "def test_f():\n    pass\n"


@pytest.mark.parametrize(
    ("family", "change", "said"),
    [
        ("swebench", {"repo": 7}, "row 2: field 'repo': expected text, got int"),
        ("swebench", {"patch": None, "FAIL_TO_PASS": "[1]"}, "row 2: field 'FAIL_TO_PASS': expect"),
        ("swebench", {"FAIL_TO_PASS": "{"}, "row 2: field 'FAIL_TO_PASS': it is not JSON"),
        ("swebench", {"FAIL_TO_PASS": []}, "row 2: field 'FAIL_TO_PASS': no test is named"),
        ("swebench", {"instance_id": "own__pkg-1"}, "row 2: 'own__pkg-1' is there twice"),
        ("swebench", {"eval_script": "pytest"}, "row 2: field 'eval_script': it has no command"),
        ("swerebench", {"install_config": []}, "row 2: field 'install_config': expected an obj"),
        ("swesmith", {"image_name": None}, "field 'image_name': it is missing"),
        ("r2e", {}, "row 1: field 'repo_name': it is missing"),
    ],
)
def test_a_bad_row_is_one_sentence_with_its_field(tmp_path, family, change, said):
    found = rows(tmp_path, ROW, {**ROW, "instance_id": "own__pkg-2", **change})
    with pytest.raises(TaskError) as caught:
        load(f"{family}:{found}")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_r2e_row_is_named_too(tmp_path):
    row = {**r2e_row(), "execution_result_content": "{}"}
    with pytest.raises(TaskError, match=r"field 'execution_result_content': it has no test files"):
        one(tmp_path, "r2e", row)
    row = {**r2e_row(), "parsed_commit_content": '{"file_diffs": [{"header": {}}]}'}
    with pytest.raises(TaskError, match=r"field 'parsed_commit_content': a file's diff has no"):
        one(tmp_path, "r2e", row)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("swebench:", "swebench needs a data set: swebench:verified, swebench:lite"),
        ("swebench:lite?environment=podman", "environment is auto, recipe or image"),
        ("swebench:lite?limt=3", "Did you mean 'limit'"),
        ("swebench:not-there.jsonl", "There is no task file"),
        ("swebench:notaname", "is no file of rows"),
    ],
)
def test_wrong_specs_are_one_sentence(spec, said):
    with pytest.raises(TaskError, match=said):
        load(spec)


def test_a_limit_stops_reading(tmp_path):
    bad = {**ROW, "instance_id": "own__pkg-2", "repo": 7}
    assert len(load(f"swebench:{rows(tmp_path, ROW, bad)}?limit=1")) == 1
