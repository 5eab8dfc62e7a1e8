"""What `swe` says where a command does not end by itself."""

import sys

import pytest

from swe_env import cli


def register(app):
    """Mounted as a module of commands."""

    @app.command()
    def plain():
        raise KeyboardInterrupt

    @app.command()
    def own():
        raise KeyboardInterrupt("call the office")


@pytest.fixture
def swe(monkeypatch, capsys):
    """``swe(name)``: exit code and stderr of a command of this module."""
    monkeypatch.setattr(cli, "COMMANDS", (__name__,))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")

    def run(name):
        monkeypatch.setattr(sys, "argv", ["swe", name])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, capsys.readouterr().err

    return run


def test_an_interrupted_command_says_how_to_go_on(swe):
    assert swe("plain") == (130, "swe: interrupted; run the same command again to continue.\n")
    assert swe("own") == (130, "swe: interrupted; call the office.\n")


def test_an_interruption_before_any_command(swe, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_check_agents", interrupt)
    assert swe("plain")[0] == 130
