"""Retrieval: the candidates with the highest dot products for a query."""

from recsys.retrieval.approximate import ApproximateIndex
from recsys.retrieval.exact import top_columns, top_k
from recsys.retrieval.index import ExactIndex, TopK, load

# The name of earlier versions, which searched with ScaNN.
ScannIndex = ApproximateIndex

__all__ = [
    "ApproximateIndex",
    "ExactIndex",
    "ScannIndex",
    "TopK",
    "load",
    "top_columns",
    "top_k",
]
