"""The examples as they stand, each in a few seconds."""

from __future__ import annotations

import contextlib
import io
import pathlib
import runpy
import tempfile

import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest

import recsys
from recsys import files
from recsys.config import TrainConfig
from recsys.data.vocabulary import Vocabulary
from recsys.workdir import Workdir

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
NUM_ITEMS = 20


def run_example(name: str, *arguments):
    """Returns what the example's `main` returns."""
    example = runpy.run_path(str(EXAMPLES / name))
    with contextlib.redirect_stdout(io.StringIO()):
        return example["main"](*arguments)


class TrainedTowersTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        keras.utils.set_random_seed(0)
        folder = self.enter_context(tempfile.TemporaryDirectory())
        self.workdir = Workdir(pathlib.Path(folder))
        table = recsys.SharedItemEmbedding(NUM_ITEMS + 2, 6)
        model = recsys.TwoTower(
            recsys.HistoryTower(table, recsys.MeanPooling()),
            recsys.CandidateTower(table),
        )
        model.build()
        files.write_json(self.workdir.config, TrainConfig().to_dict())
        Vocabulary([f"i{i}" for i in range(NUM_ITEMS)]).save(
            self.workdir.vocabulary
        )
        model.save(self.workdir.model)
        self.table = table.embeddings.numpy()

    def test_reuse_of_towers(self):
        model = run_example("reuse_towers.py", str(self.workdir.path))
        dense = model.layers[-1]
        history, item = np.array([[2, 5, 0], [9, 3, 4]]), np.array([7, 2])
        users = [self.table[[2, 5]].mean(0), self.table[[9, 3, 4]].mean(0)]
        scores = np.sum(users * self.table[item], axis=1, keepdims=True)
        logits = scores * dense.kernel.numpy() + dense.bias.numpy()
        np.testing.assert_allclose(
            model([history, item]).numpy(), 1 / (1 + np.exp(-logits)), rtol=1e-5
        )
        tables = [v for v in model.variables if len(v.shape) == 2]
        tables = [v for v in tables if v.shape[0] == NUM_ITEMS + 2]
        self.assertLen(tables, 1)
        model.fit([history, item], np.array([1, 0]), verbose=0)
        moved = np.abs(tables[0].numpy() - self.table).max(axis=1) > 0
        self.assertEqual(np.flatnonzero(moved).tolist(), [2, 3, 4, 5, 7, 9])

    def test_fine_tuning(self):
        losses = run_example(
            "fine_tuning.py", str(self.workdir.path), None, 200
        )
        self.assertAlmostEqual(losses[0], np.log(NUM_ITEMS), delta=0.1)
        self.assertLess(losses[-1], losses[0] - 0.2)

    def test_fit_with_a_plain_dataset(self):
        trained = recsys.load(self.workdir.path)
        rng = np.random.default_rng(0)
        ids = rng.integers(2, NUM_ITEMS + 2, (32, 6), "int32")
        train_ds = tf.data.Dataset.from_tensor_slices(
            {"history_ids": ids[:, :-1], "target_ids": ids[:, 1:]}
        ).batch(8)
        trained.model.compile("adam")
        history = trained.model.fit(train_ds, epochs=3, verbose=0).history
        self.assertLess(history["loss"][-1], history["loss"][0])


class SharedColumnsTest(absltest.TestCase):
    def test_each_column_reads_the_rows_of_the_one_table(self):
        path = EXAMPLES / "shared_embedding_columns.py"
        example = runpy.run_path(str(path))
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            model, columns = example["main"]()
        self.assertStartsWith(printed.getvalue(), "1 table, loss 0.")
        first, last = map(float, printed.getvalue().split()[3::2])
        self.assertLess(last, first - 0.1)
        [table] = [v.numpy() for v in model.variables if v.shape[0] == 40]
        inputs = example["make_inputs"](7)
        got = columns(list(inputs.values()))
        for row in range(7):
            watched = inputs["watch_list"][row]
            weights = np.where(watched, inputs["watch_list_weights"][row], 0)
            expected = {
                "last_liked": table[inputs["last_liked"][row]],
                "candidate": table[inputs["candidate"][row]],
                "history": table[inputs["history"][row]].mean(axis=0),
                "watch_list": weights @ table[watched] / weights.sum(),
            }
            for name, value in expected.items():
                np.testing.assert_allclose(
                    got[name][row], value, atol=1e-6, err_msg=name
                )


if __name__ == "__main__":
    absltest.main()
