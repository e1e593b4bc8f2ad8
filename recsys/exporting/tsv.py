"""Tab-separated text, for readers that know no quotation marks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

_BREAKS = re.compile(r"[\t\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+")


def write(
    path: str | os.PathLike[str], columns: Mapping[str, Iterable[object]]
) -> None:
    """Writes columns of equal length, below a line of their headings.

    Args:
        path: The file to write.
        columns: Values by heading. None becomes nothing; tabs and line breaks
            in a text become a blank, since there is no way to quote them.
    """
    with open(path, "w", encoding="utf-8") as file:
        file.write("\t".join(columns) + "\n")
        for row in zip(*columns.values(), strict=True):
            cells = ("" if cell is None else str(cell) for cell in row)
            file.write("\t".join(_BREAKS.sub(" ", c) for c in cells) + "\n")
