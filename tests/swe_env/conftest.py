"""The tiny task as a source."""

from __future__ import annotations

import pytest

from swe_env.tasks import dump


@pytest.fixture(scope="session")
def source(shop_task, tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks") / "shop.jsonl"
    dump([shop_task], path)
    return f"jsonl:{path}"
