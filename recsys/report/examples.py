"""Example users: what they had, what they were shown, what they chose."""

from __future__ import annotations

import dataclasses

import numpy as np

from recsys.report.data import K, ReportData

NUM_EXAMPLES = 10
_NUM_HISTORY = 6
_NUM_TARGETS = 8


@dataclasses.dataclass(frozen=True)
class ShownItem:
    """An item on the page.

    Attributes:
        text: Title or id.
        rank: Where the model put it among all candidates; None in a list.
        is_hit: Whether it was both recommended and relevant.
    """

    text: str
    rank: float | None
    is_hit: bool


@dataclasses.dataclass(frozen=True)
class Example:
    """One query.

    Attributes:
        name: The query's id.
        history: The newest items of its history, newest first.
        num_earlier: Items of the history that are not shown.
        recommended: The model's list.
        relevant: The relevant items, best ranked first.
        num_more: Relevant items that are not shown.
        num_hits: Relevant items on the list.
    """

    name: str
    history: list[str]
    num_earlier: int
    recommended: list[ShownItem]
    relevant: list[ShownItem]
    num_more: int
    num_hits: int


def examples(data: ReportData) -> list[Example]:
    """Picks queries at equal distances, whatever their results are."""
    num_queries = len(data.queries)
    num_examples = min(NUM_EXAMPLES, num_queries)
    rows = (np.arange(num_examples) + 0.5) * num_queries / num_examples
    return [_example(data, int(row)) for row in rows]


def _example(data: ReportData, row: int) -> Example:
    describe = data.vocabulary.describe
    history, _ = data.queries.histories(np.array([row]))
    listed = data.top_items[row]
    relevant = data.model.relevant_items[row]
    relevant = relevant[relevant > 0]
    ranks = data.model.ranks[row, : len(relevant)]
    hits = np.isin(relevant, listed)
    return Example(
        name=str(data.model.query_ids[row]),
        history=[describe(int(item)) for item in history[::-1][:_NUM_HISTORY]],
        num_earlier=max(0, len(history) - _NUM_HISTORY),
        recommended=[
            ShownItem(describe(int(item)), None, bool(item in relevant))
            for item in listed[listed > 0]
        ],
        relevant=[
            ShownItem(describe(int(item)), float(rank), bool(is_hit))
            for item, rank, is_hit in zip(relevant, ranks, hits, strict=True)
        ][:_NUM_TARGETS],
        num_more=max(0, len(relevant) - _NUM_TARGETS),
        num_hits=int(np.count_nonzero(hits)),
    )


def num_examples_hit(shown: list[Example]) -> str:
    """Says for how many examples something relevant was recommended."""
    hit = sum(example.num_hits > 0 for example in shown)
    return (
        f"{hit} of these {len(shown)} found something relevant among the "
        f"first {K}."
    )
