"""Filters, allow-lists, quotas and diversity, beside plain Python."""

from __future__ import annotations

import contextlib
import datetime
import io
import math
import pathlib
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl.testing import absltest, parameterized

import recsys
from recsys.data.vocabulary import Vocabulary
from recsys.errors import InputError
from recsys.recommender import Recommender
from recsys.reranking import Rules, item_columns, matches, read_ids

IDS = ["a", "b", "c", "d"]
VOCABULARY = Vocabulary(
    IDS,
    pa.table(
        {
            "item_id": IDS,
            "title": ["Alien (1979)", "Brazil (1985) ", "Heat", None],
            "genres": [["Horror", "Sci-Fi"], ["Comedy"], [], None],
            "price": [1.5, math.nan, 3.0, None],
            "stock": [7, 0, None, 12],
            "brand": ['O"Neil', "x", None, "y z"],
            "is_new": [True, False, None, True],
            "when": [
                datetime.date(2001, 2, day) if day else None
                for day in (3, 4, 0, 5)
            ],
            "a column": pa.array([1, 2, 3, 4]).dictionary_encode(),
        }
    ),
)


class MatchesTest(parameterized.TestCase):
    @parameterized.parameters(
        ("genres has Comedy", [False, True, False, None]),
        ("genres has 'Sci-Fi'", [True, False, False, None]),
        ("not genres has Comedy", [True, False, True, None]),
        ("price >= 1.5", [True, None, True, None]),
        ("price != 3", [True, None, False, None]),
        # Unknown or true is true; unknown and false is false.
        ("price > 2 or stock < 1", [False, True, True, None]),
        ("price > 2 and stock > 5", [False, False, None, None]),
        ("not (price > 2 or stock = 0)", [True, False, False, None]),
        # `and` binds more tightly than `or`, `not` than `and`.
        ("stock=7 or stock=0 and is_new=true", [True, False, None, False]),
        ("not stock = 7 and is_new = true", [False, False, None, True]),
        ("NOT stock == 7 AND is_new = true", [False, False, None, True]),
        ("stock in (0, 7)", [True, True, None, False]),
        ("stock not in (0)", [True, False, None, True]),
        ("stock > 6.5", [True, False, None, True]),
        ("brand = 'O\"Neil'", [True, False, None, False]),
        ('brand = "O\\"Neil"', [True, False, None, False]),
        ("brand in (x, 'y z')", [False, True, None, True]),
        ("brand > 'w'", [False, True, None, True]),
        ("when < '2001-02-04'", [True, False, None, False]),
        ("`a column` <= 2", [True, True, False, False]),
        ("item_id = b", [False, True, False, False]),
        # Derived from the title.
        ("year < 1985", [True, False, None, None]),
    )
    def test_conditions(self, where, expected):
        self.assertEqual(matches(VOCABULARY, where).to_pylist(), expected)

    @parameterized.parameters(
        ("", "at character 1: expected one of the columns `item_id`.*the end"),
        ("colour = red", "at character 1: .*`brand`, .* Received: 'colour'"),
        (
            "stock = 1 and colour = 2",
            "at character 15: expected one of the col",
        ),
        ("stock", "at character 6: .*`stock`, a column of int64, `in`, `=`"),
        ("stock = red", "at character 9: .*such a value. Received: 'red'"),
        ("stock > 1e", "at character 9: expected a column, an operator or"),
        ("stock = and", "at character 9: expected .* a value. Received: 'an"),
        ("stock = 1 stock = 2", "at character 11: .* or the end"),
        ("(stock = 1", r"at character 11: expected `\)`, .* the end"),
        ("stock = 1)", r"at character 10: expected `and`.* Received: '\)'"),
        ("stock in 1", "at character 10: expected a list such as"),
        ("stock in (1, 2", "at character 15: expected a list such as"),
        ("stock not = 1", "at character 11: expected .* `in`"),
        ("brand > 3", "at character 9: .*text in quotes. Received: '3'"),
        ("brand = 'x", "at character 9: expected a column.* Received: \"'x"),
        ("genres = Comedy", "at character 8: .*list<.*>, `has`. Received: '="),
        ("price has 3", "at character 7: expected for `price`"),
        ("is_new = maybe", "at character 10: .*bool, such a value"),
        ("stock = 99999999999999999999", "at character 9: .* such a value"),
        ("(" * 10_000, "at character [0-9]+: expected conditions that nest"),
    )
    def test_mistakes(self, where, message):
        with self.assertRaisesRegex(InputError, f"^`where` {message}"):
            matches(VOCABULARY, where)

    def test_the_year_of_the_table_goes_before_that_of_the_title(self):
        years = item_columns(VOCABULARY)["year"].to_pylist()
        self.assertEqual(years, [1979, 1985, None, None])
        other = VOCABULARY.with_column("year", np.array([1, 2, 3, 4]))
        self.assertEqual(item_columns(other)["year"].to_pylist(), [1, 2, 3, 4])


class MakeTest(parameterized.TestCase):
    def test_no_rules(self):
        rules = Rules.make(VOCABULARY)
        self.assertIsNone(rules.rows)
        self.assertIsNone(rules.groups)
        self.assertEqual(rules.notes, ())

    def test_lists_and_conditions_are_combined(self):
        rules = Rules.make(
            VOCABULARY,
            items=["d", "a", "z", "b"],
            exclude=["b", "y", "x"],
            where="stock >= 7 or price = 3",
        )
        np.testing.assert_array_equal(rules.rows, [0, 3])
        self.assertEqual(
            rules.notes,
            (
                "1 of 4 ids of `items` are unknown, ignored",
                "2 of 3 ids of `exclude` are unknown, ignored",
                "items without a value that `where` needs, never recommended: "
                "1",
                "2 of 4 items may be recommended",
            ),
        )

    def test_integers_are_ids(self):
        rules = Rules.make(Vocabulary(["7", "8", "9"]), items=[9, "7"])
        np.testing.assert_array_equal(rules.rows, [0, 2])

    def test_an_empty_exclusion_excludes_nothing(self):
        self.assertIsNone(Rules.make(VOCABULARY, exclude=[]).rows)

    @parameterized.parameters(
        ({"items": []}, "must leave an item to recommend.*0 of 4 items"),
        ({"items": ["z"]}, "1 of 1 ids of `items` are unknown"),
        ({"exclude": IDS}, "must leave an item"),
        ({"where": "stock > 99"}, "must leave an item"),
        ({"diversity": 1.5}, "`diversity` must be from 0 to 1. Received: 1.5"),
        ({"diversity": math.nan}, "`diversity` must be from 0 to 1"),
        ({"at_most": {"colour": 1}}, "`genres`, .* Received: colour:1"),
        ({"at_most": {"brand": 0}}, "a number from 1 .* Received: brand:0"),
    )
    def test_mistakes(self, options, message):
        with self.assertRaisesRegex(InputError, message):
            Rules.make(VOCABULARY, **options)


NUM_ITEMS = 400
TAGS = ["red", "green", "blue", "black"]


def make_recommender() -> Recommender:
    """Returns a random model; items have a brand and some tags, or none."""
    rng = np.random.default_rng(3)
    ids = [f"i{n}" for n in range(NUM_ITEMS)]
    tags = [
        [TAGS[t] for t in rng.integers(0, 4, rng.integers(0, 4))] for _ in ids
    ]
    brands = [f"b{n}" if n < 9 else None for n in rng.integers(0, 11, 400)]
    # One brand has nearly all of the most popular items.
    for row in range(0, 300):
        brands[row] = "b0"
    table = pa.table(
        {
            "item_id": ids,
            "brand": brands,
            "tags": tags,
            "train_count": np.arange(NUM_ITEMS)[::-1],
        }
    )
    embedding = recsys.SharedItemEmbedding(NUM_ITEMS + 2, 4)
    model = recsys.TwoTower(
        recsys.HistoryTower(embedding, encoder=recsys.MeanPooling()),
        recsys.CandidateTower(embedding),
    )
    model.build()
    values = rng.normal(size=(NUM_ITEMS + 2, 4))
    # The best of any history are similar to it, and mostly of that brand.
    values[:302, 0] += 5
    embedding.embeddings.assign(values)
    return Recommender(model, Vocabulary(ids, table), 10)


def greedy(recommender, scores, candidates, k, at_most, d=0.0, pool=None):
    """Chooses by going through the whole ranking, one item after another."""
    items = recommender.vocabulary.items
    ranking = sorted(candidates, key=lambda row: (-scores[row], row))[:pool]
    vectors = recommender.item_vectors()[2:].astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    high, low = scores[ranking[0]], scores[ranking[-1]]
    counts, chosen = {}, []
    groups = {
        row: {
            (name, value)
            for name in at_most
            for each in [items[name][row].as_py()]
            for value in (each if isinstance(each, list) else [each])
            if value is not None
        }
        for row in ranking
    }
    while len(chosen) < k:
        open_ = [
            row
            for row in ranking
            if row not in chosen
            and all(counts.get(g, 0) < at_most[g[0]] for g in groups[row])
        ]
        if not open_:
            break

        def value(row):
            if not d:
                return scores[row]
            nearest = max(
                (vectors[row] @ vectors[c] for c in chosen), default=0
            )
            return (1 - d) * (scores[row] - low) / (high - low) - d * nearest

        best = max(open_, key=value)
        chosen.append(best)
        for group in groups[best]:
            counts[group] = counts.get(group, 0) + 1
    return chosen


HISTORIES = [[5], [350, 399, 380], [0, 1, 2, 3], []]


class RankTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.recommender = make_recommender()
        items = np.concatenate(HISTORIES).astype(np.int32) + 2
        cls.histories = (items, np.cumsum([0, *map(len, HISTORIES)]))
        cls.scores = cls.recommender.scores(*cls.histories)[:, 2:]
        cls.scores[3] = cls.recommender.popularity[2:]

    def check(self, k, rules, candidates, at_most, d=0.0, pool=None):
        found, scores = self.recommender.recommend_indices(
            *self.histories, k, rules=rules
        )
        self.assertEqual(found.shape, (4, min(k, NUM_ITEMS)))
        for row, history in enumerate(HISTORIES):
            expected = greedy(
                self.recommender,
                self.scores[row],
                [each for each in candidates if each not in history],
                k,
                at_most,
                d,
                pool,
            )
            got = found[row][found[row] > 0] - 2
            self.assertEqual(got.tolist(), expected)
            np.testing.assert_allclose(
                scores[row, : len(got)], self.scores[row][got], rtol=1e-5
            )
            self.assertTrue(np.isneginf(scores[row, len(got) :]).all())
        return found

    @parameterized.parameters(
        (5, {"brand": 1}),
        (12, {"brand": 2}),
        (30, {"brand": 2, "tags": 5}),
        # More than the quotas allow.
        (60, {"tags": 1}),
        (1000, {"brand": 3}),
    )
    def test_quotas_equal_going_through_the_whole_ranking(self, k, at_most):
        rules = Rules.make(self.recommender.vocabulary, at_most=at_most)
        self.check(k, rules, range(NUM_ITEMS), at_most)

    def test_a_quota_needs_more_than_the_first_pool(self):
        """The best hundred are of one brand."""
        best = np.argsort(-self.scores[3])[:100]
        brands = self.recommender.vocabulary.items["brand"].take(best)
        self.assertEqual(set(brands.to_pylist()), {"b0"})
        rules = Rules.make(self.recommender.vocabulary, at_most={"brand": 1})
        found = self.check(9, rules, range(NUM_ITEMS), {"brand": 1})
        self.assertEqual(found[3, 0], 2)
        self.assertGreater(found[3, 1], 301)

    def test_quotas_never_bring_back_what_was_excluded(self):
        vocabulary = self.recommender.vocabulary
        allowed = list(range(0, NUM_ITEMS, 3))
        rules = Rules.make(
            vocabulary,
            items=[f"i{row}" for row in allowed],
            exclude=["i3", "i399"],
            at_most={"brand": 2},
            diversity=0.5,
        )
        left = [row for row in allowed if row not in (3, 399)]
        # All that are left: so there is no smaller pool.
        found, _ = self.recommender.recommend_indices(
            *self.histories, 150, rules=rules
        )
        for row, history in enumerate(HISTORIES):
            got = set((found[row][found[row] > 0] - 2).tolist())
            self.assertNotEmpty(got)
            self.assertEmpty(got - set(left) | got & set(history))

    @parameterized.parameters(
        (5, 0.3, 100), (5, 0.9, 100), (5, 1.0, 100), (30, 0.5, 150)
    )
    def test_diversity_equals_plain_mmr_over_the_pool(self, k, d, pool):
        rules = Rules.make(self.recommender.vocabulary, diversity=d)
        self.check(k, rules, range(NUM_ITEMS), {}, d, pool)

    def test_diversity_with_quotas(self):
        at_most = {"tags": 2}
        rules = Rules.make(
            self.recommender.vocabulary,
            where="train_count >= 10",
            at_most=at_most,
            diversity=0.4,
        )
        self.check(6, rules, range(390), at_most, 0.4, 100)

    def test_filters_restrict_the_candidates_before_the_best_are_found(self):
        rules = Rules.make(self.recommender.vocabulary, where="brand = b7")
        brands = self.recommender.vocabulary.items["brand"].to_pylist()
        left = [row for row, brand in enumerate(brands) if brand == "b7"]
        self.assertBetween(len(left), 3, 20)
        found = self.check(50, rules, left, {})
        self.assertEqual(np.count_nonzero(found[3]), len(left))

    def test_many_queries_are_answered_as_one(self):
        """In several blocks, of which some lists need a larger pool."""
        rules = Rules.make(
            self.recommender.vocabulary, at_most={"brand": 1}, diversity=0.2
        )
        rng = np.random.default_rng(0)
        items = rng.integers(2, NUM_ITEMS + 2, 40).astype(np.int32)
        with absltest.mock.patch("recsys.reranking._NUMBERS_PER_BLOCK", 2000):
            found, scores = self.recommender.recommend_indices(
                items, np.arange(41), 7, rules=rules
            )
        for row in range(40):
            one, score = self.recommender.recommend_indices(
                items[row : row + 1], np.array([0, 1]), 7, rules=rules
            )
            self.assertEqual(one[0].tolist(), found[row].tolist())
            np.testing.assert_allclose(score[0], scores[row], rtol=1e-5)

    def test_nothing_is_left_after_the_history(self):
        rules = Rules.make(
            self.recommender.vocabulary,
            items=["i5"],
            at_most={"brand": 1},
            diversity=1,
        )
        found, scores = self.recommender.recommend_indices(
            *self.histories, 3, rules=rules
        )
        self.assertEqual(
            found.tolist(), [[0, 0, 0], [7, 0, 0], [7, 0, 0], [7, 0, 0]]
        )
        self.assertTrue(np.isneginf(scores[0]).all())


class ReadIdsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enter_context(tempfile.TemporaryDirectory())
        )

    @parameterized.parameters(
        ("ids.txt", "a\n\n b c \na\r\nd", ["a", "b c", "d"]),
        ("ids", "\ufeffitem_id\na,b\n", ["item_id", "a,b"]),
        ("ids.csv", 'item,n\na,1\n"b, c",2\n\n', ["a", "b, c"]),
        ("ids.csv", "a,1\nb,2\n", ["a", "b"]),
        ("ids.tsv", "item\tn\nx y\t1\n", ["x y"]),
    )
    def test_text(self, name, text, expected):
        path = self.folder / name
        path.write_text(text, "utf-8")
        self.assertEqual(read_ids(path, IDS.__contains__), expected)

    def test_parquet(self):
        path = self.folder / "ids.parquet"
        pq.write_table(pa.table({"n": [3, 5, 3], "other": [1, 2, 3]}), path)
        with contextlib.redirect_stderr(io.StringIO()) as said:
            found = read_ids(path, IDS.__contains__)
        self.assertEqual(found, ["3", "5"])
        self.assertEqual(
            said.getvalue(), f"{path}: 1 of 3 ids are repetitions, ignored\n"
        )

    @parameterized.parameters(
        ("none.txt", None, "readable file. Received: .*No such file"),
        ("empty.txt", b"\n\n", "expected ids. Received: none"),
        ("empty.csv", b"", "expected ids. Received: none"),
        ("bytes.txt", b"\xff\xfe\xfa", "readable file"),
        ("not.parquet", b"a\nb\n", "readable file"),
    )
    def test_mistakes(self, name, content, message):
        path = self.folder / name
        if content is not None:
            path.write_bytes(content)
        with self.assertRaisesRegex(InputError, f"{name}: .*{message}"):
            read_ids(path, IDS.__contains__)


if __name__ == "__main__":
    absltest.main()
