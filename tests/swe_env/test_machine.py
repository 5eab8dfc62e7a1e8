import subprocess
from importlib import metadata
from pathlib import Path

import msgspec
import pytest

from swe_env.machine import commit, machine, processor


def test_it_says_where_and_from_what_a_figure_was_made():
    found = machine("msgspec")
    assert found["versions"] == {"msgspec": metadata.version("msgspec")}
    assert found["processor"] == processor() != ""
    assert found["cores"] >= 1
    assert found["memory_gb"] > 0
    assert msgspec.json.decode(msgspec.json.encode(found)) == found
    with pytest.raises(metadata.PackageNotFoundError):
        machine("no-such-distribution")


def test_the_commit_is_that_of_the_checkout():
    here = Path(__file__).parent
    if not any((folder / ".git").exists() for folder in here.parents):
        pytest.skip("these tests do not run from a checkout")
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    head = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert head.startswith(commit().removesuffix("-dirty"))
    assert len(commit()) >= 12
