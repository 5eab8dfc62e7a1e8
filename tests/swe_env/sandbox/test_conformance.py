from __future__ import annotations

import warnings

import pytest

from swe_env.sandbox import SandboxSpec, check_sandbox, get
from swe_env.sandbox.conformance import isolation, promises
from swe_env.sandbox.process import ProcessFactory, ProcessSandbox

# Some checks count this machine's mounts: not beside tests of a container engine, which makes some.
pytestmark = pytest.mark.xdist_group("mounts")


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def test_each_kind_passes(kind):
    passed = check_sandbox(get(kind), isolated=kind == "local")
    assert len(passed) == len(promises.ALL) + (len(isolation.ALL) if kind == "local" else 0)


class _Forgetful(ProcessSandbox):
    """Breaks one promise: it reports success whatever a command's exit code."""

    def exec(self, command, **options):
        import dataclasses

        return dataclasses.replace(super().exec(command, **options), exit_code=0)


class _ForgetfulFactory(ProcessFactory):
    def __call__(self, spec: SandboxSpec):
        import os

        folder = os.open(spec.base, os.O_RDONLY)
        try:
            return _Forgetful(spec, folder)
        finally:
            os.close(folder)


def test_a_broken_sandbox_is_found(monkeypatch):
    keep = {"shell runs commands": promises.shell_runs_commands}
    monkeypatch.setattr(promises, "ALL", keep)
    with pytest.raises(AssertionError, match=r"shell runs commands.*exit with 7"):
        check_sandbox(_ForgetfulFactory(), isolated=False)


def test_a_sandbox_without_isolation_is_found(monkeypatch):
    monkeypatch.setattr(promises, "ALL", {})
    keep = {"network": isolation.there_is_no_network, "rights": isolation.nothing_outlives_close}
    monkeypatch.setattr(isolation, "ALL", keep)
    with pytest.raises(AssertionError, match=r"1 of 2 promises.*\n- network: services"):
        check_sandbox(get("process"))
