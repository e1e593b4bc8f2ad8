"""From a recommender and a split to results that can be trusted."""

from recsys.evaluation.full_ranking import Recommender, evaluate
from recsys.evaluation.leak_audit import (
    AuditReport,
    Check,
    LeakError,
    audit,
)
from recsys.evaluation.rankings_files import read_rankings, write_rankings
from recsys.evaluation.recommendation_health import (
    Health,
    describe_lists,
    genre_matrix,
    health,
    list_summary,
)
from recsys.evaluation.results import Evaluation, query_ids
from recsys.evaluation.slices import (
    Slice,
    by_history_length,
    by_item_popularity,
    popularity_groups,
)
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
    "Health",
    "Interval",
    "LeakError",
    "Recommender",
    "Slice",
    "audit",
    "bootstrap_interval",
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
