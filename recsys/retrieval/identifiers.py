"""Candidates by identifier and by row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from recsys.errors import InputError


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
