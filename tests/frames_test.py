"""Logs from DataFrames: what each kind gives, and what is refused."""

from __future__ import annotations

import datetime
import pathlib
import subprocess
import sys
import tempfile

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
from absl.testing import absltest, parameterized

import recsys
from recsys import InputError, Log

COLUMNS = {
    "user": ["b", "a", "b"],
    "item": [30, 5, 5],
    "timestamp": [7, 9, 8],
    "rating": [4.5, 1.0, 3.0],
}
PANDAS = pd.DataFrame(COLUMNS)

# Every kind of frame with these rows, and with columns as that kind likes them.
FRAMES = {
    "dict": COLUMNS,
    "numpy": {name: np.array(values) for name, values in COLUMNS.items()},
    "series": {name: pl.Series(values) for name, values in COLUMNS.items()},
    "pandas": PANDAS,
    "pandas_categories": PANDAS.astype(
        {"user": pd.CategoricalDtype(["", "a", "b"]), "item": "category"}
    ),
    "pandas_nullable": PANDAS.astype({"user": "string", "item": "Int64"}),
    "pandas_objects": PANDAS.astype(object),
    "pandas_index": PANDAS.set_index("user"),
    "pandas_slice": pd.concat([PANDAS, PANDAS]).iloc[3:],
    "pandas_whole_floats": PANDAS.astype({"item": float}),
    "polars": pl.DataFrame(COLUMNS),
    "polars_categories": pl.DataFrame(COLUMNS).with_columns(
        pl.col("user").cast(pl.Categorical),
        pl.col("item").cast(pl.String).cast(pl.Enum(["5", "30"])),
    ),
    "polars_chunks": pl.concat(
        [pl.DataFrame(COLUMNS)[:1], pl.DataFrame(COLUMNS)[1:]], rechunk=False
    ),
    "arrow": pa.table(COLUMNS),
    "arrow_reader": pa.table(COLUMNS).to_reader(),
    "duckdb": duckdb.sql("select * from PANDAS"),
}


class FrameTest(parameterized.TestCase):
    @parameterized.parameters(*FRAMES)
    def test_every_kind_gives_the_same_log(self, kind):
        log = Log.from_frame(FRAMES[kind])
        found = log.interactions
        # Ids are numbered by their first appearance, as in a file.
        self.assertEqual(found.user_ids.tolist(), ["b", "a"])
        self.assertEqual(found.item_ids.tolist(), ["30", "5"])
        self.assertEqual(found.users.tolist(), [0, 1, 0])
        self.assertEqual(found.items.tolist(), [0, 1, 1])
        self.assertEqual(found.timestamps.tolist(), [7, 9, 8])
        self.assertEqual(found.ratings.tolist(), [4.5, 1.0, 3.0])
        self.assertEqual(found.timestamps_per_second, 1)
        self.assertIsNone(log.items)
        self.assertIsNone(log.source)

    def test_columns_can_be_named(self):
        names = {"user": "who", "item": "user", "timestamp": "n", "rating": "r"}
        frame = PANDAS.rename(columns=names)
        log = Log.from_frame(
            frame,
            user_column="who",
            item_column="user",
            timestamp_column="n",
            rating_column="",
            other_columns=("r",),
        )
        self.assertEqual(log.interactions.user_ids.tolist(), ["b", "a"])
        self.assertEqual(log.interactions.item_ids.tolist(), ["30", "5"])
        self.assertIsNone(log.interactions.ratings)
        self.assertEqual(
            log.interactions.columns.to_pydict(), {"r": [4.5, 1.0, 3.0]}
        )

    @parameterized.parameters(
        # Midnight of 2020-01-01 in UTC is 1,577,836,800 seconds after 1970.
        (["2020-01-01", "2020-01-02", "2020-01-03"], 0, 86_400),
        (
            pd.Series(
                ["2020-01-01 01:00", "2020-01-01 01:01", "2020-01-01 01:02"],
                dtype="datetime64[us, Europe/Berlin]",
            ),
            0,
            60,
        ),
        (
            pl.Series(
                [datetime.datetime(2020, 1, 1, 0, 0, n) for n in range(3)]
            ).dt.replace_time_zone("America/New_York"),
            5 * 3600,
            1,
        ),
        ([datetime.date(2020, 1, 1 + n) for n in range(3)], 0, 86_400),
        (np.array([0, 1, 2], "M8[s]") + 1_577_836_800, 0, 1),
    )
    def test_dates_are_microseconds_in_utc(self, times, begin, step):
        log = Log.from_frame({**COLUMNS, "timestamp": times})
        first = 1_577_836_800 + begin
        self.assertEqual(
            log.interactions.timestamps.tolist(),
            [(first + n * step) * 1_000_000 for n in range(3)],
        )
        self.assertEqual(log.interactions.timestamps_per_second, 1_000_000)

    @parameterized.parameters(
        ("user", ["b", None, "a"], "row 2: expected the user id in column"),
        ("user", ["b", "a", " "], "row 3: expected the user id in column"),
        ("user", pd.array([1, pd.NA, 2]), "row 2: expected the user id"),
        ("item", np.array([1, 2, np.nan]), "row 3: expected the item id"),
        (
            "timestamp",
            pd.to_datetime(["2020-01-01", None, "2020-01-03"]),
            "row 2: expected a date in the timestamp column 'timestamp'",
        ),
        (
            "timestamp",
            [1.5, np.nan, 3],
            "row 2: expected a number in the timestamp column 'timestamp'",
        ),
        (
            "rating",
            ["1", "good", "3"],
            "row 2: expected a number in the rating column 'rating'.*'good'",
        ),
    )
    def test_a_bad_value_is_named_by_row_and_column(self, name, values, text):
        with self.assertRaisesRegex(InputError, f"^frame, {text}"):
            Log.from_frame({**COLUMNS, name: values})

    def test_options_of_files_are_refused(self):
        with self.assertRaisesRegex(InputError, "`items_file` needs a file"):
            Log.from_frame(PANDAS, items_file="items.csv")
        with self.assertRaises(TypeError):
            Log.from_frame(PANDAS, user="user")

    def test_a_missing_rating_is_none(self):
        log = Log.from_frame({**COLUMNS, "rating": [1, None, 3]})
        np.testing.assert_array_equal(
            log.interactions.ratings, np.array([1, np.nan, 3], np.float32)
        )

    @parameterized.parameters(
        (COLUMNS, {"user_column": "who"}, "expected the column 'who'"),
        ({**COLUMNS, "uid": [1, 2, 3]}, {}, "found 'user' and 'uid'"),
        (PANDAS.drop(columns="item"), {}, "expected one item column"),
        (PANDAS[:0], {}, "expected interactions"),
        (PANDAS.assign(user=[[1], [2], [3]]), {}, "column of large_list<"),
        (PANDAS.assign(item=[1.5, 2, 3]), {}, "whole numbers.*Received: 1.5"),
        ({**COLUMNS, "user": [1, "x", 2]}, {}, "each of one type.*dict"),
        ({**COLUMNS, "user": [1, 2]}, {}, "each of one type.*dict"),
        (pl.DataFrame(COLUMNS).lazy(), {}, "Received: LazyFrame"),
        ([1, 2], {}, "Received: list"),
        ("log.csv", {}, "Received: str"),
    )
    def test_what_is_no_log_is_refused(self, frame, options, text):
        with self.assertRaisesRegex(InputError, f"^frame: .*{text}"):
            Log.from_frame(frame, **options)

    @parameterized.parameters(
        pd.DataFrame,
        pl.DataFrame,
        pa.table,
        dict,
    )
    def test_items(self, make):
        items = make(
            {
                "item": [5, 30],
                "name": ["five", "thirty"],
                "genres": ["odd|prime", "even"],
                "price": [0.5, 3.0],
            }
        )
        log = Log.from_frame(PANDAS, items=items)
        self.assertEqual(
            log.items.to_pydict(),
            {
                "item_id": ["5", "30"],
                "title": ["five", "thirty"],
                "genres": [["odd", "prime"], ["even"]],
                "price": [0.5, 3.0],
            },
        )

    def test_lists_of_categories_and_missing_numbers_within_lists(self):
        items = pl.DataFrame(
            {
                "item": [5, 30, 7],
                "tags": pl.Series(
                    [["x", "y"], None, []], dtype=pl.List(pl.Categorical)
                ),
                "vector": [[1.0, float("nan")], [2.0, 3.0], None],
            }
        )
        log = Log.from_frame(PANDAS, items=items)
        self.assertEqual(
            log.items.to_pydict(),
            {
                "item_id": ["5", "30", "7"],
                "tags": [["x", "y"], None, []],
                "vector": [[1.0, None], [2.0, 3.0], None],
            },
        )
        self.assertEqual(log.items["tags"].type, pa.large_list(pa.string()))

    @parameterized.parameters(
        ({"item": [5, 5]}, "expected every item once. Received twice: '5'"),
        ({"item": [5, None]}, "an empty one in row 2"),
        ({"name": ["five"]}, "expected one item column"),
    )
    def test_items_that_are_refused(self, items, text):
        with self.assertRaisesRegex(InputError, f"^items frame: .*{text}"):
            Log.from_frame(PANDAS, items=items)

    def test_read_takes_the_options_of_a_source(self):
        folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        path = folder / "log.csv"
        path.write_text("who,item,time\na,1,2\n")
        log = Log.read(path, user_column="who")
        self.assertEqual(log.interactions.user_ids.tolist(), ["a"])
        self.assertEqual(log.source.user_column, "who")
        self.assertIs(recsys.Log, Log)

    def test_taking_a_frame_loads_no_tensorflow(self):
        code = (
            "import sys, recsys; recsys.Log.from_frame("
            "{'user': ['a'], 'item': [1], 'timestamp': [2]});"
            "print({'tensorflow', 'keras', 'polars'} & sys.modules.keys())"
        )
        printed = subprocess.check_output([sys.executable, "-c", code])
        self.assertEqual(printed.strip(), b"set()")


if __name__ == "__main__":
    absltest.main()
