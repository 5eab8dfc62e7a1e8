"""A repository's history: commits by name, what each changed, their files."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from swe_env.cache import cache_dir, digest
from swe_env.errors import TaskError
from swe_env.repos.checkout import origins
from swe_env.repos.git import git, must, said

_HEX = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Change:
    """One file that a commit changed."""

    path: str
    lines: int
    """Added and removed; -1 for a binary file."""


def is_repository(folder: Path) -> bool:
    """Whether a folder is a git repository, with a work tree or bare."""
    bare = (folder / "HEAD").is_file() and (folder / "objects").is_dir()
    return bare or (folder / ".git").exists()


def resolve(location: str, revision: str = "") -> str:
    """The full name of a commit of a repository that need not be here.

    Args:
        location: git URL, ``owner/name`` (a mirror in ``SWE_ENV_MIRRORS`` first) or folder.
        revision: branch, tag or full commit name; its HEAD when empty.

    Raises:
        TaskError: the repository cannot be reached, or has no such revision.
    """
    if _HEX.fullmatch(revision):
        return revision
    problem = ""
    for origin in origins(location):
        done = git(Path.cwd(), "ls-remote", origin)
        if done.returncode:
            problem = _why(done)
            continue
        listed = [line.partition("\t") for line in done.stdout.decode().splitlines()]
        names = {name: commit for commit, _, name in listed}
        wanted = [f"refs/tags/{revision}^{{}}", f"refs/tags/{revision}", f"refs/heads/{revision}"]
        for name in wanted if revision else ["HEAD"]:
            if name in names:
                return names[name]
        problem = f"it has no branch or tag {revision!r}" if revision else "it has no commit"
    raise TaskError(
        f"{location} cannot be used as a git repository ({problem}): check the name and the "
        "network, or point SWE_ENV_MIRRORS at a folder with a bare mirror named owner__name.git."
    )


def _why(done: subprocess.CompletedProcess[bytes]) -> str:
    """What git said was fatal; its last line may be advice."""
    lines = done.stderr.decode("utf-8", "replace").splitlines()
    fatal = [line.removeprefix("fatal: ") for line in lines if line.startswith("fatal: ")]
    return fatal[0].rstrip(".") if fatal else said(done)


class History:
    """A bare copy of everything up to one commit, kept in the cache."""

    def __init__(self, location: str, commit: str) -> None:
        """Fetch what is not here yet.

        Raises:
            TaskError: it cannot be fetched.
        """
        self.location = location
        self.commit = commit
        name = location.rstrip("/").removesuffix(".git").rpartition("/")[2]
        self.store = cache_dir("history", f"{name[-40:]}-{digest(location)}")
        with FileLock(f"{self.store}.lock"):
            if not (self.store / "HEAD").is_file():
                must(self.store, "init", "-q", "--bare", "--template=")
            if not self._has(commit):
                self._fetch()

    def _has(self, commit: str) -> bool:
        # The mark is set once everything behind the commit is here.
        done = git(self.store, "rev-parse", "-q", "--verify", f"refs/whole/{commit}")
        return done.returncode == 0

    def _fetch(self) -> None:
        problem = ""
        for origin in origins(self.location):
            done = git(self.store, "fetch", "-q", "--no-tags", origin, self.commit)
            if done.returncode:
                # A server that hands out no bare commit names still hands out its branches.
                done = git(self.store, "fetch", "-q", origin, "+refs/*:refs/all/*")
            there = git(self.store, "cat-file", "-e", f"{self.commit}^{{commit}}")
            if there.returncode == 0:
                must(self.store, "update-ref", f"refs/whole/{self.commit}", self.commit)
                return
            problem = _why(done) if done.returncode else "it has no such commit"
        raise TaskError(
            f"The history of {self.location} up to {self.commit[:12]} could not be fetched "
            f"({problem}): check the network, or SWE_ENV_MIRRORS."
        )

    def commits(self, most: int) -> list[tuple[str, str]]:
        """(commit, parent) from the newest on, along first parents; a merge counts as one step."""
        listed = must(
            self.store, "rev-list", "--first-parent", "--parents", f"-n{most}", self.commit
        )
        lines = [line.split() for line in listed.splitlines()]
        return [(names[0], names[1]) for names in lines if len(names) > 1]

    def message(self, commit: str) -> str:
        """What the author wrote; of a merge, what the merged commits say when it says nothing."""
        text = must(self.store, "log", "-1", "--format=%B", commit)
        if not text.startswith("Merge "):
            return text
        body = text.partition("\n")[2].strip()
        merged = must(self.store, "log", "--no-merges", "--format=%B", f"{commit}^1..{commit}")
        return body or merged

    def changes(self, parent: str, commit: str) -> list[Change]:
        """The files that differ, renames as a file gone and one come."""
        listed = must(self.store, "diff-tree", "-r", "-z", "--numstat", "--no-renames",
                      parent, commit)  # fmt: skip
        rows = [row.split("\t", 2) for row in listed.split("\0") if row]
        return [
            Change(path, -1 if "-" in (added, gone) else int(added) + int(gone))
            for added, gone, path in rows
        ]

    def diff(self, parent: str, commit: str, paths: list[str]) -> str:
        """The unified diff of some files; empty for none."""
        if not paths:
            return ""
        literal = [f":(literal){path}" for path in paths]
        return must(self.store, "diff", "--no-renames", "--no-color", "--no-ext-diff",
                    "--no-textconv", "--binary", "--full-index", parent, commit,
                    "--", *literal)  # fmt: skip

    def checkout(self, commit: str, folder: Path) -> None:
        """Write the files of a commit into an empty folder."""
        # One index: what it says of another folder must not keep a file from being written.
        with FileLock(f"{self.store}.lock"):
            must(self.store, "read-tree", "--empty")
            must(self.store, f"--work-tree={folder}", "checkout", "-q", commit, "--", ".")

    def file(self, commit: str, path: str) -> bytes | None:
        """A file as it was at a commit, or None when it was not there."""
        done = git(self.store, "cat-file", "blob", f"{commit}:{path}")
        return done.stdout if done.returncode == 0 else None
