from __future__ import annotations

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
        with self.assertRaises(KeyError), files.atomic_path(path) as temporary:
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
        with files.atomic_path(self.folder / "b") as temporary:
            temporary.mkdir()
            (temporary / "kept").write_text("new")
        self.assertEqual((self.folder / "a").read_text(), "new")
        self.assertEqual(
            [path.name for path in (self.folder / "b").iterdir()], ["kept"]
        )

    def test_what_a_killed_process_left_does_not_matter(self):
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

    def test_what_cannot_be_written_leaves_the_old_file(self):
        files.write_json(self.path, 1)
        with self.assertRaises(TypeError):
            files.write_json(self.path, {"a": object()})
        self.assertEqual(files.read_json(self.path), 1)

    @parameterized.parameters(None, b"{", b"\xff")
    def test_missing_or_damaged(self, content):
        if content is not None:
            self.path.write_bytes(content)
        with self.assertRaisesRegex(
            InputError, "x.json: expected a JSON file .* Received: "
        ):
            files.read_json(self.path)


if __name__ == "__main__":
    absltest.main()
