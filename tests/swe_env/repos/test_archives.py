"""Source distributions are unpacked, and what would lie outside is refused, by old Pythons too."""

from __future__ import annotations

import io
import tarfile

import pytest

from swe_env.errors import TaskError
from swe_env.repos import archives


def sdist(path, *members):
    """An archive with a file of each name, or a link where a target is given."""
    with tarfile.open(path, "w:gz") as tar:
        for name, target in members:
            member = tarfile.TarInfo(name)
            if target:
                member.type, member.linkname = tarfile.SYMTYPE, target
            else:
                member.size = 2
            tar.addfile(member, io.BytesIO(b"x\n"))
    return path


@pytest.fixture(params=["filter", "no filter"])
def python(request, monkeypatch):
    """As this Python is, and as one from before 3.11.4, like Debian 12's."""
    if request.param == "no filter":
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
        whole = tarfile.TarFile.extractall
        monkeypatch.setattr(tarfile.TarFile, "extractall", lambda self, path: whole(self, path))


@pytest.mark.usefixtures("python")
def test_the_top_folder_is_left_out(tmp_path):
    archive = sdist(tmp_path / "a-1.tar.gz", ("a-1/a.py", ""), ("a-1/t/b.py", ""))
    target = tmp_path / "target"
    target.mkdir()
    archives.unpack(archive, target)
    assert sorted(str(p.relative_to(target)) for p in target.rglob("*.py")) == ["a.py", "t/b.py"]


@pytest.mark.usefixtures("python")
@pytest.mark.parametrize("member", [("a-1/../../out.py", ""), ("a-1/link", "/etc/passwd")])
def test_what_would_lie_outside_is_refused(tmp_path, member):
    archive = sdist(tmp_path / "a-1.tar.gz", ("a-1/a.py", ""), member)
    target = tmp_path / "in" / "target"
    target.mkdir(parents=True)
    with pytest.raises(TaskError, match="cannot be unpacked"):
        archives.unpack(archive, target)
    assert not list(tmp_path.rglob("out.py"))
    assert not list(target.iterdir())
