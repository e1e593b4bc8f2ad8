"""Training that skips padding, on a log of short histories."""

import contextlib
import dataclasses
import json
import pathlib
import tempfile
from unittest import mock

import keras
import numpy as np
from absl.testing import absltest, parameterized

from recsys.config import TrainConfig
from recsys.data.prepare import build_data
from recsys.training import Callback, trainer
from recsys.workdir import Workdir


class PaddingTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enterContext(tempfile.TemporaryDirectory())
        )
        rng = np.random.default_rng(0)
        rows = ["user,item,timestamp"]
        for user in range(60):
            rows += [
                f"u{user},i{item},{time}"
                for time, item in enumerate(rng.permutation(20)[:6])
            ]
        (self.folder / "log.csv").write_text("\n".join(rows) + "\n")

    def _trainer(self, name="run", callbacks=(), **fields):
        fields = {
            "embedding_dim": 8,
            "dropout": 0.0,
            "positions_per_batch": 250,
            "warmup_steps": 2,
            "num_epochs": 2,
            **fields,
        }
        config = TrainConfig(data=str(self.folder / "log.csv"), **fields)
        data = build_data(config)
        folder = Workdir(self.folder / name)
        return trainer.Trainer(
            config, folder, data, verbose=False, callbacks=callbacks
        )

    @parameterized.parameters(
        # Three positions in rows of 25.
        ({}, True),
        ({"time_features": "age"}, True),
        # XLA must know how many there are.
        ({"jit_compile": True}, False),
        # Rows of 3 have none.
        ({"max_history_length": 3}, False),
    )
    def test_where_much_is_padding(self, fields, expected):
        made = self._trainer(**fields)
        encoder = made.model.history_tower.encoder
        self.assertIs(encoder.skips_padding, expected)
        self.assertIs(made.first_progress().skips_padding, expected)

    @parameterized.parameters((0.34, True), (0.33, False))
    def test_more_than_a_third(self, share, expected):
        made = self._trainer()
        plan = dataclasses.replace(made._plan(0), padding_share=share)
        made._kept_plan = (0, plan)
        self.assertIs(made.first_progress().skips_padding, expected)

    def test_other_encoders_compute_everything(self):
        made = self._trainer(encoder="gru")
        [progress] = made.run().history[:1]
        self.assertTrue(np.isfinite(progress["loss"]))

    @parameterized.parameters(
        {},
        {"user_features": "job", "time_features": "gap,age"},
        {"loss": "sampled_softmax", "num_negatives": 8},
    )
    def test_learns_the_same(self, **fields):
        users = [
            "user,job",
            *(f"u{user},{'ab'[user % 2]}" for user in range(60)),
        ]
        (self.folder / "users.csv").write_text("\n".join(users) + "\n")
        fields["feature_dropout"] = 0.0
        slow = self._trainer("slow", **fields)
        fast = self._trainer("fast", **fields)
        losses = []
        for made, most in ((slow, 1.0), (fast, 1 / 3)):
            with mock.patch.object(trainer, "_MOST_PADDING", most):
                losses.append([epoch["loss"] for epoch in made.run().history])
            encoder = made.model.history_tower.encoder
            self.assertIs(encoder.skips_padding, made is fast)
        np.testing.assert_allclose(*losses, rtol=1e-4)
        for one, other in zip(
            slow.model.trainable_variables,
            fast.model.trainable_variables,
            strict=True,
        ):
            np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-3)
        # It is a matter of training, and not saved.
        saved = keras.saving.load_model(self.folder / "fast" / "model.keras")
        self.assertFalse(saved.history_tower.encoder.skips_padding)

    def _run(self, name, stop_at=None):
        class Stop(Callback):
            def on_step(self, progress, loss):
                if progress.global_step == stop_at:
                    raise KeyboardInterrupt

        fields = {"dropout": 0.3, "checkpoint_steps": 2}
        made = self._trainer(name, callbacks=[Stop()], **fields)
        with contextlib.suppress(KeyboardInterrupt):
            made.run()
        return made

    def _assert_equal(self, one, other):
        for here, there in zip(
            one.model.variables, other.model.variables, strict=True
        ):
            np.testing.assert_array_equal(here, there)

    def test_a_run_that_is_resumed_ends_with_the_same_weights(self):
        whole = self._run("whole")
        self._run("parts", stop_at=5)
        parts = self._run("parts")
        self.assertTrue(parts.model.history_tower.encoder.skips_padding)
        self._assert_equal(whole, parts)

    def test_a_run_of_an_earlier_version_goes_on_as_it_began(self):
        with mock.patch.object(trainer, "_MOST_PADDING", 1.0):
            whole = self._run("whole")
            self._run("parts", stop_at=5)
        [path] = (self.folder / "parts").glob("checkpoints/*/progress.json")
        fields = json.loads(path.read_text())
        del fields["skips_padding"], fields["sha256"]
        path.write_text(json.dumps(fields))
        parts = self._run("parts")
        self.assertFalse(parts.model.history_tower.encoder.skips_padding)
        self._assert_equal(whole, parts)

    def test_in_bfloat16(self):
        made = self._trainer(precision="bfloat16", dropout=0.2)
        losses = [epoch["loss"] for epoch in made.run().history]
        self.assertTrue(made.model.history_tower.encoder.skips_padding)
        self.assertLess(losses[1], losses[0])


if __name__ == "__main__":
    absltest.main()
