"""An index of candidates that is searched exactly."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from recsys.errors import InputError
from recsys.retrieval import exact


class Identifiers:
    """Identifiers of candidates, all strings or all integers.

    Args:
        values: `[num_candidates]`, all different.

    Raises:
        InputError: They are of another type, or one is there twice.
    """

    def __init__(self, values: Sequence[str] | Sequence[int] | np.ndarray):
        self.values = as_array(values)
        self._rows: dict[str | int, int] | None = None
        if len(np.unique(self.values)) != len(self.values):
            kept, counts = np.unique(self.values, return_counts=True)
            raise InputError(
                "`identifiers` must differ. Received twice: "
                f"{kept[counts > 1][0].item()!r}"
            )

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, values: Iterable[str | int]) -> np.ndarray:
        """Returns the int64 rows of identifiers, -1 for what is none."""
        if self._rows is None:
            # Made when it is first needed: it is large, and searching alone
            # needs none.
            ids = self.values.tolist()
            self._rows = dict(zip(ids, range(len(ids)), strict=True))
        return np.array([self._rows.get(v, -1) for v in values], np.int64)

    def strict_rows(self, values: Iterable[str | int]) -> np.ndarray:
        """Returns the int64 rows of identifiers.

        Raises:
            InputError: There is no such candidate.
        """
        values = list(values)
        rows = self.rows(values)
        if (rows < 0).any():
            unknown = values[int(np.argmax(rows < 0))]
            raise InputError(
                "`identifiers` must be of candidates. Received an unknown "
                f"one: {unknown!r}"
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


def as_array(
    values: Sequence[str] | Sequence[int] | np.ndarray,
    others: np.ndarray | None = None,
) -> np.ndarray:
    """Returns identifiers as a flat array of int64 or of strings.

    Args:
        values: The identifiers.
        others: Some of the same type, which an empty list does not tell.

    Raises:
        InputError: They are neither all strings nor all integers.
    """
    array = np.asarray(values)
    if others is not None and array.shape == (0,):
        return others[:0]
    # NumPy makes text of everything when there is some text.
    is_text = array.dtype.kind in "OU" and all(
        isinstance(value, str) for value in values
    )
    if array.ndim == 1 and is_text:
        return array.astype(np.str_)
    if array.ndim == 1 and array.dtype.kind in "iu":
        return array.astype(np.int64)
    raise InputError(
        "`identifiers` must be all strings or all integers, in one "
        f"dimension. Received dtype {array.dtype}, shape {array.shape}"
    )


# Room for candidates to come, as a share of those that are there.
_SPARE = 0.25


@dataclasses.dataclass(frozen=True)
class TopK:
    """The candidates found for each query.

    Attributes:
        identifiers: `[num_queries, k]`, best first; behind a query's last,
            an empty string or -1.
        scores: `[num_queries, k]` float32 dot products; -inf there.
        counts: `[num_queries]` int64: how many were found. Fewer than k when
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
    """Candidates that are searched by comparing with every one.

    Args:
        identifiers: `[num_candidates]` strings or integers, all different.
        vectors: `[num_candidates, dim]` floats.

    Raises:
        InputError: An identifier is there twice, a vector has a NaN or an
            infinite value, or the numbers of both differ.
    """

    kind = "exact"

    def __init__(
        self,
        identifiers: Sequence[str] | Sequence[int] | np.ndarray,
        vectors: np.ndarray,
    ) -> None:
        self._identifiers = Identifiers(identifiers)
        vectors = check_vectors("vectors", vectors)
        if len(vectors) != len(self._identifiers):
            raise InputError(
                "`identifiers` and `vectors` must be as many. Received: "
                f"{len(self._identifiers)} and {len(vectors)}"
            )
        self._table = tf.Variable(vectors, shape=[None, vectors.shape[1]])

    @property
    def identifiers(self) -> np.ndarray:
        """`[num_candidates]`, in the order of the rows of a mask."""
        return self._identifiers.values

    @property
    def vectors(self) -> np.ndarray:
        """`[num_candidates, dim]` float32."""
        return self._candidates().numpy()

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
        """Finds the best candidates of each query.

        Args:
            queries: `[num_queries, dim]` floats.
            k: How many for each, from 1.
            exclusions: For each query, the identifiers that it may not get;
                those that are no candidates are passed over. Default: none.
            mask: `[num_candidates]` bool: the candidates of all queries, in
                the order of `identifiers`. Default: all.

        Returns:
            The candidates; of equal scores the lower row comes first. A list
            is shorter than k only when no more candidates are left.

        Raises:
            InputError: An argument does not fit the index, or a query has a
                NaN or an infinite value.
        """
        queries = check_vectors("queries", queries, self._dim)
        if k < 1:
            raise InputError(f"`k` must be at least 1. Received: {k}")
        found, scores = self._search(
            queries,
            k,
            self._excluded_rows(exclusions, len(queries)),
            self._allowed_rows(mask),
        )
        ids = self.identifiers
        nothing = "" if ids.dtype.kind == "U" else -1
        is_there = found >= 0
        named = np.full(found.shape, nothing, ids.dtype)
        named[is_there] = ids[found[is_there]]
        return TopK(named, scores, np.count_nonzero(is_there, axis=1))

    def similar(
        self,
        identifiers: Sequence[str] | Sequence[int] | np.ndarray,
        k: int,
        *,
        mask: np.ndarray | None = None,
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
        rows = self._identifiers.strict_rows(ids)
        vectors = tf.gather(self._table, rows).numpy()
        return self.top_k(vectors, k, exclusions=[[i] for i in ids], mask=mask)

    def mask(
        self, identifiers: Sequence[str] | Sequence[int] | np.ndarray
    ) -> np.ndarray:
        """Makes the mask of an allow-list.

        Args:
            identifiers: Of the candidates to allow.

        Returns:
            `[num_candidates]` bool.

        Raises:
            InputError: An identifier is unknown.
        """
        mask = np.zeros(len(self), bool)
        ids = as_array(identifiers, self.identifiers).tolist()
        mask[self._identifiers.strict_rows(ids)] = True
        return mask

    def update(
        self,
        identifiers: Sequence[str] | Sequence[int] | np.ndarray,
        vectors: np.ndarray,
    ) -> None:
        """Adds candidates, and replaces the vectors of those that are there.

        New candidates get the rows behind the others.

        Args:
            identifiers: `[n]`, all different, of the type of the others.
            vectors: `[n, dim]` floats.

        Raises:
            InputError: As for the constructor; nothing is changed then.
        """
        ids = Identifiers(as_array(identifiers, self.identifiers)).values
        vectors = check_vectors("vectors", vectors, self._dim)
        if len(ids) != len(vectors):
            raise InputError(
                "`identifiers` and `vectors` must be as many. Received: "
                f"{len(ids)} and {len(vectors)}"
            )
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
            path: The folder; made where it is missing.
        """
        folder = pathlib.Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        # The description comes last: without it there is no index.
        description = folder / "index.json"
        description.unlink(missing_ok=True)
        np.save(folder / "identifiers.npy", self.identifiers)
        np.save(folder / "vectors.npy", self.vectors)
        about = {"kind": self.kind, **self._save_more(folder)}
        description.write_text(json.dumps(about) + "\n", "utf-8")

    def _save_more(self, folder: pathlib.Path) -> dict[str, Any]:
        """Writes what a subclass has beside the vectors; describes it."""
        return {}

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
        capacity = int(self._table.shape[0] or tf.shape(self._table)[0])
        if needed > capacity:
            room = int(needed * (1 + _SPARE)) - size
            spare = tf.zeros([room, self._dim])
            self._table.assign(tf.concat([self._table[:size], spare], 0))
        self._table.scatter_nd_update(rows[:, np.newaxis], vectors)

    def _candidates(self) -> tf.Tensor:
        return self._table[: len(self)]

    @property
    def _dim(self) -> int:
        return self._table.shape[1]

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
        lengths = np.array(list(map(len, lists)), np.int64)
        owners = np.repeat(np.arange(num_queries), lengths)[rows >= 0]
        counts = np.bincount(owners, minlength=num_queries)
        return rows[rows >= 0], np.append(0, np.cumsum(counts))

    def _allowed_rows(self, mask: np.ndarray | None) -> np.ndarray | None:
        """Returns the rising rows that a mask leaves."""
        if mask is None:
            return None
        mask = np.asarray(mask)
        if mask.dtype != bool or mask.shape != (len(self),):
            raise InputError(
                f"`mask` must be bool of shape ({len(self)},), one entry per "
                f"candidate. Received: {mask.dtype} of shape {mask.shape}"
            )
        return np.flatnonzero(mask)


def check_vectors(
    name: str, vectors: np.ndarray, dim: int | None = None
) -> np.ndarray:
    """Returns vectors as float32 that can be compared.

    Args:
        name: What the message calls them.
        vectors: `[n, dim]` floats.
        dim: How long they must be. Default: any length.

    Raises:
        InputError: The shape does not fit, or a value is not finite.
    """
    array = np.ascontiguousarray(vectors, np.float32)
    if array.ndim != 2 or (dim is not None and array.shape[1] != dim):
        raise InputError(
            f"`{name}` must have the shape [n, {dim or 'dim'}]. Received: "
            f"{array.shape}"
        )
    # The sum is not finite when any value is not: no array of flags needed.
    with np.errstate(over="ignore", invalid="ignore"):
        suspect = ~np.isfinite(array.sum(axis=1))
    for row in np.flatnonzero(suspect):
        if not np.isfinite(array[row]).all():
            raise InputError(
                f"`{name}` must be finite. Received: NaN or infinite values "
                f"in row {row}"
            )
    return array
