"""Evaluation: rankings of the full catalog, metrics, intervals and audits."""

from recsys.evaluation.leak_audit import (
    AuditReport,
    Check,
    LeakError,
    audit,
)
from recsys.evaluation.ranking import Scorer, evaluate
from recsys.evaluation.rankings_files import read_rankings, write_rankings
from recsys.evaluation.recommendation_health import (
    Health,
    describe_lists,
    genre_matrix,
    health,
    list_summary,
)
from recsys.evaluation.results import (
    Comparison,
    Evaluation,
    Interval,
    bootstrap_interval,
    compare,
    intervals,
    query_ids,
    results_table,
    sign_flip_p_value,
)
from recsys.evaluation.slices import (
    Slice,
    by_event,
    by_history_length,
    by_item_popularity,
    popularity_groups,
)

# The name of `Scorer` in earlier versions.
Recommender = Scorer

__all__ = [
    "AuditReport",
    "Check",
    "Comparison",
    "Evaluation",
    "Health",
    "Interval",
    "LeakError",
    "Recommender",
    "Scorer",
    "Slice",
    "audit",
    "bootstrap_interval",
    "by_event",
    "by_history_length",
    "by_item_popularity",
    "compare",
    "describe_lists",
    "evaluate",
    "genre_matrix",
    "health",
    "intervals",
    "list_summary",
    "popularity_groups",
    "query_ids",
    "read_rankings",
    "results_table",
    "sign_flip_p_value",
    "write_rankings",
]
