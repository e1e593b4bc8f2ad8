"""Sections of the page about items: health, popularity, map, examples."""

from __future__ import annotations

import math

from recsys.evaluation.recommendation_health import (
    Health,
    genre_matrix,
    health,
    list_summary,
)
from recsys.report import item_figures, map_figure
from recsys.report.data import K, ReportData
from recsys.report.examples import (
    Example,
    ShownItem,
    examples,
    num_examples_hit,
)
from recsys.report.item_map import map_items
from recsys.report.markup import Markup, element, join, signed


def find_health(data: ReportData) -> Health:
    """Looks at what is recommended to all queries together."""
    return health(data.model, data.item_counts, data.item_vectors, K)


def warning(found: Health) -> Markup | None:
    """The warning of a collapse, where there is one."""
    if found.warning is None:
        return None
    return element(
        "p",
        element("strong", "Warning: "),
        f"{found.warning}.",
        class_="note warning",
        role="note",
    )


def popularity(data: ReportData) -> Markup:
    """How popular the recommended items are, in a figure and in numbers."""
    summary = _summary(data)
    return element(
        "div",
        item_figures.popularity(data),
        element(
            "div",
            element(
                "p",
                "Where the line of the recommended items lies to the right of "
                "that of the relevant ones, the model prefers popular items "
                "to what users choose.",
            ),
            facts(
                (
                    "Interactions of a recommended item",
                    f"{summary[f'popularity@{K}']:,.0f}",
                    "mean",
                ),
                (
                    "Interactions of an item in a history",
                    f"{summary['history_popularity']:,.0f}",
                    "mean",
                ),
                (
                    "Novelty",
                    f"{summary[f'novelty@{K}']:.1f} bits",
                    "self-information of a recommended item",
                ),
                *_diversity(summary),
            ),
        ),
        class_="pair",
    )


def model_health(data: ReportData, found: Health) -> Markup:
    """Coverage, concentration, and the norms of the item vectors."""
    correlation = found.norm_popularity_correlation
    told = "–" if correlation is None else signed(correlation, 2)
    numbers = element(
        "div",
        warning(found)
        or element("p", "No sign of a collapse to few recommended items."),
        facts(
            (
                "Distinct items recommended",
                f"{found.num_distinct_items:,}",
                f"on {data.model.num_queries:,} lists of {K}",
            ),
            (
                "Catalogue covered",
                f"{found.catalogue_share:.1%}",
                f"of {data.model.num_items:,} items",
            ),
            (
                "As varied as",
                f"{found.effective_num_items:,.0f} items",
                "all listed equally often (exponential of the entropy)",
            ),
            (
                "Gini coefficient",
                f"{_summary(data)[f'gini@{K}']:.2f}",
                "0: all items listed alike; 1: one alone",
            ),
            (
                "Norm against popularity",
                told,
                "rank correlation; near 1, popular items win by length",
            ),
        ),
    )
    figure = item_figures.norms(data, correlation)
    if figure is None:
        return numbers
    return element("div", figure, numbers, class_="pair")


def item_map(data: ReportData) -> Markup:
    """The item table in two dimensions."""
    if data.item_vectors is None:
        return element(
            "p",
            "There is no map: the items asked for are not those that the "
            "model was trained on.",
        )
    placed = map_items(data.item_vectors, data.item_counts, data.vocabulary)
    if placed is None:
        return element("p", "There is no map: it takes three trained items.")
    colours = (
        "The genres shown are those that the map separates best; an item of "
        "several has the colour of the rarest."
        if placed.genres
        else "The items have no genres, so nothing is coloured by genre."
    )
    return join(
        [
            element(
                "p",
                "Items that the model finds alike lie close together. "
                "Principal components of the item vectors, scaled to unit "
                "length, after what popularity alone explains is taken out. "
                f"{colours}",
            ),
            map_figure.item_map(data, placed),
        ]
    )


def example_users(data: ReportData) -> Markup:
    """Ten queries with their lists."""
    shown = examples(data)
    return join(
        [
            element(
                "p",
                "Taken at equal distances from all queries, whatever their "
                f"results: {num_examples_hit(shown)}",
            ),
            element("div", *(_card(each) for each in shown), class_="cards"),
        ]
    )


def facts(*entries: tuple[str, str, str]) -> Markup:
    """A list of numbers: what, how much, and a remark to each."""
    return element(
        "dl",
        *(
            element(
                "div",
                element("dt", name),
                element("dd", value),
                element("dd", remark, class_="small") if remark else None,
            )
            for name, value, remark in entries
        ),
        class_="facts",
    )


def _summary(data: ReportData) -> dict[str, float]:
    return list_summary(
        data.model,
        data.queries,
        data.item_counts,
        data.num_users,
        genre_matrix(data.vocabulary),
        K,
    )


def _diversity(summary: dict[str, float]) -> list[tuple[str, str, str]]:
    value = summary.get(f"diversity@{K}", math.nan)
    if math.isnan(value):
        return []
    return [("Diversity by genre", f"{value:.2f}", "within a list, 0 to 1")]


def _card(example: Example) -> Markup:
    """One query as an article of the page."""
    num = example.num_hits
    earlier = (
        element("li", f"… and {example.num_earlier:,} before", class_="muted")
        if example.num_earlier
        else None
    )
    more = (
        element("li", f"… and {example.num_more:,} more", class_="muted")
        if example.num_more
        else None
    )
    return element(
        "article",
        element(
            "div",
            element("h3", f"User {example.name}"),
            element(
                "span",
                f"{num} hit{'s' if num > 1 else ''}" if num else "no hit",
                class_="tag hit" if num else "tag",
            ),
            class_="heading",
        ),
        element("h4", "History, newest first"),
        element(
            "ul", *(element("li", text) for text in example.history), earlier
        )
        if example.history
        else element("p", "empty", class_="muted"),
        element("h4", "Recommended"),
        element("ol", *map(_item, example.recommended)),
        element("h4", "Relevant: what the user chose"),
        element("ul", *map(_item, example.relevant), more),
    )


def _item(item: ShownItem) -> Markup:
    """One item of a list; a hit says so in words, not in colour alone."""
    rank = None
    if item.rank is not None:
        rank = element("span", f" rank {_rank(item.rank)}", class_="tag")
    badge = element("span", "hit", class_="badge") if item.is_hit else None
    return element(
        "li",
        element("span", item.text, class_="hit" if item.is_hit else None),
        rank,
        badge,
    )


def _rank(rank: float) -> str:
    """Writes an expected rank, which ties make a fraction."""
    if math.isinf(rank):
        return "beyond the list"
    return f"{rank:,.0f}" if rank == int(rank) else f"{rank:,.1f}"
