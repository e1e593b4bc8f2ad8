"""`recsys.tune`: trials, their resumption, and the preset they end with."""

from __future__ import annotations

import json
import pathlib
import signal
import sqlite3
import subprocess
import sys
import tempfile
from unittest import mock

import optuna
from absl.testing import absltest, parameterized
from commands import run

from recsys import train, tune
from recsys.config import make_config
from recsys.errors import InputError

USERS, ITEMS, LENGTH = 30, 20, 8
FAST = ["--embedding_dim=8", "--num_epochs=2", "--repeats=all"]


def write_log(path: pathlib.Path, rotated: int = 0) -> str:
    """Writes a log in which users pass on their last items, in a circle.

    Items are numbered as they first appear: all of them do before the last.
    """
    rows = ["user_id,item_id,timestamp"]
    for place in range(LENGTH):
        for user in range(USERS):
            owner = (user + rotated) % USERS if place == LENGTH - 1 else user
            item = (3 * owner + place * (1 + owner % 2)) % ITEMS
            rows.append(f"u{user},i{item},{100 * place + user}")
    path.write_text("\n".join(rows))
    return f"--data={path}"


def trials_of(folder: pathlib.Path) -> list[tuple]:
    """Returns each trial's state, value, values per epoch and settings."""
    study = optuna.load_study(
        study_name="recsys",
        storage=optuna.storages.RDBStorage(
            "sqlite://",
            engine_kwargs={
                "creator": lambda: sqlite3.connect(folder / "trials.sqlite")
            },
        ),
    )
    return [
        (t.state.name, t.value, t.intermediate_values, t.params)
        for t in study.trials
    ]


class TuneTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        # What a URL would take for something else.
        self.folder = pathlib.Path(
            self.enter_context(tempfile.TemporaryDirectory(suffix=" #1"))
        )
        self.log = write_log(self.folder / "log.csv")

    def tune(self, name, *arguments, log=None):
        workdir = f"--workdir={self.folder / name}"
        return run(tune, log or self.log, *FAST, workdir, *arguments)

    def test_interrupted_resumed_and_trained(self):
        code, out, _ = self.tune("whole", "--num_trials=3")
        self.assertEqual(code, 0, out)
        whole = trials_of(self.folder / "whole")
        self.assertLen(whole, 3)
        self.assertNotIn("embedding_dim", whole[0][3])
        # The first trial has the values of the preset.
        self.assertEqual(
            (whole[0][3]["learning_rate"], whole[0][3]["dropout"]), (0.003, 0.5)
        )

        again = self.folder / "again"
        command = [sys.executable, "-m", "recsys.tune", self.log, *FAST]
        command += [f"--workdir={again}", "--num_trials=3"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            while not process.stdout.readline().startswith("trial   0"):
                pass
            process.send_signal(signal.SIGINT)
            _, err = process.communicate()
        self.assertEqual(process.returncode, 130, err)
        self.assertIn("rerun the command to resume", err)
        self.assertLess(len(trials_of(again)), 3)
        self.assertEqual(self.tune("again", "--num_trials=3")[0], 0)
        self.assertEqual(trials_of(again), whole)

        best = max(range(3), key=lambda number: whole[number][1])
        kept = [path.name for path in (again / "trials").iterdir()]
        self.assertEqual(kept, [f"{best:04d}"])
        preset = again / "preset.json"
        fields = json.loads(preset.read_text())
        self.assertEqual(fields["embedding_dim"], 8)
        code, out, err = run(
            train, f"--preset={preset}", f"--workdir={self.folder / 'trained'}"
        )
        self.assertEqual(code, 0, err)
        stored = json.loads(
            (self.folder / "trained" / "metrics.json").read_text()
        )
        reached = max(each["validation_ndcg@10"] for each in stored["training"])
        self.assertEqual(reached, whole[best][1])

    def test_test_queries_change_nothing(self):
        found = []
        for rotated in (0, 7):
            log = write_log(self.folder / "log.csv", rotated)
            name = f"rotated-{rotated}"
            code, _, err = self.tune(name, "--num_trials=2", log=log)
            self.assertEqual(code, 0, err)
            found.append(trials_of(self.folder / name))
        self.assertEqual(*found)
        # A validation query more or less does change them.
        log = write_log(self.folder / "log.csv", 7)
        code, _, err = self.tune(
            "other", "--num_trials=2", "--split=validation_only", log=log
        )
        self.assertEqual(code, 0, err)
        self.assertNotEqual(trials_of(self.folder / "other"), found[0])

    def test_trials_are_pruned_by_their_validation_metric(self):
        # No NDCG reaches 2.
        pruner = optuna.pruners.ThresholdPruner(lower=2.0, n_warmup_steps=1)
        with mock.patch.object(optuna.pruners, "MedianPruner") as pruners:
            pruners.return_value = pruner
            code, out, err = self.tune(
                "out", "--num_trials=2", "--num_epochs=4", "--encoder=gru"
            )
        self.assertEqual((code, err), (1, ""))
        self.assertIn("0 trials complete, 2 ended early, 0 failed", out)
        for state, _, values, params in trials_of(self.folder / "out"):
            self.assertEqual((state, list(values)), ("PRUNED", [0, 1]))
            self.assertNotIn("num_blocks", params)
        self.assertEqual(list((self.folder / "out" / "trials").iterdir()), [])
        self.assertFalse((self.folder / "out" / "preset.json").exists())

    def test_budget(self):
        code, out, _ = self.tune("out", "--budget=0.01s")
        self.assertEqual(code, 0)
        # The first trial is always finished.
        self.assertIn("1 trials complete, 0 ended early", out)
        self.assertEqual(self.tune("out", "--budget=0.01s")[0], 0)
        self.assertLen(trials_of(self.folder / "out"), 1)

    def test_another_search_in_the_folder(self):
        self.assertEqual(self.tune("out", "--num_trials=1")[0], 0)
        code, _, err = self.tune("out", "--num_trials=1", "--dropout=0.1")
        self.assertEqual(code, 2)
        self.assertRegex(
            err, "different dropout .None there, 0.1 now., searched"
        )

    def test_changed_data(self):
        self.assertEqual(self.tune("out", "--num_trials=1")[0], 0)
        path = self.folder / "log.csv"
        path.write_text(path.read_text() + "\nu1,i1,1\nu1,i2,2")
        code, _, err = self.tune("out", "--num_trials=2")
        self.assertEqual(code, 2)
        self.assertIn("the data have changed", err)

    def test_files_of_others(self):
        mine = self.folder / "out" / "trials" / "0000"
        mine.mkdir(parents=True)
        code, _, err = self.tune("out")
        self.assertEqual(code, 2)
        self.assertRegex(err, "--workdir must be a new or empty folder")
        self.assertTrue(mine.is_dir())

    @parameterized.parameters(
        ("--budget=30", "--budget must be a positive number with s, m or h"),
        ("--budget=0m", "--budget must be"),
        ("--num_trials=0", "--num_trials must be at least 1"),
        ("--strategy=multi_worker", "--strategy must be single or mirrored"),
        ("--selection_metric=x", "--selection_metric"),
    )
    def test_mistakes(self, flag, message):
        code, _, err = self.tune("out", flag)
        self.assertEqual(code, 2)
        self.assertLen(err.splitlines(), 1)
        self.assertIn(message, err)

    def test_without_optuna(self):
        with mock.patch.dict(sys.modules, optuna=None):
            code, _, err = self.tune("out")
        self.assertEqual(code, 2)
        self.assertRegex(err, r"recsys.tune needs the extra \[tune\]: pip ")


class PresetFileTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.path = pathlib.Path(
            self.enter_context(tempfile.TemporaryDirectory()), "mine.json"
        )

    def test_flags_go_before_the_file(self):
        self.path.write_text('{"embedding_dim": 48, "num_blocks": 3}')
        config = make_config(str(self.path), {"num_blocks": 1})
        self.assertEqual((config.embedding_dim, config.num_blocks), (48, 1))
        self.assertEqual(config.learning_rate, 0.003)

    @parameterized.parameters(
        ("{", "mine.json: expected a readable JSON"),
        ("[1]", "mine.json: expected the fields of a training configuration"),
        ('{"dim": 3}', "mine.json: expected the fields .* unknown dim$"),
        ('{"dropout": 2}', "mine.json: --dropout must be below 1"),
    )
    def test_mistakes(self, content, message):
        self.path.write_text(content)
        with self.assertRaisesRegex(InputError, message):
            make_config(str(self.path), {})

    def test_neither_a_name_nor_a_file(self):
        with self.assertRaisesRegex(
            InputError,
            "one of movielens-small, .* or a JSON file .*: 'x.json'$",
        ):
            make_config("x.json", {})


if __name__ == "__main__":
    absltest.main()
