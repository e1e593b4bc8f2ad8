"""Logs as people have them: small files after the form of real ones.

`LAYOUTS` is also the table in docs/logs.md, which `test_the_table_of_the_docs`
compares; `python tests/data_layouts_test.py --print` prints it.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import gzip
import http.server
import json
import pathlib
import pickle
import re
import subprocess
import sys
import tempfile
import threading
import urllib.parse
import zipfile
from collections.abc import Iterator
from typing import Any
from unittest import mock

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl.testing import absltest, parameterized

from recsys.config import TrainConfig
from recsys.data import input_files, sources
from recsys.data.interactions import filter_interactions
from recsys.data.prepare import build_data, data_summary
from recsys.errors import InputError

DOCS = pathlib.Path(__file__).parent.parent / "docs"


@dataclasses.dataclass(frozen=True)
class Layout:
    """A file after a real one.

    Attributes:
        name: The data set.
        file: The name of the file.
        content: Its text or bytes, or the columns of a Parquet file.
        events: The (user, item, timestamp) of each row, by hand.
        flags: What has to be said of it.
        rows: The rows that hold events.
        kept: How many interactions the default filter keeps.
        notes: What the output says of how it was understood.
        per_second: Units of the timestamps in a second.
        ratings: By hand.
    """

    name: str
    file: str
    content: Any
    events: list[tuple[str, str, int]]
    flags: dict[str, str] = dataclasses.field(default_factory=dict)
    rows: int | None = None
    kept: int | None = None
    notes: tuple[str, ...] = ()
    per_second: int = 1
    ratings: list[float] | None = None


# 2020-09-13 12:26:40 in UTC.
_T = 1_600_000_000
_NO_TIME = (
    "no time column: the order of the file is the order of events "
    "(--timestamp_column names one)"
)
_LINES = (
    "each line is a user and all of the user's items in order",
    "no time column: the order of the file is the order of events",
)


def _dates(*seconds: int) -> list[int]:
    """Returns times after `_T` in microseconds."""
    return [(_T + second) * 1_000_000 for second in seconds]


def _events(users: str, items: str, times: list[int]) -> list[Any]:
    return list(zip(users.split(), items.split(), times, strict=True))


LAYOUTS = [
    Layout(
        "MovieLens 32M",
        "ratings.csv",
        f"userId,movieId,rating,timestamp\n1,17,4.0,{_T}\n1,25,1.0,{_T + 9}\n",
        _events("1 1", "17 25", [_T, _T + 9]),
        ratings=[4, 1],
    ),
    Layout(
        "MovieLens 1M",
        "ratings.dat",
        f"1::1193::5::{_T}\n1::661::3::{_T + 9}\n",
        _events("1 1", "1193 661", [_T, _T + 9]),
        ratings=[5, 3],
    ),
    Layout(
        "Netflix Prize",
        "combined_data_1.txt",
        "8:\n1488844,3,2020-09-13\n822109,5,2020-09-14\n"
        "9:\n1488844,4,2020-09-12\n",
        _events(
            "1488844 822109 1488844",
            "8 8 9",
            [1599955200000000, 1600041600000000, 1599868800000000],
        ),
        per_second=1_000_000,
        ratings=[3, 5, 4],
    ),
    Layout(
        "Amazon 2014, ratings only",
        "ratings_Beauty.csv",
        f"A39H,0205616461,5.0,{_T}\nA3JM,0558925278,3.0,{_T + 9}\n",
        _events("A39H A3JM", "0205616461 0558925278", [_T, _T + 9]),
        {"columns": "user,item,rating,timestamp"},
        ratings=[5, 3],
    ),
    Layout(
        "Amazon 2018, ratings only",
        "All_Beauty.csv",
        f"0143026860,A1V6,1.0,{_T}\n014789302X,A2W5,4.0,{_T + 9}\n",
        _events("A1V6 A2W5", "0143026860 014789302X", [_T, _T + 9]),
        {"columns": "item,user,rating,timestamp"},
        ratings=[1, 4],
    ),
    Layout(
        "Amazon 2014 and 2018 reviews",
        "All_Beauty_5.json.gz",
        '{"overall": 5.0, "reviewTime": "09 13, 2020", "reviewerID": "A3CI", '
        f'"asin": "B001", "reviewText": "so, so", "unixReviewTime": {_T}}}\n'
        '{"overall": 4.0, "reviewTime": "09 14, 2020", "reviewerID": "A3CI", '
        f'"asin": "B002", "unixReviewTime": {_T + 86400}, "vote": "2"}}\n',
        _events("A3CI A3CI", "B001 B002", [_T, _T + 86400]),
        ratings=[5, 4],
    ),
    Layout(
        "Amazon 2023 reviews",
        "All_Beauty.jsonl",
        '{"rating": 5.0, "title": "Yes", "images": [], "asin": "B00Y", '
        f'"parent_asin": "B00P", "user_id": "AGKH", "timestamp": {_T}123}}\n'
        '{"rating": 2.0, "title": "No", "images": [{"small": "x"}], "asin": '
        f'"B07", "parent_asin": "B07", "user_id": "AGKH", "timestamp": {_T}456'
        "}\n",
        _events("AGKH AGKH", "B00P B07", [_T * 1000 + 123, _T * 1000 + 456]),
        {"item_column": "parent_asin"},
        per_second=1000,
        ratings=[5, 2],
    ),
    Layout(
        "Amazon 2023, 0-core",
        "Books.csv",
        f"user_id,parent_asin,rating,timestamp\nAGKH,B00P,5.0,{_T}123\n",
        _events("AGKH", "B00P", [_T * 1000 + 123]),
        per_second=1000,
        ratings=[5],
    ),
    Layout(
        "Steam reviews (UCSD)",
        "steam_reviews.json.gz",
        "{u'username': u'Chaos', u'product_id': u'725280', u'date': "
        "u'2020-09-13', u'text': u\"it's\", u'early_access': False}\n"
        "{u'username': u'Chaos', u'product_id': u'328100', u'date': "
        "u'2020-09-12', u'hours': 0.1, u'early_access': True}\n",
        _events(
            "Chaos Chaos",
            "725280 328100",
            [1599955200000000, 1599868800000000],
        ),
        notes=("columns found by name: user 'username'",),
        per_second=1_000_000,
    ),
    Layout(
        "Yelp reviews",
        "yelp_academic_dataset_review.json",
        '{"review_id": "r1", "user_id": "mh", "business_id": "XQ", "stars": '
        '3.0, "text": "a\\nb", "date": "2020-09-13 12:26:40"}\n'
        '{"review_id": "r2", "user_id": "mh", "business_id": "7A", "stars": '
        '5.0, "text": "c", "date": "2020-09-13 12:26:49"}\n',
        _events("mh mh", "XQ 7A", _dates(0, 9)),
        per_second=1_000_000,
        ratings=[3, 5],
    ),
    Layout(
        "Goodreads interactions",
        "goodreads_interactions.csv",
        "user_id,book_id,is_read,rating,is_reviewed\n0,948,1,5,0\n0,947,1,0,0\n",
        _events("0 0", "948 947", [0, 1]),
        notes=(_NO_TIME,),
        per_second=0,
        ratings=[5, 0],
    ),
    Layout(
        "Goodreads reviews",
        "goodreads_reviews.json.gz",
        '{"user_id": "8842", "book_id": "24375664", "rating": 5, "date_added": '
        '"Sun Sep 13 05:26:40 -0700 2020", "read_at": ""}\n'
        '{"user_id": "8842", "book_id": "18245960", "rating": 4, "date_added": '
        '"Sun Sep 13 12:26:41 +0000 2020", "read_at": ""}\n',
        _events("8842 8842", "24375664 18245960", _dates(0, 1)),
        notes=("columns found by name: timestamp 'date_added'",),
        per_second=1_000_000,
        ratings=[5, 4],
    ),
    Layout(
        "BookCrossing",
        "BX-Book-Ratings.csv",
        '"User-ID";"ISBN";"Book-Rating"\n"276725";"034545104X";"0"\n'
        '"276726";"Müller";"5"\n'.encode("latin-1"),
        _events("276725 276726", "034545104X Müller", [0, 1]),
        {"encoding": "latin-1"},
        notes=("columns found by name: rating 'Book-Rating'", _NO_TIME),
        per_second=0,
        ratings=[0, 5],
    ),
    Layout(
        "Gowalla, Brightkite",
        "Gowalla_totalCheckins.txt",
        "0\t2020-09-13T12:26:49Z\t30.2359091167\t-97.7951395833\t22847\n"
        "0\t2020-09-13T12:26:40Z\t30.2691029532\t-97.7493953705\t420315\n",
        _events("0 0", "22847 420315", _dates(9, 0)),
        {"columns": "user,timestamp,_,_,item"},
        per_second=1_000_000,
    ),
    Layout(
        "Foursquare (TSMC 2014)",
        "dataset_TSMC2014_NYC.txt",
        "470\t49bb\t4bf5\tCafé\t40.7\t-74.0\t-240\t"
        "Sun Sep 13 12:26:40 +0000 2020\n"
        "979\t4a43\t4bf5\tBridge\t40.6\t-74.0\t-240\t"
        "Sun Sep 13 12:26:49 +0000 2020\n",
        _events("470 979", "49bb 4a43", _dates(0, 9)),
        {
            "columns": "user,item,_,_,_,_,_,timestamp",
            "encoding": "latin-1",
        },
        per_second=1_000_000,
    ),
    Layout(
        "Foursquare (Kaggle)",
        "dataset_NYC.csv",
        "userId,venueId,venueCategory,utcTimestamp\n"
        "470,49bb,Shop,Sun Sep 13 12:26:40 +0000 2020\n",
        _events("470", "49bb", _dates(0)),
        notes=(
            "columns found by name: item 'venueId', timestamp 'utcTimestamp'",
        ),
        per_second=1_000_000,
    ),
    Layout(
        "Last.fm 1K",
        "userid-timestamp-artid-artname-traid-traname.tsv",
        "user_000001\t2020-09-13T12:26:49Z\tf1b1\tDeep Dish\t\tFamous\n"
        "user_000001\t2020-09-13T12:26:40Z\ta7f7\tU2\t7a\tOne\n",
        _events("user_000001 user_000001", "f1b1 a7f7", _dates(9, 0)),
        {"columns": "user,timestamp,item,_,_,_"},
        per_second=1_000_000,
    ),
    Layout(
        "Last.fm (HetRec 2011)",
        "user_artists.dat",
        "userID\tartistID\tweight\n2\t51\t13883\n2\t52\t11690\n",
        _events("2 2", "51 52", [0, 1]),
        notes=(_NO_TIME,),
        per_second=0,
    ),
    Layout(
        "RetailRocket",
        "events.csv",
        "timestamp,visitorid,event,itemid,transactionid\n"
        f"{_T}132,257597,view,355908,\n{_T}844,257597,view,248676,\n"
        f"{_T}900,257597,addtocart,248676,\n",
        _events(
            "257597 257597 257597",
            "355908 248676 248676",
            [_T * 1000 + 132, _T * 1000 + 844, _T * 1000 + 900],
        ),
        kept=2,
        per_second=1000,
    ),
    Layout(
        "REES46 (eCommerce behavior)",
        "2020-Sep.csv",
        "event_time,event_type,product_id,brand,price,user_id,user_session\n"
        "2020-09-13 12:26:40 UTC,view,44600062,shiseido,35.79,541312140,72d7\n"
        "2020-09-13 12:26:49 UTC,view,3900821,aqua,33.20,541312140,72d7\n",
        _events("541312140 541312140", "44600062 3900821", _dates(0, 9)),
        per_second=1_000_000,
    ),
    Layout(
        "Taobao user behavior",
        "UserBehavior.csv",
        f"1,2268318,2520377,pv,{_T}\n1,2333346,2520771,pv,{_T + 9}\n",
        _events("1 1", "2268318 2333346", [_T, _T + 9]),
        {"columns": "user,item,category,behavior,timestamp"},
    ),
    Layout(
        "YooChoose (RecSys 2015)",
        "yoochoose-clicks.dat",
        "1,2020-09-13T12:26:40.002Z,214536502,0\n"
        "1,2020-09-13T12:26:49.003Z,214536500,0\n",
        _events(
            "1 1",
            "214536502 214536500",
            [_T * 10**6 + 2000, (_T + 9) * 10**6 + 3000],
        ),
        {"columns": "session_id,timestamp,item,category"},
        notes=("columns found by name: user 'session_id'",),
        per_second=1_000_000,
    ),
    Layout(
        "OTTO (Kaggle)",
        "train.jsonl",
        '{"session": 12, "events": [{"aid": 7, "ts": 1600000000123, "type": '
        '"clicks"}, {"aid": 8, "ts": 1600000000456, "type": "orders"}]}\n'
        '{"session": 13, "events": [{"aid": 7, "ts": 1600000000789, "type": '
        '"clicks"}]}\n',
        _events(
            "12 12 13",
            "7 8 7",
            [1600000000123, 1600000000456, 1600000000789],
        ),
        rows=2,
        notes=(
            "columns found by name: user 'session', item 'aid'",
            "each value of 'events' is a list of events",
        ),
        per_second=1000,
    ),
    Layout(
        "MIND",
        "behaviors.tsv",
        "1\tU13740\t9/13/2020 12:26:40 PM\tN55189 N42782\tN55689-1\n"
        "2\tU91836\t9/13/2020 12:26:49 PM\t\tN20678-0\n"
        "3\tU91837\t9/13/2020 1:26:49 PM\tN55189\tN20678-0\n",
        _events(
            "U13740 U13740 U91837",
            "N55189 N42782 N55189",
            _dates(0, 0, 3609),
        ),
        {"columns": "_,user,timestamp,history,_"},
        rows=3,
        notes=(
            "columns found by name: item 'history'",
            "each value of 'history' is a list of items",
        ),
        per_second=1_000_000,
    ),
    Layout(
        "KuaiRand",
        "log_standard_4_08_to_4_21_pure.csv",
        "user_id,video_id,date,hourmin,time_ms,is_click\n"
        f"0,5940,20200913,1200,{_T}252,1\n0,3100,20200913,1200,{_T}939,0\n",
        _events("0 0", "5940 3100", [_T * 1000 + 252, _T * 1000 + 939]),
        {"timestamp_column": "time_ms"},
        per_second=1000,
    ),
    Layout(
        "Yambda, flat",
        "likes.parquet",
        {"uid": [100, 100], "timestamp": [39420, 39425], "item_id": [8, 9]},
        _events("100 100", "8 9", [39420, 39425]),
    ),
    Layout(
        "Yambda, sequential",
        "listens.parquet",
        {
            "uid": [100, 200],
            "timestamp": [[39420, 39425], [39000]],
            "item_id": [[8, 9], [8]],
        },
        _events("100 100 200", "8 9 8", [39420, 39425, 39000]),
        rows=2,
    ),
    Layout(
        "H&M",
        "transactions_train.csv",
        "t_dat,customer_id,article_id,price,sales_channel_id\n"
        "2020-09-13,000058a1,0663713001,0.05,2\n",
        _events("000058a1", "0663713001", [1599955200000000]),
        notes=("columns found by name: timestamp 't_dat'",),
        per_second=1_000_000,
    ),
    Layout(
        "RecBole, atomic file",
        "ml-100k.inter",
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        f"196\t242\t3\t{_T}\n186\t302\t3\t{_T + 9}\n",
        _events("196 186", "242 302", [_T, _T + 9]),
        ratings=[3, 3],
    ),
    Layout(
        "RecBole, sequences",
        "diginetica.inter",
        "session_id:token\titem_id_list:token_seq\n1\t5 7 9\n2\t7\n",
        _events("1 1 1 2", "5 7 9 7", [0, 1, 2, 3]),
        rows=2,
        notes=(
            "columns found by name: user 'session_id:token'",
            "each value of 'item_id_list:token_seq' is a list of items",
            _NO_TIME,
        ),
        per_second=0,
    ),
    Layout(
        "SASRec",
        "Beauty.txt",
        "1 1\n1 2\n2 3\n",
        _events("1 1 2", "1 2 3", [0, 1, 2]),
        {"columns": "user,item", "separator": "blanks"},
        notes=(_NO_TIME,),
        per_second=0,
    ),
    Layout(
        "S3-Rec and BERT4Rec, sequences",
        "Sports.txt",
        "1 11 12 13\n2 12 14\n",
        _events("1 1 1 2 2", "11 12 13 12 14", [0, 1, 2, 3, 4]),
        rows=2,
        notes=_LINES,
        per_second=0,
    ),
    Layout(
        "Sequences with tabs and text",
        "baskets.tsv",
        "ann\ttea\tcup\nbob\tjam\tpot\n",
        _events("ann ann bob bob", "tea cup jam pot", [0, 1, 2, 3]),
        {"layout": "sequences"},
        rows=2,
        notes=_LINES,
        per_second=0,
    ),
    Layout(
        "LensKit",
        "ratings.parquet",
        {
            "user_id": pa.array([1, 1], pa.int32()),
            "item_id": pa.array([31, 1029], pa.int32()),
            "rating": [2.5, 3.0],
            "timestamp": pa.array(_dates(0, 9), pa.timestamp("us")),
        },
        _events("1 1", "31 1029", _dates(0, 9)),
        per_second=1_000_000,
        ratings=[2.5, 3],
    ),
    Layout(
        "A shop's orders (Excel, UTF-16)",
        "orders.txt",
        "customer_id\tsku\torder_date\n7\té1\t13/09/2020 12:26\n".encode(
            "utf-16"
        ),
        _events("7", "é1", [1599999960000000]),
        notes=("columns found by name: timestamp 'order_date'",),
        per_second=1_000_000,
    ),
]


def table() -> str:
    """Returns the table of the docs."""
    lines = [
        "| log | flags besides `--data` | what the output says | rows | events "
        "| kept |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    for each in LAYOUTS:
        flags = " ".join(f"`--{k}={v}`" for k, v in each.flags.items())
        rows = len(each.events) if each.rows is None else each.rows
        kept = len(each.events) if each.kept is None else each.kept
        notes = "; ".join(each.notes) or "–"
        lines.append(
            f"| {each.name}: `{each.file}` | {flags or '–'} | {notes} "
            f"| {rows} | {len(each.events)} | {kept} |"
        )
    return "\n".join(lines) + "\n"


def write(layout: Layout, folder: str) -> str:
    path = pathlib.Path(folder) / layout.file
    content = layout.content
    if isinstance(content, dict):
        pq.write_table(pa.table(content), path)
        return str(path)
    if isinstance(content, str):
        old = layout.flags.get("encoding")
        content = content.encode(old or "utf-8")
    if path.suffix == ".gz":
        content = gzip.compress(content)
    path.write_bytes(content)
    return str(path)


class LayoutsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.enterContext(tempfile.TemporaryDirectory())

    @parameterized.named_parameters((each.name, each) for each in LAYOUTS)
    def test_every_event_is_read(self, layout):
        data = write(layout, self.folder)
        config = TrainConfig(data=data, **layout.flags)
        source = sources.Source(**config.source())
        log = source.read()
        self.assertEqual(_rows(log.interactions), layout.events)
        self.assertEqual(log.notes, layout.notes)
        self.assertEqual(
            log.interactions.timestamps_per_second, layout.per_second
        )
        if layout.ratings is None:
            self.assertIsNone(log.interactions.ratings)
        else:
            np.testing.assert_array_equal(
                log.interactions.ratings, layout.ratings
            )
        kept = len(filter_interactions(log.interactions))
        expected = len(layout.events) if layout.kept is None else layout.kept
        self.assertEqual(kept, expected)

    @parameterized.named_parameters((each.name, each) for each in LAYOUTS)
    def test_a_stream_gives_the_same(self, layout):
        data = write(layout, self.folder)
        source = sources.Source(data, **layout.flags)
        [unit] = source.units()[0]
        blocks = list(unit.blocks())
        rows = [row for block in blocks for row in _rows(block)]
        self.assertEqual(
            [row[:2] for row in rows], [e[:2] for e in layout.events]
        )
        order = np.argsort([row[2] for row in rows], kind="stable")
        expected = np.argsort([e[2] for e in layout.events], kind="stable")
        self.assertEqual(order.tolist(), expected.tolist())

    def test_the_table_of_the_docs(self):
        self.assertGreaterEqual(len(LAYOUTS), 25)
        self.assertIn(table(), (DOCS / "logs.md").read_text("utf-8"))


class TestCase(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enterContext(tempfile.TemporaryDirectory())
        )

    def write(self, text: str | bytes, name: str = "log.txt") -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    def read(self, text: str | bytes, name: str = "log.txt", **flags: str):
        return _rows(sources.read(self.write(text, name), **flags).interactions)

    def assert_error(self, message: str, text, name="log.txt", **flags: str):
        data = self.write(text, name)
        source = sources.Source(data, **flags)
        for read in (
            source.read,
            lambda: [list(unit.blocks()) for unit in source.units()[0]],
        ):
            with self.assertRaisesRegex(InputError, message):
                read()


class AskedAboutTest(TestCase):
    """What can be read in two ways is asked about, with the flag to say it."""

    @parameterized.parameters(
        (f"A1,B1,5.0,{_T}\n", "--columns=user,item,rating,timestamp"),
        (f"1\t2\t{_T}\n", "--columns=user,item,timestamp"),
        (
            f"1::2::5::{_T}\n",
            "--columns=user,item,rating,timestamp --separator=::",
        ),
        (
            "0\t2020-09-13T12:26:49Z\t30.23\t-97.79\t22847\n",
            "--columns=user,timestamp,_,_,item",
        ),
        (
            "1,2020-09-13T12:26:40.002Z,214536502,0\n",
            "--columns=user,timestamp,item,_",
        ),
        (
            "1 107\n1 108\n",
            "--columns=user,item --separator=blanks or --layout=sequences",
        ),
        # As many values in each line, or a user twice: not only sequences.
        ("1 5 7\n2 7 5\n", "or --layout=sequences"),
        ("1 5 7\n1 7\n", "or --layout=sequences"),
        ("1 5 a\n2 7\n", "or --layout=sequences"),
    )
    def test_no_header(self, text, flags):
        self.assert_error(f"looks like a row: .*{flags} \\(check", text)

    def test_the_proposed_flags_are_right(self):
        rows = f"1::107::5::{_T}\n2::108::4::{_T + 1}\n"
        with self.assertRaises(InputError) as caught:
            self.read(rows)
        flags = dict(
            flag.removeprefix("--").split("=", 1)
            for flag in str(caught.exception).split()
            if flag.startswith(("--columns=", "--separator="))
        )
        self.assertEqual(
            self.read(rows, **flags), [("1", "107", _T), ("2", "108", _T + 1)]
        )

    def test_a_file_of_letters_has_a_header(self):
        self.assert_error(
            "name it with --user_column.*'b'. If there is no header, .*"
            "--columns.*--layout=sequences; --separator ",
            "a,b\nc,d\n",
        )

    @parameterized.parameters({"columns": "user,item"}, {"layout": "sequences"})
    def test_a_header_is_no_row(self, **options):
        self.assert_error(
            f"no header with --{next(iter(options))}.* 'userId', 'item' in the"
            " first line; leave out",
            "userId,item\n1,2\n1,3\n",
            **options,
        )

    @parameterized.parameters(
        ("user,item,time_ms,date\n1,2,3,4\n", "--timestamp_column"),
        ("session_id,item_id,item_id_list\n1,2,3 4\n", "--item_column"),
        (
            "user,item,date\n1,2,03/04/2020\n1,3,05/06/2020\n",
            "--time_format='%m/%d/%Y' or --time_format='%d/%m/%Y'",
        ),
    )
    def test_two_readings(self, text, flag):
        self.assert_error(flag, text)

    def test_dates_as_they_are_said_to_be(self):
        text = "user,item,date\n1,2,03/04/2020\n"
        for order, expected in (("%d/%m", 1585872000), ("%m/%d", 1583280000)):
            [(_, _, time)] = self.read(text, time_format=f"{order}/%Y")
            self.assertEqual(time, expected * 1_000_000)
        # As a number it would be only that.
        [(_, _, time)] = self.read(
            "user,item,date\n1,2,20200403\n", time_format="%Y%m%d"
        )
        self.assertEqual(time, 1585872000 * 1_000_000)
        self.assertEqual(
            self.read("user,item,date\n1,2,20200403\n")[0][2], 20200403
        )


class RowsTest(TestCase):
    def test_a_bad_line_is_named(self):
        for text, message, flags in (
            (
                "1 2 3\n1 2\n",
                "line 2: expected 3 columns. Received 2: '1 2'",
                {"columns": "user,item,time", "separator": "blanks"},
            ),
            (
                "a 1\n\nb soon\n",
                "line 3: expected a number in .*'soon'",
                {"columns": "user,time", "separator": "blanks"},
            ),
            (
                '{"user": 1, "item": 2}\n{"user": "x", "item": 2}\n',
                "line 2: expected int64 in 'user', .*Received: 'x'|one type",
                {},
            ),
            ('{"user": 1, "item": 2}\n{"user":\n', "line 2: expected an", {}),
            (
                '{"user": 1, "item": 2}\n{"item": 2}\n',
                "line 2: expected the user id",
                {},
            ),
            (
                "user,history,time\na,1 2,5\nb,3,x\n",
                "line 3: expected a number .*'x'",
                {},
            ),
            ("1:\n5,3,2005-09-06\n5,x,2005-09-06\n", "line 3: .*'x'", {}),
            (
                "a,1,2\nb,1,,2\n",
                "line 2: expected the item id .*empty one",
                {"layout": "sequences"},
            ),
            ('["a"]\n', "expected one JSON object per line", {}),
        ):
            with self.subTest(text):
                if "user,time" in flags.get("columns", ""):
                    text = text.replace(" ", " i ")
                    flags = {**flags, "columns": "user,item,time"}
                self.assert_error(message, text, **flags)

    def test_lists_of_other_lengths(self):
        pq.write_table(
            pa.table(
                {"user": [1, 2], "items": [[1], [2, 3]], "time": [[5], [6]]}
            ),
            self.folder / "log.parquet",
        )
        with self.assertRaisesRegex(
            InputError, "row 2: .*list of timestamp .* items, 2. Received: 1"
        ):
            sources.read(str(self.folder / "log.parquet"))

    def test_other_columns_go_along_with_lists(self):
        table = pa.table(
            {
                "user": ["a", "b"],
                "items": [["x", "y"], ["z"]],
                "kind": [["view", "buy"], ["view"]],
                "shop": ["one", "two"],
            }
        )
        path = self.folder / "log.parquet"
        pq.write_table(table, path)
        log = sources.read(str(path), other_columns=("kind", "shop"))
        self.assertEqual(
            log.interactions.columns.to_pydict(),
            {"kind": ["view", "buy", "view"], "shop": ["one", "one", "two"]},
        )

    def test_empty_lists_are_counted(self):
        data = self.write("user,items\na,1 2\nb,\nc,\n")
        self.assertEqual(sources.read(data).interactions.num_empty, 2)

        data = self.write("user,items\nb,\nc,\n")
        with self.assertRaisesRegex(InputError, "2 rows, each with an empty"):
            sources.read(data)

    @parameterized.parameters("[1, 2]", "['1', '2']", "1,2", "1|2", "1;2")
    def test_lists_in_text_with_other_marks(self, items):
        self.assert_error(
            "column 'items', or lists in JSON lines .* Received: ",
            f'user,items\na,1 2\nb,"{items}"\n',
        )

    def test_fields_that_the_first_line_of_json_lacks(self):
        rows = [
            {"user": "a", "item": "x", "events": []},
            {"user": "a", "item": "y", "time": 3},
        ]
        text = "\n".join(map(json.dumps, rows)) + "\n"
        # With a time, there is not none of it in the log.
        self.assert_error("line 1: expected a .* column 'time'", text)
        rows = [
            {"user": "a", "events": []},
            {"user": "b", "events": [{"item": "x", "time": 3}]},
        ]
        text = "\n".join(map(json.dumps, rows)) + "\n"
        self.assertEqual(self.read(text), [("b", "x", 3)])

    def test_long_values_leave_the_limit_of_csv_as_it_was(self):
        before = csv.field_size_limit(1000)
        self.addCleanup(csv.field_size_limit, before)
        text = f'user,item,review,time\na,x,"{"long" * 50_000}\n",1\na,,c,2\n'
        data = self.write(text)
        with self.assertRaisesRegex(InputError, "line 4: .*the item id"):
            sources.read(data)
        self.assertEqual(csv.field_size_limit(), 1000)

    def test_times_of_two_units(self):
        self.assert_error(
            f"log.*: expected times of one unit. Received: {_T} and {_T}007",
            f"user,item,time\na,x,{_T}007\na,y,{_T}\n",
        )

    def test_tables_of_a_zip_that_are_not_one_log(self):
        path = self.folder / "all.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("log.csv", "user,item,time\n1,2,3\n")
            archive.writestr("shops.csv", "shop,city\n1,Rome\n")
        with self.assertRaisesRegex(
            InputError, "all.zip/shops.csv: .* All 2 tables .* unpack it"
        ):
            sources.read(str(path))
        with zipfile.ZipFile(path, "w") as archive:
            for name in ("train", "test"):
                archive.writestr(f"{name}.csv", "user,item,time\n1,2,3\n")
        self.assertEqual(
            sources.read(str(path)).notes,
            ("2 files are read as one log, test.csv to train.csv",),
        )

    def test_an_encoding_needs_text(self):
        path = self.folder / "log.parquet"
        pq.write_table(pa.table({"user": [1], "item": [2]}), path)
        items = pathlib.Path(self.write("item,title\n2,Thé\n", "titles.csv"))
        items.write_bytes("item,title\n2,Thé\n".encode("latin-1"))
        with self.assertRaisesRegex(InputError, "`encoding` needs .*text"):
            sources.read(str(path), encoding="latin-1")
        log = sources.read(str(path), encoding="latin-1", items_file=str(items))
        self.assertEqual(log.items["title"].to_pylist(), ["Thé"])

    def test_ids_of_one_type_in_json(self):
        self.assert_error(
            "of one type.* in 'item'. Received: 'x' and 7$",
            '{"user": 1, "item": "x"}\n{"user": 1, "item": 7}\n',
        )

    def test_times_that_are_not_wanted(self):
        self.assertEqual(
            self.read("user,item,time\nu,a,9\nu,b,5\n", timestamp_column=""),
            [("u", "a", 0), ("u", "b", 1)],
        )

    def test_zones_in_some_rows(self):
        self.assert_error(
            "line 3: .* date without a time zone.*Received: '2020-01-02",
            "user,item,date\na,b,2020-01-01T00:00\na,c,2020-01-02T00:00Z\n",
        )

    def test_ids_that_may_mean_none(self):
        data = self.write("user,item\nNULL,a\nb,NA\nNULL,c\nb,a\nb,c\n")
        config = TrainConfig(data=data, split="validation_only")
        notes = build_data(config).notes
        self.assertIn(
            "2 rows with the user id 'NULL': an id like any other",
            notes,
        )
        self.assertIn(
            "1 row with the item id 'NA': an id like any other", notes
        )

    def test_what_is_not_read_of_a_folder_is_said(self):
        rows = "user,item,time\n1,2,3\n"
        for name in ("a.csv", "b.jsonl", "notes.txt", "2020/c.csv"):
            self.write(rows, f"logs/{name}")
        log = sources.read(str(self.folder / "logs"))
        self.assertEqual(_rows(log.interactions), [("1", "2", 3)])
        self.assertEqual(log.notes, ("not read: 2020, b.jsonl, notes.txt",))

    def test_the_only_file_of_a_folder_may_have_any_name(self):
        self.write("1::2::3\n", "only/log.dat")
        options = {"columns": "user,item,time", "separator": "::"}
        log = sources.read(str(self.folder / "only"), **options)
        self.assertEqual(_rows(log.interactions), [("1", "2", 3)])
        # Item metadata alone is no log.
        self.write("item_id,title\n1,x\n", "items/items.csv")
        with self.assertRaisesRegex(InputError, "Received: items.csv"):
            sources.read(str(self.folder / "items"))

    def test_options_of_text_need_text(self):
        pq.write_table(
            pa.table({"user": [1], "item": [2]}), self.folder / "log.parquet"
        )
        for data in (
            str(self.folder / "log.parquet"),
            self.write('{"user": 1, "item": 2}\n', "log.json"),
        ):
            with self.assertRaisesRegex(InputError, "--separator=tab"):
                sources.read(data, separator="tab")
        for data in ("synthetic:users=9,items=9", "tfds:movielens/x-ratings"):
            with self.assertRaisesRegex(InputError, "`columns` needs"):
                sources.read(data, columns="user,item")
            with self.assertRaisesRegex(InputError, "`event_column` needs"):
                sources.read(data, event_column="kind")

    def test_values_of_any_length(self):
        review = "so " * 100_000
        text = f'user,item,time,text\n1,2,3,"{review}"\n1,3,4,"a\nb"\n'
        self.assertEqual(self.read(text), [("1", "2", 3), ("1", "3", 4)])

    @parameterized.parameters("latin-1", "utf-16", "cp1252")
    def test_encodings(self, encoding):
        text = 'user;item;note\r\nJosé;"a;b";x\r\nJosé;"é";y\r\n'
        self.assertEqual(
            self.read(text.encode(encoding), encoding=encoding),
            [("José", "a;b", 0), ("José", "é", 1)],
        )
        with self.assertRaisesRegex(InputError, "--encoding must be a codec"):
            self.read(text, encoding="latin-99")

    def test_an_encoding_that_is_not_said(self):
        self.assert_error(
            "line 2: expected UTF-8. .*--encoding",
            "user,item\né,1\n".encode("latin-1"),
        )

    @parameterized.parameters("le", "be")
    def test_utf_16_without_its_mark(self, order):
        text = "user,item\nu,a\nu,b\n".encode(f"utf-16-{order}")
        self.assert_error("zero bytes.*--encoding=utf-16-le or", text)
        self.assert_error("not start with BOM", text, encoding="utf-16")
        self.assertEqual(
            self.read(text, encoding=f"utf-16-{order}"),
            [("u", "a", 0), ("u", "b", 1)],
        )

    def test_a_column_that_is_not_read_may_be_in_any_encoding(self):
        text = "user,item,time,title\n1,2,3,x\n1,3,4,Müller\n"
        self.assertEqual(
            self.read(text.encode("latin-1")), [("1", "2", 3), ("1", "3", 4)]
        )

    def test_a_first_column_without_a_name(self):
        # As pandas writes its index; a quoted line break needs all widths.
        text = '\tuser\titem\ttime\ttext\n0\t1\t2\t3\t"a\nb"\n'
        data = self.write(text, "log.tsv")
        self.assertEqual(
            _rows(sources.read(data).interactions), [("1", "2", 3)]
        )

    def test_cutoffs_in_seconds_milliseconds_and_dates(self):
        rows = "".join(
            f"{user},{item},{_T + 86400 * item}000\n"
            for user in range(9)
            for item in range(9)
        )
        data = self.write("user,item,time\n" + rows)
        # The days 6 and 7 after `_T`, at 12:26:40.
        found = [
            build_data(
                TrainConfig(
                    data=data,
                    split="temporal",
                    validation_from=validation,
                    test_from=test,
                )
            )
            for validation, test in (
                (f"{_T + 6 * 86400}", f"{_T + 7 * 86400}"),
                (f"{_T + 6 * 86400}000", f"{_T + 7 * 86400}000"),
                ("2020-09-19", "2020-09-20"),
            )
        ]
        for each in found:
            self.assertEqual(each.split.train.num_interactions, 9 * 6)
            self.assertLen(each.split.validation, 9)
        self.assertIn(
            "times are milliseconds since 1970",
            data_summary(found[0]).splitlines(),
        )

    def test_what_is_dropped_is_said_with_its_reason(self):
        data = self.write(
            "user,items,rating\n"
            "a,1 2 3 6 1,5\nb,2 3 6 4,5\nc,,5\nd,1 2 3,1\nb,4 5,5\n"
        )
        config = TrainConfig(
            data=data, min_rating=2, min_item_count=2, split="validation_only"
        )
        # d's three are below; a's second 1 and b's second 4 are repeated; then
        # 1, 4 and 5 are rare.
        lines = data_summary(build_data(config)).splitlines()
        self.assertIn(
            "8 interactions dropped: 3 below min_rating or unrated, "
            "2 repeated, 3 rare",
            lines,
        )
        self.assertIn(
            "1 row with an empty list of items: no interactions", lines
        )

    @parameterized.parameters(
        (b"BZh91AY", "a bzip2 file"),
        (b"\x28\xb5\x2f\xfd00", "a Zstandard file"),
        (b"ARROW1\0\0", "an? Arrow or Feather file"),
        (b"\x80\x04\x95K", "a pickle file"),
    )
    def test_files_of_other_kinds_are_named(self, content, kind):
        self.assert_error(f"{kind}; unpack or convert it first", content)

    def test_folders_of_hive_and_empty_parts_of_spark(self):
        rows = "user,item,time\n1,2,3\n"
        self.write("", "spark/part-0.csv")
        self.write(rows, "spark/part-1.csv")
        log = sources.read(str(self.folder / "spark"))
        self.assertEqual(_rows(log.interactions), [("1", "2", 3)])
        self.assertEqual(log.notes, ("1 of 2 parts are empty",))
        self.write(rows, "hive/day=2/part-0.csv")
        self.write(rows.replace("1,2,3", "1,9,1"), "hive/day=1/part-0.csv")
        log = sources.read(str(self.folder / "hive"))
        self.assertEqual(
            _rows(log.interactions), [("1", "9", 1), ("1", "2", 3)]
        )
        [note] = log.notes
        self.assertRegex(note, "^folders named day=… are read")

    def test_without_times_later_parts_are_later(self):
        for number in range(3):
            self.write(f"user,item\na,{number}\n", f"parts/{number}.csv")
        source = sources.Source(str(self.folder / "parts"))
        whole = source.read().interactions
        self.assertEqual(whole.timestamps.tolist(), [0, 1, 2])
        times = [
            block.timestamps[0]
            for unit in source.units()[0]
            for block in unit.blocks()
        ]
        self.assertEqual(times, sorted(set(times)))

    @parameterized.parameters(
        ([_T * 1000, _T * 1000 + 5], 1000),
        ([_T * 10**6], 10**6),
        ([_T * 10**9], 10**9),
        ([_T], 1),
        # Minutes as digits, and a time that is not within these years.
        ([202009131226], 1),
        ([_T * 1000, 5], 1),
    )
    def test_units_since_1970(self, times, expected):
        rows = "".join(f"1,{time},{time}\n" for time in times)
        data = self.write("user,item,time\n" + rows)
        log = sources.read(data).interactions
        self.assertEqual(log.timestamps_per_second, expected)
        self.assertEqual(log.timestamps.tolist(), times)


class RemoteTest(TestCase):
    def test_a_file_by_its_uri(self):
        data = self.write("user,item,time\n1,2,3\n", "log.csv")
        self.write("item,title\n2,Tea\n", "items.csv")
        for uri in (pathlib.Path(data).as_uri(), self.folder.as_uri()):
            source = sources.Source(uri)
            log = source.read()
            self.assertEqual(_rows(log.interactions), [("1", "2", 3)])
            self.assertEqual(log.items["title"].to_pylist(), ["Tea"])
            [unit] = pickle.loads(pickle.dumps(source.units()[0]))
            [block] = unit.blocks()
            self.assertEqual(_rows(block), [("1", "2", 3)])

    def test_a_file_by_http(self):
        self.write("user,item,time\n1,2,3\n", "log.csv")
        pq.write_table(
            pa.table({"user": [1], "item": [2], "time": [3]}),
            self.folder / "log.parquet",
        )
        with serve(self.folder) as address:
            for name in ("log.csv", "log.parquet"):
                log = sources.read(f"{address}/{name}")
                self.assertEqual(_rows(log.interactions), [("1", "2", 3)])
            with self.assertRaisesRegex(InputError, "that exists. Received"):
                sources.read(f"{address}/no.csv")

    @parameterized.parameters("nowhere://bucket/log.csv", "s4://x/y")
    def test_a_scheme_that_nobody_knows(self, uri):
        with self.assertRaisesRegex(
            InputError, f"{uri}: expected a URI that Arrow .*download the file"
        ):
            sources.read(uri)

    def test_a_file_system_of_fsspec(self):
        memory = fsspec.filesystem("memory")
        self.addCleanup(memory.rm, "/logs", recursive=True)
        memory.pipe("/logs/a.csv", b"user,item,time\n1,2,3\n")
        memory.pipe("/logs/b.csv", b"user,item,time\n1,4,5\n")
        for name, rows in (
            ("a.csv", [("1", "2", 3)]),
            ("", [("1", "2", 3), ("1", "4", 5)]),
        ):
            log = sources.read(f"memory://logs/{name}")
            self.assertEqual(_rows(log.interactions), rows)
        self.assertEqual(
            log.notes, ("2 files are read as one log, a.csv to b.csv",)
        )
        memory.pipe("/logs/c.csv", b"user,item,time\n1,,5\n")
        with self.assertRaisesRegex(
            InputError, "memory://logs/c.csv, line 2: .* item id"
        ):
            sources.read("memory://logs/c.csv")

    def test_a_store_that_speaks_s3(self):
        path = self.folder / "bucket" / "logs"
        path.mkdir(parents=True)
        (path / "a.csv").write_text("user,item,time\n1,2,3\n")
        (path / "b.csv").write_text("user,item,time\n1,4,5\n")
        with serve(self.folder, Store) as address:
            host = address.partition("://")[2]
            options = f"endpoint_override={host}&scheme=http&region=here"
            for name, rows in (
                ("a.csv", [("1", "2", 3)]),
                ("", [("1", "2", 3), ("1", "4", 5)]),
            ):
                log = sources.read(
                    f"s3://me:secret@bucket/logs/{name}?{options}"
                )
                self.assertEqual(_rows(log.interactions), rows)
            self.assertEqual(
                log.notes, ("2 files are read as one log, a.csv to b.csv",)
            )
            (path / "a.csv").write_text("user,item,time\n1,,3\n")
            with self.assertRaisesRegex(
                InputError, "^s3://bucket/logs/a.csv, line 2: .* item id"
            ):
                sources.read(f"s3://me:secret@bucket/logs/a.csv?{options}")
            with self.assertRaisesRegex(InputError, "that exists. Received"):
                sources.read(f"s3://me:secret@bucket/no.csv?{options}")

    def test_a_store_that_cannot_be_reached(self):
        options = "endpoint_override=127.0.0.1:9&scheme=http"
        with self.assertRaisesRegex(
            InputError,
            "^gs://anonymous@bucket/log.csv: expected a readable file. "
            "Received: .*[Cc]ould not connect",
        ):
            sources.read(
                f"gs://anonymous@bucket/log.csv?{options}&retry_limit_seconds=1"
            )

    @parameterized.parameters(
        ("gs://bucket/a.csv", "gs://bucket/a.csv?retry_limit_seconds=60"),
        ("gs://b/a?scheme=http", "gs://b/a?scheme=http&retry_limit_seconds=60"),
        ("gs://b/a?retry_limit_seconds=9", "gs://b/a?retry_limit_seconds=9"),
        ("s3://bucket/a.csv", "s3://bucket/a.csv"),
    )
    def test_google_is_not_tried_for_a_quarter_of_an_hour(self, uri, expected):
        with mock.patch.object(input_files, "fs") as fs:
            fs.FileSystem.from_uri.return_value = (None, "path")
            input_files.path_at(uri)
        fs.FileSystem.from_uri.assert_called_once_with(expected)

    def test_without_fsspec(self):
        with (
            mock.patch.dict(sys.modules, {"fsspec": None}),
            self.assertRaisesRegex(InputError, r"pip install .*\[remote\]"),
        ):
            sources.read("https://example.org/log.csv")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class Store(Quiet):
    """The part of S3 that reading needs: HEAD, GET of a range, and lists."""

    def do_HEAD(self):
        url = urllib.parse.urlsplit(self.path)
        path = pathlib.Path(self.translate_path(url.path))
        query = dict(urllib.parse.parse_qsl(url.query))
        status, body = 200, b""
        if "list-type" in query:
            prefix = query["prefix"]
            found = [
                f"<Contents><Key>{prefix}{each.name}</Key>"
                f"<Size>{each.stat().st_size}</Size></Contents>"
                for each in sorted((path / prefix).glob("*"))
            ]
            body = (
                f"<ListBucketResult><KeyCount>{len(found)}</KeyCount>"
                f"{''.join(found)}</ListBucketResult>"
            ).encode()
        elif not path.is_file():
            status = 404
        else:
            body = path.read_bytes()
        if (part := self.headers.get("Range")) and status == 200:
            first, last = map(int, part.removeprefix("bytes=").split("-"))
            status, body = 206, body[first : last + 1]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_GET = do_HEAD


@contextlib.contextmanager
def serve(
    folder: pathlib.Path,
    kind: type[http.server.SimpleHTTPRequestHandler] = Quiet,
) -> Iterator[str]:
    """Serves the files of a folder by HTTP."""
    handler = functools.partial(kind, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class CommandTest(TestCase):
    """In processes of their own, as a stranger would."""

    def command(self, module: str, *flags: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", f"recsys.{module}", *flags],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def test_the_error_leads_to_the_flag_that_reads_the_log(self):
        rows = "".join(
            f"A{user},B{item},5.0,{_T + item}\n"
            for user in range(4)
            for item in range(user, user + 5)
        )
        data = f"--data={self.write(rows)}"
        code, out, error = self.command(
            "prepare_shards", data, f"--output={self.folder}/shards"
        )
        self.assertNotEqual(code, 0)
        self.assertEqual(out, "")
        [flag] = re.findall(r"add (--columns=\S+) ", error)
        self.assertEqual(flag, "--columns=user,item,rating,timestamp")
        code, out, _ = self.command(
            "prepare_shards",
            data,
            flag,
            f"--output={self.folder}/shards",
            "--num_shards=2",
            "--num_workers=1",
        )
        self.assertEqual(code, 0)
        self.assertIn("20 interactions", out)

    def test_shards_of_sequences_equal_those_of_rows(self):
        lines = ["1 5 7 9 5 11", "2 7 9", "3 9 7 5 11 12", "4 5 9 12 7"]
        rows = [
            f"{line.split()[0]},{item},{number}\n"
            for line in lines
            for number, item in enumerate(line.split()[1:])
        ]
        manifests = []
        for name, text in (
            ("sequences", "\n".join(lines)),
            ("rows", "user,item,time\n" + "".join(rows)),
        ):
            code, out, error = self.command(
                "prepare_shards",
                f"--data={self.write(text, name)}",
                f"--output={self.folder}/{name}-shards",
                "--num_shards=1",
                "--num_workers=1",
            )
            self.assertEqual(code, 0, error)
            self.assertEqual("each line is a user" in out, name == "sequences")
            files = (self.folder / f"{name}-shards/sequences").iterdir()
            table = pq.read_table(next(files))
            manifests.append(table.select(["user_id", "items"]).to_pydict())
        self.assertEqual(*manifests)


def _rows(log: Any) -> list[tuple[str, str, int]]:
    return list(
        zip(
            log.user_ids[log.users].tolist(),
            log.item_ids[log.items].tolist(),
            log.timestamps.tolist(),
            strict=True,
        )
    )


if __name__ == "__main__":
    if "--print" in sys.argv:
        print(table(), end="")
    else:
        absltest.main()
