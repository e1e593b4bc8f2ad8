from __future__ import annotations

import os
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized

from recsys import files
from recsys.errors import InputError


class AtomicPathTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enterContext(tempfile.TemporaryDirectory())
        )

    def _names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def test_a_file_appears_whole(self):
        path = self.folder / "a.txt"
        with files.atomic_path(path) as temporary:
            temporary.write_text("new")
            self.assertFalse(path.exists())
            self.assertEqual(temporary.parent, path.parent)
            self.assertEqual(temporary.suffix, ".txt")
        self.assertEqual(path.read_text(), "new")
        self.assertEqual(self._names(), ["a.txt"])

    def test_a_failing_block_leaves_the_old_file(self):
        path = self.folder / "a.txt"
        path.write_text("old")
        with self.assertRaises(OSError), files.atomic_path(path) as temporary:
            temporary.write_text("half")
            raise OSError("disk full")
        self.assertEqual(path.read_text(), "old")
        self.assertEqual(self._names(), ["a.txt"])

    def test_a_failing_block_leaves_the_old_folder(self):
        path = self.folder / "step"
        path.mkdir()
        (path / "weights").write_text("old")
        with (
            self.assertRaises(KeyError),
            files.atomic_path(path, is_ours=True) as temporary,
        ):
            temporary.mkdir()
            (temporary / "weights").write_text("half")
            raise KeyError
        self.assertEqual((path / "weights").read_text(), "old")
        self.assertEqual(self._names(), ["step"])

    def test_a_full_disk_at_the_flush_leaves_the_old_file(self):
        path = self.folder / "a.txt"
        path.write_text("old")
        with (
            mock.patch("os.fsync", side_effect=OSError("disk full")),
            self.assertRaisesRegex(OSError, "disk full"),
            files.atomic_path(path) as temporary,
        ):
            temporary.write_text("new")
        self.assertEqual(path.read_text(), "old")
        self.assertEqual(self._names(), ["a.txt"])

    def test_replaces_a_file_and_a_folder(self):
        (self.folder / "a").write_text("old")
        (self.folder / "b").mkdir()
        (self.folder / "b" / "gone").write_text("old")
        with files.atomic_path(self.folder / "a") as temporary:
            temporary.write_text("new")
        with files.atomic_path(self.folder / "b", is_ours=True) as temporary:
            temporary.mkdir()
            (temporary / "kept").write_text("new")
        self.assertEqual((self.folder / "a").read_text(), "new")
        self.assertEqual(
            [path.name for path in (self.folder / "b").iterdir()], ["kept"]
        )

    @parameterized.parameters(False, True)
    def test_a_folder_is_never_replaced_by_a_file(self, is_ours):
        folder = self.folder / "precious"
        folder.mkdir()
        (folder / "thesis.txt").write_text("years")
        with (
            self.assertRaisesRegex(InputError, "precious: expected a path"),
            files.atomic_path(folder, is_ours=is_ours) as temporary,
        ):
            temporary.write_text("lists")
        self.assertEqual((folder / "thesis.txt").read_text(), "years")
        self.assertEqual(self._names(), ["precious"])

    def test_a_foreign_folder_is_never_replaced(self):
        folder = self.folder / "precious"
        folder.mkdir()
        (folder / "thesis.txt").write_text("years")
        with (
            self.assertRaisesRegex(InputError, "never replaced"),
            files.atomic_path(folder),
        ):
            self.fail("the block must not run")
        self.assertEqual((folder / "thesis.txt").read_text(), "years")

    def test_a_file_is_never_replaced_by_a_folder(self):
        path = self.folder / "a"
        path.write_text("mine")
        with (
            self.assertRaisesRegex(InputError, "Received: a file"),
            files.atomic_path(path) as temporary,
        ):
            temporary.mkdir()
        self.assertEqual(path.read_text(), "mine")

    def test_leftovers_of_a_dead_process_are_removed(self):
        # The highest process id of Linux is 2^22.
        (self.folder / ".recsys-99999999-a").mkdir()
        (self.folder / f".recsys-{os.getppid()}-a").write_text("at work")
        (self.folder / ".recsys-99999999-b").write_text("of another file")
        with files.atomic_path(self.folder / "a") as temporary:
            temporary.write_text("new")
        self.assertEqual(
            self._names(),
            [".recsys-99999999-b", f".recsys-{os.getppid()}-a", "a"]
            if str(os.getppid()) > "99999999"
            else [f".recsys-{os.getppid()}-a", ".recsys-99999999-b", "a"],
        )

    def test_a_process_killed_between_two_renames(self):
        (self.folder / ".recsys-99999999-old-b").mkdir()
        (self.folder / ".recsys-99999999-old-b" / "kept").write_text("old")
        with (
            self.assertRaises(KeyError),
            files.atomic_path(self.folder / "b", is_ours=True),
        ):
            raise KeyError
        self.assertEqual((self.folder / "b" / "kept").read_text(), "old")

    def test_leftovers_of_a_killed_process_do_no_harm(self):
        path = self.folder / "a"
        with files.atomic_path(path) as temporary:
            leftover = temporary
            temporary.write_text("first")
        leftover.mkdir()
        with files.atomic_path(path) as temporary:
            temporary.write_text("second")
        self.assertEqual(path.read_text(), "second")
        self.assertEqual(self._names(), ["a"])


class JsonTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.path = (
            pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
            / "x.json"
        )

    def test_round_trip(self):
        files.write_json(self.path, {"a": [1, 2.5, None, "é"]})
        self.assertEqual(files.read_json(self.path), {"a": [1, 2.5, None, "é"]})

    def test_a_failed_write_leaves_the_old_file(self):
        files.write_json(self.path, 1)
        with self.assertRaises(TypeError):
            files.write_json(self.path, {"a": object()})
        self.assertEqual(files.read_json(self.path), 1)

    def test_no_flipped_bit_is_read_as_data(self):
        value = {"seed": 7, "rate": 0.25, "name": "é", "list": [{"a": None}]}
        files.write_json(self.path, value)
        content = self.path.read_bytes()
        num_errors = 0
        for bit in range(8 * len(content)):
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << bit % 8
            self.path.write_bytes(damaged)
            try:
                found = files.read_json(self.path)
            except InputError as error:
                self.assertIn("x.json: expected ", str(error))
                num_errors += 1
                continue
            # Blanks between values do not matter; nor does the name of the
            # checksum, without which the file is one of an earlier version.
            found = {name: found[name] for name in value}
            self.assertEqual(found, value)
        self.assertGreater(num_errors, 4 * len(content))

    def test_an_edit_without_the_checksum_is_read(self):
        files.write_json(self.path, {"a": 1, "b": 2})
        text = self.path.read_text().replace("1", "3", 1)
        self.path.write_text(text)
        with self.assertRaisesRegex(
            InputError, "x.json: .* another SHA-256.* remove the line `sha256`"
        ):
            files.read_json(self.path)
        self.path.write_text('{"a": 3, "b": 2}')
        self.assertEqual(files.read_json(self.path), {"a": 3, "b": 2})

    @parameterized.parameters(None, b"{", b"\xff")
    def test_missing_or_damaged(self, content):
        if content is not None:
            self.path.write_bytes(content)
        with self.assertRaisesRegex(
            InputError, "x.json: expected a readable JSON file. Received: "
        ):
            files.read_json(self.path)


if __name__ == "__main__":
    absltest.main()
