"""Runs with features: logs in memory, extensions, and kills."""

from __future__ import annotations

import dataclasses
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
from absl.testing import absltest, parameterized
from commands import ROOT, run, run_python

import recsys
from recsys import evaluate, extend, files
from recsys.config import TrainConfig
from recsys.data import sources
from recsys.data.sources import Log
from recsys.errors import InputError
from recsys.training.growth import is_written, merge_logs, write_log
from recsys.workdir import checkpoint_paths

_DEVICES = ["phone", "desk", "tv"]
# Kills itself after the twelfth step.
_DYING = """
import os, signal, sys
from recsys import train
from recsys.command_line import load_tensorflow
load_tensorflow()
from recsys.training import trainer
count = trainer.Trainer._count
def dying(self, progress, *measures):
    count(self, progress, *measures)
    if progress.global_step == 12:
        os.kill(os.getpid(), signal.SIGKILL)
trainer.Trainer._count = dying
sys.exit(train.COMMAND.run(train.main))
"""


def columns_of(num_items: int, begin: int) -> dict[str, list]:
    """Ten steps of 30 users around a circle of items."""
    steps = [(user, step) for user in range(30) for step in range(10)]
    return {
        "user": [f"u{user}" for user, _ in steps],
        "item": [f"i{sum(each) % num_items}" for each in steps],
        "timestamp": [10**9 + 3600 * (begin + step) for _, step in steps],
        "rating": [1.0 + sum(each) % 5 for each in steps],
        "device": [_DEVICES[sum(each) % 3] for each in steps],
        "tags": [[f"t{step % 2}", f"t{step % 3}"] for _, step in steps],
    }


def users_of(begin: int, end: int) -> pa.Table:
    users = range(begin, end)
    return pa.table(
        {
            "user": [f"u{n}" for n in users],
            "job": [f"job{n % 4}" for n in users],
            "age": [20 + n for n in users],
        }
    )


def variables(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    path = str(checkpoint_paths(workdir / "checkpoints")[-1] / "variables")
    return {
        name: tf.train.load_variable(path, name)
        for name, _ in tf.train.list_variables(path)
        if name.startswith("variables/")
    }


class LogsTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enterContext(tempfile.TemporaryDirectory())
        )

    def log(self, begin=0, users=None, drop=()) -> Log:
        columns = columns_of(12, begin)
        others = tuple(n for n in ("device", "tags") if n not in drop)
        return Log.from_frame(
            pa.table(columns), users=users, other_columns=others
        )

    def test_columns_and_users_are_written_and_read_back(self):
        log = self.log(users=users_of(0, 20))
        write_log(log, self.folder)
        again = sources.read(
            str(self.folder), other_columns=("device", "tags"), with_users=True
        )
        for name in ("device", "tags"):
            self.assertEqual(
                again.interactions.columns[name].to_pylist(),
                columns_of(12, 0)[name],
            )
        self.assertEqual(
            again.users.to_pylist(),
            [
                {"user_id": f"u{n}", "job": f"job{n % 4}", "age": 20 + n}
                for n in range(20)
            ],
        )
        self.assertTrue(is_written(log, self.folder))
        self.assertTrue(is_written(again, self.folder))
        other = dataclasses.replace(log, users=log.users.slice(1))
        self.assertFalse(is_written(other, self.folder))
        self.assertFalse(is_written(self.log(), self.folder))
        rated = np.array(log.interactions.ratings)
        rated[7] += 1
        changed = dataclasses.replace(log.interactions, ratings=rated)
        other = dataclasses.replace(log, interactions=changed)
        self.assertFalse(is_written(other, self.folder))

    def test_merged_logs_keep_columns_and_users(self):
        merged = merge_logs(
            self.log(users=users_of(0, 20)),
            self.log(10, users_of(19, 22).drop_columns(["age"]), drop=["tags"]),
        )
        columns = merged.interactions.columns
        device = columns_of(12, 0)["device"]
        self.assertEqual(columns["device"].to_pylist(), device * 2)
        self.assertEqual(
            columns["tags"].to_pylist()[299:301],
            [columns_of(12, 0)["tags"][-1], None],
        )
        self.assertEqual(merged.notes[-1], "frame: 300 rows without 'tags'")
        self.assertEqual(
            merged.users.to_pylist()[18:],
            [
                {"user_id": "u18", "job": "job2", "age": 38},
                {"user_id": "u19", "job": "job3", "age": 39},
                {"user_id": "u20", "job": "job0", "age": None},
                {"user_id": "u21", "job": "job1", "age": None},
            ],
        )

    def test_columns_of_two_types(self):
        new = self.log(10)
        columns = pa.table({"device": range(300)})
        changed = dataclasses.replace(new.interactions, columns=columns)
        new = dataclasses.replace(new, interactions=changed)
        with self.assertRaisesRegex(InputError, "one type. .*device"):
            merge_logs(self.log(), new)


class ExtensionTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = pathlib.Path(
            cls.enterClassContext(tempfile.TemporaryDirectory())
        )
        cls.log = Log.from_frame(
            pa.table(columns_of(12, 0)),
            users=users_of(0, 20),
            other_columns=("device", "tags"),
        )
        cls.fields = {
            "event_features": "rating,tags",
            "context_features": "device,hour",
            "time_features": "gap,age",
            "user_features": "auto",
            "embedding_dim": 8,
            "num_epochs": 1,
        }
        cls.old = cls.folder / "old"
        cls.model = cls.fit()

    @classmethod
    def fit(cls, log=None):
        return recsys.fit(log or cls.log, cls.old, verbose=False, **cls.fields)

    def write(self, name: str, columns: dict) -> pathlib.Path:
        path = self.folder / f"{name}.parquet"
        pq.write_table(pa.table(columns), path)
        return path

    def extend(self, path: pathlib.Path, *flags: str):
        output = self.folder / f"{path.stem}-run"
        return output, *run(
            extend,
            f"--workdir={self.old}",
            f"--data={path}",
            f"--output_workdir={output}",
            "--num_epochs=1",
            *flags,
        )

    def test_a_log_in_memory_with_columns_and_users(self):
        self.assertEqual(
            sorted(path.name for path in (self.old / "data").iterdir()),
            ["interactions.parquet", "users.parquet"],
        )
        self.assertEqual(
            {
                p: self.model.side.column_names(p)[:2]
                for p in ("user", "context")
            },
            {"user": ["job", "age"], "context": ["device", "hour"]},
        )
        # The same call loads; another log of users is refused.
        weights = (self.old / "model.keras").read_bytes()
        self.fit()
        self.assertEqual((self.old / "model.keras").read_bytes(), weights)
        other = dataclasses.replace(self.log, users=self.log.users.slice(1))
        with self.assertRaisesRegex(InputError, "started with; name another"):
            self.fit(other)
        code, out, err = run(evaluate, f"--workdir={self.old}", "--audit")
        self.assertEqual(code, 0, err)
        self.assertIn("features do not reveal the target's rating, tags (", out)

    def test_extended_with_new_values(self):
        columns = columns_of(15, 10)
        columns["device"][:3] = ["watch"] * 3
        columns["user"][:10] = ["u99"] * 10
        path = self.write("new", columns)
        new, code, out, err = self.extend(path, "--train=false")
        self.assertEqual(code, 0, err)
        self.assertIn(
            f"{path}: 3 values of context feature `device` unknown to the "
            "model, ignored\n",
            out,
        )
        self.assertEqual(
            (new / "side_information.json").read_bytes(),
            (self.old / "side_information.json").read_bytes(),
        )
        before, after = variables(self.old), variables(new)
        grown = [n for n in before if before[n].shape != after[n].shape]
        for name in before.keys() - {*grown}:
            if before[name].dtype.kind == "f":  # No counter of steps.
                np.testing.assert_array_equal(after[name], before[name])
        # The table and its two moments have rows for three more items.
        self.assertEqual(
            {(len(before[n]), len(after[n])) for n in grown}, {(14, 17)}
        )
        code, _, err = self.extend(path)[1:]
        self.assertEqual(code, 0, err)
        # 20 of 31 users are described; the others are said.
        log = sources.read(str(new / "data"), with_users=True)
        self.assertLen(log.users, 20)
        self.assertLen(log.interactions.user_ids, 31)
        code, out, err = run(evaluate, f"--workdir={new}", "--audit")
        self.assertEqual(code, 0, err)
        self.assertIn("passed", out)

    @parameterized.parameters("device", "tags", "rating")
    def test_a_log_that_lacks_a_column(self, name):
        columns = columns_of(12, 10)
        del columns[name]
        path = self.write(f"no-{name}", columns)
        new, code, _, err = self.extend(path)
        self.assertEqual(code, 2, err)
        self.assertRegex(err, f"no-{name}.parquet: expected .*'{name}'")
        self.assertEqual(err.count("\n"), 1)
        self.assertFalse(new.exists())

    def test_users_that_lack_a_column(self):
        path = self.write("plain", columns_of(12, 10))
        users = self.folder / "people.csv"
        users.write_text("user,job\nu31,job1\n")
        _, code, _, err = self.extend(path, f"--users_file={users}")
        self.assertEqual(code, 2, err)
        self.assertRegex(err, "columns of users.* job, age.*no 'age'")

    def test_a_log_in_memory_that_lacks_a_column(self):
        log = Log.from_frame(pa.table(columns_of(12, 0)))
        for fields, message in (
            ({"user_features": "job"}, "needs a users file"),
            ({"event_features": "device"}, "a column 'device'"),
        ):
            with self.assertRaisesRegex(InputError, message):
                recsys.fit(log, self.folder / "other", **fields)


class KillTest(absltest.TestCase):
    def test_the_bundled_log_resumes_bit_for_bit(self):
        folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        fields = {
            "data": "movielens-small",
            "event_features": "rating",
            "time_features": "gap,hour,age",
            "context_features": "gap,hour",
            "table_init": "random",
            "embedding_dim": 8,
            "num_blocks": 1,
            "max_history_length": 32,
            "min_rating": 4.0,
            "positions_per_batch": 2048,
            "num_epochs": 1,
            "checkpoint_steps": 5,
        }
        killed = folder / "killed"
        done = subprocess.run(
            [
                *(sys.executable, "-c", _DYING, f"--workdir={killed}"),
                *(f"--{name}={value}" for name, value in fields.items()),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(done.returncode, -9, done.stderr)
        self.assertIn("attention by time", done.stderr)
        stored = files.read_json(killed / "config.json")
        config = TrainConfig.from_dict(stored, "config.json")
        self.assertEqual(config.event_features, "rating")
        whole = folder / "whole"
        # As the command runs, whose conditions decide the last bits.
        run_python(
            "import pathlib, recsys\n"
            "from recsys.command_line import load_tensorflow\n"
            "load_tensorflow()\n"
            "from recsys import files, training\n"
            "from recsys.config import TrainConfig\n"
            f"fields = files.read_json(pathlib.Path({str(killed)!r})"
            " / 'config.json')\n"
            "config = TrainConfig.from_dict(fields, 'config.json')\n"
            f"for name in {[str(killed), str(whole)]}:\n"
            "    training.train(config, pathlib.Path(name), verbose=False,"
            " evaluate=False)\n"
        )
        expected, found = variables(whole), variables(killed)
        self.assertEqual(expected.keys(), found.keys())
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values, err_msg=name)
        code, out, err = run(evaluate, f"--workdir={killed}", "--audit")
        self.assertEqual(code, 0, err)
        self.assertIn("passed", out)


if __name__ == "__main__":
    absltest.main()
