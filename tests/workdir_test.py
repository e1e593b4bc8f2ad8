from __future__ import annotations

import os
import pathlib
import tempfile
import unittest

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

    def test_a_new_folder_may_be_written_and_is_not_made(self):
        Workdir(self.path / "deep" / "er").check(TrainConfig())
        self.assertFalse(self.path.exists())

    def test_the_same_configuration_may_go_on(self):
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

    def test_a_file_is_no_workdir(self):
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
