"""The real TFDS builder, on a small archive in GroupLens's layout."""

from __future__ import annotations

import hashlib
import os
import pathlib
import socket
import sys
import tempfile
import unittest
import zipfile
from unittest import mock

import pytest
from absl.testing import absltest

from recsys.config import TrainConfig
from recsys.data import sources
from recsys.data.prepare import build_data
from recsys.errors import InputError

_REAL_ARCHIVE = "RECSYS_TEST_ML_LATEST_SMALL_ZIP"
_NAME = "tfds:movielens/latest-small-ratings"
_RATINGS = "userId,movieId,rating,timestamp\n" + "".join(
    f"{user},{movie},{rating},{time}\n"
    for user, movie, rating, time in (
        (7, 30, 4.5, 100),
        (7, 10, 2.0, 50),
        (9, 30, 5.0, 70),
        (9, 20, 0.5, 71),
    )
)
_MOVIES = (
    "movieId,title,genres\n"
    '10,"American President, The (1995)",Comedy|Drama\n'
    "20,Léon (1994),(no genres listed)\n"
    "30,Heat (1995),Action\n"
)
# What the packages below TFDS warn of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")


def _columns(log: sources.Log) -> list[tuple]:
    """Returns the rows in an order that does not depend on the source."""
    columns = log.interactions
    return sorted(
        zip(
            columns.user_ids[columns.users],
            columns.item_ids[columns.items],
            columns.timestamps.tolist(),
            columns.ratings.tolist(),
        )
    )


def _films(log: sources.Log) -> dict[str, dict]:
    return {film["item_id"]: film for film in log.items.to_pylist()}


class TfdsTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enterContext(tempfile.TemporaryDirectory())
        )
        self.data_dir = str(self.folder / "data")
        self.manual_dir = self.folder / "manual"
        self.manual_dir.mkdir()

    def write_100k(self) -> pathlib.Path:
        """Two users and two films, in the layout of ml-100k."""
        films = [f"{n}|Film {n} (1995)|||{'|0' * 5}|1" for n in (10, 30)]
        films = [film + "|0" * 13 for film in films]
        contents = {
            "u.data": "7\t30\t4\t100\n7\t10\t2\t50\n9\t30\t5\t70\n",
            "u.item": "\n".join(films) + "\n",
            "u.user": "7|24|M|technician|85711\n9|53|F|other|V1G4L\n",
        }
        path = self.manual_dir / "ml-100k.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in contents.items():
                archive.writestr(f"ml-100k/{name}", text)
        return path

    def write_archive(self) -> pathlib.Path:
        path = self.manual_dir / "ml-latest-small.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("ml-latest-small/ratings.csv", _RATINGS)
            archive.writestr("ml-latest-small/movies.csv", _MOVIES)
        return path

    def expect_archive(
        self, path: pathlib.Path, name: str = "latest-small-ratings"
    ):
        """Makes TFDS expect the checksum of this archive."""
        # pylint: disable=import-outside-toplevel
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.download import checksums

        builder_cls = tfds.builder_cls("movielens")
        config = builder_cls.builder_configs[name]
        content = path.read_bytes()
        info = checksums.UrlInfo(
            size=len(content),
            checksum=hashlib.sha256(content).hexdigest(),
            filename=path.name,
        )
        self.enterContext(
            mock.patch.object(
                builder_cls, "url_infos", {config.download_url: info}
            )
        )

    def forbid_network(self):
        self.enterContext(
            mock.patch.object(
                socket, "create_connection", side_effect=OSError("no route")
            )
        )
        self.enterContext(mock.patch.dict(os.environ))
        for name in list(os.environ):
            if name.lower().endswith("_proxy"):
                del os.environ[name]

    def assert_error(self, message: str, data: str, **arguments: str):
        with self.assertRaisesRegex(InputError, message) as caught:
            sources.read(data, tfds_data_dir=self.data_dir, **arguments)
        self.assertNotIn("\n", str(caught.exception))

    def test_reads_columns_of_what_it_prepares(self):
        self.expect_archive(self.write_archive())
        self.forbid_network()
        log = sources.read(
            _NAME,
            tfds_data_dir=self.data_dir,
            tfds_manual_dir=str(self.manual_dir),
        )
        self.assertEqual(log.name, _NAME)
        self.assertEqual(
            _columns(log),
            [
                ("7", "10", 50, 2.0),
                ("7", "30", 100, 4.5),
                ("9", "20", 71, 0.5),
                ("9", "30", 70, 5.0),
            ],
        )
        self.assertEqual(
            _films(log),
            {
                "10": {
                    "item_id": "10",
                    "title": "American President, The (1995)",
                    "genres": ["Comedy", "Drama"],
                },
                "20": {"item_id": "20", "title": "Léon (1994)", "genres": []},
                "30": {
                    "item_id": "30",
                    "title": "Heat (1995)",
                    "genres": ["Action"],
                },
            },
        )
        # Prepared once: neither archive nor network is needed any more.
        again = sources.read(_NAME, tfds_data_dir=self.data_dir)
        self.assertEqual(_columns(again), _columns(log))
        # The second time it was the columns that were read, not the records:
        # damage to these is not seen as long as the columns are there.
        (record,) = pathlib.Path(self.data_dir).rglob("*.tfrecord*")
        record.write_bytes(record.read_bytes()[:-3])
        cached = sources.read(_NAME, tfds_data_dir=self.data_dir)
        self.assertEqual(_columns(cached), _columns(log))
        self.assertEqual(_films(cached), _films(log))
        # Damaged columns are made again, and so damaged records are told.
        columns = record.parent / "recsys-ratings.parquet"
        columns.write_bytes(columns.read_bytes()[:-3])
        self.assert_error("expected what TFDS prepared .*Received: ", _NAME)

    def test_users(self):
        self.expect_archive(self.write_100k(), "100k-ratings")
        self.forbid_network()
        name = "tfds:movielens/100k-ratings"
        known = {"tfds_data_dir": self.data_dir, "with_users": True}
        # What GroupLens's u.user says, and the age as ml-1m has it.
        expected = [
            {
                "user_id": "7",
                "gender": "M",
                "age": 24.0,
                "age_group": 18.0,
                "occupation": "technician",
                "zip": "85711",
            },
            {
                "user_id": "9",
                "gender": "F",
                "age": 53.0,
                "age_group": 50.0,
                "occupation": "other",
                "zip": "V1G4L",
            },
        ]
        for number in range(3):
            log = sources.read(
                name, tfds_manual_dir=str(self.manual_dir), **known
            )
            users = sorted(log.users.to_pylist(), key=lambda u: u["user_id"])
            self.assertEqual(users, expected)
            self.assertLen(log.interactions, 3)
            [cached] = pathlib.Path(self.data_dir).rglob("recsys-users*")
            if number == 0:
                # As an earlier version left it: the others are not enough.
                cached.unlink()
        # From the columns alone.
        [record] = pathlib.Path(self.data_dir).rglob("*.tfrecord*")
        record.write_bytes(b"")
        again = sources.read(name, **known)
        self.assertTrue(again.users.equals(log.users))
        self.assertIsNone(sources.read(name, tfds_data_dir=self.data_dir).users)

    def test_a_set_without_users(self):
        self.expect_archive(self.write_archive())
        self.forbid_network()
        known = {"tfds_data_dir": self.data_dir, "with_users": True}
        for _ in range(2):  # Prepared, then from the columns.
            log = sources.read(
                _NAME, tfds_manual_dir=str(self.manual_dir), **known
            )
            self.assertIsNone(log.users)
            self.assertLen(log.interactions, 4)
        config = TrainConfig(
            data=_NAME,
            tfds_data_dir=self.data_dir,
            user_features="auto",
        )
        with self.assertRaisesRegex(
            InputError, "needs a users file.*latest-small-ratings without one"
        ):
            build_data(config)

    def test_archive_that_grouplens_did_not_publish(self):
        self.write_archive()
        self.assert_error(
            "ml-latest-small.zip as GroupLens published it. Received: ",
            _NAME,
            tfds_manual_dir=str(self.manual_dir),
        )

    def test_neither_network_nor_archive(self):
        self.forbid_network()
        advice = "needs ml-latest-small.zip: name a folder .*--tfds_manual_dir"
        self.assert_error(advice + ".*no connection .*no route", _NAME)
        self.assert_error(
            advice + ".*no such file in .*manual, and no connection",
            _NAME,
            tfds_manual_dir=str(self.manual_dir),
        )

    def test_manual_dir_must_exist(self):
        self.assert_error(
            "`tfds_manual_dir` must be a folder that exists.*'/none'$",
            _NAME,
            tfds_manual_dir="/none",
        )

    def test_unknown_names_list_the_known(self):
        for name in ("movielens/1m", "movielens/1m-movies", "mnist", ""):
            self.assert_error(
                "must be one of tfds:movielens/100k-ratings, tfds:movielens/1m"
                f"-ratings, .*latest-small-ratings. Received: 'tfds:{name}'$",
                "tfds:" + name,
            )

    def test_tfds_not_installed(self):
        with mock.patch.dict(sys.modules, {"tensorflow_datasets": None}):
            self.assert_error("needs the packages tensorflow-datasets", _NAME)

    @unittest.skipUnless(
        os.environ.get(_REAL_ARCHIVE),
        f"{_REAL_ARCHIVE} does not name GroupLens's archive",
    )
    def test_real_archive(self):
        archive = pathlib.Path(os.environ[_REAL_ARCHIVE])
        (self.manual_dir / "ml-latest-small.zip").symlink_to(archive.absolute())
        log = sources.read(
            _NAME,
            tfds_data_dir=self.data_dir,
            tfds_manual_dir=str(self.manual_dir),
        )
        direct = sources.read(str(archive))
        self.assertLen(log.interactions, 100_836)
        self.assertEqual(_columns(log), _columns(direct))
        expected = _films(direct)
        for item_id, film in _films(log).items():
            self.assertEqual(film, expected[item_id])


if __name__ == "__main__":
    absltest.main()
