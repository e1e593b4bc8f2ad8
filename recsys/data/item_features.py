"""What is known of the items as arrays: values, weights and vectors.

A value of a column is a row of one table of values, whatever its column, so
that a model needs one lookup for all. A number becomes two values, the nearest
below and above it of some knots, weighted by how near: piecewise linear
(Gorishniy et al. 2022, https://arxiv.org/abs/2203.05556).
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data import feature_columns
from recsys.data.feature_columns import FeatureColumn
from recsys.errors import InputError

# Values of fewer items teach nothing about others.
MIN_COUNTS = {"categorical": 2, "multi": 2, "words": 3}
# Values of one item in one column, at most: the first ones.
MAX_VALUES = 24
_NUM_KNOTS = 16


@dataclasses.dataclass(frozen=True)
class EncodedItems:
    """Features of items; row i is the i-th item.

    Attributes:
        values: `[num_items, width]` int32 rows of the table of values, 0
            where there is none.
        weights: `[num_items, width]` float32, 0 where there is none. Of n
            values in one column each has 1 / √n, the two of a number add up
            to 1.
        vectors: `[num_items, vector_dim]` float32, zero where unknown; made
            elsewhere, with a mean of zero and a mean square length of 1.
    """

    values: np.ndarray
    weights: np.ndarray
    vectors: np.ndarray


class ItemEncoder:
    """Turns an items table into arrays, always with the same values.

    Made by `fit` or `load`.

    Args:
        columns: The features.
        states: What `fit` learned of each column: `values`, a list of strings;
            `knots`, rising numbers; or `mean`, numbers, and `scale`.
    """

    def __init__(
        self,
        columns: Sequence[FeatureColumn],
        states: Sequence[dict[str, Any]],
    ) -> None:
        self.columns = list(columns)
        self._states = list(states)

    @classmethod
    def fit(
        cls, items: pa.Table, columns: Sequence[FeatureColumn]
    ) -> ItemEncoder:
        """Finds the values of each column.

        Args:
            items: The items that a model is trained on. Values that only
                others have would stay untrained, so these do not belong here.
            columns: The features; see `feature_columns.parse_columns`.

        Returns:
            The encoder.

        Raises:
            InputError: A column is missing, its type does not fit its kind,
                or no value is frequent enough.
        """
        return cls(columns, [_fit(items, column) for column in columns])

    @property
    def num_values(self) -> int:
        """Rows of the table of values, with row 0, which none has."""
        return 1 + sum(map(_num_values, self._states))

    @property
    def vector_dim(self) -> int:
        """Length of the vectors of all columns together."""
        return sum(len(state.get("mean", ())) for state in self._states)

    @property
    def names(self) -> list[str]:
        """`[num_values]` names such as "genres=Drama", for people."""
        names = [""]
        for column, state in zip(self.columns, self._states, strict=True):
            known = state.get("values", [f"{k:g}" for k in _knots(state)])
            names += [f"{column.name}={value}" for value in known]
        return names

    def encode(self, items: pa.Table) -> EncodedItems:
        """Encodes items, whether or not `fit` saw them.

        Args:
            items: Any items table with the columns.

        Returns:
            Their features. A value that `fit` did not keep is left out.

        Raises:
            InputError: A column is missing, or its type does not fit.
        """
        none = np.zeros((len(items), 0), np.float32)
        parts, vectors = [(none.astype(np.int64), none)], [none]
        first = 1
        for column, state in zip(self.columns, self._states, strict=True):
            if "mean" in state:
                vectors.append(_encode_vectors(items, column, state))
                continue
            encode = _encode_numbers if "knots" in state else _encode_text
            values, weights = encode(items, column, state)
            parts.append((np.where(weights > 0, values + first, 0), weights))
            first += _num_values(state)
        values, weights = (
            np.concatenate(each, axis=1) for each in zip(*parts, strict=True)
        )
        # Each item's values to the front, in as few places as can be.
        order = np.argsort(weights == 0, axis=1, kind="stable")
        order = order[:, : np.count_nonzero(weights, axis=1).max(initial=0)]
        return EncodedItems(
            values=np.take_along_axis(values, order, 1).astype(np.int32),
            weights=np.take_along_axis(weights, order, 1).astype(np.float32),
            vectors=np.concatenate(vectors, axis=1),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a JSON file."""
        content = [
            {**dataclasses.asdict(column), **state}
            for column, state in zip(self.columns, self._states, strict=True)
        ]
        path = pathlib.Path(path)
        partial = path.with_name(path.name + ".partial")
        text = json.dumps({"columns": content}, ensure_ascii=False, indent=1)
        partial.write_text(text + "\n", "utf-8")
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ItemEncoder:
        """Reads what `save` wrote.

        Raises:
            InputError: The file is missing or of another kind.
        """
        try:
            content = json.loads(pathlib.Path(path).read_text("utf-8"))
            columns, states = [], []
            for entry in content["columns"]:
                fields = ("name", "kind", "separator")
                columns.append(FeatureColumn(*(entry.pop(f) for f in fields)))
                states.append(entry)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: expected the item features of a model, as JSON. "
                f"Received: {error}"
            ) from error
        return cls(columns, states)


def _fit(items: pa.Table, column: FeatureColumn) -> dict[str, Any]:
    if column.kind == "vector":
        found = feature_columns.vectors(items, column)
        known = found[~np.isnan(found).any(axis=1)]
        if len(known):
            mean = known.mean(axis=0, dtype=np.float64)
            scale = np.sqrt(np.mean(np.sum((known - mean) ** 2, axis=1)))
            return {"mean": mean.tolist(), "scale": float(scale) or 1.0}
    elif column.kind == "numeric":
        numbers = feature_columns.numbers(items, column)
        numbers = numbers[~np.isnan(numbers)]
        if len(numbers):
            shares = np.linspace(0, 1, _NUM_KNOTS)
            knots = np.unique(np.quantile(numbers, shares))
            return {"knots": knots.tolist()}
    else:
        lists = feature_columns.text_values(items, column)
        _, values = _flatten(lists)
        counted = pc.value_counts(values)
        counts = counted.field("counts").to_numpy()
        kept = counted.field("values").filter(
            pa.array(counts >= MIN_COUNTS[column.kind])
        )
        if len(kept):
            return {"values": sorted(kept.to_pylist())}
    raise InputError(
        f"item feature `{column.name}` must tell items apart. Received: "
        f"no value that enough of {len(items):,} items have"
    )


def _flatten(lists: pa.ListArray) -> tuple[np.ndarray, pa.Array]:
    """Returns each row's distinct values, and their rows."""
    values = pc.utf8_trim_whitespace(lists.flatten())
    # Not Arrow's parent indices, which count what may lie under a null.
    lengths = pc.list_value_length(lists).fill_null(0).to_numpy()
    rows = np.repeat(np.arange(len(lists)), lengths)
    coded = values.dictionary_encode()
    codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    # Null and empty strings are no values; one twice is one.
    codes = np.where(pc.equal(values, "").fill_null(True), -1, codes)
    keys = rows * (len(coded.dictionary) + 1) + codes
    _, first = np.unique(keys, return_index=True)
    kept = np.sort(first[codes[first] >= 0])
    return rows[kept], values.take(pa.array(kept))


def _encode_text(
    items: pa.Table, column: FeatureColumn, state: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns `[num_items, width]` values from 0, and weights."""
    rows, values = _flatten(feature_columns.text_values(items, column))
    known = pa.array(state["values"], pa.string())
    found = pc.index_in(values, value_set=known).fill_null(-1).to_numpy()
    rows, found = rows[found >= 0], found[found >= 0]
    # The place of each value within its row.
    starts = np.searchsorted(rows, rows, "left")
    place = np.arange(len(rows)) - starts
    rows, found, place = (
        each[place < MAX_VALUES] for each in (rows, found, place)
    )
    counts = np.bincount(rows, minlength=len(items))
    shape = (len(items), int(counts.max(initial=0)))
    padded, weights = np.zeros(shape, np.int64), np.zeros(shape)
    padded[rows, place] = found
    weights[rows, place] = 1 / np.sqrt(counts[rows])
    return padded, weights


def _encode_numbers(
    items: pa.Table, column: FeatureColumn, state: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns `[num_items, 2]` knots from 0, and weights."""
    knots = np.array(state["knots"])
    numbers = feature_columns.numbers(items, column)
    known = ~np.isnan(numbers)
    # Beyond the knots an item is at the last.
    place = np.interp(np.where(known, numbers, 0), knots, np.arange(len(knots)))
    below = np.floor(place).astype(np.int64)
    share = place - below
    values = np.stack([below, np.minimum(below + 1, len(knots) - 1)], axis=1)
    weights = np.stack([1 - share, share], axis=1)
    return values, weights * known[:, np.newaxis]


def _encode_vectors(
    items: pa.Table, column: FeatureColumn, state: dict[str, Any]
) -> np.ndarray:
    found = feature_columns.vectors(items, column)
    mean = np.array(state["mean"], np.float32)
    if found.shape[1] != len(mean):
        raise InputError(
            f"item feature `{column.name}` must hold vectors of length "
            f"{len(mean)}. Received length: {found.shape[1]}"
        )
    scaled = (found - mean) / np.float32(state["scale"])
    return np.nan_to_num(scaled, nan=0.0)


def _knots(state: dict[str, Any]) -> list[float]:
    return state.get("knots", [])


def _num_values(state: dict[str, Any]) -> int:
    return len(state.get("values", ())) + len(_knots(state))
