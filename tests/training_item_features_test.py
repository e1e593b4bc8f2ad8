"""Training with item features: what is learned, stored and resumed."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import tempfile
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl.testing import absltest, parameterized

import recsys
from recsys.data.features import ItemEncoder
from recsys.data.prepare import build_data
from recsys.errors import InputError
from recsys.training import TrainConfig, train
from recsys.training.build import initialize_table
from recsys.training.initial_table import FeatureRegression
from recsys.training.trainer import Trainer
from recsys.workdir import Workdir

NUM_ITEMS = 20


def write_log(folder: pathlib.Path) -> None:
    """Writes users around a circle of items of two colors, and a new item.

    The last user's last item, `new`, is a test item that nobody else has.
    """
    rng = np.random.default_rng(0)
    rows = ["user,item,timestamp"]
    for user in range(30):
        begin = rng.integers(NUM_ITEMS)
        rows += [
            f"u{user},i{(begin + step) % NUM_ITEMS},{step}"
            for step in range(12)
        ]
    rows.append("u29,new,99")
    (folder / "log.csv").write_text("\n".join(rows) + "\n")
    items = ["item,title,color,size"]
    items += [
        f"i{i},Item number {i} ({1990 + i}),{'red' if i % 2 else 'blue'},{i}"
        for i in range(NUM_ITEMS)
    ]
    items.append("new,Item number new (1995),red,4.5")
    (folder / "items.csv").write_text("\n".join(items) + "\n")


class TrainTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enterContext(tempfile.TemporaryDirectory())
        )
        write_log(self.folder)

    def config(self, **fields) -> TrainConfig:
        return TrainConfig(
            **{
                "data": str(self.folder / "log.csv"),
                "items_file": str(self.folder / "items.csv"),
                "item_features": "color,size,year",
                "id_dropout": 0.3,
                "encoder": "mean_pooling",
                "embedding_dim": 8,
                "positions_per_batch": 40,
                "num_epochs": 2,
                "checkpoint_steps": 2,
                **fields,
            }
        )

    def test_an_unseen_item_is_recommended_by_its_features(self):
        workdir = self.folder / "run"
        train(self.config(), workdir, verbose=False)
        model = recsys.load(workdir)
        towers = model.model.history_tower, model.model.candidate_tower
        features = towers[1].item_features
        self.assertIs(towers[0].item_features, features)
        new = int(model.vocabulary.encode(["new"])[0])
        rows = towers[1].embedding.embeddings.numpy()
        np.testing.assert_array_equal(rows[new], np.zeros(8))
        self.assertGreater(np.abs(rows[2:new]).max(axis=1).min(), 0)
        vector = model.item_vectors()[new]
        np.testing.assert_array_equal(vector, features(np.array(new)))
        self.assertGreater(np.abs(vector).max(), 0)
        # The workdir alone suffices to encode items that come later.
        encoder = ItemEncoder.load(workdir / "item_features.json")
        encoded = encoder.encode(model.vocabulary.items)
        np.testing.assert_array_equal(features.values[2:], encoded.values)
        again = features.embed(encoded.values, encoded.weights)
        np.testing.assert_array_equal(again[new - 2], vector)
        config = json.loads((workdir / "config.json").read_text())
        self.assertEqual(config["item_features"], "color,size,year")

    def test_a_new_item_gets_the_row_that_its_features_predict(self):
        """By default; the model has no features, nor other weights than one of
        ids alone, and the rows of known items are those of their training."""
        config = self.config(id_dropout=None, num_epochs=1)
        data = build_data(config)
        workdir = self.folder / "run"
        before = []
        filled = FeatureRegression.filled

        def keep(regression, table):
            before.append(table.copy())
            return filled(regression, table)

        with mock.patch.object(FeatureRegression, "filled", keep):
            train(config, workdir, data=data, verbose=False)
        model = recsys.load(workdir)
        towers = model.model.history_tower, model.model.candidate_tower
        for tower in towers:
            self.assertIsNone(tower.item_features)
        rows = towers[1].embedding.embeddings.numpy()
        new = int(model.vocabulary.encode(["new"])[0])
        np.testing.assert_array_equal(rows[:new], before[-1][:new])
        self.assertGreater(np.abs(rows[new] - before[-1][new]).max(), 1e-3)
        # Red, of a size near the fourth and of the year of the fifth.
        encoder = ItemEncoder.load(workdir / "item_features.json")
        regression = FeatureRegression(encoder, model.vocabulary)
        np.testing.assert_array_equal(regression.filled(rows), rows)

    def test_rare_items_start_near_what_their_features_predict(self):
        config = self.config(id_dropout=None, table_init="co_occurrence")
        data = build_data(config)
        plain = dataclasses.replace(config, item_features=None)
        tables = []
        for each in (plain, config):
            trainer = Trainer(each, Workdir(self.folder), data, verbose=False)
            initialize_table(each, trainer.model, data, trainer.regression)
            table = trainer.model.candidate_tower.embedding.embeddings
            tables.append(table.numpy())
        assert trainer.regression is not None
        np.testing.assert_array_equal(
            tables[1], trainer.regression.blended(tables[0])
        )
        self.assertGreater(np.abs(tables[1] - tables[0])[2:].min(), 0)

    def test_without_features_nothing_changes(self):
        """Bit for bit, whatever the items file has."""
        weights = []
        for items in (self.folder / "items.csv", None):
            config = self.config(
                item_features=None,
                id_dropout=None,
                items_file=items and str(items),
                table_init="co_occurrence",
                num_epochs=1,
            )
            if items is None:
                (self.folder / "items.csv").unlink()
            trainer = Trainer(
                config, Workdir(self.folder), build_data(config), verbose=False
            )
            initialize_table(config, trainer.model, build_data(config))
            for batch in trainer.batches(epoch=0).take(3):
                trainer.train_step(batch)
            weights.append([w.numpy() for w in trainer.model.weights])
            self.assertIsNone(trainer.model.trained_items)
        for one, two in zip(*weights, strict=True):
            np.testing.assert_array_equal(one, two)

    def test_text_vectors_made_elsewhere(self):
        """Of a Parquet file keyed by item; those missing are counted."""
        items = [f"i{i}" for i in range(NUM_ITEMS)] + ["new", "other"]
        angles = np.arange(NUM_ITEMS) * 2 * np.pi / NUM_ITEMS
        vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).tolist()
        vectors[3], vectors[4] = None, [None, 1.0]
        vectors += [vectors[5], vectors[6]]
        path = self.folder / "vectors.parquet"
        pq.write_table(pa.table({"item_id": items, "vector": vectors}), path)
        config = self.config(
            items_file=str(path),
            item_features="vector",
            id_dropout=None,
            num_epochs=8,
            learning_rate=0.05,
            warmup_steps=10,
        )
        data = build_data(config)
        self.assertIn(
            "item features of 21 items: vector (none or invalid for 2)",
            data.notes,
        )
        train(config, self.folder / "run", data=data, verbose=False)
        model = recsys.load(self.folder / "run")
        found = model.item_vectors()
        # The new item lies where the one of the same vector does, not across.
        new, same, across = found[model.vocabulary.encode(["new", "i5", "i15"])]
        self.assertGreater(new @ same, new @ across)
        vectors[0] = [1.0]
        pq.write_table(pa.table({"item_id": items, "vector": vectors}), path)
        with self.assertRaisesRegex(InputError, "`vector` .* one .*: 1, 2$"):
            build_data(config)

    def test_configurations_of_the_version_before(self):
        """Then `id_dropout` was 0.2, unless given."""
        old = {"item_features": "genres", "id_dropout": 0.2}
        self.assertEqual(TrainConfig.from_dict(old, "x").id_dropout, 0.2)
        old["item_features"] = None
        self.assertEqual(TrainConfig.from_dict(old, "x"), TrainConfig())

    @parameterized.parameters(0.3, None)
    def test_a_run_resumed_within_an_epoch_ends_the_same(self, id_dropout):
        """The random state of `id_dropout` is resumed, too."""
        whole, broken = self.folder / "whole", self.folder / "broken"
        config = self.config(id_dropout=id_dropout)
        data = build_data(config)
        train(config, whole, data=data, verbose=False)
        count = Trainer._count

        def stop(trainer, progress, *measures):
            if progress.global_step == 5:
                raise KeyboardInterrupt
            count(trainer, progress, *measures)

        with (
            mock.patch.object(Trainer, "_count", stop),
            self.assertRaises(KeyboardInterrupt),
        ):
            train(config, broken, data=data, verbose=False)
        train(config, broken, data=data, verbose=False)
        for one, two in zip(
            recsys.load(whole).model.weights,
            recsys.load(broken).model.weights,
            strict=True,
        ):
            np.testing.assert_array_equal(one, two, one.path)

    def test_an_unseen_item_is_not_a_negative(self):
        config = self.config(loss="sampled_softmax", negatives="uniform")
        trainer = Trainer(
            config, Workdir(self.folder), build_data(config), verbose=False
        )
        table = trainer.model.candidate_tower.embedding.embeddings
        before = table.numpy()
        for batch in trainer.batches(epoch=0).take(5):
            trainer.train_step(batch)
        moved = np.flatnonzero((table.numpy() != before).any(axis=1))
        new = trainer._recommender.vocabulary.encode(["new"])
        self.assertGreater(len(moved), 10)
        self.assertNotIn(new[0], moved)

    def test_a_model_of_ids_reads_no_features(self):
        config = self.config(item_features=None)
        # As another run may have left it, in a folder that holds no run now.
        (self.folder / "item_features.json").write_text("{}")
        trainer = Trainer(
            config, Workdir(self.folder), build_data(config), verbose=False
        )
        self.assertIsNone(trainer.item_encoder)

    @parameterized.parameters(
        ("flavour", "a column of the items file .*size.*: 'flavour'$"),
        ("train_count", "a column of the items file .*: 'train_count'$"),
        ("color:list", "kind of item feature `color` .*: 'list'$"),
    )
    def test_a_wrong_column_is_reported_with_the_data(self, text, message):
        with self.assertRaisesRegex(InputError, message):
            build_data(self.config(item_features=text))

    def test_no_items_file(self):
        # It would be found beside the log.
        (self.folder / "items.csv").unlink()
        with self.assertRaisesRegex(InputError, "of the items file .*ids only"):
            build_data(self.config(items_file=None, item_features="genres"))


if __name__ == "__main__":
    absltest.main()
