"""What happened, for people: trajectories in the terminal, self-contained HTML reports."""

from agents.viewer.build import report_from_buffers
from agents.viewer.data import (
    Arm,
    ArmDiversity,
    Attempt,
    ReportData,
    Selected,
    Shown,
    StageTime,
    TrainingRun,
)
from agents.viewer.html import render_report, render_trajectories
from agents.viewer.terminal import print_list, print_trajectory

__all__ = [
    "Arm",
    "ArmDiversity",
    "Attempt",
    "ReportData",
    "Selected",
    "Shown",
    "StageTime",
    "TrainingRun",
    "print_list",
    "print_trajectory",
    "render_report",
    "render_trajectories",
    "report_from_buffers",
]
