"""From a recommender and a split to results that can be trusted."""

from recsys.evaluation.full_ranking import Recommender, evaluate
from recsys.evaluation.leak_audit import (
    AuditReport,
    Check,
    LeakError,
    audit,
)
from recsys.evaluation.results import Evaluation, query_ids
from recsys.evaluation.table import results_table
from recsys.evaluation.uncertainty import (
    Comparison,
    Interval,
    bootstrap_interval,
    compare,
    intervals,
    sign_flip_p_value,
)

__all__ = [
    "AuditReport",
    "Check",
    "Comparison",
    "Evaluation",
    "Interval",
    "LeakError",
    "Recommender",
    "audit",
    "bootstrap_interval",
    "compare",
    "evaluate",
    "intervals",
    "query_ids",
    "results_table",
    "sign_flip_p_value",
]
