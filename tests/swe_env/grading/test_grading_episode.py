"""What an agent may try in its episode is contained, and would work without isolation."""

from __future__ import annotations

import warnings

import pytest

from swe_env.errors import ConfigError
from swe_env.grading.attacks.episode import EPISODE, try_in_episode
from swe_env.sandbox import get


@pytest.mark.parametrize("name", EPISODE)
@pytest.mark.skipif(bool(get("local").available()), reason="no namespaces here")
def test_the_attempt_is_contained(name):
    assert try_in_episode(name, "local") == ""


def test_it_would_work_without_isolation():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert try_in_episode("network", "process") == "the secret was read"


def test_what_would_harm_this_machine_is_not_tried_without_isolation():
    for kind in ("process", "auto"):
        with pytest.raises(ConfigError, match="would harm this machine"):
            try_in_episode("mounts, namespaces, ptrace", kind)
