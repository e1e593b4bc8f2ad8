"""Finding an item by the title that a person types."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator

_YEAR = re.compile(r"\s*\((\d{4})(?:[-–]\d{0,4})?\)$")
_IN_PARENTHESES = re.compile(r"\s*\(([^()]*)\)")
# GroupLens puts the article last: "Matrix, The (1999)".
_ARTICLE_LAST = re.compile(
    r"^(?P<rest>.+), (?P<article>the|an?|l[aeo]s?|l'|il|gli|i|el|un[ae]?|der|"
    r"die|das|den?|det|het|o|os|as)$"
)
_NAMED = re.compile(r"^(?:a\.?k\.?a\.?:?) ")


class TitleIndex:
    """Looks titles up as people write them.

    Args:
        titles: `[num_items]` str or None where an item has no title.
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
        """Returns the rows that the text names: none, one or several."""
        full = next(_forms(text))
        return self._full.get(full) or self._short.get(full) or []

    def suggest(self, text: str, count: int = 5) -> list[int]:
        """Returns the rows of the closest titles, the closest first.

        Titles that contain the text go before those that are spelled like
        it, up to a ratio of equal letters.
        """
        wanted = next(_forms(text))
        grams = _trigrams(wanted)
        candidates = []
        for forms in (self._full, self._short):
            for form, rows in forms.items():
                inside = len(wanted) > 2 and wanted in form
                # Comparing letter by letter is slow: shared trigrams first.
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
    """Yields the spellings of a title: in full first, then shorter ones.

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
