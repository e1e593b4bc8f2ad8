"""CSV, TSV and Parquet: what they may look like, and every error."""

from __future__ import annotations

import datetime
import gzip
import pathlib
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl.testing import absltest, parameterized

from recsys.data import tables
from recsys.data.columns import ColumnNames
from recsys.data.interactions import Interactions
from recsys.errors import InputError

_HEADER = "user_id,item_id,rating,timestamp\n"


class TabularTestCase(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enterContext(tempfile.TemporaryDirectory())
        )

    def write(self, content: str | bytes, name: str = "log.csv"):
        path = self.folder / name
        if isinstance(content, str):
            content = content.encode()
        if name.endswith(".gz"):
            content = gzip.compress(content)
        path.write_bytes(content)
        return path

    def write_parquet(self, columns: dict, name: str = "log.parquet"):
        path = self.folder / name
        pq.write_table(pa.table(columns), path)
        return path

    def read(self, *paths: pathlib.Path, **given: str) -> Interactions:
        return tables.read_tables(paths, ColumnNames(**given))[0]

    def assert_error(self, message: str, *paths: pathlib.Path, **given: str):
        with self.assertRaisesRegex(InputError, message) as caught:
            self.read(*paths, **given)
        self.assertNotIn("\n", str(caught.exception))
        self.assertIn(paths[-1].name, str(caught.exception))


class TextTest(TabularTestCase):
    @parameterized.parameters(
        ("log.csv", ","),
        ("log.tsv", "\t"),
        ("log.csv.gz", ","),
        ("log.txt", ";"),
        ("log", "|"),
    )
    def test_reads_columns(self, name: str, delimiter: str):
        text = _HEADER + "u2,a,3.5,20\nu1,b,,10\n\nu2,b,1,30\n"
        log = self.read(self.write(text.replace(",", delimiter), name))
        self.assertEqual(log.user_ids.tolist(), ["u2", "u1"])
        self.assertEqual(log.item_ids.tolist(), ["a", "b"])
        self.assertEqual(log.users.tolist(), [0, 1, 0])
        self.assertEqual(log.items.tolist(), [0, 1, 1])
        self.assertEqual(log.timestamps.tolist(), [20, 10, 30])
        np.testing.assert_array_equal(log.ratings, [3.5, np.nan, 1])
        self.assertEqual(log.timestamps_per_second, 1)
        for column, dtype in (
            (log.user_ids, object),
            (log.users, np.int32),
            (log.items, np.int32),
            (log.timestamps, np.int64),
            (log.ratings, np.float32),
        ):
            self.assertEqual(column.dtype, dtype)

    def test_byte_order_mark_and_windows_line_ends(self):
        log = self.read(
            self.write(b"\xef\xbb\xbfuserId,movieId,ts\r\n1,2,3\r\n")
        )
        self.assertEqual(log.user_ids.tolist(), ["1"])
        self.assertIsNone(log.ratings)

    def test_ids_stay_as_written_but_for_blanks_around(self):
        log = self.read(self.write("uid,item,ts\n007, x ,1\n7,x,2\n"))
        self.assertEqual(log.user_ids.tolist(), ["007", "7"])
        self.assertEqual(log.item_ids.tolist(), ["x"])
        self.assertEqual(log.items.tolist(), [0, 0])

    def test_whole_numbers_lose_the_fraction_that_pandas_gave_them(self):
        log = self.read(self.write("uid,item,ts\n1.0,2.0,1\n3.0,2,2\n"))
        self.assertEqual(log.user_ids.tolist(), ["1", "3"])
        self.assertEqual(log.item_ids.tolist(), ["2"])

    def test_fractions_are_kept_where_some_ids_are_no_whole_numbers(self):
        log = self.read(self.write("uid,item,ts\n1.0,2.0,1\n3.5,2a,2\n"))
        self.assertEqual(log.user_ids.tolist(), ["1.0", "3.5"])
        self.assertEqual(log.item_ids.tolist(), ["2.0", "2a"])

    def test_line_breaks_in_quotes(self):
        text = 'user,item,ts,text\nu,a,1,"one\ntwo"\nu,"b,c",2,"x"\n'
        log = self.read(self.write(text))
        self.assertEqual(log.item_ids.tolist(), ["a", "b,c"])

    def test_line_breaks_in_quotes_across_blocks(self):
        line = 'u,a,1,"one\ntwo\nthree"\n'
        count = (9 << 20) // len(line)
        log = self.read(self.write("user,item,ts,text\n" + line * count))
        self.assertLen(log, count)

    def test_order_of_first_appearance_across_blocks(self):
        # More than one block of 8 MiB, each with ids of its own.
        users = np.repeat(np.arange(900_000, 0, -1), 2)
        rows = "\n".join(f"{user},{user % 97},5" for user in users)
        log = self.read(self.write("user,item,ts\n" + rows + "\n"))
        self.assertEqual(log.user_ids[:2].tolist(), ["900000", "899999"])
        np.testing.assert_array_equal(
            log.users, np.repeat(np.arange(900_000), 2)
        )
        np.testing.assert_array_equal(
            log.item_ids[log.items].astype(int), users % 97
        )

    @parameterized.parameters(
        (["5", "7"], [5, 7], 1),
        (["5.0", "1e3"], [5, 1000], 1),
        (["1.5", "2"], [1_500_000, 2_000_000], 1_000_000),
        (["1970-01-02", "1970-01-01"], [86_400_000_000, 0], 1_000_000),
        (
            ["1970-01-01 00:00:01", "1970-01-01T00:00:02.000003"],
            [1_000_000, 2_000_003],
            1_000_000,
        ),
        (
            ["1970-01-01T00:00:01Z", "1970-01-01T02:00:01+01:00"],
            [1_000_000, 3_601_000_000],
            1_000_000,
        ),
    )
    def test_timestamps(self, values, expected, per_second):
        rows = "".join(f"u,a,{value}\n" for value in values)
        log = self.read(self.write("user,item,time\n" + rows))
        self.assertEqual(log.timestamps.tolist(), expected)
        self.assertEqual(log.timestamps_per_second, per_second)

    def test_given_columns(self):
        text = "who,what,when,userId,stars\n1,2,3,4,5\n"
        given = {"user": "who", "item": "what", "timestamp": "when"}
        log = self.read(self.write(text), **given)
        self.assertEqual(log.user_ids.tolist(), ["1"])
        self.assertEqual(log.ratings.tolist(), [5])
        log = self.read(self.write(text), **given, rating="")
        self.assertIsNone(log.ratings)

    def test_parts_follow_each_other(self):
        first = self.write("user,item,ts\nu,a,1\nv,b,2\n", "0.csv")
        empty = self.write("user,item,ts\n", "1.csv")
        # Other columns in between, and fractions, may differ.
        last = self.write("ts,user,more,item\n0.5,v,,a\n", "2.csv.gz")
        log = self.read(first, empty, last)
        self.assertEqual(log.users.tolist(), [0, 1, 1])
        self.assertEqual(log.items.tolist(), [0, 1, 0])
        self.assertEqual(
            log.timestamps.tolist(), [1_000_000, 2_000_000, 500_000]
        )


class QuotesTest(parameterized.TestCase):
    """A quotation mark never takes rows away without a word."""

    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enter_context(tempfile.TemporaryDirectory())
        )

    def both(self, name, text):
        """Returns the item ids as read whole and as read in a stream."""
        path = self.folder / name
        path.write_text(text)
        whole, _ = tables.read_tables([path], ColumnNames())
        blocks = list(tables.stream(path, ColumnNames()))
        streamed = [
            block.item_ids[code] for block in blocks for code in block.items
        ]
        ids = whole.item_ids[whole.items].tolist()
        self.assertEqual(streamed, ids)
        return ids

    def test_tsv_is_not_quoted(self):
        rows = [f"u{n}\ti{n % 7}\t{n}\tsong {n}" for n in range(50)]
        # Two titles begin with a mark that nothing closes.
        rows[3] = 'u3\ti3\t3\t"Heroes'
        rows[20] = 'u20\ti6\t20\t"Ashes'
        ids = self.both("log.tsv", "\n".join(["user\titem\ttime\tname", *rows]))
        self.assertEqual(ids, [f"i{n % 7}" for n in range(50)])

    def test_quoted_tsv_is_read_as_such(self):
        ids = self.both("log.tsv", 'user\titem\ttime\nu\t"a\tb"\t1\nu\tc\t2\n')
        self.assertEqual(ids, ["a\tb", "c"])

    def test_escaped_marks(self):
        text = (
            "user,item,time,name\n"
            'u,a,1,"She said \\"one, two\\" twice"\n'
            'u,b,2,"plain, with comma"\n'
        )
        self.assertEqual(self.both("log.csv", text), ["a", "b"])

    def test_a_mark_that_is_not_closed_in_a_csv(self):
        rows = [f"u,i{n},{n},name" for n in range(30)]
        rows[4] = 'u,i4,4,"never closed'
        path = self.folder / "log.csv"
        path.write_text("\n".join(["user,item,time,name", *rows, ""]))
        for read in (
            lambda: tables.read_tables([path], ColumnNames()),
            lambda: list(tables.stream(path, ColumnNames())),
        ):
            with self.assertRaisesRegex(
                InputError, "log.csv, line 6: expected every quotation mark"
            ):
                read()

    def test_two_marks_that_are_not_closed_in_a_csv(self):
        rows = [f"u,i{n},{n},name" for n in range(30)]
        rows[4], rows[9] = 'u,i4,4,"one', 'u,i9,9,"two'
        path = self.folder / "log.csv"
        path.write_text("\n".join(["user,item,time,name", *rows, ""]))
        with self.assertRaisesRegex(InputError, "log.csv, line 6: expected"):
            tables.read_tables([path], ColumnNames())

    def test_a_line_break_in_a_stream_is_an_error(self):
        path = self.folder / "log.csv"
        path.write_text('user,item,time,name\nu,a,1,"one\ntwo"\nu,b,2,x\n')
        log, _ = tables.read_tables([path], ColumnNames())
        self.assertEqual(log.item_ids.tolist(), ["a", "b"])
        with self.assertRaisesRegex(InputError, "values without line breaks"):
            list(tables.stream(path, ColumnNames()))

    def test_half_precision_times_in_a_stream(self):
        path = self.folder / "log.parquet"
        times = pa.array(np.array([0.5, 60_000], np.float16))
        pq.write_table(
            pa.table({"user": ["u", "u"], "item": ["a", "b"], "time": times}),
            path,
        )
        [block] = tables.stream(path, ColumnNames())
        self.assertEqual(block.timestamps.tolist(), [500_000, 60_000_000_000])

    @parameterized.parameters("\r", "\r\n", "\n")
    def test_line_ends(self, end):
        lines = ["user,item,time,name", 'u,a,1,"x"', "", 'u,b,2,"y, z"']
        for text in (end.join(lines), end.join([*lines, "", ""])):
            path = self.folder / "log.csv"
            path.write_bytes(text.encode())
            self.assertEqual(self.both("log.csv", text), ["a", "b"])


class RangeTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.path = (
            pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
            / "log.parquet"
        )

    def read(self, **columns):
        table = {"user": ["u"], "item": ["i"], "time": [1], **columns}
        pq.write_table(pa.table(table), self.path)
        return tables.read_tables([self.path], ColumnNames())[0]

    def test_float_ids_that_merge(self):
        ids = self.read(item=[2.0**53 - 1]).item_ids.tolist()
        self.assertEqual(ids, ["9007199254740991"])
        with self.assertRaisesRegex(InputError, "below 2.53.*9007199254740992"):
            self.read(item=[2.0**53])

    def test_short_float_ids_that_merge(self):
        short = [2.0**24 - 1]
        ids = self.read(item=pa.array(short, pa.float32())).item_ids.tolist()
        self.assertEqual(ids, ["16777215"])
        with self.assertRaisesRegex(InputError, "below 2.24.*16777216"):
            self.read(item=pa.array([2.0**24], pa.float32()))
        with self.assertRaisesRegex(InputError, "a column of halffloat$"):
            self.read(item=pa.array(np.ones(1, np.float16)))

    def test_strings_that_are_not_utf8(self):
        buffers = pa.array([b"\xff1"]).buffers()
        wrong = pa.Array.from_buffers(pa.string(), 1, buffers)
        for role in ("user", "item", "time"):
            with self.assertRaisesRegex(
                InputError, "expected a readable file.*UTF8"
            ):
                self.read(**{role: wrong})

    def test_dates_that_microseconds_cannot_hold(self):
        with self.assertRaisesRegex(InputError, "expected dates that 64 bits"):
            self.read(time=pa.array([2**60], pa.timestamp("ms")))

    def test_dates_that_python_cannot_hold_as_ratings(self):
        for odd in (
            pa.array([2**50], pa.timestamp("ms")),
            pa.array([1], pa.timestamp("s", tz="No/Where")),
        ):
            with self.assertRaisesRegex(InputError, "years 1 to 9999"):
                self.read(rating=odd)

    def test_lists_and_structs(self):
        with self.assertRaisesRegex(
            InputError, "ids in the item column 'item'.*column of struct"
        ):
            self.read(item=[{"a": 1}])
        with self.assertRaisesRegex(
            InputError, "ids in the user column 'user'.*column of list"
        ):
            self.read(user=[[1, 2]])
        self.assertEqual(self.read(item=[[1, 2]]).users.tolist(), [0, 0])

    @parameterized.parameters(
        (["2011-03-13T07:06:40Z"], 1_300_000_000_000_000),
        (["2011-03-13T07:06:40+02:00"], 1_299_992_800_000_000),
        (["2011-03-13T07:06:40"], 1_300_000_000_000_000),
    )
    def test_iso_text(self, times, expected):
        self.assertEqual(self.read(time=times).timestamps.tolist(), [expected])

    @parameterized.parameters(
        ([1e30],),
        ([-1e19],),
        ([1.5, 1e18],),
        (pa.array([2**63], pa.uint64()),),
    )
    def test_times_beyond_64_bits(self, times):
        names = [str(n) for n in range(len(times))]
        with self.assertRaisesRegex(InputError, "range of 64-bit integers"):
            self.read(user=names, item=names, time=times)

    def test_the_same_whole_numbers_in_parts_of_other_types(self):
        first = self.path.with_name("1.csv")
        second = self.path.with_name("2.csv")
        first.write_text("user,item,time\n1,3,1\n2,4,2\n")
        second.write_text("user,item,time\n1.0,3.0,3\n2.0,5.0,4\n")
        log, _ = tables.read_tables([first, second], ColumnNames())
        self.assertEqual(log.item_ids.tolist(), ["3", "4", "5"])
        self.assertEqual(log.user_ids.tolist(), ["1", "2"])


class TextErrorTest(TabularTestCase):
    @parameterized.parameters(
        (
            "u,a,1,5\nu,a,1\nu,b,1,6\n",
            r"line 3: expected 4 columns. Received 3: 'u,a,1'$",
        ),
        (
            "u,a,1,5\n\nu,a,1,6,7\n",
            r"line 4: expected 4 columns. Received 5: 'u,a,1,6,7'$",
        ),
        (
            "u,a,1,5\n,a,1,5\n",
            r"line 3: expected the user id in column 'user_id'. .*empty one$",
        ),
        (
            "u,a,1,5\nu, ,1,5\n",
            r"line 3: expected the item id in column 'item_id'. .*empty one$",
        ),
        (
            "u,a,1,5\nu,b,1,soon\n",
            r"line 3: expected a number in the timestamp column 'timestamp'. "
            r"Received: 'soon'$",
        ),
        (
            "u,a,1,soon\n",
            r"line 2: expected a number or an ISO date in the timestamp .*"
            r"Received: 'soon'$",
        ),
        ("u,a,1,5\nu,b,1,\n", r"line 3: expected a number .*Received: ''$"),
        ("u,a,1,5\nu,b,1,inf\n", r"line 3: expected a number .*: 'inf'$"),
        (
            "u,a,1,2020-01-01\nu,b,1,77\n",
            r"line 3: expected a date in the timestamp .*Received: '77'$",
        ),
        (
            "u,a,1,5\nu,b,good,5\n",
            r"line 3: expected a number in the rating column 'rating'. "
            r"Received: 'good'$",
        ),
    )
    def test_malformed_row(self, rows: str, message: str):
        self.assert_error(message, self.write(_HEADER + rows))
        self.assert_error(message, self.write(_HEADER + rows, "log.csv.gz"))

    def test_line_is_right_far_into_the_file_and_after_line_breaks(self):
        rows = 'u,a,1,5\n"u\nu",a,1,5\n' * 400_000
        path = self.write(_HEADER + rows + "u,a,1,x\n")
        self.assert_error("line 1200002: .*Received: 'x'$", path)

    def test_not_utf8(self):
        path = self.write(_HEADER.encode() + b"u,a,1,5\nu,\xe9,1,5\n")
        self.assert_error(r"line 3: expected UTF-8. .*\\xe9", path)

    def test_empty_files(self):
        self.assert_error("no bytes$", self.write(""))
        self.assert_error("expected a header.*no line$", self.write("\n\n"))
        self.assert_error("a header and no row$", self.write(_HEADER))

    @parameterized.parameters(
        ("item,ts\n", {}, "one user column .* --user_column.*: 'item', 'ts'$"),
        ("user,ts\n", {}, "one item column .* --item_column"),
        (
            "userId,uid,item,ts\n",
            {},
            "one user column, found 'userId' and 'uid': .*--user_column",
        ),
        (
            "user,item,ts,score,stars\n",
            {},
            "found 'score' and 'stars': .*--rating_column",
        ),
        (
            "user,item,ts\n",
            {"item": "film"},
            "the column 'film' that --item_column names.*'user', 'item', 'ts'$",
        ),
        (
            "user,item,ts\n",
            {"rating": "r"},
            "the column 'r' that --rating_column names",
        ),
        ("user,item,ts\n", {"user": "item"}, "a column of its own .*item"),
        ("1,2,3\n", {}, "looks like a row: .* add --columns=user,item,rating "),
    )
    def test_columns(self, header: str, given: dict, message: str):
        self.assert_error(message, self.write(header + "1,2,3,4\n"), **given)

    def test_truncated_gzip(self):
        path = self.write(_HEADER + "u,a,1,5\n" * 99_999, "log.csv.gz")
        path.write_bytes(path.read_bytes()[:-30])
        self.assert_error("a readable file. Received: .*[Tt]runcated", path)

    def test_not_what_its_name_says(self):
        for name, kind in (("a.csv.gz", "gzip"), ("a.parquet", "parquet")):
            path = self.folder / name
            path.write_bytes(b"user,item,ts")
            self.assert_error(f"a {kind} file, by its name.*b'user'$", path)

    def test_parts_that_do_not_fit(self):
        first = self.write("user,item,ts\nu,a,1\n", "0.csv")
        other = self.write("uid,item,ts\nu,a,1\n", "1.csv")
        self.assert_error("the columns of .*0.csv, user, .*: uid", first, other)
        dates = self.write("user,item,ts\nu,a,2020-01-01\n", "2.csv")
        self.assert_error("timestamps of the kind in .*int64", first, dates)


class ParquetTest(TabularTestCase):
    @parameterized.parameters(
        (pa.array([7, 3, 7]), ["7", "3"]),
        (pa.array([7, 3, 7], pa.uint16()), ["7", "3"]),
        (pa.array([7.0, 3.0, 7.0]), ["7", "3"]),
        (pa.array(["y", "x", "y"]), ["y", "x"]),
        (pa.array(["y", "x", "y"], pa.large_string()), ["y", "x"]),
        # A dictionary in another order, with an entry that nobody uses.
        (
            pa.DictionaryArray.from_arrays(
                pa.array([2, 0, 2], pa.int8()), ["x", "z", "y"]
            ),
            ["y", "x"],
        ),
    )
    def test_ids(self, column: pa.Array, expected: list[str]):
        path = self.write_parquet(
            {"user": column, "item": column, "ts": [1, 2, 3]}
        )
        log = self.read(path)
        self.assertEqual(log.user_ids.tolist(), expected)
        self.assertEqual(log.item_ids.tolist(), expected)
        self.assertEqual(log.users.tolist(), [0, 1, 0])

    def test_dates_and_ratings(self):
        path = self.write_parquet(
            {
                "user": [1],
                "item": [2],
                "date": [datetime.datetime(1970, 1, 1, 0, 0, 9)],
                "stars": [4],
            }
        )
        log = self.read(path)
        self.assertEqual(log.timestamps.tolist(), [9_000_000])
        self.assertEqual(log.timestamps_per_second, 1_000_000)
        self.assertEqual(log.ratings.dtype, np.float32)

    @parameterized.parameters(
        (["7", "5"], [7, 5]),
        (["0.5", "5"], [500_000, 5_000_000]),
        (["1970-01-01", "1970-01-01T00:00:01"], [0, 1_000_000]),
    )
    def test_timestamps_as_text(self, values, expected):
        path = self.write_parquet(
            {"user": [1, 2], "item": [2, 1], "ts": values}
        )
        self.assertEqual(self.read(path).timestamps.tolist(), expected)

    @parameterized.parameters(
        ({"user": [1, None]}, "row 2: expected the user id .*'user'.*empty"),
        ({"user": ["a", ""]}, "row 2: expected the user id"),
        ({"user": [1.0, 2.5]}, "ids in the user column 'user'.*2.5$"),
        ({"item": [True, False]}, "ids in the item column 'item'.*bool$"),
        ({"ts": [1, None]}, "row 2: expected a number in .*Received: None$"),
        ({"ts": [1.0, np.nan]}, "row 2: .*timestamp column 'ts'.*nan$"),
        (
            {"ts": ["1", "x"]},
            "row 2: expected a number in the .* 'ts'. Received: 'x'$",
        ),
        (
            {"ts": [datetime.time(10), datetime.time(11)]},
            r"row 1: .*timestamp column 'ts'. Received: .*time\(10, 0\)$",
        ),
        (
            {"rating": ["a", "b"]},
            "row 1: expected a number in the rating column .*'a'$",
        ),
    )
    def test_errors(self, columns: dict, message: str):
        good = {"user": [1, 2], "item": [1, 2], "ts": [1, 2]}
        self.assert_error(message, self.write_parquet(good | columns))

    def test_names_and_values_longer_than_csv_allows_by_itself(self):
        path = self.write("user,item,ts," + "r" * 132_000 + "\nu,i,1,2\n")
        self.assertLen(self.read(path), 1)

    def test_damaged(self):
        path = self.write_parquet({"user": [1], "item": [1], "ts": [1]})
        path.write_bytes(path.read_bytes()[:-9])
        self.assert_error("expected a readable file", path)

    def test_without_rows(self):
        empty = pa.array([], pa.int64())
        path = self.write_parquet({"user": empty, "item": empty, "ts": empty})
        self.assert_error("a header and no row$", path)


if __name__ == "__main__":
    absltest.main()
