"""Rankings as JSON lines, for comparison with any other system.

One line per query: `{"query_id": "…", "items": ["item id", …], "scores":
[…]}`, best item first, in raw ids. `query_id` is the name that `query_ids`
gives the query (the user's raw id if each user has one query). `scores` is
optional; equal scores are ties and count at their expected rank.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from recsys.data.splits import Queries
from recsys.data.vocabulary import Vocabulary
from recsys.errors import InputError
from recsys.evaluation.ranking import (
    expected_ranks,
    num_distinct,
    padded_relevant_items,
)
from recsys.evaluation.results import Evaluation, query_ids
from recsys.ids import UNKNOWN_INDEX

_FORM = '{"query_id": "…", "items": ["…", …], "scores": […]}'


class _Line(NamedTuple):
    """One line of a file: where it is, and its query's list."""

    where: str
    query_id: str
    items: list[str]
    scores: list[float]


def write_rankings(
    evaluation: Evaluation,
    vocabulary: Vocabulary,
    path: str | os.PathLike[str],
) -> None:
    """Writes the lists of an evaluation.

    Args:
        evaluation: Results with lists.
        vocabulary: Maps indices to raw ids.
        path: The file; overwritten if it exists.

    Raises:
        ValueError: The evaluation has no lists.
    """
    if evaluation.top_items is None or evaluation.top_scores is None:
        raise ValueError("`evaluation` must have lists. Received: none")
    lengths = np.count_nonzero(evaluation.top_items, axis=1)
    with open(path, "w", encoding="utf-8") as file:
        for name, items, scores, length in zip(
            evaluation.query_ids,
            evaluation.top_items,
            evaluation.top_scores,
            lengths,
            strict=True,
        ):
            line = {
                "query_id": name,
                "items": vocabulary.decode(items[:length]).tolist(),
                "scores": scores[:length].tolist(),
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read_rankings(
    path: str | os.PathLike[str],
    queries: Queries,
    vocabulary: Vocabulary,
    *,
    protocol: str,
    ks: Iterable[int] = (1, 5, 10, 20, 50, 100),
    exclude_history: bool = True,
    name: str | None = None,
) -> Evaluation:
    """Evaluates the rankings of a file.

    An item that is not on a query's list has an infinite rank. Cutoffs beyond
    the longest list are dropped: they would favor a system that ranks all.

    Args:
        path: The file, with one line per query, in any order.
        queries: The queries.
        vocabulary: Maps raw ids to indices.
        protocol: The name of the split, for the results.
        ks: Cutoffs of the metrics.
        exclude_history: Whether a query's history is excluded from its list.
        name: The name in results tables. Default: the file's name.

    Returns:
        One entry per query, in the order of `queries`.

    Raises:
        InputError: The file cannot be read, or a query's line is missing,
            duplicated, malformed or has an item that may not be listed.
    """
    path = pathlib.Path(path)
    names = query_ids(queries)
    relevant = padded_relevant_items(queries, names)
    lines = _read_lines(path, names)
    items, scores = _lay_out(lines, vocabulary)
    depth = items.shape[1]
    ks = sorted(set(ks))
    if depth < ks[0]:
        least = f"lists of at least {ks[0]} items, the smallest cutoff"
        raise _error(path, least, f"at most {depth}")
    ks = tuple(k for k in ks if k <= depth)
    num_candidates = np.full(len(queries), vocabulary.num_items, np.int32)
    if exclude_history:
        histories = queries.histories(np.arange(len(queries)))
        _check_histories(lines, items, *histories)
        num_candidates -= num_distinct(*histories).astype(np.int32)
    ranks, relevant = _ranks(items, scores, relevant, num_candidates)
    return Evaluation(
        name=path.stem if name is None else name,
        protocol=protocol,
        ks=ks,
        exclude_history=exclude_history,
        num_items=vocabulary.num_items,
        query_ids=names,
        ranks=ranks,
        relevant_items=relevant,
        num_candidates=num_candidates,
        top_items=items[:, : ks[-1]],
        top_scores=scores[:, : ks[-1]],
    )


def _error(where: object, expected: str, received: object) -> InputError:
    return InputError(f"{where}: expected {expected}. Received: {received}")


def _read_lines(path: pathlib.Path, names: np.ndarray) -> list[_Line]:
    """Returns the checked line of each of the named queries, in order."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _error(path, "a file of JSON lines", error) from error
    wanted = set(names)
    lines: dict[str, _Line] = {}
    for number, raw in enumerate(text.split("\n"), start=1):
        if not raw.strip():
            continue
        line = _parse(f"{path}:{number}", raw)
        query_id = line.query_id
        if query_id not in wanted:
            raise _error(line.where, "the id of a query", repr(query_id))
        if query_id in lines:
            first = lines[query_id].where.rpartition(":")[2]
            raise _error(
                line.where,
                "one line per query",
                f"{query_id!r} again (line {first})",
            )
        lines[query_id] = line
    missing = [name for name in names if name not in lines]
    if missing:
        raise _error(
            path,
            f"a line for each of {len(names):,} queries",
            f"none for {len(missing):,}, first {missing[0]!r}",
        )
    return [lines[name] for name in names]


def _parse(where: str, raw: str) -> _Line:
    """Parses one line and checks its form."""
    try:
        line = json.loads(raw)
    # Deep nesting, or more digits than Python converts.
    except (ValueError, RecursionError) as error:
        raise _error(where, _FORM, repr(raw[:80])) from error
    if not isinstance(line, dict):
        raise _error(where, _FORM, repr(raw[:80]))
    if "query_id" not in line or not isinstance(line.get("items"), list):
        raise _error(where, _FORM, f"the keys {sorted(line)}")
    items = [str(item) for item in line["items"]]
    try:
        # JSON can encode half of a surrogate pair, which is not valid text.
        "".join(items).encode()
    except UnicodeEncodeError as error:
        raise _error(where, _FORM, repr(raw[:80])) from error
    scores = line.get("scores")
    if scores is None:
        scores = list(range(0, -len(items), -1))
    _check_scores(where, scores, len(items))
    if len(set(items)) != len(items):
        twice = next(item for item in items if items.count(item) > 1)
        raise _error(where, "distinct items", f"{twice!r} twice")
    return _Line(where, str(line["query_id"]), items, scores)


def _check_scores(where: str, scores: Any, num_items: int) -> None:
    """Checks for one finite score per item, best first."""
    if not isinstance(scores, list) or len(scores) != num_items:
        found = len(scores) if isinstance(scores, list) else repr(scores)
        raise _error(where, f"one score per item ({num_items})", found)
    for score in scores:
        is_number = isinstance(score, int | float)
        # False for NaN, and for integers beyond the range of a float.
        if not is_number or not abs(score) <= sys.float_info.max:
            raise _error(where, "finite numbers as scores", repr(score)[:80])
    if sorted(scores, reverse=True) != scores:
        raise _error(where, "the best item first", "increasing scores")


def _lay_out(
    lines: list[_Line], vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray]:
    """`[num_queries, depth]` items and scores, padded to the longest."""
    lengths = np.array([len(line.items) for line in lines])
    places = np.arange(lengths.max()) < lengths[:, np.newaxis]
    items = np.zeros(places.shape, np.int32)
    items[places] = vocabulary.encode(
        [item for line in lines for item in line.items]
    )
    unknown = np.argwhere(items == UNKNOWN_INDEX)
    if len(unknown):
        row, column = unknown[0]
        line = lines[row]
        raise _error(
            line.where, "items of the vocabulary", repr(line.items[column])
        )
    scores = np.full(places.shape, -np.inf)
    scores[places] = [score for line in lines for score in line.scores]
    return items, scores


def _check_histories(
    lines: list[_Line],
    items: np.ndarray,
    histories: np.ndarray,
    offsets: np.ndarray,
) -> None:
    """Raises InputError if a list contains an item of the query's history."""
    rows = np.repeat(np.arange(len(lines)), np.diff(offsets))
    width = max(items.max(), histories.max(initial=0)) + 1
    listed = np.arange(len(lines))[:, np.newaxis] * width + items
    # Padding is 0, which is in no history.
    wrong = np.argwhere(np.isin(listed, rows * width + histories))
    if len(wrong):
        row, column = wrong[0]
        raise _error(
            lines[row].where,
            "no item of the query's own history (or pass "
            "exclude_history=False)",
            repr(lines[row].items[column]),
        )


def _ranks(
    items: np.ndarray,
    scores: np.ndarray,
    relevant: np.ndarray,
    num_candidates: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns `[num_queries, max_relevant]` ranks and items, best first."""
    relevant_scores = np.full(relevant.shape, -np.inf)
    for column, item in enumerate(relevant.T):
        row, place = np.nonzero((items == item[:, np.newaxis]) & (items > 0))
        relevant_scores[row, column] = scores[row, place]
    relevant_scores[relevant == 0] = np.nan
    ranks, relevant = expected_ranks(
        scores, relevant, relevant_scores, num_candidates
    )
    # No listed item ranks behind the end of its list, even at a tie.
    lengths = np.count_nonzero(items, axis=1)
    ranks[ranks > lengths[:, np.newaxis]] = np.inf
    return ranks, relevant
