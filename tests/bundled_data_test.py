"""The bundled MovieLens files, as files: what they hold and how they came."""

from __future__ import annotations

import collections
import csv
import gzip
import hashlib
import importlib.resources
import importlib.util
import io
import pathlib
import re
import tempfile
import types

from absl.testing import absltest, parameterized

BUNDLED = importlib.resources.files("recsys.data") / "movielens_small"
SCRIPT = (
    pathlib.Path(__file__).parents[1] / "scripts" / "make_movielens_small.py"
)


def content(name: str) -> bytes:
    return gzip.decompress((BUNDLED / name).read_bytes())


def rows(name: str) -> list[list[str]]:
    """Returns the rows of a file, header first."""
    return list(csv.reader(io.StringIO(content(name).decode("utf-8"))))


def load_script() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(
        "make_movielens_small", SCRIPT
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class FilesTest(parameterized.TestCase):
    def test_all_together_stay_under_one_megabyte(self):
        sizes = [len(file.read_bytes()) for file in BUNDLED.iterdir()]
        self.assertLess(sum(sizes), 1_000_000)

    # Every measured figure rests on these bytes.
    @parameterized.parameters(
        (
            "ratings.csv.gz",
            "b4239649fbf90ebf405c56c3ae1d929d9e7c86fc1a3a80cbef1c884df593ef73",
        ),
        (
            "movies.csv.gz",
            "2f5af4a66b226686b0714e8d106506487499aeeb200d77ec198a1cf96e258ec5",
        ),
    )
    def test_content_is_unchanged(self, name, sha256):
        self.assertEqual(hashlib.sha256(content(name)).hexdigest(), sha256)

    @parameterized.parameters("ratings.csv.gz", "movies.csv.gz")
    def test_gzip_header_has_no_name_and_no_time(self, name):
        header = (BUNDLED / name).read_bytes()[:10]
        self.assertEqual(header[:3], b"\x1f\x8b\x08")
        self.assertEqual(header[3:8], bytes(5))

    def test_terms_and_citation_lie_beside_the_data(self):
        text = (BUNDLED / "README.txt").read_text("utf-8")
        self.assertIn("https://doi.org/10.1145/2827872", text)
        words = " ".join(text.split())
        for term in (
            "research purposes",
            "endorsement",
            "must acknowledge",
            "redistribute",
            "commercial",
            "without warranty",
        ):
            self.assertIn(term, words)


class RatingsTest(absltest.TestCase):
    def test_counts_are_those_of_october_2016(self):
        header, *ratings = rows("ratings.csv.gz")
        self.assertEqual(header, ["userId", "movieId", "rating", "timestamp"])
        self.assertLen(ratings, 100_004)
        self.assertLen({row[0] for row in ratings}, 671)
        self.assertLen({row[1] for row in ratings}, 9_066)

    def test_rows_are_in_the_order_of_grouplens(self):
        keys = [
            (int(row[0]), int(row[1])) for row in rows("ratings.csv.gz")[1:]
        ]
        self.assertEqual(keys, sorted(set(keys)))

    def test_values_are_half_stars_within_the_years_of_the_set(self):
        ratings = rows("ratings.csv.gz")[1:]
        stars = {f"{half / 2:.1f}" for half in range(1, 11)}
        self.assertEqual({row[2] for row in ratings}, stars)
        times = [int(row[3]) for row in ratings]
        # 1995-01-09 11:46:49 and 2016-10-16 17:57:24, UTC.
        self.assertEqual((min(times), max(times)), (789652009, 1476640644))

    def test_every_user_rated_at_least_twenty_films(self):
        counts = collections.Counter(
            row[0] for row in rows("ratings.csv.gz")[1:]
        )
        self.assertEqual(min(counts.values()), 20)


class MoviesTest(absltest.TestCase):
    def test_films_are_the_rated_ones_in_order(self):
        header, *movies = rows("movies.csv.gz")
        self.assertEqual(header, ["movieId", "title", "genres"])
        rated = {int(row[1]) for row in rows("ratings.csv.gz")[1:]}
        self.assertEqual([int(row[0]) for row in movies], sorted(rated))

    def test_titles_end_with_a_year_but_for_five(self):
        without_year = {
            row[0]: row[1]
            for row in rows("movies.csv.gz")[1:]
            if not re.fullmatch(r"\S.* \((19|20)\d\d\)", row[1])
        }
        self.assertEqual(
            without_year,
            {
                "108548": "Big Bang Theory, The (2007-)",
                "108583": "Fawlty Towers (1975-1979)",
                "143410": "Hyena Road",
                "151307": "The Lovers and the Despot",
                "162376": "Stranger Things",
            },
        )

    def test_titles_keep_their_letters_and_quotes(self):
        titles = {row[0]: row[1] for row in rows("movies.csv.gz")[1:]}
        self.assertEqual(titles["1"], "Toy Story (1995)")
        self.assertEqual(titles["2571"], "Matrix, The (1999)")
        self.assertEqual(titles["73"], "Misérables, Les (1995)")
        self.assertEqual(titles["51372"], '"Great Performances" Cats (1998)')

    def test_two_titles_are_borne_by_two_films(self):
        counts = collections.Counter(row[1] for row in rows("movies.csv.gz"))
        self.assertEqual(
            {title for title, count in counts.items() if count > 1},
            {"Hamlet (2000)", "War of the Worlds (2005)"},
        )

    def test_genres_are_those_of_grouplens(self):
        genres = {
            genre
            for row in rows("movies.csv.gz")[1:]
            for genre in row[2].split("|")
        }
        self.assertEqual(
            genres,
            {
                *"Action Adventure Animation Children Comedy Crime".split(),
                *"Documentary Drama Fantasy Film-Noir Horror IMAX".split(),
                *"Musical Mystery Romance Sci-Fi Thriller War".split(),
                "Western",
                "(no genres listed)",
            },
        )


class ScriptTest(parameterized.TestCase):
    @parameterized.parameters(
        (1, "Toy Story", 1995.0, "Toy Story (1995)"),
        (143410, float("nan"), float("nan"), "Hyena Road"),
    )
    def test_full_title(self, movie_id, title, year, expected):
        self.assertEqual(
            load_script().full_title(movie_id, title, year), expected
        )

    def test_full_title_rejects_an_unknown_film_without_year(self):
        with self.assertRaisesRegex(ValueError, "Received: 7$"):
            load_script().full_title(7, "Sabrina", float("nan"))

    @parameterized.parameters("ratings.csv.gz", "movies.csv.gz")
    def test_what_it_writes_is_what_is_bundled(self, name):
        script = load_script()
        header, *body = rows(name)
        written = script.csv_bytes(header, body)
        self.assertEqual(written, content(name))
        folder = self.enter_context(tempfile.TemporaryDirectory())
        path = pathlib.Path(folder) / name
        script.write_gzip(path, written)
        first = path.read_bytes()
        script.write_gzip(path, written)
        self.assertEqual(path.read_bytes(), first)
        self.assertEqual(gzip.decompress(first), written)


if __name__ == "__main__":
    absltest.main()
