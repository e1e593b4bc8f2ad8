"""Retrieval: the candidates with the highest dot products for a query."""

from recsys.retrieval.exact import top_k
from recsys.retrieval.index import ExactIndex, TopK
from recsys.retrieval.scann import ScannIndex
from recsys.retrieval.stored import load

__all__ = ["ExactIndex", "ScannIndex", "TopK", "load", "top_k"]
