"""Recommendations for a file of histories, in constant memory."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import pathlib
import time
from collections.abc import Iterable, Iterator
from concurrent import futures
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from recsys import files
from recsys.data.sequences import offsets_of
from recsys.data.vocabulary import Vocabulary
from recsys.errors import InputError
from recsys.ids import UNKNOWN_INDEX

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


@dataclasses.dataclass
class Summary:
    """What was found in a file of histories.

    Attributes:
        num_queries: Lines.
        num_unknown: Ids in the histories that the model does not know.
        num_with_unknown: Histories with such an id.
        num_without_known: Histories that are empty or have only such ids.
        num_short: Lists with fewer than k items.
        seconds: The time that it took.
    """

    num_queries: int = 0
    num_unknown: int = 0
    num_with_unknown: int = 0
    num_without_known: int = 0
    num_short: int = 0
    seconds: float = 0.0

    def text(self, k: int) -> str:
        """Returns lines for the user.

        Args:
            k: How many items were asked for.
        """
        rate = self.num_queries / max(self.seconds, 1e-9)
        lines = [
            f"{self.num_queries:,} histories in {self.seconds:.1f} s "
            f"({rate:,.0f} a second)"
        ]
        if self.num_unknown:
            lines.append(
                f"{self.num_unknown:,} unknown ids in "
                f"{self.num_with_unknown:,} histories, ignored"
            )
        if self.num_without_known:
            lines.append(
                f"{self.num_without_known:,} histories without a known item "
                "got the most popular items, scored by their interactions"
            )
        if self.num_short:
            lines.append(
                f"{self.num_short:,} lists have fewer than k={k} items, "
                "because no more were left"
            )
        return "\n".join(lines)


def check_files(histories: pathlib.Path, output: pathlib.Path) -> None:
    """Checks the paths before the slow part.

    Args:
        histories: The file to read.
        output: The file to write.

    Raises:
        InputError: One of them cannot be used.
    """
    if not histories.exists() or histories.is_dir():
        raise InputError(
            f"--histories must be a file. Received: {str(histories)!r}"
        )
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise InputError(
            "--output must be a file in a folder that exists. Received: "
            f"{str(output)!r}"
        )
    if output.exists() and output.samefile(histories):
        raise InputError(
            "--output must be another file than --histories. Received: "
            f"{str(output)!r} for both"
        )


def recommend_file(
    recommender: Recommender,
    histories: pathlib.Path,
    output: pathlib.Path,
    k: int,
    *,
    exclude_history: bool = True,
) -> Summary:
    """Answers every line of a file.

    Args:
        recommender: The model.
        histories: One query per line: JSON, `{"query_id": "…", "history":
            ["item id", …]}`, or ids separated by blanks, oldest first. A
            query without an id gets the number of its line. The first line
            that is not blank decides which of the two the file is; a blank
            line is ignored in JSON and an empty history otherwise.
        output: Gets `{"query_id", "items", "scores"}` per query, in the same
            order; written when all are answered.
        k: How many items for each query, at most.
        exclude_history: Whether items of a history are excluded.

    Returns:
        What was found.

    Raises:
        InputError: A line is malformed.
        FloatingPointError: A score is NaN or infinite.
        OSError: A file could not be read or written.
    """
    began = time.perf_counter()
    summary = Summary()
    num_listed = min(k, recommender.vocabulary.num_items)
    with _open_output(output) as out, histories.open("rb") as lines:
        queries = read_queries(lines, str(histories))
        chunks = _chunks(recommender.vocabulary, queries, num_listed, summary)
        for names, items, offsets in _ahead(chunks):
            found, scores = recommender.recommend_indices(
                items, offsets, k, exclude_history=exclude_history
            )
            if not np.isfinite(scores[found > 0]).all():
                raise FloatingPointError(
                    f"{histories}: the model's scores must be finite. "
                    "Received: NaN or infinity"
                )
            summary.num_short += int(np.count_nonzero((found > 0).sum(1) < k))
            _write(out, names, recommender.vocabulary, found, scores)
    summary.seconds = time.perf_counter() - began
    return summary


_Chunk = tuple[list[str], np.ndarray, np.ndarray]


def _chunks(
    vocabulary: Vocabulary,
    queries: Iterator[tuple[str, list[str]]],
    num_listed: int,
    summary: Summary,
) -> Iterator[_Chunk]:
    """Yields query ids, flat items and offsets of many queries at a time."""
    names: list[str] = []
    histories: list[list[str]] = []
    largest = min(_LINES_PER_CHUNK, max(_ITEMS_PER_CHUNK // num_listed, 1))
    num_items = 0
    for name, history in queries:
        if len(names) == largest or (
            names and num_items + len(history) > _ITEMS_PER_CHUNK
        ):
            yield names, *_encode(vocabulary, histories, summary)
            names, histories, num_items = [], [], 0
        names.append(name)
        histories.append(history)
        num_items += len(history)
    if names:
        yield names, *_encode(vocabulary, histories, summary)


def _ahead(chunks: Iterator[_Chunk]) -> Iterator[_Chunk]:
    """Reads the next chunk while the previous one is answered."""
    with futures.ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, chunks, None)
        while chunk := coming.result():
            coming = reader.submit(next, chunks, None)
            yield chunk


def read_queries(
    lines: Iterable[bytes], source: str
) -> Iterator[tuple[str, list[str]]]:
    """Reads queries one by one.

    Args:
        lines: The lines of the file.
        source: Its name, for error messages.

    Yields:
        The query's id and the ids of its history.

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


def _parse(text: bytes, source: str, number: int) -> tuple[str, list[str]]:
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
    # Nearly all ids are strings; others are checked one by one.
    if not _STRINGS.issuperset(map(type, history)):
        if not _IDS.issuperset(map(type, history)):
            raise _malformed(text, source, number)
        history = [str(item) for item in history]
    if type(query_id) not in _IDS:
        raise _malformed(text, source, number)
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


def _encode(
    vocabulary: Vocabulary, histories: list[list[str]], summary: Summary
) -> tuple[np.ndarray, np.ndarray]:
    """Returns flat `[total]` int32 indices and `[n + 1]` int64 offsets.

    Adds their counts to the summary.
    """
    lengths = np.fromiter(map(len, histories), np.int64, len(histories))
    ids = list(itertools.chain.from_iterable(histories))
    items = vocabulary.encode(pa.array(ids, pa.string()))
    known = items != UNKNOWN_INDEX
    rows = np.repeat(np.arange(len(histories)), lengths)
    num_known = np.bincount(rows[known], minlength=len(histories))
    summary.num_queries += len(histories)
    summary.num_unknown += int(np.count_nonzero(~known))
    summary.num_with_unknown += int(np.count_nonzero(num_known < lengths))
    summary.num_without_known += int(np.count_nonzero(num_known == 0))
    return items, offsets_of(lengths)


def _write(
    out: IO[str],
    names: list[str],
    vocabulary: Vocabulary,
    found: np.ndarray,
    scores: np.ndarray,
) -> None:
    """Writes a line per query."""
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
    out.write("\n".join(lines) + "\n")


@contextlib.contextmanager
def _open_output(path: pathlib.Path) -> Iterator[IO[str]]:
    """Opens the output, atomically unless it is a pipe or a device."""
    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8") as out:
            yield out
        return
    with (
        files.atomic_path(path.resolve()) as temporary,  # A link stays one.
        temporary.open("w", encoding="utf-8") as out,
    ):
        yield out
