"""Retrieval: the candidates with the highest dot products for a query."""

from recsys.retrieval.exact import top_columns, top_k
from recsys.retrieval.index import ExactIndex, TopK, load
from recsys.retrieval.scann import ScannIndex

__all__ = ["ExactIndex", "ScannIndex", "TopK", "load", "top_columns", "top_k"]
