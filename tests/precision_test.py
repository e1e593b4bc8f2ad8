"""Training in bfloat16 and what is left of it afterwards."""

import contextlib
import dataclasses
import pathlib
import shutil
import tempfile

import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest

from recsys.config import make_config
from recsys.data.prepare import build_data
from recsys.evaluation import evaluate
from recsys.metrics import parse_metric
from recsys.models.history_encoders import SelfAttentionEncoder
from recsys.recommender import Recommender
from recsys.training import Callback
from recsys.training.build import build_model, copy_weights, float32_copy
from recsys.training.trainer import Trainer
from recsys.workdir import Workdir

HISTORIES = np.array([[5, 9, 2, 7], [3, 4, 0, 0]], np.int32)
CONFIG = make_config(
    None,
    {
        "precision": "bfloat16",
        "embedding_dim": 16,
        "num_blocks": 2,
        "max_history_length": 30,
        "num_epochs": 1,
        "positions_per_batch": 2000,
    },
)


class PrecisionTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.data = build_data(CONFIG)

    def _trainer(self, config=CONFIG):
        folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        trainer = Trainer(config, Workdir(folder), self.data, verbose=False)
        return trainer, folder

    def test_towers_compute_in_bfloat16_over_float32_weights(self):
        model = build_model(CONFIG, 20)
        for tower, answer in (
            (model.history_tower, model.history_tower(HISTORIES)),
            (model.candidate_tower, model.candidate_tower(HISTORIES)),
        ):
            self.assertEqual(answer.dtype, tf.bfloat16)
            kinds = {v.dtype for v in tower.trainable_variables}
            self.assertEqual(kinds, {"float32"})

    def test_float32_copy_has_the_weights_and_the_precision_of_float32(self):
        keras.utils.set_random_seed(1)
        half = build_model(CONFIG, 20)
        plain = build_model(
            dataclasses.replace(CONFIG, precision="float32"), 20
        )
        copy_weights(half, plain)
        copy = float32_copy(half)
        copy_weights(half, copy)
        self.assertIs(
            copy.history_tower.embedding, copy.candidate_tower.embedding
        )
        self.assertEqual(copy.history_tower(HISTORIES).dtype, tf.float32)
        np.testing.assert_array_equal(
            copy({"history_ids": HISTORIES}), plain({"history_ids": HISTORIES})
        )
        answer = half({"history_ids": HISTORIES})[:, 2:]
        expected = plain({"history_ids": HISTORIES})[:, 2:]
        self.assertGreater(np.ptp(expected - tf.cast(answer, tf.float32)), 0)
        # bfloat16 keeps 8 bits.
        np.testing.assert_allclose(
            tf.cast(answer, tf.float32), expected, atol=0.05
        )

    def test_the_saved_model_is_float32_and_validates_as_it_was_measured(self):
        trainer, folder = self._trainer()
        trainer.run()
        saved = keras.saving.load_model(folder / "model.keras")
        policies = {
            layer.dtype_policy.name for layer in saved._flatten_layers()
        }
        self.assertEqual(policies, {"float32"})
        for old, new in zip(
            trainer.model.trainable_variables,
            saved.trainable_variables,
            strict=True,
        ):
            np.testing.assert_array_equal(old, new)
        again = evaluate(
            Recommender(saved, self.data.vocabulary, 30),
            self.data.split.validation,
            protocol=self.data.split.protocol,
        )
        [measured] = trainer.run().history
        [ndcg] = again.metrics([parse_metric("ndcg@10")]).values()
        self.assertEqual(ndcg, measured["validation_ndcg@10"])

    def test_learns_as_float32_does(self):
        losses = []
        for precision in ("float32", "bfloat16"):
            config = dataclasses.replace(CONFIG, precision=precision)
            trainer, _ = self._trainer(config)
            losses.append(trainer.run().history[0]["loss"])
        self.assertNotEqual(*losses)
        np.testing.assert_allclose(*losses, rtol=0.01)
        # Of all items alike it would be log 9,066.
        self.assertLess(max(losses), np.log(9066) - 0.5)

    def test_what_an_extension_writes_has_the_present_weights(self):
        trainer, folder = self._trainer()
        table = trainer.model.candidate_tower.embedding.embeddings
        table.assign(table + 1)
        trainer.save_model(folder / "model.keras")
        saved = keras.saving.load_model(folder / "model.keras")
        np.testing.assert_array_equal(
            saved.candidate_tower.embedding.embeddings, table
        )

    def test_a_run_that_is_resumed_ends_with_the_same_weights(self):
        config = dataclasses.replace(CONFIG, checkpoint_steps=3)
        whole, _ = self._trainer(config)
        whole.run()
        folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)

        class Stop(Callback):
            def on_step(self, progress, loss):
                if progress.step == 5:
                    raise KeyboardInterrupt

        for callbacks in ([Stop()], []):
            trainer = Trainer(
                config,
                Workdir(folder),
                self.data,
                verbose=False,
                callbacks=callbacks,
            )
            with contextlib.suppress(KeyboardInterrupt):
                trainer.run()
        for old, new in zip(
            whole.model.trainable_variables,
            trainer.model.trainable_variables,
            strict=True,
        ):
            np.testing.assert_array_equal(old, new)

    def test_xla_compiles_attention_by_time(self):
        times = np.array([[3, 5, 60, -1], [7, 7, 0, 0]])
        vectors = tf.random.stateless_normal([2, 4, 16], [1, 2])
        encoder = SelfAttentionEncoder(num_heads=2, reads_times=True)
        encoder.build(vectors.shape)

        def gradients():
            with tf.GradientTape() as tape:
                found = encoder(vectors, training=True, times=(times, times))
                loss = tf.reduce_sum(found**3)
            return tape.gradient(loss, encoder.trainable_variables)

        encoder.dropout.rate = 0
        for block in encoder.blocks:
            block.dropout.rate = 0
        compiled = tf.function(gradients, jit_compile=True)()
        for here, there in zip(gradients(), compiled, strict=True):
            np.testing.assert_allclose(here, there, rtol=1e-3, atol=1e-3)


if __name__ == "__main__":
    absltest.main()
