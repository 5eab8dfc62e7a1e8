"""Which attempt is kept: the hybrid selector, its rivals, verifier scores, pass@k, diversity."""

from agents.selection.candidates import Candidate, candidates, regression_from_run_tests
from agents.selection.diversity import (
    Diversity,
    distinct_correct,
    distinct_patches,
    diversity,
    effective_correct,
    mean_call_cosine,
)
from agents.selection.hybrid import Selection, Stage, select
from agents.selection.passk import (
    BestAtK,
    Counts,
    Estimate,
    best_at_k,
    bootstrap,
    bootstrap_difference,
    count,
    mean_pass_at_k,
    pass_at_k,
)
from agents.selection.patches import patch_key
from agents.selection.rivals import Selector, choose, selectors
from agents.selection.transformers_scorer import TransformersScorer
from agents.selection.verifier import (
    AnswerScorer,
    build_prompt,
    find_answer,
    probability,
    score_trajectories,
)

__all__ = [
    "AnswerScorer",
    "BestAtK",
    "Candidate",
    "Counts",
    "Diversity",
    "Estimate",
    "Selection",
    "Selector",
    "Stage",
    "TransformersScorer",
    "best_at_k",
    "bootstrap",
    "bootstrap_difference",
    "build_prompt",
    "candidates",
    "choose",
    "count",
    "distinct_correct",
    "distinct_patches",
    "diversity",
    "effective_correct",
    "find_answer",
    "mean_call_cosine",
    "mean_pass_at_k",
    "pass_at_k",
    "patch_key",
    "probability",
    "regression_from_run_tests",
    "score_trajectories",
    "select",
    "selectors",
]
