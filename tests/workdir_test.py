from __future__ import annotations

import os
import pathlib
import tempfile
import unittest
from unittest import mock

from absl.testing import absltest, parameterized

from recsys import files
from recsys.config import TrainConfig
from recsys.errors import InputError
from recsys.workdir import Workdir


class WorkdirTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.path = (
            pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
            / "run"
        )
        self.workdir = Workdir(self.path)

    def _write_run(self, config: TrainConfig) -> None:
        self.path.mkdir()
        files.write_json(self.workdir.config, config.to_dict())

    def test_everything_is_inside(self):
        for name in (
            "config",
            "vocabulary",
            "model",
            "checkpoints",
            "metrics",
            "logs",
        ):
            self.assertEqual(getattr(self.workdir, name).parent, self.path)

    def test_check_accepts_a_new_folder_and_does_not_create_it(self):
        Workdir(self.path / "deep" / "er").check(TrainConfig())
        self.assertFalse(self.path.exists())

    def test_the_same_configuration_may_resume(self):
        config = TrainConfig(seed=3, min_rating=2.0)
        self._write_run(config)
        self.workdir.check(config)

    def test_another_configuration_names_the_differing_fields(self):
        self._write_run(TrainConfig(seed=3))
        with self.assertRaisesRegex(
            InputError,
            r"expected no run, or one with the same configuration; .*Received: "
            r"different dropout \(0.2 there, 0.5 now\), "
            r"seed \(3 there, 0 now\)$",
        ):
            self.workdir.check(TrainConfig(dropout=0.5))

    def test_only_extensions_resume_from_steps_of_another_run(self):
        config = TrainConfig(steps_before=100)
        with self.assertRaisesRegex(
            InputError, "^`steps_before` must be left to .* Received: 100$"
        ):
            self.workdir.check(config)
        self._write_run(config)
        files.write_json(self.workdir.extension, {})
        self.workdir.check(config)

    def test_a_file_is_not_a_workdir(self):
        self.path.write_text("")
        with self.assertRaisesRegex(
            InputError, "must be a folder that can be written. Received: .*run"
        ):
            self.workdir.check(TrainConfig())

    @unittest.skipIf(os.geteuid() == 0, "root may write anywhere")
    def test_a_folder_that_cannot_be_written(self):
        self.path.mkdir(mode=0o500)
        with self.assertRaisesRegex(InputError, "that can be written"):
            self.workdir.check(TrainConfig())

    def test_a_damaged_configuration(self):
        self.path.mkdir()
        self.workdir.config.write_text("{")
        with self.assertRaisesRegex(
            InputError, "config.json: expected a readable JSON"
        ):
            self.workdir.check(TrainConfig())

    def test_read_config(self):
        config = TrainConfig(embedding_dim=8)
        self._write_run(config)
        self.workdir.model.touch()
        self.assertEqual(self.workdir.read_config(), config)

    @parameterized.parameters(
        ("metrics.json", "null", "expected a JSON object. .*NoneType"),
        ("metrics.json", '{"training": 3}', "expected `training` to be a list"),
        (
            "metrics.json",
            '{"training": [{"loss": 1.0}]}',
            "expected the selection metric of every epoch",
        ),
        ("progress.json", "{}", "expected `history` to be .* list"),
        ("progress.json", '{"history": [[]]}', "expected `history` to be a"),
        (
            "progress.json",
            '{"history": [{"a": "b"}]}',
            "expected .* an epoch's measures by name, all of them numbers",
        ),
    )
    def test_a_damaged_history(self, name, content, message):
        self._write_run(TrainConfig())
        folder = self.path
        if name == "progress.json":
            folder = self.workdir.checkpoints / "step-000000003"
            folder.mkdir(parents=True)
        (folder / name).write_text(content)
        with self.assertRaisesRegex(InputError, f"{name}: {message}"):
            self.workdir.read_history(TrainConfig())

    @parameterized.parameters("null", "[]", "3", "{")
    def test_damaged_metrics(self, content: str):
        self._write_run(TrainConfig())
        (self.workdir.checkpoints / "step-000000003").mkdir(parents=True)
        self.workdir.metrics.write_text(content)
        for read in (
            self.workdir.training_entries,
            self.workdir.stored_results,
        ):
            with self.assertRaisesRegex(InputError, "metrics.json: expected"):
                read()

    def test_results_that_are_not_text(self):
        self._write_run(TrainConfig())
        checkpoint = self.workdir.checkpoints / "step-000000003"
        checkpoint.mkdir(parents=True)
        progress = {"finished": True, "history": []}
        files.write_json(checkpoint / "progress.json", progress)
        stored = {"training": [], "evaluated_with": {}}
        for text in (None, 3, [3]):
            files.write_json(self.workdir.metrics, {**stored, "text": text})
            with self.assertRaisesRegex(InputError, "metrics.json: .*`text`"):
                self.workdir.stored_results()
        files.write_json(self.workdir.metrics, {**stored, "text": ["a", "b"]})
        self.assertEqual(self.workdir.stored_results(), "a\nb")

    def _write_model(self, content: str) -> None:
        with self.workdir.writing(self.workdir.model) as path:
            path.write_text(content)

    def test_a_damaged_or_replaced_file(self):
        self._write_run(TrainConfig())
        self._write_model("weights")
        self.workdir.read_config()
        self.workdir.model.write_text("weighty")
        for read in (
            self.workdir.read_config,
            lambda: self.workdir.check(TrainConfig()),
        ):
            with self.assertRaisesRegex(
                InputError, "model.keras: expected the file that this run"
            ):
                read()

    def test_a_run_that_dies_between_a_checksum_and_its_file(self):
        self._write_run(TrainConfig())
        self._write_model("epoch 1")
        self._write_model("epoch 2")
        with (
            mock.patch.object(files, "_replace", side_effect=OSError),
            self.assertRaises(OSError),
        ):
            self._write_model("epoch 3")
        self.assertEqual(self.workdir.model.read_text(), "epoch 2")
        self.workdir.read_config()

    @parameterized.parameters("[]", '{"model.keras": 3}', '{"../x": []}')
    def test_damaged_checksums(self, content: str):
        self._write_run(TrainConfig())
        self._write_model("weights")
        self.workdir.checksums.write_text(content)
        with self.assertRaisesRegex(InputError, "checksums.json: expected"):
            self.workdir.read_config()

    def test_a_folder_without_checksums(self):
        self._write_run(TrainConfig())
        self.workdir.model.touch()
        self.workdir.read_config()

    def test_no_such_folder(self):
        with self.assertRaisesRegex(
            InputError, r"Received: .*run \(no such folder\)$"
        ):
            self.workdir.read_config()

    def test_a_folder_without_a_model(self):
        self._write_run(TrainConfig())
        with self.assertRaisesRegex(
            InputError, r"Received: .*run \(no model\)"
        ):
            self.workdir.read_config()

    def test_a_configuration_of_another_version(self):
        self._write_run(TrainConfig())
        self.workdir.model.touch()
        files.write_json(
            self.workdir.config, {**TrainConfig().to_dict(), "color": 1}
        )
        with self.assertRaisesRegex(
            InputError, "config.json: .* Received: unknown color"
        ):
            self.workdir.read_config()


if __name__ == "__main__":
    absltest.main()
