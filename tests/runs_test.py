"""`recsys.fit` and the model that it returns."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import pandas as pd
from absl.testing import absltest, parameterized

import recsys
from recsys import InputError, Log
from recsys.reranking import Rules

ROOT = pathlib.Path(__file__).parents[1]
# Twenty users who take six steps each around a circle of nine items.
FRAME = pd.DataFrame(
    [
        (f"u{user}", f"i{(user + step) % 9}", step)
        for user in range(20)
        for step in range(6)
    ],
    columns=["user", "item", "timestamp"],
)
ITEMS = pd.DataFrame(
    {
        "item": [f"i{n}" for n in range(9)],
        "title": [f"Item {n}" for n in range(9)],
        "genres": ["even|small", "odd|small"] * 4 + ["even"],
    }
)
FIELDS = {
    "encoder": "mean_pooling",
    "embedding_dim": 4,
    "positions_per_batch": 125,
    "num_epochs": 2,
}
FIT = """
import pandas as pd, recsys, runs_test
log = recsys.Log.from_frame(runs_test.FRAME, items=runs_test.ITEMS)
recsys.fit(log, "frame", **runs_test.FIELDS)
"""


def fit(log, workdir=None, **fields):
    fields = {"verbose": False, "evaluate": False, **FIELDS, **fields}
    return recsys.fit(log, workdir, **fields)


class RunsTestCase(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enterContext(tempfile.TemporaryDirectory())
        )
        self.log = Log.from_frame(FRAME, items=ITEMS)

    def python(self, *arguments):
        found = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env={
                "PATH": "/usr/bin:/bin",
                "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
            },
            capture_output=True,
            text=True,
        )
        self.assertEqual(found.returncode, 0, found.stderr)
        return found.stdout, found.stderr


class ProcessesTest(RunsTestCase):
    def test_a_frame_gives_what_its_rows_in_a_file_give(self):
        FRAME.to_csv(self.folder / "log.csv", index=False)
        ITEMS.to_csv(self.folder / "items.csv", index=False)
        flags = [f"--{name}={value}" for name, value in FIELDS.items()]
        out, err = self.python(
            "-m", "recsys.train", "--data=log.csv", "--workdir=file", *flags
        )
        from_frame, quiet = self.python("-c", FIT)
        # The same lines, except for the name of the log, and nothing else.
        lines = from_frame.replace("frame/data:", "log.csv:").strip()
        self.assertStartsWith(out, lines)
        self.assertIn("two-tower", lines)
        self.assertLen(quiet.splitlines(), len(err.splitlines()))
        models = [recsys.load(self.folder / name) for name in ("file", "frame")]
        np.testing.assert_array_equal(*[m.item_vectors() for m in models])
        self.assertTrue(
            models[0].vocabulary.items.equals(models[1].vocabulary.items)
        )
        metrics = [
            json.loads((self.folder / name / "metrics.json").read_text())
            for name in ("file", "frame")
        ]
        self.assertEqual(metrics[0]["metrics"], metrics[1]["metrics"])
        # The commands find the log, also where the folder was moved to.
        shutil.move(self.folder / "frame", self.folder / "moved")
        out, _ = self.python(
            "-m", "recsys.evaluate", "--workdir=moved", "--again", "--audit"
        )
        again = json.loads((self.folder / "moved/metrics.json").read_text())
        self.assertEqual(again["metrics"], metrics[0]["metrics"])
        self.assertEqual(again["data"], "moved/data")
        self.assertIn("two-tower", out)


class FitTest(RunsTestCase):
    def test_the_same_call_resumes_and_another_frame_is_refused(self):
        class End(recsys.training.Callback):
            def on_epoch_end(self, progress):
                raise KeyboardInterrupt

        run = self.folder / "run"
        with self.assertRaises(KeyboardInterrupt):
            fit(self.log, run, callbacks=[End()])
        for frame, items, number in (
            (FRAME[:-1], ITEMS, 119),
            (FRAME.assign(rating=1.0), ITEMS, 120),
            (FRAME, None, 120),
            (FRAME, ITEMS.assign(price=1), 120),
        ):
            with self.assertRaisesRegex(
                InputError, f"another one, of {number}"
            ):
                fit(Log.from_frame(frame, items=items), run)
        model = fit(self.log, run)
        self.assertIsInstance(model, recsys.TrainedModel)
        self.assertIsInstance(model, recsys.Recommender)
        self.assertEqual(model.workdir, run)
        self.assertEqual(model.config.data, str(run / "data"))
        history, _ = recsys.workdir.Workdir(run).read_history(model.config)
        self.assertLen(history, 2)

    def test_ratings_that_are_missing_are_the_same_again(self):
        rated = Log.from_frame(FRAME.assign(rating=[None, *[2.0] * 119]))
        fit(rated, self.folder / "run", num_epochs=1)
        fit(rated, self.folder / "run", num_epochs=1)  # Or it is refused.
        found = recsys.data.sources.read(str(self.folder / "run" / "data"))
        self.assertTrue(np.isnan(found.interactions.ratings[0]))
        self.assertEqual(found.interactions.ratings[1:].tolist(), [2.0] * 119)

    def test_kinds_of_events_in_a_frame(self):
        frame = FRAME.assign(kind=["view", "view", "purchase"] * 40)
        path, run = self.folder / "log.csv", self.folder / "run"
        frame.to_csv(path, index=False)
        log = Log.from_frame(frame, event_column="kind")
        events = {"events": "view:1,purchase:3"}
        models = [
            fit(log, run, num_epochs=1, **events),
            fit(path, event_column="kind", num_epochs=1, **events),
            fit(path, num_epochs=1),
        ]
        first, second, third = (each.item_vectors() for each in models)
        np.testing.assert_array_equal(first, second)
        self.assertFalse(np.array_equal(second, third))
        # Another log may lack a kind.
        views = Log.from_frame(frame.assign(kind="view"), event_column="kind")
        found = models[0].evaluate(views, baselines=["popularity"])
        self.assertStartsWith(found.notes[0], "These are not the data")
        frame.loc[0, "kind"] = "purchase"
        other = Log.from_frame(frame, event_column="kind")
        with self.assertRaisesRegex(InputError, "another one, of 120"):
            fit(other, run, num_epochs=1, **events)

    def test_a_log_that_failed_is_not_in_the_way(self):
        alone = Log.from_frame(FRAME[::6])  # One interaction per user.
        with self.assertRaisesRegex(InputError, "enough interactions"):
            fit(alone, self.folder / "run")
        fit(self.log, self.folder / "run", num_epochs=1)

    def test_data_that_are_not_ours_stay(self):
        (self.folder / "data").mkdir()
        (self.folder / "data" / "mine.csv").write_text("x\n")
        with self.assertRaisesRegex(InputError, "expected the log that"):
            fit(self.log, self.folder)
        self.assertEqual((self.folder / "data" / "mine.csv").read_text(), "x\n")

    def test_a_temporary_workdir_lasts_as_long_as_the_model(self):
        model = fit(self.log)
        workdir, saved = model.workdir, self.folder / "new" / "saved"
        self.assertTrue(workdir.is_dir())
        model.save(saved)
        expected = model.recommend(["Item 1", "i2"], 4)
        del model
        gc.collect()
        self.assertFalse(workdir.exists())
        model = recsys.load(saved)
        self.assertEqual(model.recommend(["Item 1", "i2"], 4), expected)
        self.assertEqual(model.config.data, str(saved / "data"))
        for path, text in (
            (saved.parent, "Received: a folder|expected"),
            (saved / "inside", "must be outside of the workdir"),
        ):
            with self.assertRaisesRegex(InputError, text):
                model.save(path)

    def test_a_failed_run_leaves_no_temporary_folder(self):
        before = set(pathlib.Path(tempfile.gettempdir()).glob("recsys-*"))
        with self.assertRaisesRegex(InputError, "--num_epochs"):
            fit(self.log, num_epochs=0)
        after = set(pathlib.Path(tempfile.gettempdir()).glob("recsys-*"))
        self.assertEqual(after - before, set())

    def test_paths_and_logs_that_were_read_stay_where_they_are(self):
        path, run = self.folder / "log.csv", self.folder / "run"
        FRAME.rename(columns={"user": "who"}).to_csv(path, index=False)
        log = Log.read(path, user_column="who")
        fit(log, run, num_epochs=1)
        # The same configuration, or it would be refused.
        model = fit(path, run, num_epochs=1, user_column="who")
        self.assertEqual(model.config.data, str(path))
        self.assertEqual(model.config.user_column, "who")
        self.assertFalse((run / "data").exists())

    @parameterized.parameters(
        ({"data": "x"}, InputError, "`data` must be left to the log"),
        ({"items_file": "x"}, InputError, "`items_file` must be left"),
        ({"preset": "none"}, InputError, "--preset must be"),
        ({"num_blocks": 0}, InputError, "--num_blocks must be at least 1"),
        ({"strategy": "multi_worker"}, InputError, "recsys.training.train"),
        ({"epochs": 3}, TypeError, "epochs"),
    )
    def test_fields_that_are_refused(self, fields, kind, text):
        with self.assertRaisesRegex(kind, text):
            fit(self.log, self.folder / "run", **fields)
        self.assertFalse((self.folder / "run").exists())


class EvaluateTest(RunsTestCase):
    def test_on_its_own_log_and_on_another(self):
        model = fit(self.log, self.folder / "run", evaluate=True)
        stored = json.loads((self.folder / "run/metrics.json").read_text())
        found = model.evaluate(baselines=["popularity"])
        self.assertEqual(found.results.to_dict()["metrics"], stored["metrics"])
        self.assertEqual(found.notes, [])
        # The same rows in memory are recognized as the training data.
        same = model.evaluate(self.log, baselines=["popularity"])
        self.assertEqual(same.notes, [])
        self.assertEqual(same.text(), found.text())
        with self.assertRaisesRegex(InputError, "what the model was trained"):
            model.evaluate(self.log, protocol="held_out_users")
        with self.assertRaisesRegex(InputError, "--protocol must be one of"):
            model.evaluate(self.log, protocol="held_out_user")
        # Another log, with an item that the model does not know.
        other = FRAME.replace({"item": {"i8": "new"}})
        found = model.evaluate(Log.from_frame(other), baselines=["popularity"])
        self.assertLen(found.notes, 2)
        self.assertStartsWith(found.notes[0], "These are not the data")
        self.assertStartsWith(found.notes[1], "1 of 9 items are unknown")
        # Nothing was written.
        self.assertEqual(
            json.loads((self.folder / "run/metrics.json").read_text()), stored
        )


class RecommendTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.log = Log.from_frame(FRAME, items=ITEMS)
        cls.model = fit(cls.log)

    def said(self, function, *arguments, **options):
        """Returns what a function returns, and its lines but for the time."""
        with contextlib.redirect_stderr(io.StringIO()) as err:
            found = function(*arguments, **options)
        lines = err.getvalue().splitlines()
        return found, [line.partition(" in ")[0] for line in lines]

    def test_all_users_of_the_log(self):
        table, said = self.said(self.model.recommend_users)
        self.assertEqual(
            said,
            [
                "20 histories",
                "20 lists with fewer than k=10 items, because no "
                "more were left",
            ],
        )
        self.assertEqual(
            table.column_names, ["user", "rank", "item", "score", "title"]
        )
        rows = table.to_pandas()
        # Six of nine items are known to each user, so three are left.
        self.assertEqual(
            rows["user"].tolist(),
            [f"u{n}" for n in range(20) for _ in range(3)],
        )
        self.assertEqual(rows["rank"].tolist(), [1, 2, 3] * 20)
        self.assertEqual(
            rows["title"].tolist(),
            [item.replace("i", "Item ") for item in rows["item"]],
        )
        for user, part in rows.groupby("user"):
            begin = int(user[1:])
            history = [f"i{(begin + step) % 9}" for step in range(6)]
            alone = self.model.recommend(history, 10)
            self.assertEqual(
                part["item"].tolist(), [each.item_id for each in alone]
            )
            np.testing.assert_allclose(
                part["score"], [each.score for each in alone], rtol=1e-5
            )
        same, _ = self.said(self.model.recommend_users, self.log)
        self.assertTrue(same.equals(table))

    def test_some_users_in_their_order(self):
        table, said = self.said(
            self.model.recommend_users, users=["u3", "u1"], k=2
        )
        self.assertEqual(table["user"].to_pylist(), ["u3", "u3", "u1", "u1"])
        self.assertEqual(said, ["2 histories"])
        table, _ = self.said(self.model.recommend_users, users=[])
        self.assertEqual(len(table), 0)
        with self.assertRaisesRegex(InputError, "2 without: 'u20', '7'"):
            self.model.recommend_users(users=["u1", "u20", 7])

    def test_users_of_another_log(self):
        frame = {
            "user": [1, 1, 2, 3],
            "item": ["i0", "new", "new", "i1"],
            "timestamp": [1, 2, 3, 4],
        }
        table, said = self.said(
            self.model.recommend_users, Log.from_frame(frame), k=3
        )
        self.assertEqual(table["user"].to_pylist(), [*"111222333"])
        # The first four steps of each of the twenty users are for training:
        # those from i0 and i1 were taken three times, the others twice.
        popular = table.slice(3, 3)
        self.assertEqual(popular["item"].to_pylist(), ["i1", "i2", "i3"])
        self.assertEqual(popular["score"].to_pylist(), [10, 10, 10])
        alone = self.model.recommend(["i0"], 3)
        self.assertEqual(
            table["item"].to_pylist()[:3], [each.item_id for each in alone]
        )
        self.assertEqual(
            said,
            [
                "3 histories",
                "2 unknown ids",
                "1 history without a known item got the most popular items, "
                "scored by their interactions",
            ],
        )

    def test_allowed_and_excluded_items(self):
        options = {"items": ["i4", "i5", "i6", "no"], "exclude": ["i5"]}
        found, said = self.said(
            self.model.recommend, ["i4"], exclude_history=False, **options
        )
        self.assertEqual({each.item_id for each in found}, {"i4", "i6"})
        self.assertEqual(
            said,
            [
                "1 of 4 ids of `items` are unknown, ignored",
                "2 of 9 items may be recommended",
            ],
        )
        table, _ = self.said(
            self.model.recommend_users, users=["u0"], **options
        )
        # The user has i0 to i5.
        self.assertEqual(table["item"].to_pylist(), ["i6"])
        table, _ = self.said(
            self.model.recommend_histories,
            [["i0"]],
            where="genres has even",
            exclude_history=False,
        )
        self.assertEqual(
            set(table["item"].to_pylist()), {"i0", "i2", "i4", "i6", "i8"}
        )
        rules = Rules.make(self.model.vocabulary, items=["i1"])
        [only] = self.model.recommend(["i4"], rules=rules)
        self.assertEqual(only.item_id, "i1")
        with self.assertRaisesRegex(InputError, "rules and exclude"):
            self.model.recommend(["i4"], rules=rules, exclude=["i1"])

    def test_histories(self):
        asked = {"first": ["i0", "i1"], 2: ["none"], "empty": []}
        table, said = self.said(self.model.recommend_histories, asked, k=3)
        self.assertEqual(table.column_names[0], "query_id")
        self.assertEqual(
            table["query_id"].to_pylist(),
            ["first"] * 3 + ["2"] * 3 + ["empty"] * 3,
        )
        self.assertEqual(table["item"].to_pylist()[3:], ["i1", "i2", "i3"] * 2)
        self.assertEqual(said[1], "1 unknown id")
        listed, _ = self.said(
            self.model.recommend_histories, asked.values(), k=3
        )
        self.assertEqual(
            listed["query_id"].to_pylist(), ["0"] * 3 + ["1"] * 3 + ["2"] * 3
        )
        self.assertEqual(listed["item"], table["item"])

    def test_what_is_refused(self):
        with self.assertRaisesRegex(InputError, "lists of ids. Received: 'i0'"):
            self.model.recommend_histories(["i0"])
        with self.assertRaisesRegex(InputError, "list of ids. Received: 'u1'"):
            self.model.recommend_users(users="u1")
        with self.assertRaisesRegex(InputError, "2 queries with 1 such id"):
            self.model.recommend_histories({1: ["i0"], "1": ["i1"]})
        with self.assertRaisesRegex(InputError, "`k` must be positive"):
            self.model.recommend_users(k=0)
        with self.assertRaises(TypeError):
            self.model.recommend(["i0"], itmes=["i0"])


if __name__ == "__main__":
    absltest.main()
