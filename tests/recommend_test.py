"""Recommendations for users of a log, by rules, in every format."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from absl.testing import absltest, parameterized
from commands import run

import recsys
from recsys import files, prepare_shards, recommend
from recsys.config import TrainConfig
from recsys.data import prepare
from recsys.data.vocabulary import Vocabulary
from recsys.workdir import Workdir

IDS = ["10", "20", "30", "40", "50", "60"]
VECTORS = [(1, 0), (3, 1), (2, 0), (0, 2), (1, 3), (-1, 1)]
ITEMS = {
    "item_id": IDS,
    "title": ["Ant (1990)", "Bee (1991)", "Cat (1992)", "Dog (1993)", None, ""],
    "genres": [["x"], ["x", "y"], ["y"], ["x"], ["y"], None],
    "price": [1, 2, 3, 4, 5, None],
    "train_count": [3, 2, 1, 9, 0, 4],
}
# u1 has 10 and 40, the mean of whose vectors is (0.5, 1). u2 has 20 and an item
# that is newer than the model: (3, 1). Only 60 of u3 is rated 3 or more:
# (-1, 1). Nothing is known of what u4 has.
LOG = """user,item,time,rating
u2,20,5,4
u1,40,9,5
u3,10,1,2
u1,10,3,5
u3,60,2,4
u2,99,7,4
u4,99,1,3
"""
# By dot product, without the history; of equal scores the lower row first.
EXPECTED = {
    "u2": [("30", 6), ("50", 6), ("10", 3), ("40", 2), ("60", -2)],
    "u1": [("50", 3.5), ("20", 2.5), ("30", 1), ("60", 0.5)],
    "u3": [("40", 2), ("50", 2), ("10", -1), ("20", -2), ("30", -2)],
    # By train_count.
    "u4": [("40", 9), ("60", 4), ("10", 3), ("20", 2), ("30", 1), ("50", 0)],
}
TITLES = dict(zip(IDS, [*ITEMS["title"][:4], "50", "60"], strict=True))


def write_workdir(path: pathlib.Path, data: pathlib.Path, **fields) -> None:
    table = recsys.SharedItemEmbedding(len(IDS) + 2, 2)
    model = recsys.TwoTower(
        recsys.HistoryTower(table, encoder=recsys.MeanPooling()),
        recsys.CandidateTower(table),
    )
    model.build()
    table.embeddings.assign([(0, 0), (0, 0), *VECTORS])
    path.mkdir()
    workdir = Workdir(path)
    config = TrainConfig(data=str(data), **fields)
    files.write_json(workdir.config, config.to_dict())
    Vocabulary(IDS, pa.table(ITEMS)).save(workdir.vocabulary)
    model.save(workdir.model)


class RecommendTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = pathlib.Path(
            cls.enterClassContext(tempfile.TemporaryDirectory())
        )
        (cls.folder / "log.csv").write_text(LOG)
        write_workdir(
            cls.folder / "run", cls.folder / "log.csv", min_rating=3.0
        )

    def recommend(self, *flags, code=0):
        """Returns standard output and standard error."""
        got, out, err = run(
            recommend,
            f"--workdir={self.folder / 'run'}",
            *(flag.format(folder=self.folder) for flag in flags),
        )
        self.assertEqual(got, code, err)
        return out, err

    def rows(self, *flags):
        """Returns the rows for users in a Parquet file, and what was said."""
        path = self.folder / "rows.parquet"
        _, err = self.recommend(f"--output={path}", *flags)
        rows = pq.read_table(path).to_pylist()
        path.unlink()
        found = {}
        for row in rows:
            listed = found.setdefault(row["user"], [])
            listed.append((row["item"], row["score"]))
            self.assertEqual(row["rank"], len(listed))
            self.assertEqual(row["title"], TITLES[row["item"]])
        return found, err

    def test_all_users_in_a_process_of_its_own(self):
        output = self.folder / "all.jsonl"
        process = subprocess.run(
            [
                *(sys.executable, "-m", "recsys.recommend", "--users=all"),
                *("--workdir", self.folder / "run", "--output", output),
            ],
            capture_output=True,
            text=True,
        )
        self.assertEqual(process.returncode, 0, process.stderr)
        lines = map(json.loads, output.read_text().splitlines())
        expected = [
            {
                "query_id": user,
                "items": [item for item, _ in listed],
                "scores": [score for _, score in listed],
            }
            for user, listed in EXPECTED.items()
        ]
        self.assertEqual(list(lines), expected)
        for line in (
            "2 unknown ids in 2 histories, ignored",
            "1 history without a known item got the most popular items, "
            "scored by their interactions",
            "4 lists with fewer than k=10 items, because no more were left",
        ):
            self.assertIn(line, process.stderr.splitlines())
        self.assertStartsWith(process.stderr, "4 histories in ")

    def test_parquet(self):
        found, _ = self.rows("--users=all")
        self.assertEqual(found, EXPECTED)
        self.assertEqual(list(found), list(EXPECTED))

    def test_csv(self):
        path = self.folder / "rows.csv"
        self.recommend(f"--output={path}", "--user=u1", "--k=2")
        self.assertEqual(
            path.read_text(),
            '"user","rank","item","score","title"\n'
            '"u1",1,"50",3.5,"50"\n'
            '"u1",2,"20",2.5,"Bee (1991)"\n',
        )

    def test_histories_as_a_table(self):
        histories = self.folder / "histories.jsonl"
        histories.write_text('{"query_id": "q", "history": ["20"]}\n')
        path = self.folder / "histories.csv"
        self.recommend(
            f"--histories={histories}", f"--output={path}", "--where=price < 4"
        )
        options = pa_csv.ConvertOptions(column_types={"item": pa.string()})
        self.assertEqual(
            pa_csv.read_csv(path, convert_options=options).to_pydict(),
            {
                "query_id": ["q", "q"],
                "rank": [1, 2],
                "item": ["30", "10"],
                "score": [6, 3],
                "title": ["Cat (1992)", "Ant (1990)"],
            },
        )

    @parameterized.parameters(
        ("users.csv", "user,n\nu3,1\nu1,2\n"),
        ("users.csv", "u3\nu1\n"),
        ("users.txt", "u3\n\nu1\nu3\n"),
    )
    def test_users_of_a_file_in_its_order(self, name, text):
        path = self.folder / name
        path.write_text(text)
        found, _ = self.rows(f"--users={path}")
        self.assertEqual(
            list(found.items()), [(u, EXPECTED[u]) for u in ("u3", "u1")]
        )

    def test_unknown_users_are_an_error(self):
        _, err = self.recommend("--user=u1", "--user=u9", "--user=10", code=2)
        self.assertIn("Received 2 without: 'u9', '10'", err)

    def test_users_are_printed(self):
        (self.folder / "ex").write_text("50\n")
        out, err = self.recommend(
            *("--user=u1", "--user=u4", "--k=2"),
            *("--explain", "--exclude={folder}/ex"),
        )
        self.assertEqual(
            out,
            "User u1\n"
            "After Ant (1990), Dog (1993):\n\n"
            "1  Bee (1991)  id 20        2.5000\n"
            # Without 10 it is (0, 2) . (3, 1) = 2, without 40 it is 3.
            "     +0.5000 Ant (1990); -0.5000 Dog (1993)\n"
            "2  Cat (1992)  id 30        1.0000\n"
            # 0 without 10, and 2 without 40.
            "     +1.0000 Ant (1990); -1.0000 Dog (1993)\n"
            "\nUser u4\n"
            "No known item in the history (name some by --history=…): the most "
            "popular items, scored by their interactions:\n\n"
            "1  Dog (1993)  id 40        9.0000\n"
            "2  60          id 60        4.0000\n",
        )
        self.assertEqual(err, "5 of 6 items may be recommended\n")

    def test_the_history_may_be_recommended(self):
        found, _ = self.rows("--user=u1", "--exclude_history=false", "--k=3")
        self.assertEqual(found["u1"], [("50", 3.5), ("20", 2.5), ("40", 2)])

    @parameterized.parameters(
        ("--where=genres has y", ["50", "20", "30"], "3 of 6 items may be"),
        ("--where=price in (2, 4)", ["20"], "needs, never recommended: 1"),
        ("--where=year > 1990", ["20", "30"], "recommended: 2\n"),
        ("--where=train_count >= 1", ["20", "30", "60"], "5 of 6 items"),
        ("--items={folder}/list", ["20", "30"], "1 of 4 ids of `items` are"),
        ("--exclude={folder}/list", ["50", "60"], "1 of 4 ids of `exclude`"),
        # x and y are full with 20; 60 has no genre.
        ("--at_most=genres:1", ["50", "60"], ""),
        ("--at_most=genres:2", ["50", "20", "60"], ""),
        # u1's best is 50, (1, 3); scores from 3.5 to 0.5 are scaled to [0, 1].
        # 20: 0.5 * 2/3 - 0.5 * 6/10 = 0.033; 30: 0.5 * 1/6 - 0.5 * 0.316
        # = -0.075; 60: 0 - 0.5 * 2/sqrt(20) = -0.224. Then 30: its cosine
        # with 20 is 6/sqrt(40) = 0.949: 0.083 - 0.474 = -0.391; 60: with 20
        # it is -2/sqrt(20), so 50 is nearer: -0.224, which is now the best.
        ("--diversity=0.5", ["50", "20", "60", "30"], ""),
    )
    def test_rules(self, flag, expected, note):
        (self.folder / "list").write_text("10\n20\n30\nnew\n")
        found, err = self.rows("--user=u1", flag)
        self.assertEqual([item for item, _ in found["u1"]], expected)
        scores = dict(EXPECTED["u1"])
        self.assertEqual(found["u1"], [(i, scores[i]) for i in expected])
        self.assertIn(note, err)

    def test_rules_for_a_history(self):
        out, err = self.recommend(
            "--history=Bee", "--where=price <= 4", "--at_most=genres:1", "--k=3"
        )
        # 30 has y, 10 has x, and then 40 has x.
        self.assertIn("1  Cat (1992)  id 30        6.0000\n", out)
        self.assertIn("2  Ant (1990)  id 10        3.0000\n", out)
        self.assertIn("Only 2 of k=3: no more items are left", out)
        self.assertIn("4 of 6 items may be recommended", err)

    @parameterized.parameters(
        ("--where=prize > 3", "`where` at character 1: .*`price`"),
        ("--where=", "`where` at character 1"),
        ("--where=price > 9", "must leave an item"),
        ("--at_most=genres", "--at_most must be COLUMN:N.*'genres'"),
        ("--at_most=brand:2", "`at_most` must .*`genres`.*: brand:2"),
        ("--diversity=2", "`diversity` must be from 0 to 1"),
        ("--items=/no/file", "/no/file: expected a readable file"),
    )
    def test_mistakes_in_rules(self, flag, message):
        _, err = self.recommend("--user=u1", flag, code=2)
        self.assertRegex(err, message)
        self.assertEqual(err.count("\n"), 1)

    def test_a_runner_needs_shards(self):
        _, err = self.recommend(
            "--users=all", "--output=x", "--runner=DirectRunner", code=2
        )
        self.assertRegex(err, "needs a model trained on shards.*log.csv|beam")


class DislikesTest(absltest.TestCase):
    """Rows rated 2 or less are never recommended to their users."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = pathlib.Path(
            cls.enterClassContext(tempfile.TemporaryDirectory())
        )
        cls.log = cls.folder / "log.csv"
        rows = ["u4,40,2,1", "u1,60,1,0", "u1,10,0,1", "u5,30,1,1"]
        rows += [
            "u6,10,1,5",
            "u6,20,2,5",
            "u6,30,3,5",
            "u6,40,4,5",
            "u6,50,9,1",
            "u7,50,1,5",
        ]
        cls.log.write_text(LOG + "\n".join(rows) + "\n")
        rules = {"min_rating": 3.0, "max_rating": 2.0}
        flags = [f"--{name}={value}" for name, value in rules.items()]
        code, _, err = run(
            prepare_shards,
            f"--data={cls.log}",
            f"--output={cls.folder / 'shards'}",
            "--num_shards=2",
            "--num_workers=1",
            *flags,
        )
        assert code == 0, err
        for data in (cls.log, cls.folder / "shards"):
            write_workdir(cls.folder / f"of_{data.stem}", data, **rules)

    def expected(self):
        """What is listed without the dislikes; u5 has nothing else."""
        # u6 has (1.5, 0.75), and 50, with 3.75, is disliked.
        also = {
            "u6": [("60", -0.75)],
            "u7": [("20", 6), ("40", 6), ("30", 2), ("60", 2), ("10", 1)],
        }
        disliked = {"u1": {"10", "60"}, "u3": {"10"}, "u4": {"40"}}
        return {
            user: [each for each in listed if each[0] not in disliked[user]]
            if user in disliked
            else listed
            for user, listed in (EXPECTED | also).items()
        }

    def rows(self, workdir, *flags):
        path = self.folder / "rows.parquet"
        code, _, err = run(
            recommend,
            f"--workdir={self.folder / workdir}",
            f"--output={path}",
            *flags,
        )
        self.assertEqual(code, 0, err)
        return self.lists(pq.read_table(path))

    def lists(self, table):
        found = {}
        for row in table.to_pylist():
            listed = found.setdefault(row["user"], [])
            listed.append((row["item"], row["score"]))
        return found

    def test_all_users(self):
        self.assertEqual(self.rows("of_log", "--users=all"), self.expected())

    def test_users_of_shards(self):
        # Whose vocabulary is another than the model's.
        self.assertEqual(self.rows("of_shards", "--users=all"), self.expected())

    def test_the_history_may_be_recommended_but_no_dislike(self):
        found = self.rows("of_log", "--user=u1", "--exclude_history=false")
        # (0.5, 1) also with what u1 has, 40: 2; 10, at 0.5, is disliked, too.
        everything = [("50", 3.5), ("20", 2.5), ("40", 2), ("30", 1)]
        self.assertEqual(found, {"u1": everything})

    def test_quotas_leave_dislikes_out(self):
        found = self.rows("of_log", "--user=u4", "--at_most=genres:1", "--k=2")
        # 60 has no genre; 40 would be the first of all.
        self.assertEqual(found, {"u4": [("60", 4), ("10", 3)]})

    def test_printed(self):
        code, out, err = run(
            recommend,
            f"--workdir={self.folder / 'of_log'}",
            "--user=u3",
            "--user=u2",
        )
        self.assertEqual(code, 0, err)
        of_u3, of_u2 = out.split("User u2")
        self.assertNotIn("Ant (1990)", of_u3)
        self.assertIn("Dog (1993)", of_u3)
        self.assertIn("Ant (1990)", of_u2)

    def test_in_python_from_a_log_that_is_read_once(self):
        log = self.folder / "own.csv"
        log.write_text(self.log.read_text())
        path = self.folder / "own"
        write_workdir(path, log, min_rating=3.0, max_rating=2.0)
        model = recsys.load(path)
        first = model.recommend_users()
        self.assertEqual(self.lists(first), self.expected())
        log.unlink()
        self.assertTrue(model.recommend_users().equals(first))
        other = recsys.Log.read(self.log)
        self.assertTrue(model.recommend_users(other).equals(first))
        found = model.recommend(["10"], 2, dislikes=["20", "Cat (1992)"])
        # (1, 0) times (3, 1) and (2, 0) would be the best.
        self.assertEqual([each.item_id for each in found], ["50", "40"])


class ShardsTest(parameterized.TestCase):
    """Users of shards, here and on Beam, as those of the log."""

    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enter_context(tempfile.TemporaryDirectory())
        )
        log = self.folder / "log.csv"
        rows = [
            f"u{(7 * row) % 60},{10 * (1 + (row * row) % 6)},{row}"
            for row in range(300)
        ]
        log.write_text("\n".join(["user,item,time", *rows]) + "\n")
        code, _, err = run(
            prepare_shards,
            f"--data={log}",
            f"--output={self.folder / 'shards'}",
            "--num_shards=4",
            "--num_workers=1",
            "--num_queries=20",
            "--repeats=all",
        )
        self.assertEqual(code, 0, err)
        for data in (log, self.folder / "shards"):
            workdir = self.folder / f"of_{data.stem}"
            write_workdir(workdir, data, repeats="all")

    def recommend(self, workdir, output, *flags):
        code, _, err = run(
            recommend,
            f"--workdir={self.folder / workdir}",
            f"--output={self.folder / output}",
            "--users=all",
            "--k=4",
            "--exclude_history=false",
            "--at_most=genres:2",
            "--where=price < 5",
            *flags,
        )
        self.assertEqual(code, 0, err)
        return err.splitlines()

    def test_users_who_are_not_queried_have_whole_histories(self):
        log = self.folder / "long.csv"
        rng = np.random.default_rng(0)
        rows = [
            f"u{row % 50},i{rng.integers(30)},{row},{rng.integers(1, 6)}"
            for row in range(300)
        ]
        log.write_text("\n".join(["user,item,time,rating", *rows]) + "\n")
        shards = self.folder / "long"
        code, _, err = run(
            prepare_shards,
            f"--data={log}",
            f"--output={shards}",
            "--num_shards=3",
            "--num_workers=1",
            "--num_queries=10",
            "--max_rating=1",
        )
        self.assertEqual(code, 0, err)
        found = {}
        for data in (log, shards):
            config = TrainConfig(data=str(data), max_rating=1.0)
            vocabulary = prepare.build_data(config).vocabulary
            found[data] = {}
            for part in prepare.user_histories(config, vocabulary):
                users = part()
                for row, user in enumerate(users.user_ids):
                    found[data][user] = [
                        vocabulary.decode(
                            lists.items[slice(*lists.offsets[row : row + 2])]
                        ).tolist()
                        for lists in (users, users.dislikes)
                    ]
        self.assertEqual(found[shards], found[log])
        self.assertLen(found[log], 50)

    def test_held_out_items_are_part_of_the_histories(self):
        self.recommend("of_log", "log.parquet")
        self.recommend("of_shards", "shards.parquet")
        log, shards = (
            pq.read_table(self.folder / name).sort_by(
                [("user", "ascending"), ("rank", "ascending")]
            )
            for name in ("log.parquet", "shards.parquet")
        )
        self.assertEqual(len(set(log["user"].to_pylist())), 60)
        self.assertTrue(log.equals(shards))

    @unittest.skipUnless(
        importlib.util.find_spec("apache_beam"), "apache-beam is missing"
    )
    @parameterized.parameters("parquet", "csv", "jsonl")
    def test_beam_equals_this_machine(self, suffix):
        local, beam = f"local.{suffix}", f"beam.{suffix}"
        said = self.recommend("of_shards", local)
        flags = ["--runner=DirectRunner"]
        if suffix == "csv":  # In processes of their own.
            flags += [
                "--beam=--direct_num_workers=2",
                "--beam=--direct_running_mode=multi_processing",
            ]
        also = self.recommend("of_shards", beam, *flags)
        self.assertStartsWith(also.pop(2), "60 histories in ")
        said.pop(2)  # The same, in another time.
        self.assertEqual(said, also)
        parts = sorted((self.folder / beam).glob(f"0*.{suffix}"))
        self.assertLen(parts, 4)
        if suffix == "parquet":
            whole = pq.read_table(self.folder / local)
            self.assertTrue(
                whole.equals(pa.concat_tables(map(pq.read_table, parts)))
            )
            # Readers of a folder leave the summary out.
            self.assertEqual(
                pq.read_table(self.folder / beam).num_rows, whole.num_rows
            )
        else:
            lines = [
                line
                for part in parts
                for line in part.read_text().splitlines()[suffix == "csv" :]
            ]
            expected = (self.folder / local).read_text().splitlines()
            self.assertEqual(expected[suffix == "csv" :], lines)
        code, _, err = run(
            recommend,
            f"--workdir={self.folder / 'of_shards'}",
            f"--output={self.folder / beam}",
            "--users=all",
            "--runner=DirectRunner",
        )
        self.assertEqual(code, 2)
        self.assertIn("--output must be a new or an empty folder", err)


if __name__ == "__main__":
    absltest.main()
