"""From a recommender and a split to results that can be trusted."""

from recsys.evaluation.full_ranking import Recommender, evaluate
from recsys.evaluation.results import Evaluation, query_ids

__all__ = ["Evaluation", "Recommender", "evaluate", "query_ids"]
