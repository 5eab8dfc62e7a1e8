"""The HTML pages: templates, their filters, and the policy that lets no foreign script run."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from agents.viewer import sections, steps, text
from agents.viewer.data import ReportData, Shown
from agents.viewer.training import training_charts

_TEMPLATES = Path(__file__).parent / "templates"


def report_page(report: ReportData) -> str:
    """The whole report as HTML."""
    return _page(
        "report.html",
        report=report,
        cards=sections.cards(report),
        rows=sections.arm_rows(report),
        ks=sections.last_k(report),
        curve=sections.pass_curve(report),
        diversity_note=sections.diversity_note(report),
        grid=sections.task_grid(report),
        outcomes=sections.outcome_table(report),
        training=[(run, *training_charts(run)) for run in report.training],
        stages=sections.stage_rows(report),
        config=sections.flat(report.config),
        shown=report.shown,
    )


def trajectories_page(shown: Sequence[Shown], title: str) -> str:
    """Trajectories step by step as HTML."""
    return _page("trajectories.html", title=title, shown=shown)


def _page(template: str, **context: Any) -> str:
    return _environment().get_template(template).render(**context)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_safe,
    )
    script = (_TEMPLATES / "report.js").read_text(encoding="utf-8")
    environment.globals.update(
        style=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=_csp_hash(script),
        steps_of=steps.shown_steps,
        diff_lines=lambda patch: steps.diff_lines(text.clip(patch)),
        verdict_rows=steps.verdict_rows,
        state_of=steps.state,
        open_up_to=steps.OPEN_UP_TO,
    )
    filters: Mapping[str, Any] = {
        "percent": text.percent,
        "points": text.points,
        "duration": text.duration,
        "number": text.number,
    }
    environment.filters.update(filters)
    return environment


def _safe(value: Any) -> Any:
    """Make control characters visible in whatever is printed; escaping comes after."""
    return (
        text.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
    )


def _csp_hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
