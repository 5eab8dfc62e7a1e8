"""Real fixes out of a real history become tasks that hold; what proves nothing is left out."""

from __future__ import annotations

import subprocess

import pytest

from swe_env.errors import TaskError
from swe_env.repos import base
from swe_env.repos.history import History, resolve
from swe_env.tasks import load
from swe_env.tasks.statement import of_fix
from swe_env.tasks.synth.needs import setuptools_needs
from swe_env.tasks.validate import validate

pytestmark = pytest.mark.filterwarnings("ignore:The process sandbox")

START = '''def clamp(value, low=0, high=10):
    """Value within bounds."""
    if value < low:
        return low
    return value


def area(width, height):
    return width * height
'''
FIXED = START.replace(
    "        return low\n", "        return low\n    if value > high:\n        return high\n"
)
TESTS = """from shapes import area, clamp


def test_low():
    assert clamp(-3) == 0


def test_area():
    assert area(2, 3) == 6
"""
MORE = TESTS + "\n\ndef test_high():\n    assert clamp(11) == 10\n"
MESSAGE = """Values above the upper bound come back unclamped (#12)

They should not:
    if value > high:
Reported in https://host/o/n/pull/12 and seen by many.

Signed-off-by: Somebody <some@body>
"""


def git(folder, *arguments):
    names = ("-c", "user.name=A", "-c", "user.email=a@b", "-c", "init.defaultBranch=main")
    done = subprocess.run(
        ["git", *names, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def commit(folder, message, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_py", ".py").replace("_md", ".md")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", message)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """Oldest first: a start, a fix with its test on a branch, a refactoring, a test, words."""
    folder = tmp_path_factory.mktemp("history") / "shapes"
    folder.mkdir()
    git(folder, "init", "-q")
    before = commit(folder, "Start", shapes_py=START, tests__test_shapes_py=TESTS)
    git(folder, "checkout", "-q", "-b", "fix")
    commit(folder, MESSAGE, shapes_py=FIXED, tests__test_shapes_py=MORE, CHANGES_md="clamped\n")
    git(folder, "checkout", "-q", "main")
    git(folder, "merge", "-q", "--no-ff", "-m", "Merge pull request #12 from a/fix", "fix")
    merge = git(folder, "rev-parse", "HEAD")
    plain = FIXED.replace("width * height", "height * width")
    commit(folder, "Turn a product around", shapes_py=plain)
    more = MORE + "\n\ndef test_square():\n    assert area(2, 2) == 4\n"
    noted = plain + "# the end\n"
    commit(folder, "Test a square", shapes_py=noted, tests__test_shapes_py=more)
    commit(folder, "Words", README_md="Shapes.\n")
    return folder, before, merge


@pytest.mark.network
@pytest.mark.usefixtures("cached")
def test_a_fix_becomes_a_task_that_holds(repository):
    folder, before, merge = repository
    (task,) = load(f"synth:{folder}?history=10")
    assert (task.base_commit, task.metadata["commit"]) == (before, merge)
    assert task.FAIL_TO_PASS == ("tests/test_shapes.py::test_high",)
    assert set(task.PASS_TO_PASS) == {
        "tests/test_shapes.py::test_low",
        "tests/test_shapes.py::test_area",
    }
    assert "CHANGES.md" not in task.patch + task.test_patch
    assert "shapes.py" in task.patch
    assert "test_shapes" not in task.patch
    # What the author wrote, and what the tests saw; nothing of the fix or where to find it.
    assert task.problem_statement.startswith("Values above the upper bound come back unclamped\n")
    assert "`clamp(11)` gives `11`, but the right result is `10`." in task.problem_statement
    for secret in ("if value > high", "pull/12", "Signed-off", "test_high", "#12"):
        assert secret not in task.problem_statement
    assert (base(task) / "shapes.py").read_text() == START
    assert merge[:8] not in task.instance_id
    report = validate([task], sandbox="process", repeats=2)
    assert report.proofs[0].problems == ()
    assert report.valid == 1


@pytest.mark.network
@pytest.mark.usefixtures("cached")
def test_a_walk_without_a_fix_says_why(repository):
    folder, _, _ = repository
    with pytest.raises(TaskError, match=r"give no task \(.*1 change no test"):
        load(f"synth:file://{folder}@main?history=3")


def test_commits_are_found_by_name_or_the_name_is_refused(repository, monkeypatch, tmp_path):
    folder, _, merge = repository
    monkeypatch.setenv("SWE_ENV_CACHE", str(tmp_path / "cache"))
    head = git(folder, "rev-parse", "main")
    assert resolve(str(folder), "main") == resolve(str(folder)) == head
    git(folder, "tag", "-f", "-a", "-m", "one", "v1", merge)
    assert resolve(str(folder), "v1") == merge
    with pytest.raises(TaskError, match="no branch or tag 'v2'"):
        resolve(str(folder), "v2")
    with pytest.raises(TaskError, match="cannot be used as a git repository"):
        resolve(str(tmp_path))
    mirrors = tmp_path / "mirrors"
    mirrors.mkdir()
    git(folder, "clone", "-q", "--mirror", str(folder), str(mirrors / "own__shapes.git"))
    monkeypatch.setenv("SWE_ENV_MIRRORS", str(mirrors))
    assert resolve("own/shapes") == head
    history = History("own/shapes", head)
    assert [one for one, _ in history.commits(9)][3] == merge
    assert len(history.commits(2)) == 2


def test_a_folder_or_sdist_without_history_is_refused(tmp_path):
    with pytest.raises(TaskError, match="has no history to mine"):
        load("synth:toolz==1.2.0?history=5")
    with pytest.raises(TaskError, match="has no history to mine"):
        load(f"synth:{tmp_path}?history=5")


def test_a_message_that_says_nothing_makes_no_statement():
    assert of_fix("fix tests\n\nCo-authored-by: A <a@b>", [], "") == ""
    told = of_fix("The parser forgets the last line.", [], "")
    assert told == "The parser forgets the last line.\n"
    missing = {"kind": "import", "message": "`ImportError: cannot import name 'lax' from 'm'`"}
    told = of_fix("Add lax()\n\nCloses #87.", [missing], "")
    assert told.split("\n\n") == ["Add lax()", f"This cannot be imported: {missing['message']}.\n"]


def test_what_tests_show_is_told_without_the_tests():
    frames = [["tests/helpers.py", 3, "check", "assert f()"], ["m.py", 9, "f", "return g(1, 2)"]]
    facts = {
        "kind": "raised",
        "call": "f()",
        "exception": "TypeError",
        "message": "test_it.<locals>.g() missing 1 argument",
        "frames": frames,
    }
    told = of_fix("Calls of g() lack it", [facts], "", ["tests/test_m.py::test_it"])
    assert "TypeError: g() missing 1 argument" in told
    assert "helpers" not in told
    assert "test_it" not in told
    assert of_fix("It is all wrong", [facts], "+    return g(1, 2)\n") == "It is all wrong\n"


def test_requirements_are_read_out_of_old_trees(tmp_path):
    (tmp_path / "setup.py").write_text(
        "import setuptools\nsetuptools.setup(name='old', install_requires=['six>=1', 'a # b'],\n"
        "    extras_require={'test': ['mock'], 'docs': ['sphinx']}, version=get_version())\n"
    )
    (tmp_path / "requirements-test.txt").write_text("-r other.txt\n\nfreezegun==1.0  # time\n")
    needs = setuptools_needs(tmp_path)
    assert (needs.name, needs.wanted) == ("old", ("six>=1", "a"))
    assert needs.extras == ("mock", "freezegun==1.0")
    (tmp_path / "setup.cfg").write_text(
        "[metadata]\nname = newer\n[options]\ninstall_requires =\n    attrs\n"
        "[options.extras_require]\ntesting =\n    pytest\n    mock\n"
    )
    needs = setuptools_needs(tmp_path)
    assert (needs.name, needs.wanted) == ("newer", ("attrs",))
    assert needs.extras == ("pytest", "mock", "freezegun==1.0")
