"""What a run will take before it is paid for: memory, speed and hours, without any weights.

from learners.training.plan import plan_training
plan = plan_training(config, gpu="H100-80")
print(plan.verdict)
"""

from learners.training.plan.assumptions import Assumptions
from learners.training.plan.costs import Memory, Setup
from learners.training.plan.counts import Counts
from learners.training.plan.gpus import GPUS, Gpu
from learners.training.plan.models import KNOWN, KnownModel
from learners.training.plan.planner import Plan, plan_training
from learners.training.plan.report import as_dict, as_text

__all__ = [
    "GPUS",
    "KNOWN",
    "Assumptions",
    "Counts",
    "Gpu",
    "KnownModel",
    "Memory",
    "Plan",
    "Setup",
    "as_dict",
    "as_text",
    "plan_training",
]
