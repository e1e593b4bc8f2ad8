"""What may be recommended: allow-lists, filters, quotas and diversity."""

from __future__ import annotations

import csv
import dataclasses
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.data import input_files
from recsys.data.columns import is_list
from recsys.data.items import as_ids
from recsys.data.vocabulary import Vocabulary
from recsys.errors import InputError
from recsys.ids import FIRST_ITEM_INDEX, UNKNOWN_INDEX
from recsys.retrieval.exact import NO_ROW

# Numbers that are held at once while lists are chosen: 16 MB.
_NUMBERS_PER_BLOCK = 2**22

# Returns the best n of some queries, `[num_queries, n]` rows and scores, as
# `recsys.retrieval.top_k` does.
Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Rules:
    """Which items may be recommended, and what a list of them must look like.

    Rows are those of `Vocabulary.items`.

    Attributes:
        rows: `[n]` int64 rising rows, the only ones to recommend; None for
            all.
        groups: `[num_items, n]` int32, the groups that each item counts for,
            `num_groups` behind its last; None without quotas.
        limits: `[num_groups + 1]` int64, how many items of each group a list
            may have; the last is for the padding.
        diversity: From 0, by score alone, to 1; see `rank`.
        notes: Lines for the user: what was ignored, and what is left.
    """

    rows: np.ndarray | None = None
    groups: np.ndarray | None = None
    limits: np.ndarray | None = None
    diversity: float = 0.0
    notes: tuple[str, ...] = ()

    @classmethod
    def make(
        cls,
        vocabulary: Vocabulary,
        *,
        items: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        where: str | None = None,
        at_most: Mapping[str, int] | None = None,
        diversity: float = 0.0,
    ) -> Rules:
        """Makes the rules for the items of a model.

        Args:
            vocabulary: The items.
            items: Raw ids, text or integers, of the only items to recommend.
                Default: all items.
            exclude: Raw ids of items that are never recommended.
            where: A condition that items must match; see `matches`.
            at_most: For columns of the items, how many items of a list may
                have the same value there. An item counts for each value of a
                list; one without a value is not limited.
            diversity: How much a list avoids similar items, from 0 to 1; see
                `rank`.

        Raises:
            InputError: An argument is out of range or names an unknown
                column, or no item is left. Unknown ids are ignored, and
                counted in `notes`.
        """
        if not 0 <= diversity <= 1:
            raise InputError(
                f"`diversity` must be from 0 to 1. Received: {diversity}"
            )
        size = vocabulary.num_items
        allowed = np.ones(size, bool)
        notes = []
        for name, ids in (("items", items), ("exclude", exclude)):
            if ids is not None:
                texts = pa.array(map(str, ids), pa.string())
                indices = vocabulary.encode(texts)
                known = indices[indices != UNKNOWN_INDEX] - FIRST_ITEM_INDEX
                allowed &= np.isin(np.arange(size), known) == (name == "items")
                if len(known) < len(ids):
                    notes.append(
                        f"{len(ids) - len(known):,} of {len(ids):,} ids of "
                        f"`{name}` are unknown, ignored"
                    )
        if where is not None:
            found = matches(vocabulary, where)
            allowed &= found.fill_null(False).to_numpy(zero_copy_only=False)
            if found.null_count:
                notes.append(
                    "items without a value that `where` needs, never "
                    f"recommended: {found.null_count:,}"
                )
        rows = None
        if not allowed.all():
            rows = np.flatnonzero(allowed)
            notes.append(f"{len(rows):,} of {size:,} items may be recommended")
            if not len(rows):
                raise InputError(
                    "`items`, `exclude` and `where` must leave an item to "
                    f"recommend. Received: {'; '.join(notes)}"
                )
        groups, limits = _quotas(vocabulary, at_most)
        return cls(rows, groups, limits, diversity, tuple(notes))

    def rank(
        self,
        search: Search,
        queries: np.ndarray,
        k: int,
        vectors: np.ndarray,
        pool: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ranks the items that `search` finds, following the rules.

        Items are added one by one. The next is the best of those that no
        quota forbids: by score; or, with a diversity `d`, by maximal marginal
        relevance (Carbonell and Goldstein 1998,
        https://doi.org/10.1145/290941.291025, with lambda = 1 - d):

            (1 - d) * relevance(item) - d * max(cosine(item, listed))

        The relevance is the score, scaled to go from 0 to 1 over the pool;
        the cosine is that of the items' vectors, and 0 while nothing is
        listed. Where the quotas leave a list short of k, it is made again
        from a pool four times as large, until it is full or no items are
        left: so quotas alone give exactly the list that going through the
        whole ranking gives.

        Args:
            search: Finds the best of the items in `rows`, given queries.
            queries: `[num_queries]` int64, numbers of queries for `search`.
            k: Length of the lists.
            vectors: `[num_items, dim]` float32, the items' vectors.
            pool: How many of the best to choose from at first. Default: 5 k,
                and at least 100.

        Returns:
            `[num_queries, k]` int64 rows in the order of the list, -1 where
            none is left, and their float32 scores, -inf there.
        """
        if self.groups is None and not self.diversity:
            return search(queries, k)
        pool = min(pool or max(5 * k, 100), len(vectors))
        found = np.full((len(queries), k), NO_ROW, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        size = pool * vectors.shape[1]
        if self.groups is not None and self.limits is not None:
            size = max(size, pool * self.groups.shape[1], len(self.limits))
        step = max(_NUMBERS_PER_BLOCK // size, 1)
        for begin in range(0, len(queries), step):
            block = slice(begin, begin + step)
            rows, values = search(queries[block], pool)
            places = self._choose(rows, values, k, vectors)
            for out, source in ((found, rows), (scores, values)):
                chosen = np.take_along_axis(source, places, axis=1)
                out[block] = np.where(places < 0, out[block], chosen)
            short = begin + np.flatnonzero(
                (places[:, -1] < 0) & (rows[:, -1] >= 0)
            )
            if len(short) and pool < len(vectors):
                found[short], scores[short] = self.rank(
                    search, queries[short], k, vectors, 4 * pool
                )
        return found, scores

    def _choose(
        self, rows: np.ndarray, scores: np.ndarray, k: int, vectors: np.ndarray
    ) -> np.ndarray:
        """Returns `[num_queries, k]` places in `rows`; -1 behind the last."""
        each = np.arange(len(rows))
        left = rows >= 0
        first = np.where(left[:, :1], scores[:, :1], 0).astype(np.float64)
        value = relevance = np.where(left, scores, first)
        if self.diversity:
            last = value.min(axis=1, keepdims=True)
            span = np.maximum(first - last, 1e-12)
            value = relevance = (1 - self.diversity) * (value - last) / span
            units = vectors[rows]
            norms = np.linalg.norm(units, axis=2, keepdims=True)
            units /= np.maximum(norms, 1e-12)
            nearest = np.full(rows.shape, -np.inf)
        if self.groups is not None and self.limits is not None:
            groups = self.groups[rows]
            room = np.tile(self.limits, (len(rows), 1))
        places = np.full((len(rows), k), -1)
        for step in range(k):
            best = np.where(left, value, -np.inf).argmax(axis=1)
            places[:, step] = np.where(left[each, best], best, -1)
            if not left.any():
                break
            left[each, best] = False
            if self.diversity:
                cosines = np.einsum("qnd,qd->qn", units, units[each, best])
                nearest = np.maximum(nearest, cosines)
                value = relevance - self.diversity * nearest
            if self.groups is not None:
                room[each[:, np.newaxis], groups[each, best]] -= 1
                room[:, -1] = 1
                is_open = room[each[:, np.newaxis, np.newaxis], groups] > 0
                left &= is_open.all(axis=2)
        return places


def _quotas(
    vocabulary: Vocabulary, at_most: Mapping[str, int] | None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Returns `groups` and `limits` of `Rules`."""
    if not at_most:
        return None, None
    columns = item_columns(vocabulary)
    parts = []
    limits: list[int] = []
    for name, limit in at_most.items():
        if name not in columns or limit < 1:
            raise InputError(
                "`at_most` must give a number from 1 for columns of the items"
                f", {_names(columns)}. Received: {name}:{limit}"
            )
        column = columns[name]
        owners = np.arange(len(column))
        if is_list(column.type):
            owners = pc.list_parent_indices(column).to_numpy()
            column = pc.list_flatten(column)
        try:
            column = column.dictionary_encode()
        except pa.ArrowException as error:
            raise InputError(
                "`at_most` must name columns of text, numbers or lists of "
                f"them. Received: `{name}`, a column of {column.type}"
            ) from error
        codes = column.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        pairs = np.stack([owners, codes])[:, codes >= 0]
        # Once for each item, even where its list has a value twice.
        owners, codes = np.unique(pairs, axis=1)
        places = np.arange(len(owners)) - np.searchsorted(owners, owners)
        part = np.full((len(columns[name]), places.max(initial=0) + 1), -1)
        part[owners, places] = codes + len(limits)
        parts.append(part)
        limits += [limit] * len(column.dictionary)
    groups = np.concatenate(parts, axis=1).astype(np.int32)
    return np.where(groups < 0, len(limits), groups), np.array([*limits, 1])


def item_columns(vocabulary: Vocabulary) -> dict[str, pa.Array]:
    """Returns the columns that filters and quotas may name.

    They are those of `Vocabulary.items` and, where these have titles but no
    `year`, the year in parentheses at the end of a title.

    Args:
        vocabulary: The items.
    """
    columns = {}
    for name in vocabulary.items.column_names:
        column = vocabulary.items[name].combine_chunks()
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if is_list(column.type):
            column = column.cast(pa.list_(column.type.value_type))
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), None, column)
        columns[name] = column
    if "title" in columns and "year" not in columns:
        pattern = r"\((?P<year>\d{4})(?:[-–]\d{0,4})?\)\s*$"
        found = pc.extract_regex(columns["title"].cast(pa.string()), pattern)
        columns["year"] = pc.struct_field(found, "year").cast(pa.int32())
    return columns


def _names(columns: Mapping[str, object]) -> str:
    return ", ".join(f"`{name}`" for name in columns)


_TOKEN = re.compile(
    r"""(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    |(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.]))
    |(?P<sign>[<>!=]=|[<>=(),])
    |(?P<word>`[^`]+`|[^\W\d][\w.:/-]*)
    |(?P<end>$)""",
    re.VERBOSE,
)
_COMPARISONS = {
    "=": pc.equal,
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_KEYWORDS = ("and", "or", "not", "has", "in")


def matches(vocabulary: Vocabulary, where: str) -> pa.Array:
    """Evaluates a condition for every item.

    A condition is `COLUMN OPERATOR VALUE` with `=` (or `==`), `!=`, `<`, `<=`,
    `>` or `>=`; `COLUMN has VALUE` for a column of lists; or `COLUMN in
    (VALUE, …)` or `COLUMN not in (…)`. Conditions are joined by `and`, `or`,
    `not` and parentheses; `not` binds most tightly, then `and`. Values are
    numbers, text in single or double quotes (a backslash before a quote), or
    single words; columns whose names are not words are put in backquotes.

    Args:
        vocabulary: The items; see `item_columns` for their columns.
        where: The condition, such as `genres has Comedy and year >= 1990`.

    Returns:
        `[num_items]` boolean; null, which never matches, where it depends on
        a value that is missing.

    Raises:
        InputError: The condition is malformed, names an unknown column, or
            compares a column with a value of another type.
    """
    return _Parser(where, item_columns(vocabulary)).parse()


class _Parser:
    """Evaluates a condition while it is parsed."""

    def __init__(self, text: str, columns: dict[str, pa.Array]) -> None:
        self._columns = columns
        self._text = text
        self._kind, self._token, self._begin, self._end = "", "", 0, 0
        self._advance()

    def parse(self) -> pa.Array:
        """Returns the value of the whole condition."""
        try:
            found = self._any()
        except RecursionError as error:
            raise self._error("conditions that nest less deeply") from error
        if self._kind != "end":
            raise self._error("`and`, `or` or the end")
        return found

    def _advance(self) -> None:
        rest = self._text[self._end :]
        self._begin = self._end + len(rest) - len(rest.lstrip())
        match = _TOKEN.match(self._text, self._begin)
        self._token = match[0] if match else self._text[self._begin :]
        if match is None:
            raise self._error("a column, an operator or a value")
        self._kind, self._end = str(match.lastgroup), match.end()

    def _takes(self, *words: str) -> str:
        """Moves on if the token is one of some words; returns it if so."""
        token = self._token.lower()
        if self._kind not in ("sign", "word") or token not in words:
            return ""
        self._advance()
        return token

    def _error(self, expected: str) -> InputError:
        found = repr(self._token[:40]) if self._token else "the end"
        return InputError(
            f"`where` at character {self._begin + 1}: expected {expected}. "
            f"Received: {found}"
        )

    def _any(self) -> pa.Array:
        found = self._all()
        while self._takes("or"):
            found = pc.or_kleene(found, self._all())
        return found

    def _all(self) -> pa.Array:
        found = self._one()
        while self._takes("and"):
            found = pc.and_kleene(found, self._one())
        return found

    def _one(self) -> pa.Array:
        if self._takes("not"):
            return pc.invert(self._one())
        if not self._takes("("):
            return self._comparison()
        found = self._any()
        if not self._takes(")"):
            raise self._error("`)`, `and` or `or`")
        return found

    def _comparison(self) -> pa.Array:
        name = self._token.strip("`")
        if self._kind != "word" or name not in self._columns:
            raise self._error(f"one of the columns {_names(self._columns)}")
        self._advance()
        column = self._columns[name]
        kind = column.type
        what = f"for `{name}`, a column of {kind},"
        if is_list(kind):
            if not self._takes("has"):
                raise self._error(f"{what} `has`")
            value = self._value(kind.value_type, what)
            is_it = pc.equal(pc.list_flatten(column), value).fill_null(False)
            owners = pc.list_parent_indices(column).filter(is_it)
            found = np.isin(np.arange(len(column)), owners.to_numpy())
            return pa.array(found, mask=column.is_null().to_numpy(False))
        is_negated = bool(self._takes("not"))
        if self._takes("in"):
            sign = "(" if self._takes("(") else ""
            found = pa.scalar(False)
            while sign in ("(", ","):
                value = self._value(kind, what)
                found = pc.or_(found, pc.equal(column, value))
                sign = self._takes(",", ")")
            if not sign:
                raise self._error("a list such as `(1, 2)`")
            return pc.invert(found) if is_negated else found
        sign = "" if is_negated else self._takes(*_COMPARISONS)
        if not sign:
            raise self._error(f"{what} `in`, `=`, `!=`, `<`, `<=`, `>` or `>=`")
        value = self._value(kind, what, is_order=sign[0] in "<>")
        return _COMPARISONS[sign](column, value)

    def _value(
        self, kind: pa.DataType, what: str, *, is_order: bool = False
    ) -> pa.Scalar:
        """Takes a value that can be compared with a type."""
        token, is_number = self._token, self._kind == "number"
        if self._kind in ("sign", "end") or token.lower() in _KEYWORDS:
            raise self._error(f"{what} a value")
        if is_order and is_number and "string" in str(kind):
            raise self._error(f"{what} text in quotes")
        if self._kind == "text":
            token = re.sub(r"\\(.)", r"\1", token[1:-1])
        try:
            if is_number and pa.types.is_integer(kind):
                is_whole = token.lstrip("+-").isdigit()
                value = pa.scalar(int(token) if is_whole else float(token))
            else:
                value = pa.scalar(token).cast(kind)
            pc.equal(pa.nulls(0, kind), value)
        except (pa.ArrowException, OverflowError) as error:
            raise self._error(f"{what} such a value") from error
        self._advance()
        return value


def read_ids(path: pathlib.Path, is_known: Callable[[str], bool]) -> list[str]:
    """Reads a file of ids.

    Args:
        path: CSV, TSV or Parquet, of which the first column is read, or text
            with an id per line; blank lines and nulls are ignored.
        is_known: Whether an id is known. The first line of CSV is a header
            unless it begins with such an id.

    Returns:
        The ids, each once. Repetitions are counted on standard error.

    Raises:
        InputError: The file cannot be read or has no ids.
    """
    suffix = path.suffix.lower()
    with input_files.readable(path):
        if suffix == ".parquet":
            table = pq.ParquetFile(path)
            [first] = table.read(table.schema_arrow.names[:1]).columns
            ids = as_ids(first.drop_null(), path).to_pylist()
        else:
            ids = path.read_text("utf-8-sig").splitlines()
            if suffix in (".csv", ".tsv"):
                rows = csv.reader(ids, delimiter=",\t"[suffix == ".tsv"])
                ids = [row[0] for row in rows if row]
                ids = ids[not ids or not is_known(ids[0].strip()) :]
    found = [each for each in map(str.strip, ids) if each]
    if not found:
        raise InputError(f"{path}: expected ids. Received: none")
    distinct = list(dict.fromkeys(found))
    if len(distinct) < len(found):
        more = f"{len(found) - len(distinct):,} of {len(found):,} ids"
        print(f"{path}: {more} are repetitions, ignored", file=sys.stderr)
    return distinct
