from __future__ import annotations

import pathlib
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl.testing import absltest, parameterized

from recsys.data.vocabulary import Vocabulary
from recsys.errors import InputError


def _films() -> Vocabulary:
    return Vocabulary(
        ["30", "10", "x", "40"],
        pa.table(
            {
                "genres": [["Drama"], ["Action", "Sci-Fi"], None, []],
                "title": ["Heat (1995)", "Matrix, The (1999)", "?", None],
                "item_id": ["10", "30", "99", "x"],
            }
        ),
    )


class VocabularyTest(parameterized.TestCase):
    def test_sizes(self):
        vocabulary = _films()
        self.assertEqual(vocabulary.num_items, 4)
        self.assertEqual(vocabulary.size, 6)
        self.assertEqual(vocabulary.item_ids.tolist(), ["30", "10", "x", "40"])

    def test_items_are_aligned(self):
        items = _films().items
        self.assertEqual(items.column_names, ["item_id", "genres", "title"])
        self.assertEqual(
            items.to_pylist(),
            [
                {
                    "item_id": "30",
                    "genres": ["Action", "Sci-Fi"],
                    "title": "Matrix, The (1999)",
                },
                {"item_id": "10", "genres": ["Drama"], "title": "Heat (1995)"},
                {"item_id": "x", "genres": [], "title": None},
                {"item_id": "40", "genres": None, "title": None},
            ],
        )

    def test_with_column(self):
        films = _films()
        counted = films.with_column("count", np.arange(4))
        again = counted.with_column("genres", np.arange(4) * 2)
        self.assertEqual(
            again.items.column_names, ["item_id", "title", "count", "genres"]
        )
        self.assertEqual(again.items["genres"].to_pylist(), [0, 2, 4, 6])
        self.assertEqual(again.encode(["x", "9"]).tolist(), [4, 1])
        self.assertEqual(again.titles.tolist(), films.titles.tolist())
        self.assertEqual(
            films.items.column_names, ["item_id", "genres", "title"]
        )

    def test_indices_of_another_vocabulary(self):
        other = Vocabulary(["x", "new", "30"])
        self.assertEqual(_films().indices_of(other).tolist(), [0, 1, 4, 1, 2])

    def test_titles(self):
        self.assertEqual(
            _films().titles.tolist(),
            ["Matrix, The (1999)", "Heat (1995)", None, None],
        )
        self.assertIsNone(Vocabulary(["a"]).titles)

    @parameterized.parameters("item_ids", "titles")
    def test_arrays_are_read_only(self, name: str):
        with self.assertRaisesRegex(ValueError, "read-only"):
            getattr(_films(), name)[0] = "other"

    @parameterized.parameters(
        (["10", "nothing", "30"], [3, 1, 2]),
        ([["x"], ["40"]], [[4], [5]]),
        (np.array(["x", ""], object), [4, 1]),
        (np.array([10, 30, 31]), [3, 2, 1]),
        (pa.array(["40", "10"]), [5, 3]),
        ("x", 4),
        ([], []),
    )
    def test_encode(self, ids, expected):
        indices = _films().encode(ids)
        self.assertEqual(indices.dtype, np.int32)
        self.assertEqual(indices.tolist(), expected)

    def test_large_and_small_queries_agree(self):
        ids = [f"item {i * 7919 % 1000}" for i in range(1000)]
        vocabulary = Vocabulary(ids)
        query = ["none", *ids[::-1]]
        one_by_one = [int(vocabulary.encode(i)) for i in query]
        self.assertEqual(one_by_one, [1, *range(1001, 1, -1)])
        self.assertEqual(vocabulary.encode(query).tolist(), one_by_one)

    def test_strict_encode_names_the_unknown(self):
        vocabulary = _films()
        self.assertEqual(vocabulary.encode(["x"], strict=True).tolist(), [4])
        with self.assertRaisesRegex(
            InputError, "one of the 4 known ones. Received 2 unknown: 'a', 'b'$"
        ):
            vocabulary.encode(["x", "a", "b"], strict=True)

    def test_unpaired_surrogates_are_an_error(self):
        # What Python makes of bytes of the command line that are no UTF-8.
        text = "caf\udce9"
        for ids in ([text], np.array([text]), np.array([text], object)):
            with self.assertRaisesRegex(InputError, "udce9'$"):
                _films().encode(ids)
        with self.assertRaisesRegex(InputError, "udce9'$"):
            _films().find(text)

    def test_a_long_id_takes_no_more_memory_than_its_length(self):
        # As NumPy's text, 5,001 ids of 10 million characters are 186 GiB.
        ids = ["10"] * 5000 + ["x" * 10_000_000]
        expected = [3] * 5000 + [1]
        self.assertEqual(_films().encode(ids).tolist(), expected)
        self.assertEqual(_films().encode([ids]).tolist(), [expected])
        self.assertEqual(Vocabulary(ids[-2:]).num_items, 2)

    def test_long_ids_that_differ_at_the_end(self):
        ids = ["y" * length + end for length in (4095, 9000) for end in "ab"]
        self.assertEqual(Vocabulary(ids).encode(ids).tolist(), [2, 3, 4, 5])
        self.assertEqual(int(Vocabulary(ids).encode("y" * 4096)), 1)

    def test_integers_in_lists_are_decimal_strings(self):
        self.assertEqual(_films().encode([10, 30, 31]).tolist(), [3, 2, 1])
        # NumPy alone would make text of all of them.
        with self.assertRaisesRegex(TypeError, "`ids` must be strings"):
            _films().encode([10, "30"])

    @parameterized.parameters(
        ([1.5],), ([b"x"],), ([["x", None]],), ([["x"], ["x", "10"]],)
    )
    def test_encode_takes_strings(self, ids):
        with self.assertRaisesRegex(TypeError, "`ids` must be strings"):
            _films().encode(ids)

    def test_decode(self):
        ids = _films().decode(np.array([[2, 5], [3, 3]]))
        self.assertEqual(ids.tolist(), [["30", "40"], ["10", "10"]])
        self.assertEqual(ids.dtype, object)
        self.assertEqual(_films().decode([]).shape, (0,))

    @parameterized.parameters(0, 1, 6, -1)
    def test_decode_rejects_other_indices(self, index: int):
        with self.assertRaisesRegex(
            ValueError, f"`indices` must be from 2 to 5. Received: {index}$"
        ):
            _films().decode([2, index])

    def test_decode_takes_integers(self):
        with self.assertRaisesRegex(TypeError, "float64$"):
            _films().decode([2.0])

    def test_describe(self):
        vocabulary = _films()
        self.assertEqual(vocabulary.describe(2), "Matrix, The (1999)")
        self.assertEqual(vocabulary.describe(4), "x")
        self.assertEqual(Vocabulary(["a"]).describe(2), "a")

    @parameterized.parameters(
        (["a", "b", "a"], "`item_ids` must hold each id once.*: 'a'$"),
        (["a", ""], "`item_ids` must not be empty"),
    )
    def test_bad_ids(self, ids: list[str], message: str):
        with self.assertRaisesRegex(ValueError, message):
            Vocabulary(ids)

    def test_items_name_each_item_once(self):
        with self.assertRaisesRegex(ValueError, "`items` must hold .*'a'$"):
            Vocabulary(["a"], pa.table({"item_id": ["a", "a"]}))


class FindTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.vocabulary = Vocabulary(
            ["1", "2", "3", "4", "5", "1984"],
            pa.table(
                {
                    "item_id": ["1", "2", "3", "4", "5"],
                    "title": [
                        "Matrix, The (1999)",
                        "Hamlet (1996)",
                        "Hamlet (2000)",
                        "1984",
                        "Postman, The (Postino, Il) (1994)",
                    ],
                }
            ),
        )

    @parameterized.parameters(
        ("1", 2),
        ("Matrix, The (1999)", 2),
        ("The Matrix (1999)", 2),
        ("the  MATRIX", 2),
        ("hamlet (2000)", 4),
        ("1984", 7),
        ("Il Postino (1994)", 6),
    )
    def test_finds(self, text: str, index: int):
        self.assertEqual(self.vocabulary.find(text), index)

    def test_ambiguous_title_lists_the_choices(self):
        with self.assertRaisesRegex(
            InputError,
            r"'Hamlet \(1996\)' \(id 2\), 'Hamlet \(2000\)' \(id 3\).*"
            "Received: 'Hamlet'$",
        ):
            self.vocabulary.find("Hamlet")

    def test_unknown_title_suggests(self):
        with self.assertRaisesRegex(
            InputError, r"close: 'Matrix, The \(1999\)' \(id 1\).*'The Matrx'$"
        ):
            self.vocabulary.find("The Matrx")

    def test_no_similar_title(self):
        with self.assertRaisesRegex(
            InputError, "named by its id or title. Received: 'zzzzzz'$"
        ):
            self.vocabulary.find("zzzzzz")

    def test_without_titles(self):
        with self.assertRaisesRegex(InputError, "no titles are known.*'b'$"):
            Vocabulary(["a"]).find("b")


class SaveAndLoadTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enterContext(tempfile.TemporaryDirectory())
        )
        self.path = self.folder / "vocabulary.parquet"

    def test_round_trip_changes_nothing(self):
        _films().save(self.path)
        loaded = Vocabulary.load(self.path)
        self.assertTrue(loaded.items.equals(_films().items))
        self.assertEqual(loaded.encode(["x", "q"]).tolist(), [4, 1])
        self.assertEqual(
            [p.name for p in self.folder.iterdir()], ["vocabulary.parquet"]
        )

    def test_same_vocabulary_same_bytes(self):
        _films().save(self.path)
        again = self.folder / "again.parquet"
        Vocabulary.load(self.path).save(again)
        self.assertEqual(self.path.read_bytes(), again.read_bytes())

    def test_missing(self):
        with self.assertRaisesRegex(InputError, "must exist.*parquet$"):
            Vocabulary.load(self.path)

    def test_damaged(self):
        _films().save(self.path)
        self.path.write_bytes(self.path.read_bytes()[:-20])
        with self.assertRaisesRegex(
            InputError, "vocabulary.parquet: expected a vocabulary in Parquet"
        ):
            Vocabulary.load(self.path)

    def test_no_flipped_bit_is_read_as_data(self):
        _films().save(self.path)
        whole = self.path.read_bytes()
        self.assertEqual(whole.count(b"recsys.sha256"), 1)
        rng = np.random.default_rng(3)
        num_errors = 0
        for _ in range(300):
            content = np.frombuffer(whole, np.uint8).copy()
            for place in rng.choice(len(whole), rng.integers(1, 3), False):
                content[place] ^= 1 << rng.integers(8)
            self.path.write_bytes(content.tobytes())
            try:
                found = Vocabulary.load(self.path).items
            except InputError as error:
                self.assertIn("vocabulary.parquet: ", str(error))
                num_errors += 1
            else:  # A flip in the name of the checksum.
                self.assertTrue(found.equals(_films().items))
        self.assertGreater(num_errors, 280)

    def test_files_of_earlier_versions_have_no_checksum(self):
        items = _films().items
        pq.write_table(items, self.path, store_schema=False)
        self.assertTrue(Vocabulary.load(self.path).items.equals(items))

    def test_not_a_vocabulary(self):
        pq.write_table(pa.table({"item_id": [1, 2]}), self.path)
        with self.assertRaisesRegex(InputError, "string column `item_id`"):
            Vocabulary.load(self.path)
        pq.write_table(pa.table({"item_id": ["a", "a"]}), self.path)
        with self.assertRaisesRegex(InputError, "parquet: .* twice: 'a'$"):
            Vocabulary.load(self.path)


if __name__ == "__main__":
    absltest.main()
