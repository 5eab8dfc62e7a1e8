from __future__ import annotations

import pytest

from learners.experiments.stages import Stages
from swe_env.errors import ConfigError


def test_a_stage_that_was_completed_is_not_run_again(tmp_path):
    ran = []

    def work():
        ran.append(1)
        return {"answer": 42}

    first = Stages(tmp_path, {"seed": 0}, total=1).run("a", "A", work)
    again = Stages(tmp_path, {"seed": 0}, total=1)
    assert again.run("a", "A", work) == first == {"answer": 42}
    assert ran == [1]
    assert again.records["a"]["seconds"] >= 0


def test_a_stage_that_failed_is_run_again(tmp_path):
    with pytest.raises(ZeroDivisionError):
        Stages(tmp_path, {}, total=1).run("a", "A", lambda: {"x": 1 // 0})
    assert Stages(tmp_path, {}, total=1).run("a", "A", lambda: {"x": 1}) == {"x": 1}


def test_other_settings_are_refused_by_name(tmp_path):
    Stages(tmp_path, {"seed": 0, "sizes": (1, 2)}, total=1)
    Stages(tmp_path, {"seed": 0, "sizes": (1, 2)}, total=1)
    with pytest.raises(ConfigError, match="seed"):
        Stages(tmp_path, {"seed": 1, "sizes": (1, 2)}, total=1)
