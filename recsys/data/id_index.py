"""Where each of many strings is: an index made of arrays, not of objects."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_WORD_BYTES = 8


class IdIndex:
    """Finds strings in an array by their hashes, in sorted order.

    Args:
        ids: `[n]` strings; of equal ones any counts.
    """

    def __init__(self, ids: pa.StringArray) -> None:
        self._ids = ids
        hashes = string_hashes(ids)
        self._rows = np.argsort(hashes).astype(np.int32)
        self._hashes = hashes[self._rows]

    @property
    def may_repeat(self) -> bool:
        """Whether two ids may be equal; their hashes are."""
        return bool((self._hashes[1:] == self._hashes[:-1]).any())

    def find(self, values: pa.StringArray) -> np.ndarray:
        """Returns the row of each of `[m]` strings, -1 where there is none."""
        result = np.full(len(values), -1, np.int64)
        hashes = string_hashes(values)
        place = np.searchsorted(self._hashes, hashes)
        open_ = np.arange(len(values))
        # More than one round only where different ids have one hash.
        while True:
            inside = place[open_] < len(self._hashes)
            open_ = open_[inside]
            open_ = open_[self._hashes[place[open_]] == hashes[open_]]
            if not len(open_):
                return result
            rows = self._rows[place[open_]]
            same = pc.equal(self._ids.take(rows), values.take(open_))
            same = same.to_numpy(zero_copy_only=False)
            result[open_[same]] = rows[same]
            open_ = open_[~same]
            place[open_] += 1


def string_hashes(ids: pa.StringArray) -> np.ndarray:
    """Hashes strings, eight bytes at a time.

    Args:
        ids: `[n]` strings.

    Returns:
        `[n]` uint64.
    """
    _, offset_buffer, data_buffer = ids.buffers()
    if not len(ids):
        return np.zeros(0, np.uint64)
    offsets = np.frombuffer(offset_buffer, np.int32)
    offsets = offsets[ids.offset : ids.offset + len(ids) + 1].astype(np.int64)
    data = np.zeros(int(offsets[-1]) + _WORD_BYTES, np.uint8)
    if data_buffer is not None:
        data[: offsets[-1]] = np.frombuffer(data_buffer, np.uint8)[
            : offsets[-1]
        ]
    # The eight bytes from any byte on, as a number.
    words = np.ndarray(len(data) - _WORD_BYTES + 1, "<u8", data, strides=(1,))
    hashes = np.diff(offsets).astype(np.uint64)
    rows = np.arange(len(ids))
    begin, left = offsets[:-1], np.diff(offsets)
    while len(rows):
        word = words[begin]
        unused = np.maximum(_WORD_BYTES - left, 0).astype(np.uint64)
        # A shift by all 64 bits is not defined: an empty id has no word.
        unused = np.minimum(unused, np.uint64(_WORD_BYTES - 1))
        word = (word << (unused * np.uint64(8))) * (left > 0)
        hashes[rows] = mixed(hashes[rows] ^ word)
        more = left > _WORD_BYTES
        rows, begin, left = rows[more], begin[more], left[more]
        begin, left = begin + _WORD_BYTES, left - _WORD_BYTES
    return hashes


def mixed(values: np.ndarray) -> np.ndarray:
    """Mixes the bits of `[n]` uint64, by SplitMix64's finalizer.

    Steele, Lea and Flood 2014 (https://doi.org/10.1145/2660193.2660195).
    """
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(
        0xBF58476D1CE4E5B9
    )
    values = (values ^ (values >> np.uint64(27))) * np.uint64(
        0x94D049BB133111EB
    )
    return values ^ (values >> np.uint64(31))
