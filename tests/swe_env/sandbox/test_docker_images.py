"""Tasks whose environment is an image: SWE-bench's and R2E-Gym's layouts, on a real engine."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import image_root
import pytest

import swe_env  # noqa: F401 - registers the environment
from swe_env.errors import SandboxError
from swe_env.grading import grade
from swe_env.repos import sandbox_spec
from swe_env.sandbox import Limits, SandboxSpec, check_sandbox
from swe_env.sandbox.conformance import isolation, promises
from swe_env.sandbox.conformance.bench import git
from swe_env.sandbox.docker import owner
from swe_env.sandbox.docker.container import Container, Setup
from swe_env.sandbox.docker.engine import connect
from swe_env.types import Image

pytestmark = pytest.mark.xdist_group("mounts")
SECRET = "the answer of the future"


R2E = """
set -e; cd /testbed; mv /opt/miniconda3/envs/testbed .venv; rm -r /opt/miniconda3
mkdir /r2e_tests r2e_tests; echo "$1" | tee /r2e_tests/test_1.py > r2e_tests/test_1.py
echo 'pytest r2e_tests' > run_tests.sh; echo .venv/ >> .gitignore
"""


def _commit(folder: Path, message: str) -> None:
    git(folder, "add", "-A")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", message)


def _repository(folder: Path, shop: Path) -> None:
    """The shop at its base commit, with the future, and more, in its repository."""
    shutil.copytree(shop, folder, dirs_exist_ok=True)
    (folder / ".gitignore").write_text("*.log\n__pycache__/\n")
    git(folder, "init", "-q", "-b", "master")
    git(folder, "config", "core.hooksPath", "/testbed/.hooks")
    _commit(folder, "base")
    (folder / "answer").write_text(SECRET)
    _commit(folder, f"fix: {SECRET}")
    git(folder, "tag", "v2")
    git(folder, "update-ref", "refs/remotes/origin/main", "HEAD")
    git(folder, "reset", "-q", "--hard", "HEAD~1")
    git(folder, "remote", "add", "origin", "https://example.org/shop")
    # Left as image builders leave them: a change, an untracked file, ignored ones, a nested clone.
    (folder / "setup.cfg").write_text("[metadata]\nname = shop\n")
    (folder / "build.log").write_text("ignored")
    (folder / "vendored").mkdir()
    (folder / "vendored" / "module.py").write_text("x = 1\n")
    git(folder / "vendored", "init", "-q")
    _commit(folder / "vendored", SECRET)
    git(folder, "add", "vendored")


@pytest.fixture(scope="session")
def images(engine_host, shop_folder, tmp_path_factory):
    """Names of images laid out like SWE-bench's and like R2E-Gym's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", engine_host)
        patch.setenv("SWE_ENV_CACHE", str(tmp_path_factory.mktemp("cache")))
        api = connect().api
        root = tmp_path_factory.mktemp("root")
        image_root.system(root)
        # What a checkout is put into, for the promises.
        api.import_image_from_data(image_root.packed(root), "test/plain", "1")
        _repository(root / "testbed", shop_folder)
        image_root.python(root, "opt/miniconda3/envs/testbed")
        (root / "opt/miniconda3/bin").mkdir()
        (root / "opt/miniconda3/bin/activate").write_text(image_root.ACTIVATE)
        api.import_image_from_data(
            image_root.packed(root), "test/swebench", "1", changes=["ENV BASH_ENV=/nonexistent"]
        )
        shutil.rmtree(root)
        with Container(connect(), Setup(image="test/swebench:1", env={}, limits=Limits())) as box:
            assert box.run(["bash", "-c", R2E, "sh", SECRET], timeout=60) == (0, "")
            api.commit(box.id, "test/r2e", "1", conf={"Labels": {owner.OWNER: ""}})
        yield {"swebench": "test/swebench:1", "r2e": "test/r2e:1", "plain": "test/plain:1"}
        for row in api.images(filters={"label": "swe-env.role"}):
            for tag in row["RepoTags"] or []:
                owner.remove_image(connect(), tag)


@pytest.fixture
def image_task(images, shop_task, docker, monkeypatch, tmp_path_factory):
    """The shop as a task on the SWE-bench image."""
    monkeypatch.setenv("SWE_ENV_CACHE", str(tmp_path_factory.getbasetemp() / "image-cache"))
    return replace(shop_task, source=None, environment=Image(name=images["swebench"]))


def test_grading_an_image_task(image_task):
    gold = grade(image_task, image_task.patch, sandbox="docker")
    assert gold.resolved, gold
    empty = grade(image_task, "", sandbox="docker")
    assert not empty.resolved
    assert empty.fail_to_pass == {"tests/test_shop.py::test_discount": "failed"}
    assert set(empty.pass_to_pass.values()) == {"passed"}
    assert grade(image_task, image_task.patch, sandbox="auto").resolved


def test_an_episode_on_an_image(image_task):
    env = gym.make("SWE-v0", tasks=[image_task], sandbox="docker", max_episode_steps=9)
    env.reset(seed=0)
    where = {
        "command": "pwd; command -v python; echo $CONDA_DEFAULT_ENV; git log --oneline | wc -l"
    }
    observation = env.step({"tool": "bash", "arguments": where})[0]
    python = "/opt/miniconda3/envs/testbed/bin/python"
    assert observation["text"].split()[:4] == ["/testbed", python, "testbed", "1"]
    assert "3 passed" not in env.step({"tool": "run_tests", "arguments": {}})[0]["text"]
    change = {"path": "shop.py", "old_str": "100 + discount", "new_str": "100 - discount"}
    env.step({"tool": "edit", "arguments": change})
    twin = env.unwrapped.fork()
    for each in (env, twin):
        _, reward, terminated, _, info = each.step({"tool": "submit", "arguments": {}})
        assert (reward, terminated) == (1.0, True), info
        assert info["patch"].count("diff --git") == 1
        each.close()


def test_nothing_of_the_future_is_in_the_repository(images, image_task, docker):
    for name, image in (("swebench", images["swebench"]), ("r2e", images["r2e"])):
        spec = sandbox_spec(replace(image_task, environment=Image(name=image)))
        with docker(spec) as box:
            assert box.exec("git status --porcelain").output == "", name
            assert box.exec("git for-each-ref").output.count("\n") == 1
            assert box.exec("git rev-list --all | wc -l; git remote; git reflog").output == "1\n"
            objects = "git cat-file --batch-all-objects --batch-check | cut -d' ' -f1"
            for sha in box.exec(objects).output.split():
                assert SECRET not in box.exec(f"git cat-file -p {sha}").output
            found = box.exec(f"grep -rls '{SECRET}' /testbed /root /tmp /r2e_tests")
            assert found.output == ""
            assert box.exec("cat vendored/module.py build.log").output == "x = 1\nignored"
            assert box.exec("python -c 'import pytest'").exit_code == 0
            assert box.diff() == ""


def test_preparing_is_done_once_and_again_when_the_image_is_gone(images, image_task, docker):
    spec = sandbox_spec(image_task)
    docker(spec).close()
    api = connect().api
    kept = {row["Id"] for row in api.images(filters={"label": "swe-env.role=prepared"})}
    docker(spec).close()
    assert {row["Id"] for row in api.images(filters={"label": "swe-env.role=prepared"})} == kept
    owner.reap(connect())
    assert {row["Id"] for row in api.images(filters={"label": "swe-env.role=prepared"})} == kept
    for row in api.images(filters={"label": "swe-env.role=prepared"}):
        for tag in row["RepoTags"]:
            owner.remove_image(connect(), tag)
    with docker(spec) as box:
        assert box.exec("ls shop.py").output == "shop.py\n"


def test_an_agent_that_destroys_its_system_is_still_graded(image_task, docker):
    with docker(sandbox_spec(image_task)) as box:
        box.exec("sed -i 's/100 + discount/100 - discount/' shop.py; rm -rf /usr /bin /lib*; exit")
        result = box.exec("echo on")
        assert result.exit_code == 126
        assert "No shell can be started" in result.output
        assert grade(image_task, box.diff(), sandbox=docker).resolved


def test_an_image_that_does_not_fit_is_one_sentence(images, docker, base):
    for settings, words in (
        ({"image": images["plain"]}, "it has no folder /testbed"),
        ({"image": images["swebench"], "workdir": "/opt/none"}, "it has no folder /opt/none"),
    ):
        with pytest.raises(SandboxError, match=words):
            docker(SandboxSpec(base=base, **settings))


class _OnImage:
    """Puts each checkout into the plain image, and starts that."""

    def __init__(self, docker, image: str) -> None:
        self.docker, self.image = docker, image

    def available(self) -> str:
        return ""

    def __call__(self, spec: SandboxSpec):
        packed = subprocess.run(
            [
                "tar",
                "-C",
                str(spec.base),
                "--owner=0",
                "--group=0",
                "--transform=flags=r;s,^.,testbed,",
                "-c",
                ".",
            ],
            capture_output=True,
            check=True,
        )
        api = connect().api
        made = api.create_container(self.image, ["bash"])["Id"]
        try:
            api.put_archive(made, "/", packed.stdout)
            name = f"test/checkout:{made[:12]}"
            api.commit(made, *name.split(":"), conf={"Labels": {"swe-env.role": "test"}})
        finally:
            api.remove_container(made)
        return self.docker(replace(spec, image=name))


def test_promises_on_an_image_with_a_system_of_its_own(images, docker, monkeypatch):
    """All were run by hand; these are the ones that an own system makes different."""
    monkeypatch.setattr(promises, "ALL", {})
    names = ("host files are hidden", "the system is read only")
    monkeypatch.setattr(isolation, "ALL", {name: isolation.ALL[name] for name in names})
    assert len(check_sandbox(_OnImage(docker, images["plain"]), own_system=True)) == 2
