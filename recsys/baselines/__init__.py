"""Recommenders that a model has to beat."""

from recsys.baselines.ease import EASE
from recsys.baselines.markov import Markov
from recsys.baselines.popularity import Popularity, RecentPopularity

__all__ = ["EASE", "Markov", "Popularity", "RecentPopularity"]
