"""Rankings as JSON lines, so that any system can be compared.

One line per query: `{"query_id": "…", "items": ["item id", …], "scores":
[…]}`, best item first, in raw ids. `query_id` is as `query_ids` names the
queries (the user's raw id where each user has one query). Scores may be left
out; equal ones are ties and count at their expected rank.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Iterable
from typing import Any

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

_EXPECTED = 'expected {"query_id": "…", "items": ["…", …], "scores": […]}'


def write_rankings(
    evaluation: Evaluation,
    vocabulary: Vocabulary,
    path: str | os.PathLike[str],
) -> None:
    """Writes the lists of an evaluation.

    Args:
        evaluation: Results with lists.
        vocabulary: Turns indices into raw ids.
        path: The file; replaced when it is there.

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

    An item that is not on a query's list is not found, at rank infinity. Cuts
    beyond the longest list of the file are left out of the results, because
    a recommender that ranks the whole catalog would have an advantage.

    Args:
        path: The file, with a line for every query, in any order.
        queries: What was asked.
        vocabulary: Turns raw ids into indices.
        protocol: The name of the split, for the results.
        ks: Cuts of the metrics.
        exclude_history: Whether items of a query's history are no candidates.
        name: Stands in results tables; None takes the file's name.

    Returns:
        One entry per query, in the order of `queries`.

    Raises:
        InputError: The file cannot be read; a line is malformed, names an
            unknown query or one that was there, lists an item that is
            unknown, there twice or excluded, or has scores that rise or are
            not finite; or a query has no line.
    """
    path = pathlib.Path(path)
    ks = tuple(sorted(set(ks)))
    names = query_ids(queries)
    relevant = padded_relevant_items(queries, names)
    lines = _read_lines(path, {name: row for row, name in enumerate(names)})
    missing = [row for row in range(len(names)) if row not in lines]
    if missing:
        raise InputError(
            f"{path}: expected a line for each of {len(names):,} queries. "
            f"Received: none for {len(missing):,}, first "
            f"{names[missing[0]]!r}"
        )
    depth = max(len(line["items"]) for line in lines.values())
    if depth < ks[0]:
        raise InputError(
            f"{path}: expected lists of at least {ks[0]} items, the smallest "
            f"cut of the metrics. Received: at most {depth}"
        )
    ks = tuple(k for k in ks if k <= depth)
    items, scores = _lay_out(path, lines, vocabulary, depth)
    num_candidates = np.full(len(queries), vocabulary.num_items, np.int32)
    if exclude_history:
        _check_histories(path, lines, items, queries)
        every = queries.histories(np.arange(len(queries)))
        num_candidates -= num_distinct(*every).astype(np.int32)
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


def _read_lines(
    path: pathlib.Path, rows: dict[str, int]
) -> dict[int, dict[str, Any]]:
    """Reads the checked lines by the row of their query.

    Each gets its number in the file as `line`.
    """
    lines: dict[int, dict[str, Any]] = {}
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: expected a file of JSON lines. Received: {error}"
        ) from error
    for number, raw in enumerate(text.split("\n"), start=1):
        if not raw.strip():
            continue
        where = f"{path}:{number}"
        line = _parse(where, raw)
        if line["query_id"] not in rows:
            raise InputError(
                f"{where}: expected the id of a query. Received: "
                f"{line['query_id']!r}"
            )
        row = rows[line["query_id"]]
        if row in lines:
            raise InputError(
                f"{where}: expected one line per query. Received: "
                f"{line['query_id']!r} again (line {lines[row]['line']})"
            )
        lines[row] = {**line, "line": number}
    return lines


def _parse(where: str, raw: str) -> dict[str, Any]:
    """Reads one line and checks its form."""
    try:
        line = json.loads(raw)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where}: {_EXPECTED}. Received: {raw[:80]!r}"
        ) from error
    if not isinstance(line, dict):
        raise InputError(f"{where}: {_EXPECTED}. Received: {raw[:80]!r}")
    items = line.get("items")
    if "query_id" not in line or not isinstance(items, list):
        raise InputError(
            f"{where}: {_EXPECTED}. Received: the keys {sorted(line)}"
        )
    items = [str(item) for item in items]
    try:
        # JSON can spell half of a pair of surrogates, which is no text.
        "".join(items).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: {_EXPECTED}. Received: {raw[:80]!r}"
        ) from error
    scores = line.get("scores")
    if scores is None:
        scores = list(range(0, -len(items), -1))
    if not isinstance(scores, list) or len(scores) != len(items):
        raise InputError(
            f"{where}: expected one score per item ({len(items)}). Received: "
            f"{len(scores) if isinstance(scores, list) else scores!r}"
        )
    for score in scores:
        if not isinstance(score, int | float) or not math.isfinite(score):
            raise InputError(
                f"{where}: expected scores that are finite numbers. Received: "
                f"{score!r}"
            )
    if sorted(scores, reverse=True) != scores:
        raise InputError(
            f"{where}: expected the best item first. Received: scores that rise"
        )
    if len(set(items)) != len(items):
        twice = next(item for item in items if items.count(item) > 1)
        raise InputError(
            f"{where}: expected each item once. Received: {twice!r} twice"
        )
    return {
        "query_id": str(line["query_id"]),
        "items": items,
        "scores": scores,
    }


def _lay_out(
    path: pathlib.Path,
    lines: dict[int, dict[str, Any]],
    vocabulary: Vocabulary,
    depth: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns `[num_queries, depth]` item indices and scores, padded."""
    rows = sorted(lines)
    lengths = np.array([len(lines[row]["items"]) for row in rows])
    ids = [item for row in rows for item in lines[row]["items"]]
    flat = vocabulary.encode(ids)
    places = np.arange(depth) < lengths[:, np.newaxis]
    items = np.zeros(places.shape, np.int32)
    items[places] = flat
    unknown = np.argwhere(items == 1)
    if len(unknown):
        row, column = unknown[0]
        raise InputError(
            f"{path}:{lines[row]['line']}: expected items of the vocabulary. "
            f"Received: {lines[row]['items'][column]!r}"
        )
    scores = np.full(places.shape, -np.inf)
    scores[places] = [score for row in rows for score in lines[row]["scores"]]
    return items, scores


def _check_histories(
    path: pathlib.Path,
    lines: dict[int, dict[str, Any]],
    items: np.ndarray,
    queries: Queries,
) -> None:
    """Raises InputError when an item is in its query's own history."""
    histories, offsets = queries.histories(np.arange(len(queries)))
    rows = np.repeat(np.arange(len(queries)), np.diff(offsets))
    width = max(items.max(), histories.max(initial=0)) + 1
    keys = np.sort(rows * width + histories)
    asked = np.arange(len(items))[:, np.newaxis] * width + items
    # Padding is 0, which is in no history.
    wrong = np.argwhere(np.isin(asked, keys))
    if len(wrong):
        row, column = wrong[0]
        raise InputError(
            f"{path}:{lines[row]['line']}: expected no item of the query's "
            "own history (or pass exclude_history=False). Received: "
            f"{lines[row]['items'][column]!r}"
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
    order = np.lexsort((relevant, -relevant_scores), axis=-1)
    relevant_scores = np.take_along_axis(relevant_scores, order, axis=1)
    ranks = expected_ranks(scores, relevant_scores, num_candidates)
    ranks[np.isneginf(relevant_scores)] = np.inf
    return ranks, np.take_along_axis(relevant, order, axis=1)
