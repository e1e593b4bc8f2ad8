from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest

from absl.testing import absltest, parameterized
from commands import run

from recsys import prepare_shards
from recsys.config import TrainConfig
from recsys.data import shards
from recsys.data.prepare import build_data, data_summary

LOG = "synthetic:users=200,items=100,interactions=4000,seed=6"


class CommandTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enterContext(tempfile.TemporaryDirectory())
        )

    def run_command(self, output, *arguments, data=LOG):
        """Returns the exit code, standard output and standard error."""
        return run(
            prepare_shards,
            f"--data={data}",
            f"--output={self.folder / output}",
            "--num_shards=3",
            *arguments,
        )

    def test_prints_a_summary_and_the_next_command(self):
        code, output, _ = self.run_command(
            "out", "--num_workers=1", "--repeats=all"
        )
        self.assertEqual(code, 0)
        self.assertIn("200 users, 4,000 interactions", output)
        self.assertIn(f"--data={self.folder / 'out'} --repeats=all", output)
        self.assertTrue(shards.is_sharded(str(self.folder / "out")))
        # The temporary rows are gone.
        self.assertCountEqual(
            [path.name for path in (self.folder / "out").iterdir()],
            ["manifest.json", "vocabulary.parquet", "sequences", "queries"],
        )

    def test_says_what_training_on_the_log_says(self):
        """Rows that are dropped or odd, in the same lines, and how many."""
        rows = [
            ("u1", ["a", "b", "c", "d"], 5, "view"),
            ("u1", ["a"], 5, "buy"),  # Repeated.
            ("u2", ["a", "NULL"], 4, "view"),
            ("u2", [], 5, "view"),
            ("u2", ["b"], 1, "view"),
            ("u3", ["c"], 5, "buy"),
            ("u2", ["c"], 5, "view"),
        ]
        names = ("user", "items", "rating", "event")
        lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
        log = self.folder / "log.jsonl"
        log.write_text("\n".join(lines) + "\n")
        code, output, err = self.run_command(
            "out", "--num_workers=1", "--min_rating=3", data=log
        )
        self.assertEqual(code, 0, err)
        expected = [
            "1 row with an empty list of items: no interactions",
            "1 row with the item id 'NULL': an id like any other",
            "2 interactions dropped: 1 below min_rating or unrated, 1 repeated",
            "1 user with a single interaction: used for training, not queried",
        ]
        kinds = (
            "kinds of events: 8 view, 2 buy rows count alike; {}"
            "--events=view:1,buy:1 keeps these kinds and weights them"
        )
        of_shards = kinds.format("recsys.prepare_shards ")
        self.assertContainsSubset([*expected, of_shards], output.splitlines())
        config = TrainConfig(data=str(log), min_rating=3.0)
        for data, line in (
            (log, kinds.format("")),
            (self.folder / "out", of_shards),
        ):
            config = dataclasses.replace(config, data=str(data))
            said = data_summary(build_data(config)).splitlines()
            self.assertContainsSubset([*expected, line], said)

    @parameterized.parameters(signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
    def test_a_killed_preparation_can_be_run_again(self, number):
        output = self.folder / "out"
        data = "--data=synthetic:users=40000,items=500,interactions=1600000"
        command = [sys.executable, "-m", "recsys.prepare_shards", data]
        command += [f"--output={output}", "--num_workers=2", "--num_shards=4"]
        with subprocess.Popen(
            command, stderr=subprocess.DEVNULL, start_new_session=True
        ) as process:
            while not any(output.glob(".recsys-*-rows/*.arrow")):
                self.assertIsNone(process.poll())
                time.sleep(0.01)
            process.send_signal(number)
            process.wait()
        for _ in range(1000):  # Workers may need a moment.
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                break
            time.sleep(0.01)
        else:
            self.fail("a worker is still running")
        if number != signal.SIGKILL:
            self.assertEmpty(list(output.iterdir()))
        self.assertEqual(self.run_command("out", "--num_workers=1")[0], 0)

    def test_help_lists_the_splits_of_shards(self):
        code, output, _ = self.run_command("out", "--help")
        self.assertEqual(code, 0)
        self.assertIn("leave_last_out, validation_only", output)
        for split in ("temporal", "held_out"):
            self.assertNotIn(split, output)

    @parameterized.parameters(
        ("--num_shards=0", "num_shards"),
        ("--num_queries=-1", "num_queries"),
        ("--num_workers=0", "num_workers"),
        ("--split=temporal", "split"),
        ("--repeats=some", "repeats"),
        ("--min_rating=3", "rating column"),
        ("--user_column=user", "user_column"),
        ("--beam=--direct_num_workers=2", "--runner"),
        ("--data=/no/such/log", "/no/such/log"),
        ("--data=", "--data"),
        ("--output=", "--output"),
        (f"--output={__file__}/x", "writable folder"),
    )
    def test_errors_are_one_line(self, flag, named):
        flags = [flag] if "workers" in flag else ["--num_workers=1", flag]
        code, _, error = self.run_command("out", *flags)
        self.assertEqual(code, 2)
        self.assertIn(named, error)
        self.assertEqual(error.count("\n"), 1)

    def test_a_folder_with_content_is_not_touched(self):
        (self.folder / "out").mkdir()
        (self.folder / "out" / "mine").write_text("text")
        code, _, error = self.run_command("out", "--num_workers=1")
        self.assertEqual(code, 2)
        self.assertIn("empty folder", error)
        self.assertTrue((self.folder / "out" / "mine").exists())

    @unittest.skipUnless(
        importlib.util.find_spec("apache_beam"), "apache-beam is missing"
    )
    def test_beam_with_several_workers_writes_the_same(self):
        # Two chunks of users and two files, so that both workers read.
        data = self.folder / "log"
        data.mkdir()
        for part in range(2):
            rows = [
                f"u{(7 * row + part) % 50},i{(row * row + part) % 30},{row}"
                for row in range(400)
            ]
            text = "\n".join(["user_id,item_id,timestamp", *rows])
            (data / f"{part}.csv").write_text(text + "\n")
        for output, flags in (
            ("local", ["--num_workers=1"]),
            (
                "beam",
                [
                    "--runner=DirectRunner",
                    "--beam=--direct_num_workers=2",
                    "--beam=--direct_running_mode=multi_processing",
                ],
            ),
        ):
            code, _, error = self.run_command(
                output, "--num_queries=20", *flags, data=data
            )
            self.assertEqual(code, 0, error)
        local, beam = self.folder / "local", self.folder / "beam"
        names = [
            str(path.relative_to(local))
            for path in local.rglob("*")
            if path.is_file()
        ]
        self.assertLen(names, 2 + 3 * 3)
        for name in names:
            self.assertEqual(
                (local / name).read_bytes(), (beam / name).read_bytes(), name
            )

    @unittest.skipUnless(
        importlib.util.find_spec("apache_beam"), "apache-beam is missing"
    )
    def test_errors_of_beam_workers_read_the_same(self):
        data = self.folder / "log.csv"
        data.write_text("user,item,timestamp\na,x,1\na,,2\n")
        errors = [
            self.run_command("out", flag, data=data)[2]
            for flag in ("--num_workers=1", "--runner=DirectRunner")
        ]
        self.assertIn("line 3", errors[0])
        self.assertEqual(*errors)

    @unittest.skipIf(
        importlib.util.find_spec("apache_beam"), "apache-beam is there"
    )
    def test_without_beam_a_runner_is_an_error(self):
        code, _, error = self.run_command("out", "--runner=DirectRunner")
        self.assertEqual(code, 2)
        self.assertIn("[beam]", error)


if __name__ == "__main__":
    absltest.main()
