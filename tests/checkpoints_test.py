from __future__ import annotations

import pathlib
import tempfile
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

import recsys
from recsys import files
from recsys.errors import InputError
from recsys.training.checkpoints import (
    Checkpoints,
    Progress,
)
from recsys.workdir import best_epoch, checkpoint_paths

BATCH = {
    "history_ids": np.array([[2, 3, 4]], np.int32),
    "target_ids": np.array([[3, 4, 5]], np.int32),
}


class Run:
    """A model with dropout, and its optimizer."""

    def __init__(self, folder: pathlib.Path, dim: int = 4) -> None:
        table = recsys.SharedItemEmbedding(7, dim)
        self.model = recsys.TwoTower(
            recsys.HistoryTower(table, encoder=recsys.GRUEncoder(dropout=0.5)),
            recsys.CandidateTower(table),
        )
        self.model.build()
        self.optimizer = keras.optimizers.Adam(0.1)
        self.optimizer.build(self.model.trainable_variables)
        self.checkpoints = Checkpoints(folder, self.model, self.optimizer)

    def step(self) -> None:
        with tf.GradientTape() as tape:
            loss, _ = self.model.next_item_loss(BATCH)
        variables = self.model.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)

    def arrays(self) -> list[np.ndarray]:
        return [
            variable.numpy()
            for variable in [*self.model.variables, *self.optimizer.variables]
        ]


class CheckpointsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = (
            pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
            / "checkpoints"
        )

    def test_a_restored_run_continues_bit_identically(self):
        run = Run(self.folder)
        run.step()
        progress = Progress(
            epoch=1,
            step=3,
            global_step=8,
            loss_sum=0.1 + 0.2,
            num_targets=7.0,
            history=[{"loss": 1 / 3, "validation_ndcg@10": 0.5}],
        )
        run.checkpoints.save(progress)
        other = Run(self.folder)
        self.assertEqual(other.checkpoints.restore(), progress)
        # Dropout draws the same, since the generators' states are variables.
        for each in (run, other):
            each.step()
            each.step()
        for one, two in zip(run.arrays(), other.arrays()):
            np.testing.assert_array_equal(one, two)

    def test_says_what_has_changed_since_the_checkpoint(self):
        run = Run(self.folder)
        self.assertEqual(run.checkpoints.runtime_changes(), [])
        run.checkpoints.save(Progress(global_step=5))
        self.assertEqual(run.checkpoints.runtime_changes(), [])
        [path] = checkpoint_paths(self.folder)
        record = files.read_json(path / "runtime.json")
        threads = record["threads"]
        files.write_json(
            path / "runtime.json", {**record, "threads": "99", "Keras": "2.0"}
        )
        self.assertEqual(
            run.checkpoints.runtime_changes(),
            [
                f"Keras: 2.0, now {keras.__version__}",
                f"threads: 99, now {threads}",
            ],
        )
        (path / "runtime.json").write_text('{"threads": 2}')
        with self.assertRaisesRegex(InputError, "runtime.json: expected"):
            run.checkpoints.runtime_changes()
        # As an earlier version of this package wrote it.
        (path / "runtime.json").unlink()
        self.assertEqual(run.checkpoints.runtime_changes(), [])

    def test_holds_the_table_and_its_two_moments_once(self):
        run = Run(self.folder)
        run.checkpoints.save(Progress())
        [path] = checkpoint_paths(self.folder)
        shapes = [
            tuple(shape)
            for _, shape in tf.train.list_variables(str(path / "variables"))
        ]
        self.assertEqual(shapes.count((7, 4)), 3)

    def test_nothing_to_restore(self):
        self.assertIsNone(Run(self.folder).checkpoints.restore())
        self.folder.mkdir()
        self.assertIsNone(Run(self.folder).checkpoints.restore())

    def test_only_the_newest_is_kept(self):
        run = Run(self.folder)
        for global_step in (5, 20, 100):
            run.checkpoints.save(Progress(global_step=global_step))
        self.assertEqual(
            [path.name for path in self.folder.iterdir()], ["step-000000100"]
        )
        # The same step again, as at the end of an epoch.
        run.checkpoints.save(Progress(global_step=100, epoch=1))
        self.assertEqual(run.checkpoints.restore().epoch, 1)

    def test_a_full_disk_leaves_the_older_one(self):
        run = Run(self.folder)
        run.checkpoints.save(Progress(global_step=5))
        before = run.arrays()
        run.step()
        full = tf.errors.ResourceExhaustedError(None, None, "No space left")
        with (
            mock.patch.object(tf.train.Checkpoint, "write", side_effect=full),
            self.assertRaisesRegex(
                OSError, "could not be written: No space left"
            ),
        ):
            run.checkpoints.save(Progress(global_step=6))
        with (
            mock.patch.object(
                files, "write_json", side_effect=OSError("No space left")
            ),
            self.assertRaisesRegex(OSError, "No space left"),
        ):
            run.checkpoints.save(Progress(global_step=6))
        self.assertEqual(
            [path.name for path in self.folder.iterdir()], ["step-000000005"]
        )
        self.assertEqual(run.checkpoints.restore().global_step, 5)
        for one, two in zip(before, run.arrays()):
            np.testing.assert_array_equal(one, two)

    def test_half_written_checkpoints_are_ignored(self):
        run = Run(self.folder)
        run.checkpoints.save(Progress(global_step=5))
        (self.folder / ".recsys-123-step-000000009").mkdir()
        (self.folder / "step-9").mkdir()
        self.assertEqual(run.checkpoints.restore().global_step, 5)

    def test_foreign_files_stay(self):
        run = Run(self.folder)
        self.folder.mkdir()
        others = [self.folder / ".DS_Store", self.folder / "notes" / "a.txt"]
        for path in others:
            path.parent.mkdir(exist_ok=True)
            path.write_text("mine")
        for global_step in (5, 20):
            run.checkpoints.save(Progress(global_step=global_step))
        self.assertEqual([p.read_text() for p in others], ["mine", "mine"])
        self.assertEqual(run.checkpoints.restore().global_step, 20)

    def test_of_another_model(self):
        Run(self.folder).checkpoints.save(Progress(global_step=5))
        with self.assertRaisesRegex(
            InputError,
            "step-000000005: expected a checkpoint of this model. Received: ",
        ):
            Run(self.folder, dim=6).checkpoints.restore()

    def test_of_a_smaller_model(self):
        run = Run(self.folder)
        run.checkpoints.save(Progress(global_step=5))
        more = keras.Sequential([run.model, keras.layers.Dense(2)])
        more.layers[1].build((None, 7))
        with self.assertRaisesRegex(InputError, "expected a checkpoint"):
            Checkpoints(self.folder, more, run.optimizer).restore()

    @parameterized.parameters("progress.json", "variables.index")
    def test_damaged(self, name):
        run = Run(self.folder)
        run.checkpoints.save(Progress(global_step=5))
        (self.folder / "step-000000005" / name).write_bytes(b"{")
        with self.assertRaisesRegex(InputError, "step-000000005.* Received: "):
            run.checkpoints.restore()

    def test_cut_short(self):
        run = Run(self.folder)
        run.checkpoints.save(Progress(global_step=5))
        [data] = self.folder.glob("*/variables.data*")
        whole = data.read_bytes()
        for length in (0, 1, len(whole) // 2, len(whole) - 1):
            data.write_bytes(whole[:length])
            with self.assertRaisesRegex(InputError, "step-000000005: "):
                run.checkpoints.restore()

    def test_progress_of_another_version(self):
        run = Run(self.folder)
        run.checkpoints.save(Progress(global_step=5))
        files.write_json(
            self.folder / "step-000000005" / "progress.json", {"color": 1}
        )
        with self.assertRaisesRegex(InputError, "progress.json: .* Received: "):
            run.checkpoints.restore()


class ProgressTest(parameterized.TestCase):
    def test_best_epoch(self):
        self.assertIsNone(best_epoch([], "ndcg@10"))
        history = [{"validation_ndcg@10": x} for x in (0.1, 0.4, 0.4, 0.2)]
        # The first of equals.
        self.assertEqual(best_epoch(history, "ndcg@10"), 1)


if __name__ == "__main__":
    absltest.main()
