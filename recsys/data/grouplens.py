"""The layouts in which GroupLens publishes MovieLens."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources.abc import Traversable

import pyarrow as pa

from recsys.data import files, tabular
from recsys.data import items as items_lib
from recsys.data.bad_rows import TextForm
from recsys.data.columns import ColumnNames
from recsys.data.interactions import Interactions
from recsys.errors import InputError

# What the sets without a header say in their README.
_HEADER = ("userId", "movieId", "rating", "timestamp")
# Arrow splits at single characters, so "::" gives an empty column between.
_DAT = TextForm(
    ("userId", "_1", "movieId", "_2", "rating", "_3", "timestamp"),
    "::",
    has_header=False,
    blank_columns=("_1", "_2", "_3"),
    fallback_encoding="latin-1",
)
_TAB = TextForm(_HEADER, "\t", has_header=False, fallback_encoding="latin-1")
# Ratings file, how its rows are written, items file.
LAYOUTS = {
    "ratings.csv": (None, "movies.csv"),
    "ratings.dat": (_DAT, "movies.dat"),
    "u.data": (_TAB, "u.item"),
}
_GENRES_100K = (
    "unknown|Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|"
    "Drama|Fantasy|Film-Noir|Horror|Musical|Mystery|Romance|Sci-Fi|Thriller|"
    "War|Western"
).split("|")


def layouts(members: dict[str, Traversable]) -> list[str]:
    """Returns the ratings files of GroupLens among the files of a folder."""
    return [name for name in LAYOUTS if _member(members, name)]


def read(
    members: dict[str, Traversable],
    layout: str,
    given: ColumnNames,
    with_items: bool = True,
) -> tuple[Interactions, pa.Table | None]:
    """Reads ratings and films.

    Args:
        members: The files of the folder by name; each may be a gzip with
            ".gz" after its name.
        layout: The name of the ratings file.
        given: The column names that the user gave.
        with_items: Whether the films are wanted.

    Returns:
        The interactions, and what is known of the films: None if not wanted
        or if their file is missing.

    Raises:
        InputError: A file is damaged or a row malformed.
        ValueError: The ratings file is not among the files.
    """
    form, items_name = LAYOUTS[layout]
    ratings = _member(members, layout)
    if ratings is None:
        raise ValueError(
            f"`layout` must be the name of one of `members`. "
            f"Received: {layout!r}"
        )
    if form is None:
        interactions, names = tabular.read_tables([ratings], given)
    else:
        names = given.find(_HEADER, ratings)
        table = tabular.read_text(ratings, names, form)
        interactions = tabular.assemble([table], [ratings])
    films = _member(members, items_name)
    if films is None or not with_items:
        return interactions, None
    if items_name == "movies.csv":
        return interactions, items_lib.read_items(films, names.item)
    if items_name == "movies.dat":
        return interactions, _read_movies_dat(films)
    return interactions, _read_u_item(films, _member(members, "u.genre"))


def _member(members: dict[str, Traversable], name: str) -> Traversable | None:
    return members.get(name) or members.get(name + ".gz")


def _read_movies_dat(file: Traversable) -> pa.Table:
    """Reads lines such as "1::Toy Story (1995)::Animation|Comedy"."""
    rows = [fields for _, fields in _split_lines(file, "::", 3)]
    ids, titles, genres = zip(*rows, strict=True)
    table = pa.table({"item_id": ids, "title": titles, "genres": genres})
    return items_lib.tidy(table, file)


def _read_u_item(file: Traversable, genre_file: Traversable | None) -> pa.Table:
    """Reads id, title, release, video release, address and genre flags."""
    names = _GENRES_100K
    if genre_file is not None:
        pairs = [fields for _, fields in _split_lines(genre_file, "|", 2)]
        names = [name for name, _ in sorted(pairs, key=lambda p: int(p[1]))]
    ids, titles, genres = [], [], []
    for number, fields in _split_lines(file, "|", 5 + len(names)):
        flags = fields[5:]
        if not set(flags) <= {"0", "1"}:
            raise InputError(
                f"{file}, line {number}: expected {len(names)} genre flags, "
                f"0 or 1. Received: {'|'.join(flags)!r}"
            )
        ids.append(fields[0])
        titles.append(fields[1])
        genres.append(
            [
                name
                for name, flag in zip(names, flags, strict=True)
                if flag == "1" and name not in items_lib.NO_GENRES
            ]
        )
    table = pa.table(
        {
            "item_id": pa.array(ids, pa.string()),
            "title": pa.array(titles, pa.string()),
            "genres": pa.array(genres, pa.list_(pa.string())),
        }
    )
    return items_lib.tidy(table, file)


def _split_lines(
    file: Traversable, delimiter: str, num_fields: int
) -> Iterator[tuple[int, list[str]]]:
    """Yields line numbers and fields, without blank lines."""
    for number, line in enumerate(files.lines(file, "latin-1"), 1):
        line = line.rstrip("\r\n")
        if not line:
            continue
        fields = line.split(delimiter)
        if len(fields) != num_fields:
            raise InputError(
                f"{file}, line {number}: expected {num_fields} fields "
                f"separated by {delimiter!r}. Received: {line[:120]!r}"
            )
        yield number, fields
