"""Tasks from a repository's history: commits whose tests fail before them and pass after."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from swe_env.cache import digest
from swe_env.errors import TaskError
from swe_env.repos.history import Change, History
from swe_env.tasks.statement import of_fix
from swe_env.tasks.synth.baseline import UNSTABLE
from swe_env.tasks.synth.collect import in_order
from swe_env.tasks.synth.package import Package, described, is_test
from swe_env.tasks.synth.prober import Answer, Prober
from swe_env.tasks.synth.settings import Progress, Settings
from swe_env.tasks.synth.trial import FACTS
from swe_env.types import Source, Task

FILES, LINES = 10, 400
"""A fix that changes more files, or more of their lines, is no single issue."""
TIMEOUT = 120.0
"""Seconds of processor time for one run of a commit's tests."""
_DOCS = {"doc", "docs", ".github", ".circleci", "changelog.d", "newsfragments", "changes", "news"}
_DOC_SUFFIXES = {".md", ".rst", ".txt", ".lock"}
_DOC_NAMES = re.compile(r"(change|history|news|readme|authors|contributors|license)", re.IGNORECASE)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Fix:
    """A commit that may be a task: what it changed, sorted."""

    commit: str
    parent: str
    source: list[str]
    tests: list[str]

    @property
    def targets(self) -> list[str]:
        """Test files that pytest is to run."""
        return [path for path in self.tests if re.match(r"(test_.*|.*_tests?|tests?)\.py$",
                                                         PurePosixPath(path).name)]  # fmt: skip


def mine(
    source: Source,
    revision: str,
    settings: Settings,
    *,
    workers: int = 0,
    progress: Progress | None = None,
) -> list[Task]:
    """Walk from `revision` back and keep the fixes that their own tests prove.

    The hidden tests of a task are what its commit did to test files, the gold patch what it did to
    the rest, documentation left out; the starting state is the commit before.

    Args:
        source: the git repository.
        revision: full name of the newest commit to look at.
        settings: `history` commits are looked through at most, for `limit` tasks.
        workers: commits tried at once; 0 for one per core, at most 8.
        progress: called as tasks are found.

    Raises:
        TaskError: the history cannot be had, or holds no such commit.
    """
    history = History(source.location, revision)
    fixes, reasons = _fixes(history, settings.history)
    count = workers or min(8, os.cpu_count() or 1)
    tasks: list[Task] = []
    seen: set[str] = set()
    with ThreadPoolExecutor(count) as pool:

        def run(fix: _Fix) -> Task | str:
            return _try(history, source, fix, settings)

        tried = in_order(pool, iter(fixes), run, ahead=2 * count)
        for _, future in tried:
            result = future.result()
            # A fix that came twice (reverted and made again, or picked from another branch).
            if isinstance(result, Task) and result.patch in seen:
                result = "seen"
            if isinstance(result, str):
                reasons[result] += 1
                continue
            seen.add(result.patch)
            tasks.append(result)
            if progress:
                progress(result.repo, len(tasks), settings.limit)
            if len(tasks) == settings.limit:
                break
        tried.close()
    _log.info("%s: %d kept, %s", source.location, len(tasks), dict(reasons))
    if not tasks:
        why = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        raise TaskError(
            f"The last {settings.history} commits of {source.location} give no task ({why}): "
            "look further back with `history=`."
        )
    return tasks


def _fixes(history: History, most: int) -> tuple[list[_Fix], Counter[str]]:
    """Commits that change both tests and source, and not too much; why the others are left out."""
    found: list[_Fix] = []
    reasons: Counter[str] = Counter()
    for commit, parent in history.commits(most):
        changes = history.changes(parent, commit)
        source = [change for change in changes if _is_source(change)]
        fix = _Fix(
            commit,
            parent,
            sorted(change.path for change in source),
            sorted(change.path for change in changes if is_test(change.path)),
        )
        if not any(path.endswith(".py") for path in fix.source):
            reasons["change no source"] += 1
        elif not fix.targets:
            reasons["change no test"] += 1
        elif len(source) > FILES or sum(change.lines for change in source) > LINES:
            reasons["are too large"] += 1
        elif any(change.lines < 0 for change in source):
            reasons["change binary files"] += 1
        else:
            found.append(fix)
    return found, reasons


def _is_source(change: Change) -> bool:
    path = PurePosixPath(change.path)
    doc = set(path.parts[:-1]) & _DOCS or path.suffix in _DOC_SUFFIXES
    return not (is_test(change.path) or doc or _DOC_NAMES.match(path.name))


def _try(history: History, source: Source, fix: _Fix, settings: Settings) -> Task | str:
    """Run the fix's tests with and without it."""
    try:
        patch = history.diff(fix.parent, fix.commit, fix.source)
        test_patch = history.diff(fix.parent, fix.commit, fix.tests)
        if "\ufffd" in patch + test_patch:
            return "are not UTF-8"
        with tempfile.TemporaryDirectory(prefix="swe-env-history-") as temporary:
            tree = Path(temporary, "tree")
            tree.mkdir()
            history.checkout(fix.commit, tree)
            package = described(source, tree, fix.commit, revision=fix.parent)
            targets = [path for path in fix.targets if (tree / path).is_file()]
            if not targets:
                return "change no test"
            roots, options = package.recipe.pythonpath, settings.pytest_options
            with Prober(tree, package.environment, roots=roots, options=options) as prober:
                after = prober.run(targets, timeout=TIMEOUT)
                _undo(prober.root, history, fix)
                before = prober.run(targets, timeout=TIMEOUT, details=FACTS)
    except TaskError as error:
        _log.info("%s: %s", fix.commit[:12], error)
        return "cannot be built"
    return _task(history, fix, package, settings, (patch, test_patch), (before, after))


def _undo(root: Path, history: History, fix: _Fix) -> None:
    """Give a copy of the fixed tree the files that the fix changed as they were before."""
    for path in fix.source:
        old = history.file(fix.parent, path)
        if old is None:
            (root / path).unlink(missing_ok=True)
        else:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(old)


def _task(
    history: History,
    fix: _Fix,
    package: Package,
    settings: Settings,
    patches: tuple[str, str],
    answers: tuple[Answer, Answer],
) -> Task | str:
    before, after = answers
    if after.died or before.died:
        return "hang or crash"
    good = {test for test in after.passed() if not UNSTABLE.search(test)}
    mended, kept = sorted(good - before.passed()), sorted(good & before.passed())
    if not good:
        return "have tests that do not pass here"
    if not mended:
        return "break no test before"
    patch, test_patch = patches
    shown: list[Mapping[str, Any]] = [before.failures[t] for t in mended if t in before.failures]
    shown += [{"kind": "import", "message": said} for said in _import_errors(before)]
    statement = of_fix(history.message(fix.commit), shown, patch, mended)
    if not statement:
        return "cannot be told"
    location = package.source.location.rstrip("/").removesuffix(".git")
    owner = "/".join(re.split(r"[/:]", location)[-2:])
    return Task(
        instance_id=f"{owner.replace('/', '__').strip('_')}-{digest([patch, test_patch])[:8]}",
        repo=owner.strip("/"),
        version=package.version,
        base_commit=fix.parent,
        source=package.source,
        problem_statement=statement,
        patch=patch,
        test_patch=test_patch,
        FAIL_TO_PASS=tuple(mended),
        PASS_TO_PASS=tuple(kept),
        environment=package.recipe,
        test_command=settings.test_command,
        metadata={
            "generator": "history",
            "seed": settings.seed,
            "commit": fix.commit,
            "path": next(path for path in fix.source if path.endswith(".py")),
        },
    )


def _import_errors(answer: Answer) -> list[str]:
    """Why test files could not be imported, without paths of this machine."""
    lines = [re.sub(r" \(/[^)]*\)$", "", line) for line in answer.broken.values()]
    return [f"`{line}`" for line in dict.fromkeys(lines) if re.match(r"\w*Error: [^/]+$", line)]
