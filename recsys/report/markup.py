"""HTML elements whose text is escaped unless it is HTML already."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

_VOID = frozenset({"br", "img", "meta", "source"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(
    tag: str, *children: str | None, **attributes: str | int | None
) -> Markup:
    """Returns an element.

    Args:
        tag: Its name.
        *children: What is in it; None is left out, and all but `Markup` is
            escaped.
        **attributes: By name, with `_` for `-` and a trailing `_` where the
            name is a word of Python; None is left out. They are escaped.
    """
    opening = tag + "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _VOID:
        return Markup(f"<{opening}>")
    return Markup(f"<{opening}>{join(children)}</{tag}>")


def join(children: Iterable[str | None], between: str = "") -> Markup:
    """Puts texts and elements one behind the other.

    Args:
        children: As in `element`.
        between: HTML that separates them.
    """
    return Markup(
        between.join(
            child if isinstance(child, Markup) else html.escape(child)
            for child in children
            if child is not None
        )
    )


def table(
    caption: str,
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    row_classes: Sequence[str | None] = (),
) -> Markup:
    """Returns a table in a box of its own, which scrolls where it must.

    Args:
        caption: Says what it shows.
        header: The heads of the columns; the first column names the rows.
        rows: As many cells each.
        row_classes: The class of each row; empty for none.
    """
    heads = [
        element("th", text, scope="col", class_=None if place else "name")
        for place, text in enumerate(header)
    ]
    body = []
    for number, (name, *cells) in enumerate(rows):
        body.append(
            element(
                "tr",
                element("th", name, scope="row", class_="name"),
                *(element("td", cell) for cell in cells),
                class_=row_classes[number] if row_classes else None,
            )
        )
    return element(
        "div",
        element(
            "table",
            element("caption", caption),
            element("thead", element("tr", *heads)),
            element("tbody", *body),
        ),
        class_="scroll",
        role="region",
        aria_label=caption,
        # Whoever has no mouse scrolls it by keyboard.
        tabindex=0,
    )


def signed(value: float, digits: int) -> str:
    """Writes a number with its sign, a minus being as wide as a plus."""
    return f"{value:+.{digits}f}".replace("-", "\u2212")


def metric_head(name: str) -> Markup:
    """Writes a metric at the head of a column, which may break before @."""
    word, at, cut = metric_title(name).partition("@")
    return join([word, Markup("<wbr>"), f"{at}{cut}"])


def metric_title(name: str) -> str:
    """Writes a metric as people do: `ndcg@10` is NDCG@10."""
    word, _, cut = name.partition("@")
    word = word.upper() if len(word) <= 4 else word.replace("_", " ").title()
    return f"{word}@{cut}" if cut else word
