"""Training runs with the sampled softmax and row-sparse updates."""

from __future__ import annotations

import contextlib
import io
import pathlib
import tempfile
from unittest import mock

import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

import recsys
from recsys import config, negatives, training
from recsys.config import TrainConfig
from recsys.data import pipeline
from recsys.errors import InputError
from recsys.training import build, trainer
from recsys.workdir import checkpoint_paths


def _write_log(path: pathlib.Path) -> None:
    """Steps of 60 users around a circle of 25 items."""
    rng = np.random.default_rng(0)
    rows = ["user,item,timestamp"]
    for user in range(60):
        begin, length = rng.integers(25), rng.integers(12, 18)
        for step in range(length):
            rows.append(f"u{user},i{(begin + step) % 25},{step}")
    path.write_text("\n".join(rows) + "\n")


def _variables(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    path = str(checkpoint_paths(workdir / "checkpoints")[-1] / "variables")
    return {
        name: tf.train.load_variable(path, name)
        for name, _ in tf.train.list_variables(path)
        if name.startswith("variables/")
    }


class RunTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enterContext(tempfile.TemporaryDirectory())
        )
        _write_log(self.folder / "log.csv")

    def _config(self, **fields) -> TrainConfig:
        return TrainConfig(
            data=str(self.folder / "log.csv"),
            embedding_dim=16,
            max_history_length=16,
            positions_per_batch=64,
            warmup_steps=5,
            learning_rate=0.02,
            num_negatives=20,
            checkpoint_steps=2,
            **fields,
        )

    @parameterized.parameters("lazy_adam", "rowwise_adagrad")
    def test_resumed_run_ends_bit_identical(self, table_optimizer):
        run_config = self._config(
            encoder="mean_pooling",
            loss="sampled_softmax",
            table_optimizer=table_optimizer,
            num_epochs=2,
        )
        training.train(run_config, self.folder / "whole", verbose=False)

        count = trainer.Trainer._count

        def interrupted(self, progress, loss, num_targets):
            count(self, progress, loss, num_targets)
            if progress.global_step == 5:
                raise KeyboardInterrupt

        stopped = self.folder / "stopped"
        with (
            mock.patch.object(trainer.Trainer, "_count", interrupted),
            self.assertRaises(KeyboardInterrupt),
        ):
            training.train(run_config, stopped, verbose=False)
        training.train(run_config, stopped, verbose=False)
        whole, resumed = _variables(self.folder / "whole"), _variables(stopped)
        self.assertEqual(whole.keys(), resumed.keys())
        for name, value in whole.items():
            np.testing.assert_array_equal(value, resumed[name])

    def test_each_epoch_is_planned_once(self):
        plan = pipeline.plan_epoch
        with mock.patch.object(pipeline, "plan_epoch", wraps=plan) as planned:
            training.train(
                self._config(encoder="mean_pooling", num_epochs=2),
                self.folder / "run",
                verbose=False,
            )
        epochs = [call.kwargs["epoch"] for call in planned.call_args_list]
        self.assertEqual(epochs, [0, 1])

    def test_learns_and_prints_what_was_chosen(self):
        errors = io.StringIO()
        with (
            mock.patch.object(build, "LARGEST_FULL_SOFTMAX", 10),
            contextlib.redirect_stderr(errors),
        ):
            result = training.train(
                self._config(encoder="gru", num_epochs=10), self.folder / "run"
            )
        self.assertIn(
            "loss: sampled softmax of 20 mixed negatives; item table of 25 "
            "items: Adam on rows with a gradient",
            errors.getvalue(),
        )
        # On the circle the next item is certain; by chance it is 0.2.
        best = result.history[result.best_epoch]
        self.assertGreater(best["validation_ndcg@10"], 0.8)
        model = recsys.load(self.folder / "run")
        [first] = model.recommend(["i7", "i8", "i9"], k=1)
        self.assertEqual(first.item_id, "i10")


class ChoiceTest(parameterized.TestCase):
    def test_names_agree(self):
        self.assertEqual(config.NEGATIVES, negatives.SOURCES)

    @parameterized.parameters(
        ({}, 20_000, False, "dense"),
        ({}, 20_001, True, "lazy_adam"),
        ({"loss": "full_softmax"}, 10**6, False, "dense"),
        ({"loss": "sampled_softmax"}, 10, True, "lazy_adam"),
        ({"table_optimizer": "dense"}, 10**6, True, "dense"),
        (
            {"table_optimizer": "rowwise_adagrad"},
            10,
            False,
            "rowwise_adagrad",
        ),
    )
    def test_auto(self, fields, num_items, is_sampled, optimizer):
        run_config = TrainConfig(**fields)
        self.assertEqual(
            build.uses_sampled_softmax(run_config, num_items), is_sampled
        )
        self.assertEqual(
            build.chosen_table_optimizer(run_config, num_items), optimizer
        )

    @parameterized.parameters(
        (
            {"loss": "full_softmax", "num_negatives": 10},
            "--num_negatives must go with the sampled softmax",
        ),
        (
            {"loss": "full_softmax", "logq_correction": False},
            "--logq_correction must go with the sampled softmax",
        ),
        ({"loss": "softmax"}, "--loss must be one of auto, full_softmax"),
        ({"negatives": "hard"}, "--negatives must be one of in_batch"),
        ({"num_negatives": 1}, "--num_negatives must be at least 2"),
        ({"table_optimizer": "sgd"}, "--table_optimizer must be one of auto"),
    )
    def test_errors(self, fields, message):
        with self.assertRaisesRegex(InputError, message):
            TrainConfig(**fields)


if __name__ == "__main__":
    absltest.main()
