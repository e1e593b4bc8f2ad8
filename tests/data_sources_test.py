"""`read`, from the layouts as they lie on disk; each is made by hand here."""

from __future__ import annotations

import contextlib
import gzip
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl.testing import absltest, parameterized

from recsys.data import shards, sources
from recsys.data.interactions import filter_interactions
from recsys.errors import InputError

_INTERACTIONS = "userId,movieId,timestamp\n7,3,0\n7,1,1\n9,3,0\n"
_RATINGS_CSV = (
    "userId,movieId,rating,timestamp\n7,3,4.5,100\n7,1,2.0,50\n9,3,5.0,70\n"
)
_MOVIES_CSV = (
    "movieId,title,genres\r\n"
    '1,"American President, The (1995)",Comedy|Drama\r\n'
    "2,Léon (1994),(no genres listed)\r\n"
    "3,Heat (1995),Crime\r\n"
)
_RATINGS_DAT = "7::3::4.5::100\n7::1::2::50\n9::3::5::70\n"
_MOVIES_DAT = (
    "1::American President, The (1995)::Comedy|Drama\n"
    "2::Léon (1994)::\n"
    "3::Heat (1995)::Crime\n"
)
_U_DATA = "7\t3\t4.5\t100\n7\t1\t2\t50\n9\t3\t5\t70\n"
_GENRE_NAMES = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary "
    "Drama Fantasy Film-Noir Horror Musical Mystery Romance Sci-Fi Thriller "
    "War Western"
).split()


def _u_item(number: int, title: str, *genres: str) -> str:
    flags = "|".join(str(int(name in genres)) for name in _GENRE_NAMES)
    return f"{number}|{title}|01-Jan-1995||http://example.org/|{flags}\n"


_U_ITEM = (
    _u_item(1, "American President, The (1995)", "Comedy", "Drama")
    + _u_item(2, "Léon (1994)", "unknown")
    + _u_item(3, "Heat (1995)", "Crime")
)
_U_GENRE = "".join(f"{n}|{i}\n" for i, n in enumerate(_GENRE_NAMES)) + "\n"
_LAYOUTS = {
    "csv": {
        "ratings.csv": _RATINGS_CSV,
        "movies.csv": _MOVIES_CSV,
        "tags.csv": "userId,movieId,tag,timestamp\n1,2,x,3\n",
    },
    "dat": {"ratings.dat": _RATINGS_DAT, "movies.dat": _MOVIES_DAT},
    "tab": {
        "u.data": _U_DATA,
        "u.item": _U_ITEM,
        "u.genre": _U_GENRE,
        "u1.base": "not looked at",
    },
    "tab without u.genre": {"u.data": _U_DATA, "u.item": _U_ITEM},
}
_ITEMS = [
    {
        "item_id": "1",
        "title": "American President, The (1995)",
        "genres": ["Comedy", "Drama"],
    },
    {"item_id": "2", "title": "Léon (1994)", "genres": []},
    {"item_id": "3", "title": "Heat (1995)", "genres": ["Crime"]},
]


class SourcesTestCase(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enterContext(tempfile.TemporaryDirectory())
        )

    def write(self, files: dict[str, str | bytes]) -> str:
        for name, content in files.items():
            if isinstance(content, str):
                old = name.endswith((".dat", ".item"))
                content = content.encode("latin-1" if old else "utf-8")
            if name.endswith(".gz"):
                content = gzip.compress(content)
            (self.folder / name).write_bytes(content)
        return str(self.folder)

    def assert_error(self, message: str, data: str, **arguments: str):
        with self.assertRaisesRegex(InputError, message) as caught:
            sources.read(data, **arguments)
        self.assertNotIn("\n", str(caught.exception))


class GroupLensTest(SourcesTestCase):
    def assert_films(self, log: sources.Log):
        columns = log.interactions
        self.assertEqual(columns.user_ids.tolist(), ["7", "9"])
        self.assertEqual(columns.item_ids.tolist(), ["3", "1"])
        self.assertEqual(columns.users.tolist(), [0, 0, 1])
        self.assertEqual(columns.items.tolist(), [0, 1, 0])
        self.assertEqual(columns.timestamps.tolist(), [100, 50, 70])
        self.assertEqual(columns.ratings.tolist(), [4.5, 2, 5])
        self.assertEqual(log.items.to_pylist(), _ITEMS)

    @parameterized.parameters(*_LAYOUTS)
    def test_folder(self, layout: str):
        data = self.write(_LAYOUTS[layout])
        log = sources.read(data)
        self.assert_films(log)
        self.assertEqual(log.name, data)

    @parameterized.parameters(*_LAYOUTS)
    def test_folder_of_gzip_members(self, layout: str):
        files = {}
        for name, content in _LAYOUTS[layout].items():
            old = name.endswith((".dat", ".item"))
            files[name + ".gz"] = content.encode("latin-1" if old else "utf-8")
        self.assert_films(sources.read(self.write(files)))

    @parameterized.product(layout=list(_LAYOUTS), top=["", "ml-set/"])
    def test_zip(self, layout: str, top: str):
        self.write(_LAYOUTS[layout])
        path = self.folder / "set.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in _LAYOUTS[layout]:
                archive.write(self.folder / name, top + name)
            archive.writestr("__MACOSX/._ratings.csv", "x")
        self.assert_films(sources.read(str(path)))

    def test_folder_with_one_zip(self):
        with zipfile.ZipFile(self.folder / "set.zip", "w") as archive:
            for name, content in _LAYOUTS["csv"].items():
                archive.writestr(f"ml/{name}", content)
        self.assert_films(sources.read(str(self.folder)))

    def test_movies_dat_in_utf8(self):
        files = dict(_LAYOUTS["dat"])
        files["movies.dat"] = files["movies.dat"].encode("utf-8")
        self.assert_films(sources.read(self.write(files)))

    def test_named_ratings_file(self):
        data = self.write(_LAYOUTS["csv"] | _LAYOUTS["dat"])
        for name in ("ratings.csv", "ratings.dat"):
            self.assert_films(sources.read(f"{data}/{name}"))
        self.assert_error(
            "one log; name the file .*: ratings.csv, ratings.dat$", data
        )

    def test_without_films(self):
        log = sources.read(self.write({"ratings.dat": _RATINGS_DAT}))
        self.assertIsNone(log.items)

    @parameterized.parameters(
        (
            {"ratings.dat": "1::2::3::4\n1::2::3\n"},
            "ratings.dat, line 2: expected 4 columns. Received 3: '1::2::3'$",
        ),
        (
            {"ratings.dat": "1::2::3::4\n1:x:2::3::4\n"},
            "ratings.dat, line 2: expected 4 columns. Received 3",
        ),
        (
            {"ratings.dat": "1::2::3::4\n1::2::3::now\n"},
            "ratings.dat, line 2: expected a number .*'now'$",
        ),
        (
            {"u.data": "1\t2\t3\t4\n\t2\t3\t4\n"},
            "u.data, line 2: expected the user id .*empty one$",
        ),
        (
            _LAYOUTS["dat"] | {"movies.dat": "1::a::b\n2::c\n"},
            "movies.dat, line 2: expected 3 fields .*'::'. Received: '2::c'$",
        ),
        (
            _LAYOUTS["tab"] | {"u.item": "1|a||||1|0\n"},
            "u.item, line 1: expected 24 fields separated by",
        ),
        (
            _LAYOUTS["tab"] | {"u.item": _U_ITEM.replace("|1|", "|2|")},
            "u.item, line 1: expected 19 genre flags, 0 or 1",
        ),
        (
            _LAYOUTS["tab"] | {"u.genre": "unknown|0\nAction|x\n"},
            "u.genre, line 2: expected a genre and its number. .*'x'",
        ),
        (
            _LAYOUTS["dat"] | {"movies.dat": "\n"},
            "movies.dat: expected 3 fields in a line. Received: blank lines",
        ),
        (
            _LAYOUTS["csv"] | {"movies.csv": "movieId,title,a,a\n1,b,c,d\n"},
            "movies.csv: expected every column name once. .*twice: 'a'$",
        ),
        (
            _LAYOUTS["dat"] | {"movies.dat": "1::a::b\n1::c::d\n"},
            "movies.dat: expected every item once. Received twice: '1'$",
        ),
        ({"ratings.csv": ""}, "ratings.csv: .*no bytes$"),
        ({"ratings.csv": "a,b\n1,2\n"}, "ratings.csv: expected one user col"),
    )
    def test_errors(self, files: dict[str, str], message: str):
        self.assert_error(message, self.write(files))

    def test_ids_without_header_cannot_be_renamed(self):
        self.assert_error(
            "the column 'who' that --user_column names.*'userId'",
            self.write(_LAYOUTS["dat"]),
            user_column="who",
        )


class ReadTest(SourcesTestCase):
    def test_bundled(self):
        log = sources.read("movielens-small")
        self.assertEqual(log.name, "movielens-small")
        self.assertLen(log.interactions, 100_004)
        self.assertLen(log.interactions.user_ids, 671)
        self.assertLen(log.interactions.item_ids, 9_066)
        self.assertIn("Toy Story (1995)", log.items["title"].to_pylist())

    def test_file_with_films_beside_it(self):
        data = self.write(
            {"interactions.csv.gz": _INTERACTIONS, "movies.csv": _MOVIES_CSV}
        )
        for path in (data, data + "/interactions.csv.gz"):
            log = sources.read(path)
            self.assertEqual(log.interactions.timestamps.tolist(), [0, 1, 0])
            self.assertIsNone(log.interactions.ratings)
            self.assertEqual(log.items.to_pylist(), _ITEMS)

    def test_folder_of_parts_in_the_order_of_their_names(self):
        data = self.write(
            {
                "part-001.csv": "user,item,ts\nb,y,2\n",
                "part-000.csv.gz": "user,item,ts\na,x,1\n",
                "_SUCCESS": "",
                ".part.crc": "x",
            }
        )
        log = sources.read(data)
        self.assertEqual(log.interactions.user_ids.tolist(), ["a", "b"])
        self.assertIsNone(log.items)

    def _write_parts(self) -> pathlib.Path:
        """Makes a folder with one part of two rows."""
        folder = self.folder / "parts"
        folder.mkdir()
        (folder / "part-0.csv").write_text("user,item,time\nu,a,1\nu,b,2\n")
        return folder

    def test_a_part_that_is_a_folder_is_read(self):
        folder = self._write_parts()
        inner = folder / "part-1.csv"
        inner.mkdir()
        (inner / "_SUCCESS").touch()
        (inner / "part-00000.csv").write_text("user,item,time\nu,c,3\n")
        interactions = sources.read(str(folder)).interactions
        self.assertEqual(interactions.item_ids.tolist(), ["a", "b", "c"])

    def test_parts_that_would_be_left_out(self):
        folder = self._write_parts()
        other = folder / "part-1.csv"
        other.symlink_to("/no/such/file.csv")
        self.assert_error("part-1.csv: expected a file.*neither$", str(folder))
        other.unlink()
        other.mkdir()
        self.assert_error("part-1.csv: .*a folder without any$", str(folder))
        other.rmdir()
        for name in ("part-1.csv.bz2", "p.parquet.zst", "P.TSV.XZ"):
            other = folder / name
            other.touch()
            self.assert_error(f"{name}: .*another compression$", str(folder))
            other.unlink()
        (folder / "day=1").mkdir()
        self.assert_error("day=1: .*a folder without any$", str(folder))

    def test_copies_of_a_part_would_be_read_twice(self):
        for copy in ("part-0.csv.gz", "part-0.parquet", "PART-0.CSV"):
            folder = self._write_parts()
            (folder / copy).touch()
            self.assert_error(f"every part once.*{copy}", str(folder))
            shutil.rmtree(folder)

    def test_no_text_is_not_the_current_folder(self):
        with contextlib.chdir(self._write_parts()):
            self.assert_error("that exists. Received: ''$", "")
            pathlib.Path("manifest.json").touch()
            self.assertFalse(shards.is_sharded(""))

    def test_zip_of_parquet(self):
        table = pa.table({"user": ["a"], "item": ["x"], "ts": [1]})
        pq.write_table(table, self.folder / "p.parquet")
        with zipfile.ZipFile(self.folder / "all.zip", "w") as archive:
            archive.write(self.folder / "p.parquet", "data/p.parquet")
        log = sources.read(str(self.folder / "all.zip"))
        self.assertEqual(log.interactions.item_ids.tolist(), ["x"])

    def test_items_file_is_used_in_place_of_the_one_found(self):
        data = self.write(_LAYOUTS["csv"] | {"mine.csv": "id,name\n3,Other\n"})
        log = sources.read(data, items_file=data + "/mine.csv")
        self.assertEqual(
            log.items.to_pylist(), [{"item_id": "3", "title": "Other"}]
        )

    def test_parquet_file_and_given_columns(self):
        table = pa.table({"a": ["u"], "b": [5], "c": [1]})
        pq.write_table(table, self.folder / "log.parquet")
        log = sources.read(
            str(self.folder / "log.parquet"),
            user_column="a",
            item_column="b",
            timestamp_column="c",
        )
        self.assertEqual(log.interactions.item_ids.tolist(), ["5"])

    @parameterized.parameters("items.csv", "movies.csv")
    def test_ratings_csv_with_an_items_file(self, name: str):
        data = self.write({"ratings.csv": _RATINGS_CSV, name: _MOVIES_CSV})
        for path in (data, data + "/ratings.csv"):
            self.assertEqual(sources.read(path).items.to_pylist(), _ITEMS)

    def test_movies_csv_goes_before_other_items_files(self):
        data = self.write(_LAYOUTS["csv"] | {"items.csv": "id,name\n3,Other\n"})
        self.assertEqual(sources.read(data).items.to_pylist(), _ITEMS)

    def test_the_named_file_of_two_copies_is_read(self):
        other = "userId,movieId,rating,timestamp\n1,2,3,4\n"
        data = self.write(
            {"ratings.csv": _RATINGS_CSV, "ratings.csv.gz": other}
        )
        for name, count in (("ratings.csv", 3), ("ratings.csv.gz", 1)):
            log = sources.read(f"{data}/{name}")
            self.assertLen(log.interactions, count)

    def test_missing_path(self):
        self.assert_error(
            r"`data` must be 'movielens-small'.*Received: '/no/such/path'$",
            "/no/such/path",
        )

    def test_nothing_readable(self):
        self.assert_error("Received: an empty folder$", str(self.folder))
        data = self.write({"notes.txt": "x", "more.txt": "x"})
        self.assert_error("CSV, TSV or Parquet .*: more.txt, notes.txt$", data)

    def test_not_a_zip(self):
        self.write({"bad.zip": "PK\3\4 and no more"})
        self.assert_error("bad.zip: .*not a zip", f"{self.folder}/bad.zip")
        self.write({"worse.zip": "no zip"})
        self.assert_error("a zip file, by its", f"{self.folder}/worse.zip")

    @parameterized.parameters(
        (8, 6, b"\x01\x00", "encrypted"),
        (10, 8, b"\x09\x00", "compression method"),
        (6, None, b"\x63\x00", "version 9.9"),
    )
    def test_zips_that_cannot_be_read(self, central, local, value, reason):
        # Where the two headers of a member have the field.
        path = self.folder / "set.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("ratings.csv", _RATINGS_CSV)
        content = bytearray(path.read_bytes())
        begin = content.find(b"PK\1\2") + central
        content[begin : begin + 2] = value
        if local is not None:
            content[local : local + 2] = value
        path.write_bytes(content)
        self.assert_error(f"set.zip.*expected a readable .*{reason}", str(path))

    def test_a_zip_with_damaged_lzma(self):
        path = self.folder / "set.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
            archive.writestr("ratings.csv", _RATINGS_CSV)
        content = bytearray(path.read_bytes())
        content[65:75] = bytes(255 - byte for byte in content[65:75])
        path.write_bytes(content)
        self.assert_error("ratings.csv: expected a readable", str(path))

    def test_a_zip_whose_only_member_is_called_like_the_root(self):
        path = self.folder / "set.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("/", "")
        self.assert_error("set.zip.*Received: ", str(path))

    def test_a_home_folder_of_nobody(self):
        self.assert_error(
            "`data` must be .*'~nobody-here/x'$", "~nobody-here/x"
        )

    def test_damaged_member_of_a_zip(self):
        path = self.folder / "set.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("ratings.csv", _RATINGS_CSV)
        path.write_bytes(path.read_bytes().replace(b"4.5,100", b"4.5,101"))
        self.assert_error("ratings.csv: expected a readable .*CRC", str(path))

    def test_two_items_files(self):
        data = self.write(
            {
                "log.csv": _INTERACTIONS,
                "movies.csv": _MOVIES_CSV,
                "items.csv": _MOVIES_CSV,
            }
        )
        self.assert_error("--items_file.*: movies.csv, items.csv$", data)

    def test_items_file_must_exist(self):
        data = self.write({"log.csv": _INTERACTIONS})
        self.assert_error(
            "`items_file` must be .*'/none'$", data, items_file="/none"
        )

    @parameterized.parameters(
        ("movielens-small", {"tfds_data_dir": "x"}, "`tfds_data_dir` needs"),
        ("movielens-small", {"tfds_manual_dir": "x"}, "`tfds_manual_dir` n"),
        ("tfds:movielens/1m-ratings", {"user_column": "x"}, "`user_column` n"),
    )
    def test_arguments_without_effect(self, data, arguments, message):
        self.assert_error(message, data, **arguments)

    @parameterized.parameters(*_LAYOUTS)
    def test_units_hold_the_whole_log(self, layout: str):
        data = self.write(_LAYOUTS[layout])
        with zipfile.ZipFile(self.folder / "set.zip", "w") as archive:
            for name in _LAYOUTS[layout]:
                archive.write(self.folder / name, name)
        for path in (data, data + "/set.zip"):
            units, items = sources.Source(path).units()
            blocks = [block for unit in units for block in unit.blocks()]
            self.assertEqual(
                np.concatenate([b.item_ids[b.items] for b in blocks]).tolist(),
                ["3", "1", "3"],
            )
            self.assertEqual(items.to_pylist(), _ITEMS)

    def test_reading_files_does_not_import_tensorflow(self):
        code = (
            "import sys; from recsys.data import sources, vocabulary; "
            "sources.read('movielens-small'); "
            "sys.exit(any(name in sys.modules for name in "
            "('tensorflow', 'keras', 'tensorflow_datasets')))"
        )
        subprocess.run([sys.executable, "-c", code], check=True)


# Rows 0, 2 and 3 are of user a, row 1 is of user b.
_EVENTS = {
    "user": ["a", "b", "a", "a"],
    "item": ["x", "x", "x", "y"],
    "timestamp": [4, 3, 2, 1],
    "event": ["view", "buy", "buy", "view"],
    "seconds": [1.5, 2.5, None, 4.5],
}


class OtherColumnsTest(parameterized.TestCase):
    """Columns that were asked for by name, besides those with a role."""

    def _write(self, kind: str) -> str:
        table = pa.table(_EVENTS)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = pathlib.Path(folder.name)
        for number in (0, 1):
            part = table.slice(2 * number, 2)
            if kind == "parquet":
                pq.write_table(part, path / f"{number}.parquet")
            else:
                rows = [",".join(part.column_names)] + [
                    ",".join("" if v is None else str(v) for v in row.values())
                    for row in part.to_pylist()
                ]
                (path / f"{number}.csv").write_text("\n".join(rows))
        return str(path)

    @parameterized.parameters(
        ("csv", ["1.5", "2.5", "", "4.5"]),
        ("parquet", [1.5, 2.5, None, 4.5]),
    )
    def test_they_are_aligned_with_the_rows(self, kind, seconds):
        data = self._write(kind)
        source = sources.Source(data, other_columns=("event", "seconds"))
        expected = {"event": _EVENTS["event"], "seconds": seconds}
        log = source.read().interactions
        self.assertEqual(log.columns.to_pydict(), expected)
        self.assertEqual(
            log.columns["event"].type, pa.dictionary(pa.int32(), pa.string())
        )
        blocks = [b for unit in source.units()[0] for b in unit.blocks()]
        streamed = [row for b in blocks for row in b.columns.to_pylist()]
        self.assertEqual(
            streamed, pa.table(expected, log.columns.schema).to_pylist()
        )
        # The last of the repeats of (a, x) is that of time 4, row 0.
        kept = filter_interactions(log, repeats="last", min_user_count=2)
        self.assertEqual(
            kept.columns.to_pydict(),
            {"event": ["view", "view"], "seconds": [seconds[0], seconds[3]]},
        )
        self.assertIsNone(
            sources.read(data, event_column="").interactions.columns
        )

    def test_a_column_with_a_role_can_be_asked_for_too(self):
        for kind in ("csv", "parquet"):
            log = sources.read(
                self._write(kind), other_columns=("user", "timestamp")
            )
            columns = log.interactions.columns
            self.assertEqual(columns["user"].to_pylist(), ["a", "b", "a", "a"])
            self.assertEqual(columns["timestamp"].to_pylist(), [4, 3, 2, 1])

    def test_a_log_that_is_read_whole_keeps_them_in_blocks(self):
        with tempfile.TemporaryDirectory() as folder:
            (pathlib.Path(folder) / "u.data").write_text(_U_DATA)
            source = sources.Source(folder, other_columns=("movieId",))
            [unit] = source.units()[0]
            [block] = unit.blocks()
        self.assertEqual(block.columns.to_pydict(), {"movieId": list("313")})

    def test_a_missing_one_is_an_error(self):
        data = self._write("csv")
        with self.assertRaisesRegex(
            InputError, r"0\.csv: expected a column 'kind'\. .*'event'"
        ):
            sources.read(data, other_columns=("event", "kind"))
        with self.assertRaisesRegex(InputError, "`other_columns` needs"):
            sources.read("synthetic:users=9,items=9", other_columns=("kind",))


if __name__ == "__main__":
    absltest.main()
