"""The items of a log by index, raw id and title."""

from __future__ import annotations

import difflib
import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.errors import InputError
from recsys.files import atomic_path
from recsys.ids import FIRST_ITEM_INDEX, PADDING_INDEX, UNKNOWN_INDEX

_WORD_BYTES = 8
# Longer ids are hashed one by one.
_LONG_BYTES = 4096
# The key of a file's SHA-256 in its metadata, and what stands in for the
# value while it is computed.
_CHECKSUM = b"recsys.sha256"
_NO_CHECKSUM = b"0" * 64


class IdIndex:
    """Looks up strings in an array by their sorted hashes.

    Args:
        ids: `[n]` strings; any of several equal ones may be found.
    """

    def __init__(self, ids: pa.StringArray) -> None:
        self._ids = ids
        hashes = string_hashes(ids)
        self._rows = np.argsort(hashes).astype(np.int32)
        self._hashes = hashes[self._rows]

    @property
    def may_repeat(self) -> bool:
        """Whether two ids have the same hash and may be equal."""
        return bool((self._hashes[1:] == self._hashes[:-1]).any())

    def find(self, values: pa.StringArray) -> np.ndarray:
        """Returns the row of each of `[m]` strings, or -1 if it is missing."""
        result = np.full(len(values), -1, np.int64)
        hashes = string_hashes(values)
        place = np.searchsorted(self._hashes, hashes)
        open_ = np.arange(len(values))
        # More than one round only if different ids have the same hash.
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
    """Hashes strings, eight bytes of all of them at a time.

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
    # The eight bytes that start at each byte, as a number.
    words = np.ndarray(len(data) - _WORD_BYTES + 1, "<u8", data, strides=(1,))
    lengths = np.diff(offsets)
    hashes = lengths.astype(np.uint64)
    for row in np.flatnonzero(lengths > _LONG_BYTES):
        text = data[offsets[row] : offsets[row + 1]]
        digest = hashlib.blake2b(text.data, digest_size=_WORD_BYTES).digest()
        hashes[row] = int.from_bytes(digest, "little")
    rows = np.flatnonzero(lengths <= _LONG_BYTES)
    begin, left = offsets[:-1][rows], lengths[rows]
    while len(rows):
        word = words[begin]
        unused = np.maximum(_WORD_BYTES - left, 0).astype(np.uint64)
        # Shifting by all 64 bits is undefined: an empty id has no word.
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


_YEAR = re.compile(r"\s*\((\d{4})(?:[-–]\d{0,4})?\)$")
_IN_PARENTHESES = re.compile(r"\s*\(([^()]*)\)")
# GroupLens puts the article last: "Matrix, The (1999)".
_ARTICLE_LAST = re.compile(
    r"^(?P<rest>.+), (?P<article>the|an?|l[aeo]s?|l'|il|gli|i|el|un[ae]?|der|"
    r"die|das|den?|det|het|o|os|as)$"
)
_NAMED = re.compile(r"^(?:a\.?k\.?a\.?:?) ")


class TitleIndex:
    """Looks up titles as people write them.

    Args:
        titles: `[num_items]` str, or None for an item without a title.
    """

    def __init__(self, titles: Iterable[str | None]) -> None:
        self._full: dict[str, list[int]] = {}
        self._short: dict[str, list[int]] = {}
        for row, title in enumerate(titles):
            if title is None:
                continue
            full, *short = _forms(title)
            self._full.setdefault(full, []).append(row)
            for form in short:
                self._short.setdefault(form, []).append(row)

    def find(self, text: str) -> list[int]:
        """Returns the rows of all titles that the text matches."""
        full = next(_forms(text))
        return self._full.get(full) or self._short.get(full) or []

    def suggest(self, text: str, count: int = 5) -> list[int]:
        """Returns the rows of similar titles, the most similar first.

        Titles that contain the text go before titles with a similar
        spelling.

        Args:
            text: A title that `find` did not match.
            count: Maximum number of rows.
        """
        wanted = next(_forms(text))
        grams = _trigrams(wanted)
        candidates = []
        for forms in (self._full, self._short):
            for form, rows in forms.items():
                inside = len(wanted) > 2 and wanted in form
                # Shared trigrams first: comparing letters is slow.
                shared = len(grams & _trigrams(form))
                if inside or 3 * shared >= len(grams):
                    share = shared / (len(grams) + len(form))
                    candidates.append((-inside, -share, form, rows))
        candidates.sort()
        matcher = difflib.SequenceMatcher(b=wanted, autojunk=False)
        ranked = []
        for order, _, form, rows in candidates[:100]:
            matcher.set_seq1(form)
            ratio = matcher.ratio()
            if order or ratio >= 0.6:
                ranked.append((order, -ratio, form, rows))
        ranked.sort()
        closest = dict.fromkeys(row for *_, rows in ranked for row in rows)
        return list(closest)[:count]


def _forms(title: str) -> Iterator[str]:
    """Yields the spellings of a title: the full one, then shorter ones.

    "Postman, The (Postino, Il) (1994)" gives "the postman (il postino)
    (1994)", then each of "the postman (il postino)", "the postman (1994)",
    "the postman", "il postino (1994)" and "il postino".
    """
    text = " ".join(title.casefold().split())
    year = _YEAR.search(text)
    suffix = f" ({year[1]})" if year else ""
    text = _YEAR.sub("", text)
    main = _article_first(_IN_PARENTHESES.sub("", text)) or text
    others = [
        _article_first(_NAMED.sub("", name))
        for name in _IN_PARENTHESES.findall(text)
    ]
    full = main + "".join(f" ({name})" for name in others)
    forms = [full + suffix, full, main + suffix, main]
    for name in others:
        forms += [name + suffix, name]
    yield from dict.fromkeys(forms)


def _article_first(title: str) -> str:
    match = _ARTICLE_LAST.match(title)
    if not match:
        return title
    article = match["article"]
    return article + ("" if article.endswith("'") else " ") + match["rest"]


def _trigrams(text: str) -> set[str]:
    padded = f"  {text} "
    return {padded[start : start + 3] for start in range(len(padded) - 2)}


class Vocabulary:
    """Maps items to indices and back, and holds their metadata. Immutable.

    Index 0 is padding, index 1 the unknown item, and items start at 2: these
    are the rows of the item table.

    Args:
        item_ids: `[num_items]` str, the raw ids, all distinct.
        items: The item metadata: a column `item_id` and any others. Rows may
            be in any order, missing, or of other items.

    Raises:
        ValueError: An id is empty, or duplicated in `item_ids` or `items`.
    """

    def __init__(
        self,
        item_ids: Sequence[str] | np.ndarray | pa.Array,
        items: pa.Table | None = None,
    ) -> None:
        ids = _as_strings(item_ids, "item_ids")
        self._index = _checked(ids, "item_ids")
        columns = {"item_id": ids}
        if items is not None:
            known = _as_strings(items.column("item_id"), "items")
            # In a saved file, rows are aligned already.
            rows = None
            if not known.equals(ids):
                _checked(known, "items")
                rows = pc.index_in(ids, value_set=known)
            for name in items.column_names:
                if name != "item_id":
                    column = items.column(name).combine_chunks()
                    if rows is not None:
                        column = column.take(rows)
                    columns[name] = column
        self._items = pa.table(columns)
        self._ids = ids

    def with_column(self, name: str, values: np.ndarray) -> Vocabulary:
        """Returns the same items with another column, the last.

        Args:
            name: The column; replaces a column of the same name.
            values: `[num_items]`.
        """
        items = self._items
        if name in items.column_names:
            items = items.drop_columns([name])
        # The ids are checked and indexed already.
        other = Vocabulary.__new__(Vocabulary)
        other._ids, other._index = self._ids, self._index
        other._items = items.append_column(name, pa.array(values))
        return other

    @property
    def num_items(self) -> int:
        """Number of items."""
        return len(self._ids)

    @property
    def size(self) -> int:
        """Number of items including padding and unknown."""
        return self.num_items + FIRST_ITEM_INDEX

    @property
    def items(self) -> pa.Table:
        """The item metadata; row i has index i + 2."""
        return self._items

    @functools.cached_property
    def item_ids(self) -> np.ndarray:
        """`[num_items]` object array of str; item i has index i + 2."""
        return _as_objects(self._ids)

    @functools.cached_property
    def titles(self) -> np.ndarray | None:
        """`[num_items]` object array of str or None; None without titles."""
        if "title" not in self._items.column_names:
            return None
        column = self._items.column("title")
        if column.null_count == len(column):
            return None
        return _as_objects(column)

    def encode(
        self,
        ids: Sequence[str] | np.ndarray | pa.Array,
        *,
        strict: bool = False,
    ) -> np.ndarray:
        """Returns the indices of raw ids.

        Args:
            ids: str of any shape (integers are taken as decimal strings). An
                Arrow array is fastest.
            strict: Whether an unknown id is an error. By default it gets
                index 1.

        Returns:
            int32 of the same shape as `ids`.

        Raises:
            InputError: An id is unknown and `strict` is set, or an id is not
                valid text.
            TypeError: `ids` are not strings or integers.
        """
        if not isinstance(ids, pa.Array):
            ids = _as_array(ids)
        shape = (len(ids),) if isinstance(ids, pa.Array) else ids.shape
        values = _as_strings(ids, "ids")
        # Arrow hashes the whole vocabulary at each call, which pays off for
        # large queries only.
        if len(values) * 10 < self.num_items:
            rows = self._index.find(values)
        else:
            found = pc.index_in(values, value_set=self._ids)
            rows = found.fill_null(-1).to_numpy(zero_copy_only=False)
        indices = np.where(
            rows < 0, UNKNOWN_INDEX, rows + FIRST_ITEM_INDEX
        ).astype(np.int32)
        if strict and (indices == UNKNOWN_INDEX).any():
            missing = np.flatnonzero(indices == UNKNOWN_INDEX)
            unknown = [repr(values[int(row)].as_py()) for row in missing[:3]]
            raise InputError(
                f"every item id must be one of the {self.num_items} known "
                f"ones. Received {len(missing)} unknown: {', '.join(unknown)}"
                + (", …" if len(missing) > 3 else "")
            )
        return indices.reshape(shape)

    def indices_of(self, other: Vocabulary) -> np.ndarray:
        """Maps the indices of another vocabulary to those of this one.

        Args:
            other: The other vocabulary.

        Returns:
            `[other.size]` int32; items missing here map to the unknown item.
        """
        special = np.array([PADDING_INDEX, UNKNOWN_INDEX], np.int32)
        return np.concatenate([special, self.encode(other._ids)])

    def decode(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Returns the raw ids of indices.

        Args:
            indices: Integers of any shape, from 2 to `size` - 1.

        Returns:
            Object array of str of the same shape as `indices`.

        Raises:
            ValueError: An index is padding, unknown or out of range.
        """
        rows = np.asarray(indices)
        if not rows.size:
            return np.empty(rows.shape, object)
        if rows.dtype.kind not in "iu":
            raise TypeError(
                f"`indices` must be integers. Received dtype: {rows.dtype}"
            )
        bad = (rows < FIRST_ITEM_INDEX) | (rows >= self.size)
        if bad.any():
            raise ValueError(
                f"`indices` must be from {FIRST_ITEM_INDEX} to "
                f"{self.size - 1}. Received: {rows[bad].flat[0]}"
            )
        flat = pa.array(rows.ravel().astype(np.int64) - FIRST_ITEM_INDEX)
        return _as_objects(self._ids.take(flat)).reshape(rows.shape)

    def matching(self, text: str) -> list[int]:
        """Returns the indices of all items that an id or title names.

        Args:
            text: As for `find`.
        """
        index = int(self.encode([text])[0])
        if index != UNKNOWN_INDEX:
            return [index]
        titles = self._title_index
        rows = [] if titles is None else titles.find(text)
        return [row + FIRST_ITEM_INDEX for row in rows]

    def find(self, text: str) -> int:
        """Returns the index of an item by its id or title.

        An exact id goes first, then a title: in any case, with its article at
        the start or the end, and without its year or alternative names if
        that is unambiguous.

        Args:
            text: A raw item id or a title.

        Returns:
            The index.

        Raises:
            InputError: No item matches (similar titles are suggested), or
                several do (they are listed with their ids).
        """
        found = self.matching(text)
        if len(found) == 1:
            return found[0]
        titles = self._title_index
        if titles is None:
            raise InputError(
                f"an item must be named by one of the {self.num_items} known "
                f"ids (no titles are known). Received: {text!r}"
            )
        if found:
            rows = [index - FIRST_ITEM_INDEX for index in found[:10]]
            raise InputError(
                f"a title must name one item; name one of these by its id: "
                f"{self._list(rows)}. Received: {text!r}"
            )
        close = titles.suggest(text)
        raise InputError(
            "an item must be named by its id or title"
            + (f" (close: {self._list(close)})" if close else "")
            + f". Received: {text!r}"
        )

    def describe(self, index: int) -> str:
        """Returns the title of an item, or its id if it has none."""
        item_id = self.decode([index])[0]
        if self.titles is None:
            return item_id
        return self.titles[index - FIRST_ITEM_INDEX] or item_id

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a Parquet file; equal vocabularies give equal bytes."""
        with (
            atomic_path(pathlib.Path(path)) as temporary,
            temporary.open("wb") as stream,
        ):
            self.write(stream)

    def write(self, stream: IO[bytes]) -> None:
        """Writes the content of the file of `save` to a stream."""
        items = self._items.replace_schema_metadata(None).combine_chunks()
        written = pa.BufferOutputStream()
        with pq.ParquetWriter(
            written,
            items.schema,
            compression="zstd",
            # Arrow's copy of the schema would change in a round trip.
            store_schema=False,
            write_page_checksum=True,
        ) as writer:
            writer.write_table(items)
            writer.add_key_value_metadata({_CHECKSUM: _NO_CHECKSUM})
        content = written.getvalue().to_pybytes()
        begin = _checksum_place(content)
        stream.write(content[:begin])
        stream.write(hashlib.sha256(content).hexdigest().encode())
        stream.write(content[begin + len(_NO_CHECKSUM) :])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """Reads a file that `save` wrote.

        Raises:
            InputError: The file is missing, damaged, or not a vocabulary.
        """
        if not os.path.isfile(path):
            raise InputError(
                f"a vocabulary file must exist. Received: {os.fspath(path)}"
            )
        try:
            content = pathlib.Path(path).read_bytes()
            _check_checksum(content)
            table = pq.ParquetFile(
                pa.BufferReader(content), page_checksum_verification=True
            ).read()
            table.validate(full=True)
            table = table.replace_schema_metadata(None)
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{path}: expected a vocabulary in Parquet. Received: "
                + " ".join(str(error).split())
            ) from error
        if (
            "item_id" not in table.column_names
            or table.schema.field("item_id").type != pa.string()
        ):
            raise InputError(
                f"{path}: expected a vocabulary with a string column "
                f"`item_id`. Received columns: {table.column_names}"
            )
        try:
            return cls(table.column("item_id"), table)
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: {error}") from error

    @functools.cached_property
    def _title_index(self) -> TitleIndex | None:
        if self.titles is None:
            return None
        return TitleIndex(self.titles)

    def _list(self, rows: Sequence[int]) -> str:
        """Formats titles with their ids, for a message."""
        titles = self.items.column("title")
        return ", ".join(
            f"{titles[row].as_py()!r} (id {self.item_ids[row]})" for row in rows
        )


def _checksum_place(content: bytes) -> int:
    """Returns where a file holds its own checksum; -1 if it has none."""
    key = content.rfind(_CHECKSUM)
    # Between the key and the value stand the value's tag and length.
    begin = key + len(_CHECKSUM) + 2
    return -1 if key < 0 else begin


def _check_checksum(content: bytes) -> None:
    """Raises OSError if a file with a checksum has changed."""
    # Parquet's own do not cover what says how the values are to be read.
    begin = _checksum_place(content)
    if begin < 0:
        return
    end = begin + len(_NO_CHECKSUM)
    digest = hashlib.sha256(content[:begin])
    digest.update(_NO_CHECKSUM)
    digest.update(content[end:])
    if digest.hexdigest().encode() != content[begin:end]:
        raise OSError("its checksum differs: the file is damaged")


def _as_strings(
    ids: Sequence[str] | np.ndarray | pa.Array | pa.ChunkedArray, name: str
) -> pa.Array:
    """Returns ids of any shape as one flat Arrow array of strings."""
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks()
    if not isinstance(ids, pa.Array):
        values = _as_array(ids)
        if not values.size:
            return pa.array([], pa.string())
        if values.dtype.kind not in "OUiu":
            raise TypeError(
                f"`{name}` must be strings. Received dtype: {values.dtype}"
            )
        try:
            ids = pa.array(values.ravel())
        except UnicodeError as error:
            raise InputError(
                "an id must be text that UTF-8 can hold. "
                f"Received: {_no_text(values.ravel().tolist())!r}"
            ) from error
        except pa.ArrowException as error:
            raise TypeError(
                f"`{name}` must be strings. Received: {error}"
            ) from error
    if pa.types.is_integer(ids.type) or pa.types.is_large_string(ids.type):
        ids = ids.cast(pa.string())
    if ids.type != pa.string():
        raise TypeError(f"`{name}` must be strings. Received: {ids.type}")
    if ids.null_count:
        raise TypeError(f"`{name}` must be strings. Received: None")
    return ids


def _as_array(ids: Sequence[str] | np.ndarray) -> np.ndarray:
    # NumPy's own dtype of text pads every id to the length of the longest.
    return ids if isinstance(ids, np.ndarray) else np.asarray(ids, object)


def _no_text(values: list[object]) -> str:
    """Returns the first string with an unpaired surrogate."""
    return next(
        value
        for value in values
        if isinstance(value, str) and re.search("[\ud800-\udfff]", value)
    )


def _checked(ids: pa.Array, name: str) -> IdIndex:
    """Indexes ids; raises ValueError if one is empty or duplicated."""
    if pc.any(pc.equal(ids, "")).as_py():
        raise ValueError(f"`{name}` must not be empty. Received an empty id")
    index = IdIndex(ids)
    if index.may_repeat and pc.count_distinct(ids).as_py() != len(ids):
        counts = pc.value_counts(ids)
        twice = pc.greater(counts.field("counts"), 1)
        repeated = counts.field("values").filter(twice)[0].as_py()
        raise ValueError(
            f"`{name}` must hold each id once. Received twice: {repeated!r}"
        )
    return index


def _as_objects(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Returns an Arrow column as a read-only object array."""
    values = np.empty(len(column), object)
    values[:] = column.to_pylist()
    values.flags.writeable = False
    return values
