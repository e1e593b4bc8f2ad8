"""An index of candidates that is searched exactly."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from recsys import files
from recsys.errors import InputError
from recsys.retrieval import exact

# Room for candidates to come, as a share of those that are there.
_SPARE = 0.25
_ABOUT = "index.json"

Ids = Sequence[str] | Sequence[int] | np.ndarray


class Identifiers:
    """Identifiers of candidates, all strings or all integers.

    Args:
        values: `[num_candidates]`, all different.

    Raises:
        InputError: They have another type, or one is duplicated.
    """

    def __init__(self, values: Ids) -> None:
        self.values = as_array(values)
        self._rows: dict[str | int, int] | None = None
        kept, counts = np.unique(self.values, return_counts=True)
        if len(kept) != len(self.values):
            raise InputError(
                "`identifiers` must be unique. Received a duplicate: "
                f"{kept[counts > 1][0].item()!r}"
            )

    def __len__(self) -> int:
        return len(self.values)

    def rows(
        self, values: Iterable[str | int], *, strict: bool = False
    ) -> np.ndarray:
        """Returns the int64 rows of identifiers, -1 for an unknown one.

        Args:
            values: The identifiers.
            strict: Whether an unknown one is an error.

        Raises:
            InputError: `strict`, and there is no such candidate.
        """
        if self._rows is None:
            # Built on first use: it is large, and plain searches need none.
            ids = self.values.tolist()
            self._rows = dict(zip(ids, range(len(ids)), strict=True))
        values = list(values)
        rows = np.array([self._rows.get(v, -1) for v in values], np.int64)
        if strict and (rows < 0).any():
            raise InputError(
                "`identifiers` must be those of candidates. Received an "
                f"unknown one: {values[int(np.argmax(rows < 0))]!r}"
            )
        return rows

    def add(self, values: np.ndarray) -> None:
        """Appends identifiers that are not there yet."""
        first = len(self.values)
        self.values = np.concatenate([self.values, values])
        if self._rows is not None:
            self._rows.update(
                zip(values.tolist(), range(first, len(self)), strict=True)
            )


def as_array(values: Ids, others: np.ndarray | None = None) -> np.ndarray:
    """Returns identifiers as a flat array of int64 or of strings.

    Args:
        values: The identifiers.
        others: Identifiers whose type an empty list takes.

    Raises:
        InputError: They are neither all strings nor all integers, or an
            integer does not fit into 64 bits with a sign.
    """
    array = np.asarray(values)
    if others is not None and array.shape == (0,):
        return others[:0]
    # NumPy turns everything into text if there is some text.
    is_text = array.dtype.kind in "OU" and all(
        isinstance(value, str) for value in values
    )
    if array.ndim == 1 and is_text:
        return array.astype(np.str_)
    if array.ndim == 1 and array.dtype.kind in "iu":
        if len(array) and array.max() > np.iinfo(np.int64).max:
            raise InputError(
                "`identifiers` must be integers below 2**63, or strings. "
                f"Received: {array.max()}"
            )
        return array.astype(np.int64)
    raise InputError(
        "`identifiers` must be all strings or all integers, in one "
        f"dimension. Received dtype {array.dtype}, shape {array.shape}"
    )


@dataclasses.dataclass(frozen=True)
class TopK:
    """The candidates found for each query.

    Attributes:
        identifiers: `[num_queries, min(k, num_candidates)]`, best first;
            after a query's last, an empty string or -1.
        scores: The same shape, float32 dot products; -inf after the last.
        counts: `[num_queries]` int64, the candidates found: fewer than k if
            exclusions and mask leave no more.
    """

    identifiers: np.ndarray
    scores: np.ndarray
    counts: np.ndarray

    def __iter__(self) -> Iterator[list[tuple[Any, float]]]:
        """Yields the (identifier, score) pairs of each query."""
        for found, scores, count in zip(
            self.identifiers, self.scores, self.counts, strict=True
        ):
            yield list(
                zip(
                    found[:count].tolist(), scores[:count].tolist(), strict=True
                )
            )


class ExactIndex:
    """Candidates that are searched by scoring every one.

    Args:
        identifiers: `[num_candidates]` strings or integers, all different.
        vectors: `[num_candidates, dim]` floats.

    Raises:
        InputError: An identifier is duplicated, a vector has a NaN or an
            infinite value, or the two have different lengths.
    """

    kind: ClassVar[str] = "exact"
    _kinds: ClassVar[dict[str, type[ExactIndex]]] = {}

    def __init_subclass__(cls) -> None:
        ExactIndex._kinds[cls.kind] = cls

    def __init__(self, identifiers: Ids, vectors: np.ndarray) -> None:
        self._identifiers = Identifiers(identifiers)
        # With room behind the last; a copy, which the caller cannot change.
        self._table = np.array(check_vectors("vectors", vectors))
        _check_lengths(self._identifiers.values, self._table)

    @property
    def identifiers(self) -> np.ndarray:
        """`[num_candidates]`, in the order of the entries of a mask."""
        return self._identifiers.values

    @property
    def vectors(self) -> np.ndarray:
        """`[num_candidates, dim]` float32, a copy."""
        return np.array(self._candidates())

    def __len__(self) -> int:
        return len(self._identifiers)

    def top_k(
        self,
        queries: np.ndarray,
        k: int,
        *,
        exclusions: Sequence[Iterable[str | int]] | None = None,
        mask: np.ndarray | None = None,
    ) -> TopK:
        """Finds the best candidates for each query.

        Args:
            queries: `[num_queries, dim]` floats.
            k: How many candidates for each query, from 1.
            exclusions: For each query, the identifiers that it must not get;
                unknown ones are ignored. Default: none.
            mask: `[num_candidates]` bool, the candidates of all queries, in
                the order of `identifiers`. Default: all.

        Returns:
            The candidates, in the order of rows where scores are equal. A
            list is shorter than k only if no more candidates are left.

        Raises:
            InputError: An argument does not fit the index, or a query has a
                NaN or an infinite value.
        """
        queries = check_vectors("queries", queries, self._table.shape[1])
        if k < 1:
            raise InputError(f"`k` must be at least 1. Received: {k}")
        found, scores = self._search(
            queries,
            min(k, len(self)),
            self._excluded_rows(exclusions, len(queries)),
            self._allowed_rows(mask),
        )
        ids = self.identifiers
        is_there = found >= 0
        counts = np.count_nonzero(is_there, axis=1)
        if is_there.all() and len(ids):
            return TopK(ids[found], scores, counts)
        named = np.full(
            found.shape, "" if ids.dtype.kind == "U" else -1, ids.dtype
        )
        named[is_there] = ids[found[is_there]]
        return TopK(named, scores, counts)

    def similar(
        self, identifiers: Ids, k: int, *, mask: np.ndarray | None = None
    ) -> TopK:
        """Finds the candidates whose vectors are most like a candidate's.

        Args:
            identifiers: `[num_queries]` of candidates.
            k: How many for each, without the candidate itself.
            mask: As for `top_k`.

        Returns:
            The candidates, by their dot product with the candidate.

        Raises:
            InputError: An identifier is unknown, or as for `top_k`.
        """
        ids = as_array(identifiers, self.identifiers).tolist()
        vectors = self._table[self._identifiers.rows(ids, strict=True)]
        return self.top_k(vectors, k, exclusions=[[i] for i in ids], mask=mask)

    def mask(self, identifiers: Ids) -> np.ndarray:
        """Makes the mask for an allow-list.

        Args:
            identifiers: Those of the candidates to allow.

        Returns:
            `[num_candidates]` bool.

        Raises:
            InputError: An identifier is unknown.
        """
        mask = np.zeros(len(self), bool)
        ids = as_array(identifiers, self.identifiers).tolist()
        mask[self._identifiers.rows(ids, strict=True)] = True
        return mask

    def update(self, identifiers: Ids, vectors: np.ndarray) -> None:
        """Adds candidates, and replaces the vectors of existing ones.

        New candidates get the rows behind the others.

        Args:
            identifiers: `[n]`, all different, of the type of the others.
            vectors: `[n, dim]` floats.

        Raises:
            InputError: As for the constructor; nothing is changed then.
        """
        ids = Identifiers(as_array(identifiers, self.identifiers)).values
        vectors = check_vectors("vectors", vectors, self._table.shape[1])
        _check_lengths(ids, vectors)
        if ids.dtype.kind != self.identifiers.dtype.kind:
            raise InputError(
                "`identifiers` must be of the type of the others, "
                f"{self.identifiers.dtype}. Received: {ids.dtype}"
            )
        rows = self._identifiers.rows(ids.tolist())
        is_new = rows < 0
        rows[is_new] = len(self) + np.arange(np.count_nonzero(is_new))
        self._write(rows, vectors, len(self))
        self._identifiers.add(ids[is_new])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the index into a folder; `recsys.retrieval.load` reads it.

        Args:
            path: The folder; created if it does not exist.
        """
        folder = pathlib.Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        # The description comes last: without it there is no index.
        (folder / _ABOUT).unlink(missing_ok=True)
        np.save(folder / "identifiers.npy", self.identifiers)
        np.save(folder / "vectors.npy", self._candidates())
        files.write_json(
            folder / _ABOUT, {"kind": self.kind, **self._save_more(folder)}
        )

    def _save_more(self, folder: pathlib.Path) -> dict[str, Any]:
        """Writes what a subclass adds to the vectors, and describes it."""
        return {}

    @classmethod
    def _restore(
        cls, arrays: tuple[np.ndarray, np.ndarray], path: pathlib.Path
    ) -> ExactIndex:
        """Makes the index from its identifiers, vectors and folder."""
        return cls(*arrays)

    def _search(
        self,
        queries: np.ndarray,
        k: int,
        excluded: tuple[np.ndarray, np.ndarray] | None,
        rows: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds rows and scores; see `recsys.retrieval.exact.top_k`."""
        return exact.top_k(
            queries, self._candidates(), k, exclusions=excluded, rows=rows
        )

    def _write(self, rows: np.ndarray, vectors: np.ndarray, size: int) -> None:
        """Writes vectors to rows, of which those from `size` on are new."""
        needed = max(size, int(rows.max(initial=-1)) + 1)
        if needed > len(self._table):
            table = np.zeros(
                (int(needed * (1 + _SPARE)), self._table.shape[1]), np.float32
            )
            table[:size] = self._table[:size]
            self._table = table
        self._table[rows] = vectors

    def _candidates(self) -> np.ndarray:
        return self._table[: len(self)]

    def _excluded_rows(
        self,
        exclusions: Sequence[Iterable[str | int]] | None,
        num_queries: int,
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns flat rows and `[num_queries + 1]` offsets."""
        if exclusions is None:
            return None
        if isinstance(exclusions, str) or len(exclusions) != num_queries:
            raise InputError(
                f"`exclusions` must hold a list for each of the {num_queries} "
                f"queries. Received: {len(exclusions)}"
            )
        if any(isinstance(each, str | int) for each in exclusions):
            raise InputError(
                "`exclusions` must hold a list of identifiers for each query. "
                "Received: an identifier where a list is expected"
            )
        lists = [list(each) for each in exclusions]
        rows = self._identifiers.rows(itertools.chain.from_iterable(lists))
        owners = np.repeat(np.arange(num_queries), list(map(len, lists)))
        counts = np.bincount(owners[rows >= 0], minlength=num_queries)
        return rows[rows >= 0], np.append(0, np.cumsum(counts))

    def _allowed_rows(self, mask: np.ndarray | None) -> np.ndarray | None:
        """Returns the rising rows that a mask allows."""
        if mask is None:
            return None
        mask = np.asarray(mask)
        if mask.dtype != bool or mask.shape != (len(self),):
            raise InputError(
                f"`mask` must be bool of shape ({len(self)},), one entry per "
                f"candidate. Received: {mask.dtype} of shape {mask.shape}"
            )
        return np.flatnonzero(mask)


ExactIndex._kinds[ExactIndex.kind] = ExactIndex


def load(path: str | os.PathLike[str]) -> ExactIndex:
    """Reads an index.

    Args:
        path: The folder that `save` wrote.

    Returns:
        An `ExactIndex` or `ApproximateIndex`, as it was saved.

    Raises:
        InputError: There is no index, or faiss is needed but not installed.
    """
    folder = pathlib.Path(path)
    try:
        kind = files.read_json_object(folder / _ABOUT, kind=str)["kind"]
        arrays = (
            np.load(folder / "identifiers.npy"),
            np.load(folder / "vectors.npy"),
        )
        index_class = ExactIndex._kinds[kind]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise InputError(
            f"`path` must be a folder with an index. Received: {folder} "
            f"({error})"
        ) from error
    return index_class._restore(arrays, folder)


def _check_lengths(identifiers: np.ndarray, vectors: np.ndarray) -> None:
    if len(identifiers) != len(vectors):
        raise InputError(
            "`identifiers` and `vectors` must have the same length. "
            f"Received: {len(identifiers)} and {len(vectors)}"
        )


def check_vectors(
    name: str, vectors: np.ndarray, dim: int | None = None
) -> np.ndarray:
    """Returns vectors as float32, after checking them.

    Args:
        name: The argument's name, for the message.
        vectors: `[n, dim]` floats.
        dim: The length that they must have. Default: any.

    Raises:
        InputError: The shape does not fit, or a value is not finite in
            float32.
    """
    array = np.ascontiguousarray(vectors, np.float32)
    if array.ndim != 2 or (dim is not None and array.shape[1] != dim):
        raise InputError(
            f"`{name}` must have the shape [n, {dim or 'dim'}]. Received: "
            f"{array.shape}"
        )
    # The sum is not finite if a value is not: no array of flags is needed.
    with np.errstate(over="ignore", invalid="ignore"):
        suspect = ~np.isfinite(array.sum(axis=1))
    for row in np.flatnonzero(suspect):
        if not np.isfinite(array[row]).all():
            raise InputError(
                f"`{name}` must be finite. Received: NaN or infinite values "
                f"in row {row}"
            )
    return array
