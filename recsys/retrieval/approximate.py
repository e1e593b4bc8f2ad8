"""An index of candidates that is searched approximately, by faiss."""

from __future__ import annotations

import math
import pathlib
import warnings
from types import ModuleType
from typing import Any

import numpy as np

from recsys import files
from recsys.errors import InputError, missing_extra
from recsys.retrieval import exact
from recsys.retrieval.index import ExactIndex, Ids

# With fewer candidates an exact search is faster than any index, and there is
# too little to train one on.
_FEWEST_CANDIDATES = 1_000
# Above this share of the candidates, fetching enough of them costs more than
# scoring every allowed one.
_LARGEST_FETCH = 0.002
# Candidates that are scored exactly, per requested candidate.
_REORDERED_PER_K = 5
# Numbers of candidates' vectors that are gathered at once to be scored: 64 MB.
_NUMBERS_PER_BLOCK = 2**24
_TRAINING_SAMPLE = 100_000
# The share of the candidates that may change before it is trained again.
_MOST_CHANGED = 0.1
# The trained part of a saved index, and the rows that changed since.
_SEARCHER = "searcher.faiss"
_CHANGED = "changed_rows.npy"


class ApproximateIndex(ExactIndex):
    """Candidates that are searched in the most promising partitions only.

    A drop-in replacement for `ExactIndex`. Partitions are searched with codes
    of four bits for every two dimensions; the best by their codes are scored
    exactly. As many more candidates are fetched as exclusions and masks may
    remove; where that would be too many, or turns out to be too few, the
    allowed candidates are searched exactly. Lists are therefore as long as
    those of `ExactIndex`.

    Args:
        identifiers: As for `ExactIndex`.
        vectors: As for `ExactIndex`.
        num_leaves: Partitions. Default: twice the square root of the number
            of candidates.
        leaves_to_search: Partitions to search for a query: more of them give
            a higher recall and take more time. Default: a twentieth.
        searcher: The folder into which an index of these very vectors was
            saved. Default: a new one is trained.

    Raises:
        InputError: As for `ExactIndex`, or faiss is not installed.
    """

    kind = "approximate"

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
        self._faiss = import_faiss()
        self._searcher: Any = None
        # Rising rows that the searcher does not know as they are: its codes fit
        # what it was trained on, so these are searched exactly.
        self._changed = np.empty(0, np.int64)
        if searcher is None:
            self._build()
        else:
            self._read(searcher)

    def _build(self) -> None:
        """Trains the partitions if there are enough candidates."""
        if len(self) < _FEWEST_CANDIDATES:
            return
        vectors = self._candidates()
        dim = vectors.shape[1]
        leaves = min(self._num_leaves, len(self))
        # Codes of two dimensions each; of one where the number is odd.
        num_codes = dim if dim % 2 else dim // 2
        self._searcher = self._faiss.index_factory(
            dim,
            f"IVF{leaves},PQ{num_codes}x4fs",
            self._faiss.METRIC_INNER_PRODUCT,
        )
        self._searcher.nprobe = self._leaves_to_search
        # Small clusters are meant: faiss would warn of them.
        self._searcher.cp.min_points_per_centroid = 1
        rng = np.random.default_rng(0)
        size = min(len(self), _TRAINING_SAMPLE)
        sample = np.sort(rng.choice(len(self), size, replace=False))
        self._searcher.train(vectors[sample])
        self._searcher.add(vectors)
        self._changed = self._changed[:0]

    def _read(self, folder: pathlib.Path) -> None:
        try:
            self._searcher = self._faiss.read_index(str(folder / _SEARCHER))
            self._changed = np.load(folder / _CHANGED)
        except (OSError, RuntimeError, ValueError, EOFError) as error:
            raise InputError(
                f"{folder}: expected {_SEARCHER} and {_CHANGED}, as saved. "
                f"Received: {' '.join(str(error).split())}"
            ) from error
        self._searcher.nprobe = self._leaves_to_search

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
        found, scores = self._fetch(queries, fetch)
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
        width = min(_REORDERED_PER_K * fetch, self._searcher.ntotal)
        # Places that the partitions could not fill are -1.
        found = self._searcher.search(queries, width)[1]
        found[np.isin(found, self._changed)] = -1
        scores = np.empty(found.shape, np.float32)
        step = max(_NUMBERS_PER_BLOCK // (width * queries.shape[1]), 1)
        for begin in range(0, len(queries), step):
            block = slice(begin, begin + step)
            np.matmul(
                self._table[found[block]],
                queries[block, :, np.newaxis],
                out=scores[block, :, np.newaxis],
            )
        scores[found < 0] = -np.inf
        if len(self._changed):
            others = exact.top_k(
                queries, self._candidates(), fetch, rows=self._changed
            )
            found = np.concatenate([found, others[0]], axis=1)
            scores = np.concatenate([scores, others[1]], axis=1)
        places, scores = exact.top_columns(scores, fetch)
        return np.take_along_axis(found, places, axis=1), scores

    def _write(self, rows: np.ndarray, vectors: np.ndarray, size: int) -> None:
        super()._write(rows, vectors, size)
        if self._searcher is not None:
            self._changed = np.union1d(self._changed, rows)

    def update(
        self,
        identifiers: Ids,
        vectors: np.ndarray,
    ) -> None:
        """Adds or replaces candidates; see `ExactIndex.update`.

        They are searched exactly, until they are a tenth of all: then the
        partitions are trained again, within the call.
        """
        super().update(identifiers, vectors)
        is_old = len(self._changed) > _MOST_CHANGED * len(self)
        if self._searcher is None or is_old:
            self._build()

    def _save_more(self, folder: pathlib.Path) -> dict[str, Any]:
        if self._searcher is not None:
            self._faiss.write_index(self._searcher, str(folder / _SEARCHER))
            np.save(folder / _CHANGED, self._changed)
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
            kind=str,
            num_leaves=int,
            leaves_to_search=int,
            has_searcher=bool,
        )
        is_old = about["kind"] != cls.kind and about["has_searcher"]
        if is_old:
            warnings.warn(
                f"{path} was saved by ScaNN: its partitions are trained again. "
                "Save it to keep the new ones.",
                stacklevel=3,
            )
        return cls(
            *arrays,
            num_leaves=about["num_leaves"],
            leaves_to_search=about["leaves_to_search"],
            searcher=path if about["has_searcher"] and not is_old else None,
        )


# What an earlier version saved, by ScaNN.
ExactIndex._kinds["scann"] = ApproximateIndex


def import_faiss() -> ModuleType:
    """Imports faiss.

    Raises:
        InputError: It is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise missing_extra("approximate retrieval", "ann", error) from error
    return faiss


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
