"""A few tries of each campaign of scripts/torture, and what it relies on."""

from __future__ import annotations

import errno
import json
import pathlib
import subprocess
import sys
import tempfile

import keras
import numpy as np
from absl.testing import absltest, parameterized

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"
sys.path.insert(0, str(SCRIPTS))

import torture_inputs  # noqa: E402
import torture_state  # noqa: E402

from recsys.errors import InputError  # noqa: E402

# Writes three files, each a file event: one before, two of the renamed.
WRITER = """
import os, pathlib, sys
sys.path.insert(0, {scripts!r})
from torture_world import Stop
folder = pathlib.Path({folder!r})
Stop(str(folder), **{stop!r}).install()
(folder / "one").write_text("1")
(folder / "two").write_text("2" * 1000)
os.rename(folder / "two", folder / "three")
"""


class CampaignsTest(absltest.TestCase):
    def test_a_few_tries_of_each(self):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        path = pathlib.Path(folder) / "torture.json"
        process = subprocess.run(
            [
                sys.executable,
                str(SCRIPTS / "torture.py"),
                "--tries=2",
                "--seed=3",
                f"--json={path}",
            ],
            capture_output=True,
            text=True,
        )
        self.assertEqual(process.returncode, 0, process.stderr)
        self.assertIn("12 tries, 0 failures", process.stdout)
        written = json.loads(path.read_text())
        tries = {}
        for each in written["campaigns"]:
            self.assertIn(
                f"| {each['promise']} | {each['kind']} | {each['tries']} | 0 |",
                process.stdout,
            )
            name = each["campaign"]
            tries[name] = tries.get(name, 0) + each["tries"]
        names = ("kills", "disk", "damage", "inputs", "models", "requests")
        self.assertEqual(tries, dict.fromkeys(names, 2))

    def test_unknown_campaigns(self):
        process = subprocess.run(
            [sys.executable, str(SCRIPTS / "torture.py"), "--only=kills,fire"],
            capture_output=True,
            text=True,
        )
        self.assertEqual(process.returncode, 2)
        self.assertIn("--only must be some of kills, disk, ", process.stderr)


class StopTest(parameterized.TestCase):
    @parameterized.parameters(
        ({}, 0, ["one", "three"]),
        ({"kill_event": 1}, -9, []),
        ({"kill_event": 2}, -9, ["one"]),
        ({"kill_event": 3}, -9, ["one", "two"]),
        ({"full_event": 2}, 1, ["one"]),
        ({"file_size": 10}, 1, ["one", "two"]),
    )
    def test_what_is_left(self, stop, code, left):
        parent = self.enterContext(tempfile.TemporaryDirectory())
        folder = pathlib.Path(parent) / "inside"
        folder.mkdir()
        log = pathlib.Path(parent) / "events"
        script = WRITER.format(
            scripts=str(SCRIPTS),
            folder=str(folder),
            stop={**stop, "log": str(log)},
        )
        process = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True
        )
        self.assertEqual(process.returncode, code, process.stderr)
        self.assertEqual(sorted(p.name for p in folder.iterdir()), left)
        if not stop:
            self.assertEqual(log.read_bytes(), b"...")


class ChecksTest(parameterized.TestCase):
    """What would be reported if a promise were broken."""

    def test_differences(self):
        whole = {"a": {"b": np.array([1.0, 2.0])}, "c": 3}
        same = {"a": {"b": np.array([1.0, 2.0])}, "c": 3}
        self.assertIsNone(torture_state.difference(same, whole))
        other = {"a": {"b": np.array([1.0, np.nextafter(2, 3)])}, "c": 3}
        self.assertStartsWith(torture_state.difference(other, whole), ".a.b: ")
        self.assertEqual(
            torture_state.difference({"a": {}}, whole), ": other parts: ['c']"
        )

    def test_leftovers(self):
        folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.assertIsNone(torture_state.leftovers(folder))
        (folder / "a").mkdir()
        (folder / "a" / ".recsys-7-x").touch()
        self.assertEqual(
            torture_state.leftovers(folder), "left behind: ['.recsys-7-x']"
        )

    def test_each_kind_of_damage_is_done(self):
        folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        path = folder / "about.json"
        content = json.dumps({"a": [1, {"b": 2.5}], "c": "text"}).encode()
        rng = np.random.default_rng(0)
        done = set()
        for _ in range(200):
            path.write_bytes(content)
            kind, _ = torture_state.break_file(path, rng)
            left = path.read_bytes() if path.exists() else None
            if left != content:
                done.add(kind)
            if kind == "flipped bits":
                flipped = sum(
                    (one ^ two).bit_count()
                    for one, two in zip(left, content, strict=True)
                )
                # The same bit twice is as if nothing had happened.
                self.assertIn(flipped, (0, 1, 2))
            elif kind == "cut short":
                self.assertStartsWith(content, left)
        self.assertEqual(
            done,
            {"flipped bits", "cut short", "deleted", "emptied", "odd JSON"},
        )

    def test_a_payload_would_run(self):
        """The Lambda layer is one indeed, where code is trusted."""
        folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        marker = folder / "code-was-run"
        (_, payload), *_ = torture_inputs.payloads(marker)
        with self.assertRaisesRegex(ValueError, "(?i)lambda.*unsafe|safe_mode"):
            keras.saving.deserialize_keras_object(payload)
        self.assertFalse(marker.exists())
        layer = keras.saving.deserialize_keras_object(payload, safe_mode=False)
        layer(np.ones(3))
        self.assertTrue(marker.exists())

    def _raise(self, error):
        raise error

    def test_only_errors_for_users_pass(self):
        check = torture_inputs.failure_of
        self.assertIsNone(check(lambda: None))
        self.assertEqual(check(lambda: "3 rows of 4"), "3 rows of 4")
        self.assertIsNone(check(lambda: self._raise(InputError("log.csv:3"))))
        self.assertIsNotNone(check(lambda: self._raise(InputError(""))))
        full = OSError(errno.ENOSPC, "No space left", "log.csv")
        self.assertIsNone(check(lambda: self._raise(full)))
        self.assertEqual(
            check(lambda: self._raise(KeyError("item"))),
            "a stack trace: KeyError: 'item'",
        )

    @parameterized.parameters(
        (b"u,i,t\n1,2,3\n\n4,5,6", 2),
        (b"\xef\xbb\xbfu,i,t\n1,2,3\n", 1),
        (b'u,i,t\n"1",2,3\n', None),
        (b"u,i,t\n\xff,2,3\n", None),
    )
    def test_rows_by_a_slow_count(self, content, expected):
        self.assertEqual(torture_inputs.num_rows(content), expected)


if __name__ == "__main__":
    absltest.main()
