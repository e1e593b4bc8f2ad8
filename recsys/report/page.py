"""The page as a whole."""

from __future__ import annotations

import importlib.resources

from recsys.evaluation.results import PROTOCOL_NOTES
from recsys.report import item_sections, result_sections, training_section
from recsys.report.data import K, ReportData
from recsys.report.figure_style import check_matplotlib
from recsys.report.markup import Markup, element, join


def render_page(data: ReportData) -> str:
    """Returns a page of HTML that needs nothing besides itself.

    Args:
        data: What it shows.

    Returns:
        The text of an HTML file.

    Raises:
        InputError: matplotlib is not installed.
    """
    check_matplotlib()
    found = item_sections.find_health(data)
    sections = {
        "results": ("Results", result_sections.results(data)),
        "recall": ("Recall over k", result_sections.recall(data)),
        "slices": ("Slices", result_sections.slices(data)),
        "training": ("Training", training_section.training(data)),
        "popularity": (
            "Recommended against relevant",
            item_sections.popularity(data),
        ),
        "map": ("Map of the items", item_sections.item_map(data)),
        "health": ("Health", item_sections.model_health(data, found)),
        "examples": ("Example users", item_sections.example_users(data)),
    }
    title = f"{data.model.name} on {data.data_name}"
    body = element(
        "body",
        _header(data, title, sections, item_sections.warning(found)),
        element(
            "main",
            *(
                element(
                    "section",
                    element("h2", heading, id=f"{name}-heading"),
                    content,
                    id=name,
                    aria_labelledby=f"{name}-heading",
                )
                for name, (heading, content) in sections.items()
            ),
        ),
        element("footer", "Written by python -m recsys.evaluate --report."),
    )
    page = element("html", _head(title), body, lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


def _head(title: str) -> Markup:
    css = importlib.resources.files("recsys.report") / "page.css"
    return element(
        "head",
        element("meta", charset="utf-8"),
        element(
            "meta",
            name="viewport",
            content="width=device-width, initial-scale=1",
        ),
        # Nothing is fetched, not even the icon that browsers ask for.
        Markup('<link rel="icon" href="data:,">'),
        element("title", title),
        element("style", Markup(css.read_text("utf-8"))),
    )


def _header(
    data: ReportData,
    title: str,
    sections: dict[str, tuple[str, Markup]],
    warning: Markup | None,
) -> Markup:
    """Says what was asked of whom, and what to know before reading on."""
    model = data.model
    notes = [*data.notes]
    if model.protocol in PROTOCOL_NOTES:
        notes.insert(0, PROTOCOL_NOTES[model.protocol])
    excluded = "left out" if model.exclude_history else "candidates too"
    numbers = item_sections.facts(
        ("Protocol", model.protocol.replace("_", "-"), f"{data.part} queries"),
        ("Queries", f"{model.num_queries:,}", "every one is asked"),
        (
            "Candidates",
            f"{model.num_items:,} items",
            f"the whole catalogue; those of the history {excluded}",
        ),
        ("Data", data.data_name, ""),
        (
            "Training",
            f"{int(data.item_counts.sum()):,}",
            f"interactions of {data.num_users:,} users",
        ),
    )
    links = [
        element("li", element("a", heading, href=f"#{name}"))
        for name, (heading, _) in sections.items()
    ]
    return element(
        "header",
        element("h1", title),
        element(
            "p",
            f"How well {model.name} finds what comes next in a history, "
            f"looking at the first {K} of all items.",
            class_="lead",
        ),
        numbers,
        warning,
        join(element("p", note, class_="note") for note in notes),
        element("nav", element("ul", *links), aria_label="Sections"),
    )
