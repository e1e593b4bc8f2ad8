"""An index of candidates that is searched approximately, by ScaNN."""

from __future__ import annotations

import math
import pathlib
import sys
from types import ModuleType
from typing import Any

import numpy as np

from recsys import files
from recsys.errors import InputError
from recsys.retrieval.index import ExactIndex, Ids

# With fewer candidates an exact search is faster than any index, and there is
# too little to train one on.
_FEWEST_CANDIDATES = 1_000
# Above this share of the candidates, fetching enough of them costs more than
# scoring every allowed one.
_LARGEST_FETCH = 0.002
# Candidates that are scored exactly, per requested candidate.
_REORDERED_PER_K = 5
# Weighs errors along the vector, which change its dot products, above others
# (Guo et al., 2020, arXiv:1908.10396).
_ANISOTROPIC_THRESHOLD = 0.2
_TRAINING_SAMPLE = 100_000
# The trained part of a saved index.
_SEARCHER = "scann"


class ScannIndex(ExactIndex):
    """Candidates that are searched in the most promising partitions only.

    A drop-in replacement for `ExactIndex`. It fetches as many more candidates
    as exclusions and masks may remove; where that would be too many, or turns
    out to be too few, the allowed candidates are searched exactly. Lists are
    therefore as long as those of `ExactIndex`.

    Args:
        identifiers: As for `ExactIndex`.
        vectors: As for `ExactIndex`.
        num_leaves: Partitions. Default: twice the square root of the number
            of candidates.
        leaves_to_search: Partitions to search for a query: more of them give
            a higher recall and take more time. Default: a twentieth.
        searcher: The folder into which ScaNN saved a searcher of these very
            vectors. Default: a new one is trained.

    Raises:
        InputError: As for `ExactIndex`, or ScaNN is not installed.
    """

    kind = "scann"

    def __init__(
        self,
        identifiers: Ids,
        vectors: np.ndarray,
        *,
        num_leaves: int | None = None,
        leaves_to_search: int | None = None,
        searcher: pathlib.Path | None = None,
    ) -> None:
        super().__init__(identifiers, vectors)
        for name, value in (
            ("num_leaves", num_leaves),
            ("leaves_to_search", leaves_to_search),
        ):
            if value is not None and value < 1:
                raise InputError(
                    f"`{name}` must be at least 1. Received: {value}"
                )
        leaves = num_leaves or round(2 * math.sqrt(len(self)))
        self._num_leaves = leaves
        self._leaves_to_search = leaves_to_search or max(10, leaves // 20)
        self._scann = import_scann()
        self._searcher: Any = None
        if searcher is None:
            self._build()
        else:
            self._searcher = self._scann.load_searcher(str(searcher))

    def _build(self) -> None:
        """Trains the partitions if there are enough candidates."""
        if len(self) < _FEWEST_CANDIDATES:
            return
        leaves = min(self._num_leaves, len(self))
        vectors = self.vectors
        sample = min(len(self), _TRAINING_SAMPLE)
        builder = (
            self._scann.builder(vectors, 10, "dot_product")
            .tree(
                num_leaves=leaves,
                num_leaves_to_search=min(self._leaves_to_search, leaves),
                training_sample_size=sample,
            )
            .score_ah(
                2,
                anisotropic_quantization_threshold=_ANISOTROPIC_THRESHOLD,
                training_sample_size=sample,
            )
            .reorder(100)
        )
        self._searcher = self._scann.create_searcher(
            vectors, builder.create_config()
        )

    def _search(
        self,
        queries: np.ndarray,
        k: int,
        excluded: tuple[np.ndarray, np.ndarray] | None,
        rows: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        fetch = k
        if excluded is not None:
            fetch += int(np.diff(excluded[1]).max(initial=0))
        if rows is not None:
            # Half more than the average, since allowed candidates may be
            # rarer among the best; if they are too few, see below.
            fetch = int(1.5 * fetch * len(self) / max(len(rows), 1))
        too_many = fetch > max(_LARGEST_FETCH * len(self), 2 * k)
        if self._searcher is None or too_many or not len(queries):
            return super()._search(queries, k, excluded, rows)
        found, scores = self._fetch(queries, min(fetch, len(self)))
        _remove(found, scores, excluded, rows)
        order = np.lexsort((found, -scores), axis=1)[:, :k]
        found = np.take_along_axis(found, order, axis=1)
        scores = np.take_along_axis(scores, order, axis=1)
        short = np.flatnonzero(np.isneginf(scores[:, -1]))
        if len(short):
            found[short], scores[short] = super()._search(
                queries[short], k, _of_queries(excluded, short), rows
            )
        return found, scores

    def _fetch(
        self, queries: np.ndarray, fetch: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns `[num_queries, fetch]` int64 rows and float32 scores."""
        found, scores = self._searcher.search_batched_parallel(
            queries,
            final_num_neighbors=fetch,
            pre_reorder_num_neighbors=_REORDERED_PER_K * fetch,
            leaves_to_search=self._leaves_to_search,
        )
        found = found.astype(np.int64)
        # Places that the partitions could not fill are NaN.
        scores = np.where(np.isnan(scores), -np.inf, scores)
        return found, scores.astype(np.float32)

    def _write(self, rows: np.ndarray, vectors: np.ndarray, size: int) -> None:
        super()._write(rows, vectors, size)
        if self._searcher is not None and len(rows):
            # ScaNN appends where the row is None.
            order = np.argsort(rows)
            self._searcher.searcher.upsert(
                [int(r) if r < size else None for r in rows[order]],
                np.ascontiguousarray(vectors[order]),
                1,
            )

    def update(
        self,
        identifiers: Ids,
        vectors: np.ndarray,
    ) -> None:
        """Adds or replaces candidates; see `ExactIndex.update`.

        The partitions stay as they are: after many changes, in particular
        with another distribution, a new index has a higher recall.
        """
        super().update(identifiers, vectors)
        if self._searcher is None:
            self._build()

    def _save_more(self, folder: pathlib.Path) -> dict[str, Any]:
        if self._searcher is not None:
            (folder / _SEARCHER).mkdir(exist_ok=True)
            self._searcher.serialize(
                str(folder / _SEARCHER), relative_path=True
            )
        return {
            "num_leaves": self._num_leaves,
            "leaves_to_search": self._leaves_to_search,
            "has_searcher": self._searcher is not None,
        }

    @classmethod
    def _restore(
        cls, arrays: tuple[np.ndarray, np.ndarray], path: pathlib.Path
    ) -> ExactIndex:
        about = files.read_json_object(
            path / "index.json",
            num_leaves=int,
            leaves_to_search=int,
            has_searcher=bool,
        )
        return cls(
            *arrays,
            num_leaves=about["num_leaves"],
            leaves_to_search=about["leaves_to_search"],
            searcher=path / _SEARCHER if about["has_searcher"] else None,
        )


def import_scann() -> ModuleType:
    """Imports ScaNN's searcher for NumPy arrays.

    Raises:
        InputError: ScaNN is not installed.
    """
    # ScaNN 1.4.2 also loads operations that were built for TensorFlow 2.20
    # and fail with any other version. With None in their place it takes them
    # as missing, as in an installation without TensorFlow.
    operations = "scann.scann_ops.py.scann_ops"
    is_ours = operations not in sys.modules
    if is_ours:
        sys.modules[operations] = None  # type: ignore[assignment]
    try:
        from scann.scann_ops.py import scann_ops_pybind
    except ImportError as error:
        raise InputError(
            "approximate retrieval needs ScaNN (from a checkout: "
            "pip install '.[ann]'). "
            f"Received: {error}"
        ) from error
    finally:
        if is_ours:
            del sys.modules[operations]
    return scann_ops_pybind


def _remove(
    found: np.ndarray,
    scores: np.ndarray,
    excluded: tuple[np.ndarray, np.ndarray] | None,
    rows: np.ndarray | None,
) -> None:
    """Sets what a query must not get to row -1 with score -inf."""
    removed = np.isneginf(scores)
    if excluded is not None:
        values, offsets = excluded
        owners = np.repeat(np.arange(len(found)), np.diff(offsets))
        queries = np.arange(len(found))[:, np.newaxis]
        # One number for each pair of query and row.
        span = int(max(found.max(), values.max(initial=0))) + 1
        removed |= np.isin(found + span * queries, values + span * owners)
    if rows is not None:
        removed |= ~np.isin(found, rows)
    found[removed] = -1
    scores[removed] = -np.inf


def _of_queries(
    excluded: tuple[np.ndarray, np.ndarray] | None, queries: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the exclusions of some of the queries."""
    if excluded is None:
        return None
    values, offsets = excluded
    parts = [values[offsets[q] : offsets[q + 1]] for q in queries]
    ends = np.cumsum([0, *map(len, parts)])
    return np.concatenate(parts), ends
