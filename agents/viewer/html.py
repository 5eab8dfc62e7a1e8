"""Self-contained HTML: one file, no request to anywhere, readable in light and dark."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from agents.viewer.data import ReportData, Shown
from swe_env.errors import ConfigError
from swe_env.replay.trajectory import Trajectory


def render_report(report: ReportData, path: str | os.PathLike[str]) -> Path:
    """Write the report as one HTML file; returns its path.

    Everything that came from an agent is escaped, control characters are made visible, and the
    page's own policy lets no script but its own run.

    Raises:
        ConfigError: jinja2 is missing.
    """
    return _write(path, _pages().report_page(report))


def render_trajectories(
    trajectories: Iterable[Trajectory], path: str | os.PathLike[str], *, title: str = "Trajectories"
) -> Path:
    """Write trajectories step by step as one HTML file; returns its path.

    Raises:
        ConfigError: jinja2 is missing.
    """
    shown = [Shown(trajectory=t, arm=t.agent.name) for t in trajectories]
    return _write(path, _pages().trajectories_page(shown, title))


def _pages() -> ModuleType:
    """The templates' side, which alone needs jinja2."""
    try:
        from agents.viewer import page
    except ImportError as error:
        raise ConfigError(
            f"HTML pages need jinja2 ({error}): pip install 'swe-env[agents]'."
        ) from error
    return page


def _write(path: str | os.PathLike[str], page: str) -> Path:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")
    return target
