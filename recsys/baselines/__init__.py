"""Recommenders that a model has to beat."""

from recsys.baselines.ease import EASE
from recsys.baselines.item_knn import ItemKNN
from recsys.baselines.markov import Markov
from recsys.baselines.matrix_factorization import ALS, BPR
from recsys.baselines.popularity import Popularity, RecentPopularity
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
