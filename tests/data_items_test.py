from __future__ import annotations

import pathlib
import tempfile

import pyarrow as pa
import pyarrow.parquet as pq
from absl.testing import absltest, parameterized

from recsys.data import items
from recsys.errors import InputError


class ReadItemsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enterContext(tempfile.TemporaryDirectory())
        )

    def write(self, content: str | dict, name: str = "items.csv"):
        path = self.folder / name
        if isinstance(content, dict):
            pq.write_table(pa.table(content), path)
        else:
            path.write_text(content, encoding="utf-8")
        return path

    def test_csv(self):
        path = self.write(
            "genres,year,item_id,title\n"
            'A|B,1999,007,"One,\nTwo"\n,2000,8,\n(no genres listed),,9,x\n'
        )
        table = items.read_items(path, None)
        self.assertEqual(
            table.column_names, ["item_id", "title", "genres", "year"]
        )
        self.assertEqual(table["item_id"].to_pylist(), ["007", "8", "9"])
        self.assertEqual(table["title"][0].as_py(), "One,\nTwo")
        self.assertEqual(table["genres"].to_pylist(), [["A", "B"], [], []])
        self.assertEqual(table["year"].to_pylist(), [1999, 2000, None])

    @parameterized.parameters("item", "user")
    def test_every_column_is_named_once(self, role: str):
        path = self.write(f"{role}_id,age,age\na,1,2\nb,2,3\n")
        read = {"item": items.read_items, "user": items.read_users}[role]
        with self.assertRaisesRegex(
            InputError, "expected every column name once.*twice: 'age'$"
        ):
            read(path, None)

    @parameterized.parameters(
        ("film", "film", "movieId"),
        ("sku", None, "sku"),
        ("sku", "other", "sku"),
        ("id", "other", "id"),
        ("id", None, "id"),
    )
    def test_item_column(self, name: str, given: str | None, other: str):
        text = f"{name}\n1\n" if name == other else f"{name},{other}\n1,2\n"
        table = items.read_items(self.write(text), given)
        self.assertEqual(table["item_id"].to_pylist(), ["1"])

    @parameterized.parameters(
        ([7, 8],),
        ([7.0, 8.0],),
        (["7", "8 "],),
        (["7.0", "8.0"],),
    )
    def test_parquet_ids(self, ids: list):
        path = self.write(
            {"item": ids, "genre": [["A"], None]}, "items.parquet"
        )
        table = items.read_items(path, None)
        self.assertEqual(table["item_id"].to_pylist(), ["7", "8"])
        self.assertEqual(table["genres"].to_pylist(), [["A"], None])

    @parameterized.parameters(
        pa.list_(pa.string(), 1), pa.large_list(pa.string())
    )
    def test_genres_in_lists_of_any_type(self, kind: pa.DataType):
        genres = pa.array([["A"], ["B"]], kind)
        path = self.write({"item": [1, 2], "genres": genres}, "i.parquet")
        table = items.read_items(path, None)
        self.assertEqual(table["genres"].to_pylist(), [["A"], ["B"]])

    @parameterized.parameters(
        ("item,title\n1,a\n1,b\n", "every item once. Received twice: '1'$"),
        ("item,title\n1,a\n,b\n", "an item id in every row.*row 2$"),
        ("item,title\n1,a\n\n2\n", "line 4: expected 2 columns.*1: '2'$"),
        ("name,title\n1,a\n", "one item column .*'name', 'title'$"),
        ("item,sku\n1,a\n", "found 'item' and 'sku'"),
        ("", "no bytes$"),
    )
    def test_csv_errors(self, text: str, message: str):
        with self.assertRaisesRegex(InputError, f"items.csv.*{message}"):
            items.read_items(self.write(text), None)

    @parameterized.parameters(
        ({"item": [1.5]}, "expected a column of ids. Received"),
        ({"item": [[1]]}, "expected a column of ids. Received"),
        (
            {"item": ["a"], "genres": [{"x": 1}]},
            "text in the genres column.*struct<x: int64>$",
        ),
        (
            {"item": ["a"], "title": [[1]]},
            "text in the title column.*list<.*int64>$",
        ),
    )
    def test_parquet_errors(self, columns: dict, message: str):
        path = self.write(columns, "items.parquet")
        with self.assertRaisesRegex(InputError, message):
            items.read_items(path, None)


if __name__ == "__main__":
    absltest.main()
