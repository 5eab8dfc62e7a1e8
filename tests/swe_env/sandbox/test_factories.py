from __future__ import annotations

import re
import shutil
import subprocess
import sys
import warnings

import pytest

from swe_env.errors import ConfigError, SandboxError
from swe_env.sandbox import SandboxSpec, auto, get, local, process, sandboxes
from swe_env.sandbox.process import NoIsolationWarning


def test_process_warns_once(base, monkeypatch):
    monkeypatch.setattr(process, "_warned", False)
    with pytest.warns(NoIsolationWarning, match="does NOT isolate"):
        get("process")(SandboxSpec(base=base)).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get("process")(SandboxSpec(base=base)).close()


def test_without_bubblewrap_one_sentence_says_what_to_do(base, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt-get install bubblewrap" in get("local").available()
    with pytest.raises(SandboxError, match="apt-get install bubblewrap"):
        get("local")(SandboxSpec(base=base))


def test_auto_falls_back_with_a_warning(base, monkeypatch, caplog):
    monkeypatch.setattr(process, "_warned", False)
    monkeypatch.setattr(local.LocalFactory, "available", lambda self: "No namespaces here.")
    with pytest.warns(NoIsolationWarning):
        box = get("auto")(SandboxSpec(base=base))
    get("auto")(SandboxSpec(base=base)).close()
    box.close()
    assert box.kind == "process"
    assert caplog.text.count("No namespaces here.") == 1
    assert auto.AutoFactory().available() == ""


def test_a_bubblewrap_that_fails_is_told(base, monkeypatch, tmp_path):
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'no permissions' >&2; exit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert "no permissions" in get("local").available()


@pytest.mark.skipif(bool(local.LocalFactory().available()), reason="no namespaces here")
def test_a_failure_that_passed_is_forgotten(monkeypatch, tmp_path):
    program, real = tmp_path / "bwrap", shutil.which("bwrap")
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert get("local").available()
    program.write_text(f'#!/bin/sh\nexec {real} "$@"\n')
    assert get("local").available() == ""


def test_unknown_names_and_images(base):
    with pytest.raises(ConfigError, match="Did you mean 'local'"):
        get("lcoal")
    for kind in ("process", "local"):
        with pytest.raises(SandboxError, match="cannot run the container image"):
            get(kind)(SandboxSpec(base=base, image="some/image"))


def test_auto_runs_images_with_an_engine_and_says_when_there_is_none(base, monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(SandboxError, match=r"some/image needs a container engine\. No container"):
        get("auto")(SandboxSpec(base=base, image="some/image"))


def test_only_sandboxes_that_exist_are_recommended(base, monkeypatch):
    said = []
    for kind in ("process", "local"):
        with pytest.raises(SandboxError) as refused:
            get(kind)(SandboxSpec(base=base, image="some/image"))
        said.append(str(refused.value))
    monkeypatch.setattr(sys, "platform", "darwin")
    said.append(get("local").available())
    named = {name for text in said for name in re.findall(r'sandbox="(\w+)"', text)}
    assert named == {"process", "docker"}
    assert named < set(sandboxes)


def test_binds_are_read_only_with_parents_made(start, tmp_path):
    extra = tmp_path / "extra"
    extra.mkdir()
    (extra / "tool").write_text("#!/bin/sh\necho bound $WHERE\n")
    (extra / "tool").chmod(0o755)
    settings = {
        "binds": {"/opt/deep/env": extra},
        "env": {"PATH": "{/opt/deep/env}:/usr/bin:/bin", "WHERE": "{workdir}"},
    }
    for kind in ("local", "process"):
        box = start(kind, **settings)
        assert box.exec("tool").output == f"bound {box.workdir}\n"
        assert box.exec(["/opt/deep/env/tool"]).output == f"bound {box.workdir}\n"
    assert start("local", **settings).exec("touch /opt/deep/env/x").exit_code != 0


def test_hidden_folders_are_empty(start):
    listed = start("local", hidden=("/usr/share",)).exec(
        "ls /usr/share | wc -l; touch /usr/share/x"
    )
    assert listed.output.splitlines()[0] == "0"
    assert listed.exit_code != 0
    assert start("local").exec("ls /usr/share | wc -l").output.strip() != "0"


def test_importing_the_package_is_quick_and_loads_no_implementation():
    code = (
        "import sys, swe_env.sandbox as s; "
        "print([m for m in sys.modules if m.startswith('swe_env.sandbox.')])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "['swe_env.sandbox.base']"
