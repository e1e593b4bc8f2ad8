"""Callbacks: when they are called, with what, and how they end a run."""

from __future__ import annotations

import json
import pathlib
import runpy
import sys
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest

import recsys
from recsys.training import Callback, TrainConfig, train


class Recorder(Callback):
    """Notes every call; ends or breaks the run after some epoch."""

    def __init__(self, ends_after=None, breaks_after=None):
        self.calls, self.losses = [], []
        self.ends_after, self.breaks_after = ends_after, breaks_after

    def on_start(self, config, workdir, progress):
        self.calls.append(("start", progress.epoch, config.seed, workdir.name))

    def on_step(self, progress, loss):
        self.calls.append(("step", progress.global_step))
        self.losses.append(loss)

    def on_epoch_end(self, progress):
        self.calls.append(("epoch", progress.epoch, len(progress.history)))
        if progress.epoch == self.breaks_after:
            raise RuntimeError("broken on purpose")
        return True if progress.epoch == self.ends_after else None

    def on_end(self, progress):
        self.calls.append(("end", len(progress.history), progress.finished))


class CallbacksTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enterContext(tempfile.TemporaryDirectory())
        )
        # Four batches of five of the twenty users, whose rows are padded to 25,
        # each with three targets: two of six items are held out.
        rows = [
            f"u{user},i{(user + step) % 9},{step}"
            for user in range(20)
            for step in range(6)
        ]
        log = self.folder / "log.csv"
        log.write_text("\n".join(["user,item,timestamp", *rows]) + "\n")
        self.config = TrainConfig(
            data=str(log),
            encoder="mean_pooling",
            embedding_dim=4,
            positions_per_batch=125,
            num_epochs=3,
        )

    def train(self, name, *callbacks):
        return train(
            self.config,
            self.folder / name,
            callbacks=callbacks,
            verbose=False,
            evaluate=False,
        )

    def vectors(self, name):
        return recsys.load(self.folder / name).item_vectors()

    def test_the_calls_of_a_run_in_order(self):
        recorder, second = Recorder(), Recorder()
        result = self.train("run", recorder, second)
        expected = [("start", 0, 0, "run")]
        for epoch in range(3):
            steps = range(4 * epoch + 1, 4 * epoch + 5)
            expected += [("step", step) for step in steps]
            expected.append(("epoch", epoch + 1, epoch + 1))
        self.assertEqual(recorder.calls, [*expected, ("end", 3, True)])
        self.assertEqual(second.calls, recorder.calls)
        # All batches are equally large, so the means have equal weights.
        np.testing.assert_allclose(
            np.reshape(recorder.losses, [3, 4]).mean(1),
            [epoch["loss"] for epoch in result.history],
            rtol=1e-6,
        )

    def test_a_finished_run_has_nothing_to_train(self):
        self.train("run")
        recorder = Recorder()
        self.train("run", recorder)
        self.assertEqual(
            recorder.calls, [("start", 3, 0, "run"), ("end", 3, True)]
        )

    def test_a_callback_ends_the_run_for_good(self):
        first, second = Recorder(ends_after=2), Recorder()
        result = self.train("run", first, second)
        self.assertLen(result.history, 2)
        # The second hears of that epoch, too.
        self.assertEqual(second.calls[-2:], [("epoch", 2, 2), ("end", 2, True)])
        self.assertLen(self.train("run").history, 2)

    def test_a_run_that_a_callback_broke_is_resumed(self):
        self.train("whole")
        broken = Recorder(breaks_after=1)
        with self.assertRaisesRegex(RuntimeError, "broken on purpose"):
            self.train("run", broken)
        self.assertEqual(broken.calls[-1], ("epoch", 1, 1))
        recorder = Recorder()
        self.train("run", recorder)
        # The epoch was saved.
        self.assertEqual(
            recorder.calls[:2], [("start", 1, 0, "run"), ("step", 5)]
        )
        np.testing.assert_array_equal(
            self.vectors("run"), self.vectors("whole")
        )

    def test_callbacks_change_no_weight(self):
        self.train("plain")
        self.train("followed", Recorder())
        np.testing.assert_array_equal(
            self.vectors("plain"), self.vectors("followed")
        )
        configs = [
            json.loads((self.folder / name / "config.json").read_text())
            for name in ("plain", "followed")
        ]
        self.assertEqual(*configs)

    def run_example(self, name, tracker):
        module = name.removesuffix("_callback.py")
        path = pathlib.Path(__file__).parents[1] / "examples" / name
        with mock.patch.dict(sys.modules, {module: tracker}):
            runpy.run_path(str(path))["main"](
                str(self.folder / "run"), self.config
            )
        measures = recsys.workdir.Workdir(self.folder / "run").read_history(
            self.config
        )[0]
        self.assertLen(measures, 3)
        return measures

    def test_the_example_for_mlflow(self):
        tracker = mock.Mock()
        measures = self.run_example("mlflow_callback.py", tracker)
        renamed = [
            {name.replace("@", "_at_"): value for name, value in epoch.items()}
            for epoch in measures
        ]
        self.assertEqual(
            tracker.mock_calls,
            [
                mock.call.start_run(run_name="run"),
                mock.call.log_params(self.config.to_dict()),
                *(
                    mock.call.log_metrics(epoch, step=number)
                    for number, epoch in enumerate(renamed, 1)
                ),
                mock.call.end_run(),
            ],
        )

    def test_the_example_for_weights_and_biases(self):
        tracker = mock.Mock()
        measures = self.run_example("wandb_callback.py", tracker)
        self.assertEqual(
            tracker.mock_calls[0],
            mock.call.init(name="run", config=self.config.to_dict()),
        )
        logged = tracker.init.return_value.log.mock_calls
        self.assertLen(logged, 12 + 3)
        self.assertEqual(
            logged[4::5],
            [
                mock.call(epoch, step=4 * number)
                for number, epoch in enumerate(measures, 1)
            ],
        )
        tracker.init.return_value.finish.assert_called_once_with()


if __name__ == "__main__":
    absltest.main()
