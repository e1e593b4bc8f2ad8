"""Recommenders that a model has to beat."""

from recsys.baselines.counting import (
    ItemKNN,
    Markov,
    Popularity,
    RecentPopularity,
)
from recsys.baselines.ease import EASE
from recsys.baselines.implicit import ALS, BPR
from recsys.baselines.tuning import GRIDS, Tuned, tune

# By the names that the command line uses; the last two need `implicit`.
BASELINES = {
    "popularity": Popularity,
    "recent_popularity": RecentPopularity,
    "markov": Markov,
    "item_knn": ItemKNN,
    "ease": EASE,
    "als": ALS,
    "bpr": BPR,
}

__all__ = [
    "ALS",
    "BASELINES",
    "BPR",
    "EASE",
    "GRIDS",
    "ItemKNN",
    "Markov",
    "Popularity",
    "RecentPopularity",
    "Tuned",
    "tune",
]
