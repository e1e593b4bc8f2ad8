from __future__ import annotations

import pathlib
import tempfile

import numpy as np
import pyarrow as pa
from absl.testing import absltest, parameterized

from recsys.data.features import (
    MAX_VALUES,
    FeatureColumn,
    ItemEncoder,
    describe_columns,
    parse_columns,
    raw_column,
    text_values,
)
from recsys.errors import InputError

ITEMS = pa.table(
    {
        "item_id": ["a", "b", "c", "d"],
        "title": ["Toy Story (1995)", "The Toy (1982)", "L'Âge, d'or", None],
        "genres": [["Drama", "War"], ["War"], [], None],
        "tags": ["x; y;x", "y ", "", None],
        "brand": ["A", "A", "B", ""],
        "price": [1.0, 3.0, 2.0, None],
        "stock": [1, 2, 3, 4],
        "new": [True, False, True, None],
        "image": [[1.0, 0.0], [0.0, 1.0], None, [2.0, 2.0]],
        "text": ["[1, 2]", "3 4", "5,6", "7;8"],
    }
)


def encode(text: str, items: pa.Table = ITEMS, fit_on: pa.Table = ITEMS):
    """Returns an encoder and what it makes of the items."""
    encoder = ItemEncoder.fit(fit_on, parse_columns(text, fit_on))
    return encoder, encoder.encode(items)


def named(encoder: ItemEncoder, encoded) -> list[dict[str, float]]:
    """Returns for each item the weights of its values by their names."""
    return [
        {
            encoder.names[value]: round(float(weight), 4)
            for value, weight in zip(values, weights, strict=True)
            if weight
        }
        for values, weights in zip(encoded.values, encoded.weights, strict=True)
    ]


class ParseColumnsTest(parameterized.TestCase):
    @parameterized.parameters(
        ("genres", [("genres", "multi", "|")]),
        ("title", [("title", "words", "|")]),
        (
            " brand , price",
            [("brand", "categorical", "|"), ("price", "numeric", "|")],
        ),
        ("stock:categorical", [("stock", "categorical", "|")]),
        ("new", [("new", "categorical", "|")]),
        ("image", [("image", "vector", "|")]),
        ("tags:multi:;", [("tags", "multi", ";")]),
        (
            "tags:multi:,,stock",
            [("tags", "multi", ","), ("stock", "numeric", "|")],
        ),
        (
            "auto",
            [
                ("genres", "multi", "|"),
                ("year", "numeric", "|"),
                ("title", "words", "|"),
            ],
        ),
    )
    def test_parse_columns(self, text, expected):
        self.assertEqual(
            parse_columns(text, ITEMS),
            [FeatureColumn(*fields) for fields in expected],
        )

    def test_the_names_of_the_file(self):
        # An items table has them as `genres` and `title`.
        columns = parse_columns("categories,Movie Title", ITEMS)
        self.assertEqual([c.name for c in columns], ["genres", "title"])
        with self.assertRaisesRegex(InputError, "each column once"):
            parse_columns("genres,categories", ITEMS)
        # A column of that name is another one.
        items = ITEMS.append_column("category", [["x", "y", "x", "y"]])
        self.assertEqual(
            parse_columns("category", items),
            [FeatureColumn("category", "categorical", "|")],
        )

    @parameterized.parameters(
        ("color", "must be a column of the items file .*image.*: 'color'$"),
        (
            "brand:string",
            "kind of item feature `brand` must be one of .*'string'$",
        ),
        ("brand,brand", "each column once. Received: 'brand,brand'$"),
        (",", "at least one column. Received: ','"),
    )
    def test_parse_columns_errors(self, text, message):
        with self.assertRaisesRegex(InputError, message):
            parse_columns(text, ITEMS)

    def test_auto_without_usable_columns(self):
        with self.assertRaisesRegex(
            InputError, "at least one column. Received: 'auto' .* of item_id$"
        ):
            parse_columns("auto", ITEMS.select(["item_id"]))

    @parameterized.parameters(
        ({"title": ["Alien", "Heat"]}, ["title"]),
        ({"title": [None, "Heat (1995)"]}, ["year", "title"]),
        ({"title": pa.nulls(2, pa.string()), "genres": ["a", "b"]}, ["genres"]),
        (
            {"title": ["Alien", "Heat"], "genres": [[], None]},
            ["title"],
        ),
        ({"title": ["Alien", None], "year": [None, 3]}, ["year", "title"]),
    )
    def test_auto_skips_columns_without_values(self, columns, expected):
        found = parse_columns("auto", pa.table(columns))
        self.assertEqual([column.name for column in found], expected)

    def test_year_from_the_title_unless_there_is_a_column(self):
        self.assertEqual(
            raw_column(ITEMS, "year").to_pylist(), [1995, 1982, None, None]
        )
        dated = ITEMS.append_column("year", pa.array([1, 2, 3, 4]))
        self.assertEqual(raw_column(dated, "year").to_pylist(), [1, 2, 3, 4])

    def test_words(self):
        column = FeatureColumn("title", "words")
        self.assertEqual(
            [
                words and [word for word in words if word]
                for words in text_values(ITEMS, column).to_pylist()
            ],
            [["toy", "story"], ["the", "toy"], ["l", "âge", "d", "or"], None],
        )


class ItemEncoderTest(parameterized.TestCase):
    def test_rare_values_are_dropped(self):
        encoder, encoded = encode("genres,brand")
        # "War" and "A" occur twice, "Drama" and "B" once.
        self.assertEqual(encoder.names, ["", "genres=War", "brand=A"])
        self.assertEqual(encoder.num_values, 3)
        self.assertEqual(
            named(encoder, encoded),
            [{"genres=War": 1, "brand=A": 1}] * 2 + [{}, {}],
        )

    def test_several_values_share_the_weight(self):
        encoder, encoded = encode(
            "tags:multi:;", fit_on=pa.concat_tables([ITEMS] * 2)
        )
        # "x; y;x" is x and y: 1 / √2 each.
        self.assertEqual(
            named(encoder, encoded)[:3],
            [{"tags=x": 0.7071, "tags=y": 0.7071}, {"tags=y": 1}, {}],
        )
        self.assertEqual(encoded.values.dtype, np.int32)
        self.assertEqual(encoded.weights.dtype, np.float32)
        # As wide as the item with the most values.
        self.assertEqual(encoded.values.shape, (4, 2))
        self.assertEqual(encoded.vectors.shape, (4, 0))

    def test_numbers_interpolate_between_knots(self):
        fit_on = pa.table({"price": [0.0, 10.0]})
        encoder = ItemEncoder.fit(fit_on, parse_columns("price", fit_on))
        # Quantiles of two numbers are a line: 16 knots, 2/3 apart.
        self.assertEqual(encoder.num_values, 17)
        prices = pa.table({"price": [0.0, 1.0, -5.0, 99.0, None]})
        encoded = named(encoder, encoder.encode(prices))
        self.assertEqual(encoded[0], {"price=0": 1})
        self.assertEqual(
            encoded[1], {"price=0.666667": 0.5, "price=1.33333": 0.5}
        )
        # Beyond the knots: at the last.
        self.assertEqual(encoded[2:], [{"price=0": 1}, {"price=10": 1}, {}])

    def test_a_single_number(self):
        encoder, encoded = encode("n", *[pa.table({"n": [5, 5, None]})] * 2)
        self.assertEqual(named(encoder, encoded), [{"n=5": 1}, {"n=5": 1}, {}])

    def test_dates_are_numbers(self):
        dates = pa.table({"day": pa.array([0, 100], pa.date32())})
        encoder, encoded = encode("day", dates, dates)
        self.assertEqual(
            named(encoder, encoded), [{"day=0": 1}, {"day=8.64e+06": 1}]
        )

    def test_fractions_of_a_second_are_dropped(self):
        times = pa.array([500_000, 100_250_000], pa.timestamp("us"))
        dates = pa.table({"day": times})
        encoder, encoded = encode("day", dates, dates)
        self.assertEqual(
            named(encoder, encoded), [{"day=0": 1}, {"day=100": 1}]
        )

    def test_integers_beyond_the_precision_of_floats(self):
        items = pa.table({"n": [2**53 + 1, None]})
        encoder, encoded = encode("n", items, items)
        self.assertEqual(named(encoder, encoded), [{"n=9.0072e+15": 1}, {}])

    @parameterized.parameters(
        pa.list_(pa.string()),
        pa.list_(pa.string(), 2),
        pa.large_list(pa.string()),
    )
    def test_lists_of_any_type(self, kind):
        tags = pa.array([["a", "b"], None, ["a", "b"]], kind)
        items = pa.table({"tags": tags})
        encoder, encoded = encode("tags", items, items)
        both = {"tags=a": 0.7071, "tags=b": 0.7071}
        self.assertEqual(named(encoder, encoded), [both, {}, both])

    def test_vectors_that_are_not_finite_are_missing(self):
        items = pa.table(
            {
                "x": [
                    [1.0, 5.0],
                    [np.nan, 7.0],
                    [np.inf, 0.0],
                    [None, 1.0],
                    None,
                    [3.0, 5.0],
                ]
            }
        )
        _, encoded = encode("x", items, items)
        # Mean (2, 5) of the first and the last; squared lengths 1 around it.
        np.testing.assert_allclose(
            encoded.vectors, [[-1, 0], *[[0, 0]] * 4, [1, 0]]
        )

    def test_missing_values_are_counted(self):
        columns = parse_columns("genres,title,brand,price,stock,image", ITEMS)
        self.assertEqual(
            describe_columns(ITEMS, columns),
            "item features of 4 items: genres (none or invalid for 2), title "
            "(none or invalid for 1), brand (none or invalid for 1), price "
            "(none or invalid for 1), stock, image (none or invalid for 1)",
        )

    def test_vectors_of_nan_only(self):
        items = pa.table({"x": [[np.nan, np.nan], [np.nan, 1.0]]})
        with self.assertRaisesRegex(InputError, "that several items share"):
            encode("x", items, items)

    def test_vectors_are_centered_and_scaled(self):
        encoder, encoded = encode("image")
        # Mean (1, 1); squared lengths 1, 1 and 2 around it, 4/3 on average.
        scale = np.sqrt(4 / 3)
        np.testing.assert_allclose(
            encoded.vectors,
            np.array([[0, -1], [-1, 0], [0, 0], [1, 1]]) / scale,
            rtol=1e-6,
        )
        self.assertEqual(encoder.vector_dim, 2)
        self.assertEqual(encoded.values.shape, (4, 0))

    @parameterized.parameters(pa.string(), pa.large_string())
    def test_vectors_as_text(self, kind):
        items = pa.table({"text": ITEMS["text"].cast(kind)})
        _, encoded = encode("text:vector", items, items)
        # Mean (4, 5); squared lengths 18, 2, 2 and 18.
        np.testing.assert_allclose(
            encoded.vectors,
            np.array([[-3, -3], [-1, -1], [1, 1], [3, 3]]) / np.sqrt(10),
            rtol=1e-6,
        )

    def test_new_items_get_the_same_values(self):
        encoder, _ = encode("brand,title", fit_on=pa.concat_tables([ITEMS] * 3))
        new = pa.table({"title": ["A toy's STORY (2031)"], "brand": ["Z"]})
        self.assertEqual(
            named(encoder, encoder.encode(new)),
            [{"title=toy": 0.7071, "title=story": 0.7071}],
        )

    def test_values_of_an_item_are_limited(self):
        tags = "|".join(f"t{i:03}" for i in range(MAX_VALUES + 5))
        items = pa.table({"tags": [tags, tags]})
        encoder, encoded = encode("tags:multi", items, items)
        self.assertEqual(encoder.num_values, MAX_VALUES + 6)
        self.assertEqual(encoded.values.shape, (2, MAX_VALUES))
        np.testing.assert_allclose((encoded.weights**2).sum(axis=1), 1, 1e-5)

    def test_file(self):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        path = pathlib.Path(folder, "item_features.json")
        encoder, encoded = encode("genres,price,image,brand,tags:multi:;")
        encoder.save(path)
        loaded = ItemEncoder.load(path)
        self.assertEqual(loaded.columns, encoder.columns)
        self.assertEqual(loaded.names, encoder.names)
        again = loaded.encode(ITEMS)
        for name in ("values", "weights", "vectors"):
            np.testing.assert_array_equal(
                getattr(again, name), getattr(encoded, name)
            )

    @parameterized.parameters(
        None,
        "{}",
        "no",
        '{"columns": [{"name": "x"}]}',
        '{"columns": ["x"]}',
        '{"columns": [{"name": "x", "kind": "vector", "separator": ""}]}',
        '{"columns": [{"name": "x", "kind": "numeric", "separator": "", '
        '"knots": 3}]}',
        '{"columns": [{"name": "x", "kind": "year", "separator": ""}]}',
    )
    def test_bad_file(self, content):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        path = pathlib.Path(folder, "item_features.json")
        if content is not None:
            path.write_text(content)
        with self.assertRaisesRegex(
            InputError, "item_features.json: expected "
        ):
            ItemEncoder.load(path)

    @parameterized.parameters(
        ("brand:numeric", "kind `numeric`.*Received: a column of string$"),
        ("image:categorical", "kind `categorical`.*a column of list<"),
        ("brand:vector", "kind `vector`.*a column of string$"),
        ("tags:categorical", "several items share.*none among 4 items$"),
    )
    def test_columns_of_wrong_types(self, text, message):
        with self.assertRaisesRegex(InputError, message):
            encode(text)

    def test_vectors_of_several_lengths(self):
        items = pa.table({"x": [[1.0], [1.0, 2.0]]})
        with self.assertRaisesRegex(InputError, "one length. .* 1, 2$"):
            encode("x", items, items)
        encoder, _ = encode("image")
        with self.assertRaisesRegex(InputError, "length 2. .* length: 1$"):
            encoder.encode(pa.table({"image": [[1.0]]}))


if __name__ == "__main__":
    absltest.main()
