"""Training that skips padding, on a log of short histories."""

import pathlib
import tempfile
from unittest import mock

import keras
import numpy as np
from absl.testing import absltest, parameterized

from recsys.config import TrainConfig
from recsys.data.prepare import build_data
from recsys.training import trainer
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

    def _trainer(self, name="run", **fields):
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
        return trainer.Trainer(config, folder, data, verbose=False)

    @parameterized.parameters(
        # Three positions in rows of 25.
        ({}, True),
        ({"time_features": "age"}, True),
        # XLA does not know how many there are.
        ({"jit_compile": True}, False),
        # Rows of 3 have none.
        ({"max_history_length": 3}, False),
    )
    def test_where_much_is_padding(self, fields, expected):
        made = self._trainer(**fields)
        encoder = made.model.history_tower.encoder
        self.assertIs(encoder.skips_padding, expected)

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
        with mock.patch.object(trainer, "_MOST_PADDING", 1.0):
            slow = self._trainer("slow", **fields)
        fast = self._trainer("fast", **fields)
        for made, skips in ((slow, False), (fast, True)):
            encoder = made.model.history_tower.encoder
            self.assertIs(encoder.skips_padding, skips)
        losses = [
            [epoch["loss"] for epoch in made.run().history]
            for made in (slow, fast)
        ]
        np.testing.assert_allclose(*losses, rtol=1e-4)
        for one, other in zip(
            slow.model.trainable_variables,
            fast.model.trainable_variables,
            strict=True,
        ):
            np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-3)
        # What is saved goes on so, and answers as before.
        saved = keras.saving.load_model(self.folder / "fast" / "model.keras")
        self.assertTrue(saved.history_tower.encoder.skips_padding)

    def test_in_bfloat16(self):
        made = self._trainer(precision="bfloat16", dropout=0.2)
        self.assertTrue(made.model.history_tower.encoder.skips_padding)
        losses = [epoch["loss"] for epoch in made.run().history]
        self.assertLess(losses[1], losses[0])


if __name__ == "__main__":
    absltest.main()
