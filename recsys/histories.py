"""Recommendations for many histories, in constant memory.

The histories are those of a file, or of the users of a log.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from recsys import files
from recsys.data.prepare import counted
from recsys.data.sequences import Sequences, offsets_of
from recsys.data.shards import to_sequences, to_table
from recsys.data.side_information import Request, Side
from recsys.data.vocabulary import Vocabulary
from recsys.errors import InputError
from recsys.ids import FIRST_ITEM_INDEX, UNKNOWN_INDEX
from recsys.reranking import Rules

if TYPE_CHECKING:
    from recsys.recommender import Recommender

# Histories that are read, encoded and written together: many, because short
# and long ones are encoded in separate batches; but no more than have so many
# items between them, or get so many.
_LINES_PER_CHUNK = 8192
_ITEMS_PER_CHUNK = 2**20
# Not by isinstance: True would pass as an integer.
_STRINGS = frozenset({str})
_IDS = frozenset({str, int})
_EXPECTED = 'expected {"query_id": "…", "history": ["item id", …]}'

# Ids, flat items and offsets, dislikes, which histories of a file lack, and
# what else is known; and what they get: ids, items and scores.
_Chunk = tuple[
    list[str],
    np.ndarray,
    np.ndarray,
    tuple[np.ndarray, np.ndarray] | None,
    Side | None,
]
# A query's history: ids, or a request where more is known.
_History = list[str] | Request
_Answer = tuple[list[str], np.ndarray, np.ndarray]


@dataclasses.dataclass
class Summary:
    """What was found in histories.

    Attributes:
        num_queries: Histories.
        num_unknown: Ids in the histories that the model does not know.
        num_with_unknown: Histories with such an id.
        num_without_known: Histories that are empty or have only such ids.
        num_short: Lists with fewer than k items.
        num_lacking: Histories without some of the features that the model
            reads.
        num_unseen: Values of features that training has not seen.
        seconds: The time that it took.
    """

    num_queries: int = 0
    num_unknown: int = 0
    num_with_unknown: int = 0
    num_without_known: int = 0
    num_short: int = 0
    num_lacking: int = 0
    num_unseen: int = 0
    seconds: float = 0.0

    def text(self, k: int) -> str:
        """Returns lines for the user.

        Args:
            k: How many items were asked for.
        """
        rate = self.num_queries / max(self.seconds, 1e-9)
        lines = [
            f"{counted(self.num_queries, 'history')} in {self.seconds:.1f} s "
            f"({rate:,.0f} a second)"
        ]
        if self.num_unknown:
            lines.append(
                f"{counted(self.num_unknown, 'unknown id')} in "
                f"{counted(self.num_with_unknown, 'history')}, ignored"
            )
        if self.num_without_known:
            lines.append(
                f"{counted(self.num_without_known, 'history')} without a known "
                "item got the most popular items, scored by their interactions"
            )
        if self.num_lacking:
            lines.append(
                f"{counted(self.num_lacking, 'history')} without some of the "
                "features that the model reads, which count as unknown"
            )
        if self.num_unseen:
            lines.append(
                f"{counted(self.num_unseen, 'value')} of features that are "
                "new to the model, ignored"
            )
        if self.num_short:
            lines.append(
                f"{counted(self.num_short, 'list')} with fewer than k={k} "
                "items, because no more were left"
            )
        return "\n".join(lines)


def check_files(histories: pathlib.Path | None, output: pathlib.Path) -> None:
    """Checks the paths before the slow part.

    Args:
        histories: The file to read, if any.
        output: The file to write.

    Raises:
        InputError: One of them cannot be used.
    """
    if histories and (not histories.exists() or histories.is_dir()):
        raise InputError(
            f"--histories must be a file. Received: {str(histories)!r}"
        )
    if not files.may_be_file(output):
        raise InputError(
            "--output must be a file in a folder that exists. Received: "
            f"{str(output)!r}"
        )
    if output.suffix.lower() in _NO_JSON:
        raise InputError(
            "--output must be a .csv or .parquet file, or one of JSON lines. "
            f"Received: {str(output)!r}"
        )
    if histories and output.exists() and output.samefile(histories):
        raise InputError(
            "--output must be another file than --histories. Received: "
            f"{str(output)!r} for both"
        )


# Nobody expects plain JSON lines in files of these names.
_NO_JSON = (
    ".gz",
    ".zip",
    ".bz2",
    ".zst",
    ".tsv",
    ".xlsx",
    ".feather",
    ".arrow",
)
# What is asked for: a file of histories; histories of raw ids, oldest first, by
# the id of the query; or users, read by functions as those of
# `recsys.data.prepare.user_histories`.
Asked = (
    pathlib.Path | Mapping[str, _History] | Sequence[Callable[[], Sequences]]
)


def recommend_file(
    recommender: Recommender,
    asked: Asked,
    output: pathlib.Path,
    k: int,
    *,
    exclude_history: bool = True,
    rules: Rules | None = None,
    context: Mapping[str, Any] | None = None,
) -> Summary:
    """Writes recommendations for every line of a file, or for users.

    Args:
        recommender: The model.
        asked: Of a file, each line is a query: JSON, `{"query_id": "…",
            "history": ["item id", …]}`, or ids separated by blanks, oldest
            first. A query without an id gets the number of its line. The
            first line that is not blank decides which of the two the file is;
            a blank line is ignored in JSON and an empty history otherwise.
        output: Written when all are answered, in the same order. A `.csv` or
            `.parquet` file gets the rows of `recommend_table`; any other a
            line of JSON per query, `{"query_id", "items", "scores"}`.
        k: How many items for each query, at most.
        exclude_history: Whether items of a history are excluded.
        rules: Which items may be recommended, and in which order. Default:
            all, by score.
        context: What is known of requests that say nothing of it themselves,
            by the names of the features, and their "time".

    Returns:
        What was found.

    Raises:
        InputError: A line is malformed, or the log cannot be read.
        FloatingPointError: A score is NaN or infinite.
        OSError: A file could not be read or written.
    """
    began = time.perf_counter()
    with _open_output(output) as out:
        arguments = (k, exclude_history, rules, context)
        summary = write(out, output.suffix, recommender, asked, *arguments)
    summary.seconds = time.perf_counter() - began
    return summary


def recommend_table(
    recommender: Recommender,
    asked: Asked,
    k: int,
    *,
    exclude_history: bool = True,
    rules: Rules | None = None,
    context: Mapping[str, Any] | None = None,
) -> tuple[pa.Table, Summary]:
    """Returns recommendations as a table.

    Args:
        recommender: The model.
        asked: As for `recommend_file`, and the following.
        k: How many items for each query, at most.
        exclude_history: Whether items of a history are excluded.
        rules: Which items may be recommended, and in which order.
        context: As for `recommend_file`.

    Returns:
        A row for each item, with columns `user` or `query_id`, `rank` (from
        1), `item`, `score` (float32) and `title`, the raw id where no title
        is known; and what was found.

    Raises:
        As for `recommend_file`.
    """
    began = time.perf_counter()
    tables, summary = _tables(
        recommender, asked, k, exclude_history, rules, context
    )
    table = pa.concat_tables(tables)
    summary.seconds = time.perf_counter() - began
    return table, summary


def users_of(
    parts: Iterable[Callable[[], Sequences]], user_ids: Sequence[str]
) -> Sequences:
    """Reads the histories of some users.

    Args:
        parts: Read the histories of some users each.
        user_ids: The raw ids of the users, in the order wanted.

    Raises:
        InputError: A user has no interactions in the log.
    """
    wanted = pa.array(user_ids, pa.string())
    tables = []
    for part in parts:
        table = to_table(part())
        tables.append(table.filter(pc.is_in(table["user_id"], wanted)))
    table = pa.concat_tables(tables)
    rows = pc.index_in(wanted, table["user_id"])
    if rows.null_count:
        missing = wanted.filter(rows.is_null())
        raise InputError(
            "users must have interactions in the log that the filters leave. "
            f"Received {len(missing):,} without: "
            + ", ".join(map(repr, missing[:3].to_pylist()))
            + (", …" if len(missing) > 3 else "")
        )
    return to_sequences(table.take(rows))


def _user_chunks(
    recommender: Recommender,
    parts: Iterable[Callable[[], Sequences]],
    context: Mapping[str, Any],
    largest: int,
    summary: Summary,
) -> Iterator[_Chunk]:
    """Yields many users at a time."""
    for part in parts:
        users = part()
        for begin in range(0, users.num_users, largest):
            rows = np.arange(begin, min(begin + largest, users.num_users))
            some = users.select(rows)
            side = recommender.side_of_users(some, context)
            _count(summary, some.items, some.lengths, side)
            no = some.dislikes
            lists = (no.items, no.offsets) if no else None
            if recommender.side and recommender.side.lacks_context(context):
                summary.num_lacking += some.num_users
            yield some.user_ids.tolist(), some.items, some.offsets, lists, side


def _answers(
    summary: Summary,
    recommender: Recommender,
    asked: Asked,
    k: int,
    exclude_history: bool,
    rules: Rules | None,
    context: Mapping[str, Any] | None,
) -> Iterator[_Answer]:
    """Yields the ids, and the indices and scores of their lists."""
    vocabulary = recommender.vocabulary
    num_listed = min(k, vocabulary.num_items)
    largest = min(_LINES_PER_CHUNK, max(_ITEMS_PER_CHUNK // num_listed, 1))
    if isinstance(asked, pathlib.Path | Mapping):
        queries: Iterable[tuple[str, _History]]
        if isinstance(asked, pathlib.Path):
            queries = _read_file(asked)
        else:
            queries = asked.items()
        if context:
            queries = _with_context(queries, context)
        chunks = _chunks(recommender, queries, largest, summary)
    else:
        chunks = _user_chunks(
            recommender, asked, context or {}, largest, summary
        )
    for names, items, offsets, dislikes, side in _ahead(chunks):
        found, scores = recommender.recommend_indices(
            items,
            offsets,
            k,
            exclude_history=exclude_history,
            dislikes=dislikes,
            rules=rules,
            side=side,
        )
        if not np.isfinite(scores[found > 0]).all():
            raise FloatingPointError(
                "the model's scores must be finite. Received: NaN or infinity"
            )
        summary.num_short += int(np.count_nonzero((found > 0).sum(1) < k))
        yield names, found, scores


def _with_context(
    queries: Iterable[tuple[str, _History]], context: Mapping[str, Any]
) -> Iterator[tuple[str, _History]]:
    """Gives a context to queries that have none."""
    for name, history in queries:
        if not isinstance(history, Request):
            history = Request.of(history)
        if not history.context:
            history = dataclasses.replace(history, context=context)
        yield name, history


def _read_file(path: pathlib.Path) -> Iterator[tuple[str, _History]]:
    with path.open("rb") as lines:
        yield from read_queries(lines, str(path))


def _chunks(
    recommender: Recommender,
    queries: Iterable[tuple[str, _History]],
    largest: int,
    summary: Summary,
) -> Iterator[_Chunk]:
    """Yields many queries at a time."""
    names: list[str] = []
    histories: list[_History] = []
    num_items = 0
    for name, history in queries:
        size = len(history.items if isinstance(history, Request) else history)
        if len(names) == largest or (
            names and num_items + size > _ITEMS_PER_CHUNK
        ):
            yield _encoded(recommender, names, histories, summary)
            names, histories, num_items = [], [], 0
        names.append(name)
        histories.append(history)
        num_items += size
    if names:
        yield _encoded(recommender, names, histories, summary)


def _ahead(chunks: Iterator[_Chunk]) -> Iterator[_Chunk]:
    """Reads the next chunk while the previous one is answered."""
    with futures.ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, chunks, None)
        while chunk := coming.result():
            coming = reader.submit(next, chunks, None)
            yield chunk


def read_queries(
    lines: Iterable[bytes], source: str
) -> Iterator[tuple[str, _History]]:
    """Reads queries one by one.

    Args:
        lines: The lines of the file.
        source: Its name, for error messages.

    Yields:
        The query's id, and the ids of its history or a request.

    Raises:
        InputError: A line is malformed.
    """
    is_json = None
    num_blank = 0
    for number, line in enumerate(lines, start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        text = line.strip()
        if is_json is None:
            if not text:
                num_blank += 1
                continue
            is_json = text[:1] in b'{["'
            if not is_json:
                # So the blank lines so far were empty histories.
                yield from ((str(n + 1), []) for n in range(num_blank))
        if not is_json:
            yield str(number), _decoded(text, source, number).split()
        elif text:
            yield _parse(text, source, number)
    if is_json is None:
        yield from ((str(n + 1), []) for n in range(num_blank))


def _decoded(text: bytes, source: str, number: int) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{source}:{number}: expected UTF-8. Received: {text[:40]!r}"
        ) from error


def _parse(text: bytes, source: str, number: int) -> tuple[str, _History]:
    """Reads a line of JSON."""
    try:
        query = json.loads(text)
        history = query["history"]
        query_id = query.get("query_id", number)
    except (
        ValueError,  # Also numbers of thousands of digits.
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
    ) as error:
        raise _malformed(text, source, number) from error
    if type(history) is not list:
        raise _malformed(text, source, number)
    if type(query_id) not in _IDS:
        raise _malformed(text, source, number)
    if any(query.get(name) for name in ("user", "context")) or any(
        type(entry) is dict for entry in history
    ):
        given = (history, query.get("user"), query.get("context"))
        try:
            request = Request.of(*given)
            "".join([str(query_id), *request.items]).encode()
        except (InputError, UnicodeEncodeError) as error:
            raise InputError(f"{source}:{number}: {error}") from error
        return str(query_id), request
    # Nearly all ids are strings; others are checked one by one.
    if not _STRINGS.issuperset(map(type, history)):
        if not _IDS.issuperset(map(type, history)):
            raise _malformed(text, source, number)
        history = [str(item) for item in history]
    query_id = str(query_id)
    try:
        # JSON can spell half of a surrogate pair, which is not text.
        "".join([query_id, *history]).encode()
    except UnicodeEncodeError as error:
        raise _malformed(text, source, number) from error
    return query_id, history


def _malformed(text: bytes, source: str, number: int) -> InputError:
    received = text[:80].decode(errors="replace")
    return InputError(
        f"{source}:{number}: {_EXPECTED} with strings or integers as ids. "
        f"Received: {received}" + ("…" if len(text) > 80 else "")
    )


def _encoded(
    recommender: Recommender,
    names: list[str],
    histories: list[_History],
    summary: Summary,
) -> _Chunk:
    """Encodes queries, and counts what is not known in the summary."""
    requests = None
    if any(isinstance(each, Request) for each in histories):
        requests = [
            each if isinstance(each, Request) else Request.of(each)
            for each in histories
        ]
        histories = [list(each.items) for each in requests]
    lists = [each for each in histories if isinstance(each, list)]
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    ids = list(itertools.chain.from_iterable(lists))
    items = recommender.vocabulary.encode(pa.array(ids, pa.string()))
    side = None
    if requests is not None:
        side, num_lacking, unseen = recommender.side_of(requests)
        summary.num_lacking += num_lacking
        summary.num_unseen += sum(unseen.values())
    elif recommender.side is not None:
        summary.num_lacking += len(names)
    _count(summary, items, lengths, side)
    return names, items, offsets_of(lengths), None, side


def _count(
    summary: Summary,
    items: np.ndarray,
    lengths: np.ndarray,
    side: Side | None,
) -> None:
    """Adds histories of `[total]` indices to a summary."""
    known = items != UNKNOWN_INDEX
    rows = np.repeat(np.arange(len(lengths)), lengths)
    num_known = np.bincount(rows[known], minlength=len(lengths))
    is_known = num_known > 0
    if side is not None:
        is_known |= side.knows_user
    summary.num_queries += len(lengths)
    summary.num_unknown += int(np.count_nonzero(~known))
    summary.num_with_unknown += int(np.count_nonzero(num_known < lengths))
    summary.num_without_known += int(np.count_nonzero(~is_known))


def write(
    out: IO[bytes], suffix: str, recommender: Recommender, *arguments: Any
) -> Summary:
    """Writes recommendations to a stream; returns what was found.

    Args:
        out: The stream.
        suffix: The suffix of the file, which decides on the format.
        recommender: The model.
        *arguments: Those of `recommend_file`, from `asked` on, without output.
    """
    open_writer = {".csv": pa_csv.CSVWriter, ".parquet": pq.ParquetWriter}.get(
        suffix.lower()
    )
    if open_writer is None:
        summary = Summary()
        for answer in _answers(summary, recommender, *arguments):
            out.write(_json_lines(recommender.vocabulary, *answer).encode())
        return summary
    tables, summary = _tables(recommender, *arguments)
    first = next(tables)
    with open_writer(out, first.schema) as writer:
        for table in itertools.chain([first], tables):
            writer.write_table(table)
    return summary


def _tables(
    recommender: Recommender, asked: Asked, *arguments: Any
) -> tuple[Iterator[pa.Table], Summary]:
    """Returns the tables of the answers, the first of them empty."""
    summary, vocabulary = Summary(), recommender.vocabulary
    by_query = isinstance(asked, pathlib.Path | Mapping)
    name = "query_id" if by_query else "user"
    none: _Answer = ([], np.zeros((0, 0)), np.zeros((0, 0)))
    answers = _answers(summary, recommender, asked, *arguments)
    return (
        _table(name, vocabulary, *answer)
        for answer in itertools.chain([none], answers)
    ), summary


def _table(
    id_name: str,
    vocabulary: Vocabulary,
    names: list[str],
    found: np.ndarray,
    scores: np.ndarray,
) -> pa.Table:
    queries, places = np.nonzero(found)
    rows = found[queries, places].astype(np.int64) - FIRST_ITEM_INDEX
    items = vocabulary.items
    ids = titles = items["item_id"].take(rows)
    if "title" in items.column_names:
        titles = items["title"].take(rows).cast(pa.string()).fill_null("")
        titles = pc.if_else(pc.equal(titles, ""), ids, titles)
    columns = {
        id_name: pa.array(names, pa.string()).take(queries),
        "rank": pa.array(places + 1, pa.int32()),
        "item": ids,
        "score": pa.array(scores[queries, places], pa.float32()),
        "title": titles,
    }
    return pa.table(columns)


def _json_lines(
    vocabulary: Vocabulary,
    names: list[str],
    found: np.ndarray,
    scores: np.ndarray,
) -> str:
    """Returns a line per query."""
    is_item = found > 0
    ids = vocabulary.decode(found[is_item]).tolist()
    # Further decimals of a float32 are noise and would double the file.
    values = scores[is_item].astype(np.float64).round(6).tolist()
    ends = np.cumsum(is_item.sum(axis=1)).tolist()
    lines = []
    begin = 0
    for name, end in zip(names, ends, strict=True):
        line: dict[str, Any] = {
            "query_id": name,
            "items": ids[begin:end],
            "scores": values[begin:end],
        }
        lines.append(json.dumps(line, ensure_ascii=False))
        begin = end
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def _open_output(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """Opens the output, atomically unless it is a pipe or a device."""
    if path.exists() and not path.is_file():
        with path.open("wb") as out:
            yield out
        return
    with (
        files.atomic_path(path.resolve()) as temporary,  # A link stays one.
        temporary.open("wb") as out,
    ):
        yield out
