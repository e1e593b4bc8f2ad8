"""Kinds of events and dislikes, from a log to batches, splits and losses."""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
from absl.testing import absltest, parameterized

import recsys
from recsys import baselines, losses
from recsys.config import TrainConfig, parse_events
from recsys.data import pipeline, shard_preparation, sources, splits
from recsys.data.events import EventKinds
from recsys.data.prepare import build_data, data_summary, open_shards
from recsys.data.sequences import Sequences
from recsys.errors import InputError
from recsys.evaluation import audit, by_event, evaluate
from recsys.negatives import Negatives

_KINDS = EventKinds(
    ("view", "buy"), np.array([1, 5], np.float32), np.array([False, True])
)
# Kinds of one user each; v is a view and b is a purchase.
_LOG = {
    "a": "v b v b b v",
    "b": "b v",
    "c": "b b",
    "d": "v v v",
}


def _sequences(log=None, *, dislikes=None) -> Sequences:
    """Users whose interactions are items 2, 3, … at times 10, 20, …"""
    codes = [
        [("v", "b").index(k) for k in kinds.split()]
        for kinds in (log or _LOG).values()
    ]
    lengths = [len(each) for each in codes]
    return Sequences(
        user_ids=np.array(list(log or _LOG), object),
        offsets=np.append(0, np.cumsum(lengths)),
        items=np.concatenate([np.arange(n) + 2 for n in lengths]).astype(
            np.int32
        ),
        timestamps=np.concatenate([10 * np.arange(n) + 10 for n in lengths]),
        columns={"event": np.concatenate(codes).astype(np.int32)},
        kinds=_KINDS,
        dislikes=dislikes,
    )


def _slices(queries) -> list[tuple[str, list[int], list[int]]]:
    """Returns user, history and targets of each query."""
    rows = np.arange(len(queries))
    found = []
    for row in rows:
        history, _ = queries.histories(rows[row : row + 1])
        targets, _ = queries.targets(rows[row : row + 1])
        user = queries.sequences.user_ids[queries.users[row]]
        found.append((user, history.tolist(), targets.tolist()))
    return found


class SplitsTest(absltest.TestCase):
    def test_leave_last_out_asks_for_the_last_targets(self):
        split = splits.leave_last_out(_sequences())
        self.assertEqual(
            _slices(split.test),
            [("a", [2, 3, 4, 5], [6]), ("c", [2], [3])],
        )
        self.assertEqual(_slices(split.validation), [("a", [2, 3, 4], [5])])
        # b's purchase has no history, and d buys nothing.
        self.assertEqual(split.train.lengths.tolist(), [3, 2, 1, 3])
        self.assertTrue(audit(split).passed)

    def test_validation_only(self):
        split = splits.validation_only(_sequences())
        self.assertEqual(len(split.validation), 2)
        self.assertEqual(split.train.lengths.tolist(), [4, 2, 1, 3])

    def test_temporal_asks_for_targets_only(self):
        split = splits.temporal(_sequences(), 20, 40)
        self.assertEqual(
            _slices(split.validation), [("a", [2], [3]), ("c", [2], [3])]
        )
        self.assertEqual(
            _slices(split.test),
            [("a", [2, 3, 4], [5]), ("a", [2, 3, 4, 5], [6])],
        )

    def test_held_out_users_ask_for_the_last_target(self):
        log = {f"u{i}": "v b v b v" for i in range(10)}
        split = splits.held_out_users(_sequences(log))
        for _, history, targets in _slices(split.test):
            self.assertEqual((history, targets), ([2, 3, 4], [5]))

    def test_too_few_targets(self):
        log = {"a": "v b v", "b": "b v", "c": "b b"}
        with self.assertRaisesRegex(
            InputError, "at least 2 targets with a history. Received: at most 1"
        ):
            splits.leave_last_out(_sequences(log))

    def test_held_out_users_ask_for_distinct_items(self):
        log = {f"u{i}": "v v v v v v v v v v" for i in range(10)}
        every = dataclasses.replace(_KINDS, are_targets=np.ones(2, bool))
        items = np.tile([2, 3, 4, 5, 6, 7, 2, 8, 7, 2], 10).astype(np.int32)
        items[-10:] = np.arange(2, 12)
        sequences = dataclasses.replace(
            _sequences(log), kinds=every, items=items
        )
        split = splits.held_out_users(sequences, fold_in=0.5)
        found = [*_slices(split.validation), *_slices(split.test)]
        self.assertLen(found, 2)
        for user, history, targets in found:
            self.assertEqual(history, [2, 3, 4, 5, 6])
            # The second 7 would be asked for twice.
            expected = [7, 2, 8] if user != "u9" else [7, 8, 9, 10, 11]
            self.assertEqual(targets, expected)
        self.assertTrue(audit(split).passed)

    def test_held_out_items_train_on_nothing_from_the_first_target_on(self):
        log = {f"u{i}": "v b v b v b b v" for i in range(40)}
        sequences = _sequences(log)
        # Every user has a catalog of items in an order of their own.
        rng = np.random.default_rng(0)
        items = np.concatenate([rng.permutation(8) + 2 for _ in range(40)])
        sequences = dataclasses.replace(sequences, items=items.astype(np.int32))
        split = splits.held_out_items(sequences)
        self.assertTrue(audit(split).passed)
        for queries in (split.validation, split.test):
            kept = queries.sequences
            kinds = kept.columns["event"][queries.history_ends]
            self.assertTrue((kinds == 1).all())

    def test_kinds_without_history_only_split_as_without_kinds(self):
        both = dataclasses.replace(
            _sequences(),
            kinds=dataclasses.replace(_KINDS, are_targets=np.ones(2, bool)),
        )
        plain = dataclasses.replace(both, kinds=None, columns={})
        for sequences in (both, plain):
            self.assertEqual(
                _slices(splits.leave_last_out(sequences).test),
                [
                    ("a", [2, 3, 4, 5, 6], [7]),
                    ("b", [2], [3]),
                    ("c", [2], [3]),
                    ("d", [2, 3], [4]),
                ],
            )


def _dislikes(places, items, times, lengths) -> Sequences:
    return Sequences(
        user_ids=np.array(list("abcd")[: len(lengths)], object),
        offsets=np.append(0, np.cumsum(lengths)),
        items=np.array(items, np.int32),
        timestamps=np.array(times),
        columns={"place": np.array(places)},
    )


class DislikesTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        # Of a at times 5, 35 and 45, and of c at time 15.
        self.sequences = _sequences(
            dislikes=_dislikes(
                [0, 3, 4, 1], [9, 8, 9, 8], [5, 35, 45, 15], [3, 0, 1, 0]
            )
        )

    def _of(self, train) -> list[tuple[str, int]]:
        dislikes = train.dislikes
        users = np.repeat(dislikes.user_ids, dislikes.lengths)
        return list(zip(users, dislikes.items.tolist(), strict=True))

    def test_training_has_those_before_the_first_target(self):
        # a trains on three interactions, to time 30; the target is at 40.
        split = splits.leave_last_out(self.sequences)
        self.assertEqual(self._of(split.train), [("a", 9), ("a", 8), ("c", 8)])
        self.assertTrue(audit(split).passed)

    def test_temporal_ones_are_before_the_cutoff(self):
        split = splits.temporal(self.sequences, 20, 40)
        self.assertEqual(self._of(split.train), [("a", 9), ("c", 8)])
        self.assertTrue(audit(split).passed)

    def test_the_audit_finds_a_late_dislike(self):
        split = splits.leave_last_out(self.sequences)
        train = dataclasses.replace(
            split.train, dislikes=self.sequences.dislikes
        )
        found = audit(dataclasses.replace(split, train=train))
        [bad] = [check for check in found.checks if check.num_violations]
        self.assertIn("dislike", bad.claim)
        # At time 45, and the validation target is at 40.
        self.assertEqual((bad.num_violations, bad.example), (1, "'a'"))

    def test_the_audit_finds_a_target_that_is_history_only(self):
        split = splits.leave_last_out(self.sequences)
        queries = split.test
        wrong = dataclasses.replace(
            queries,
            history_ends=queries.history_ends[:1] - 2,
            target_ends=queries.target_ends[:1] - 2,
            users=queries.users[:1],
            history_starts=queries.history_starts[:1],
        )
        found = audit(dataclasses.replace(split, test=wrong))
        claims = [c.claim for c in found.checks if c.num_violations]
        self.assertIn(
            "test: no target is an event that is history only", claims
        )

    def test_keeping_some_interactions_moves_the_places(self):
        is_kept = np.ones(13, bool)
        is_kept[[1, 2]] = False  # Of a, at times 20 and 30.
        kept = self.sequences.keep(is_kept)
        self.assertEqual(kept.lengths.tolist(), [4, 2, 2, 3])
        self.assertEqual(kept.dislikes.columns["place"].tolist(), [0, 1, 2, 1])


class BatchesTest(parameterized.TestCase):
    def _batches(self, sequences, max_length=3):
        plan = pipeline.plan_epoch(
            sequences,
            max_length=max_length,
            positions_per_batch=8,
            seed=0,
            epoch=0,
        )
        return list(pipeline.train_dataset(sequences, plan).as_numpy_iterator())

    def test_history_only_is_no_target_and_weights_follow_the_targets(self):
        found = {}
        for batch in self._batches(_sequences(), max_length=8):
            self.assertEqual(batch["target_weights"].dtype, np.float32)
            for history, target, weight in zip(
                batch["history_ids"],
                batch["target_ids"],
                batch["target_weights"],
                strict=True,
            ):
                found[tuple(history[history > 0])] = (
                    target[history > 0].tolist(),
                    weight[history > 0].tolist(),
                )
        # a: v b v b b v; the purchases are items 3, 5 and 6.
        self.assertEqual(
            found[2, 3, 4, 5, 6], ([3, 0, 5, 6, 0], [5, 0, 5, 5, 0])
        )
        # b: b v, c: b b.
        self.assertIn(found[(2,)], [([3], [5]), ([0], [0])])
        self.assertEqual(found[2, 3], ([0, 0], [0, 0]))

    def test_the_kind_of_a_target_does_not_reach_its_query(self):
        every = dataclasses.replace(_KINDS, are_targets=np.ones(2, bool))
        sequences = dataclasses.replace(_sequences(), kinds=every)
        other = dataclasses.replace(
            sequences, columns={"event": 1 - sequences.columns["event"]}
        )
        for one, two in zip(
            self._batches(sequences), self._batches(other), strict=True
        ):
            for name in ("history_ids", "target_ids"):
                np.testing.assert_array_equal(one[name], two[name])

    @parameterized.parameters(2, 3, 8)
    def test_every_dislike_is_in_the_row_of_its_time(self, max_length):
        rng = np.random.default_rng(1)
        lengths = rng.integers(2, 12, 20)
        num_disliked = rng.integers(0, 5, 20)
        places = np.concatenate(
            [
                np.sort(rng.integers(0, n + 1, k))
                for n, k in zip(lengths, num_disliked, strict=True)
            ]
        )
        total = int(lengths.sum())
        offsets = np.append(0, np.cumsum(lengths))
        users = np.repeat(np.arange(20), num_disliked)
        items = np.arange(len(places)) + 1000
        sequences = Sequences(
            user_ids=np.arange(20).astype(str).astype(object),
            offsets=offsets,
            items=np.arange(2, total + 2, dtype=np.int32),
            timestamps=np.arange(total),
            dislikes=Sequences(
                user_ids=np.arange(20).astype(str).astype(object),
                offsets=np.append(0, np.cumsum(num_disliked)),
                items=items.astype(np.int32),
                timestamps=places,
                columns={"place": places},
            ),
        )
        row_of = {}
        for batch in self._batches(sequences, max_length):
            for targets, disliked in zip(
                batch["target_ids"], batch["dislike_ids"], strict=True
            ):
                for item in disliked[disliked > 0].tolist():
                    self.assertNotIn(item, row_of)
                    row_of[item] = targets[targets > 0]
        self.assertLen(row_of, len(items))
        for item, user, place in zip(items, users, places, strict=True):
            # The target at the dislike's place, or the nearest there is.
            nearest = offsets[user] + np.clip(place, 1, lengths[user] - 1) + 2
            self.assertIn(nearest, row_of[item])


def _softmax_by_hand(queries, targets, negatives, offsets, weights, dislikes):
    """Σ w (log(exp(q·t) + Σ exp(q·n − o) + Σ exp(q·d)) − q·t), slowly."""
    total = 0.0
    for row, column in np.ndindex(weights.shape):
        query = queries[row, column].astype(np.float64)
        target = query @ targets[row, column]
        terms = [np.exp(target)]
        terms += [
            np.exp(query @ n - o)
            for n, o in zip(negatives, offsets, strict=True)
        ]
        terms += [np.exp(query @ d) for d in dislikes[row]]
        total += weights[row, column] * (np.log(np.sum(terms)) - target)
    return total


class LossTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        rng = np.random.default_rng(0)
        self.queries, self.targets = rng.normal(size=(2, 2, 3, 4)).astype("f")
        self.negatives = rng.normal(size=(5, 4)).astype("f")
        self.disliked = rng.normal(size=(2, 2, 4)).astype("f")
        self.target_ids = np.array([[11, 12, 13], [14, 15, 16]], np.int32)
        # The second row has one dislike; the first row's last is a target.
        self.dislike_ids = np.array([[21, 13], [22, 0]], np.int32)
        self.weights = np.array([[1, 0, 5], [2, 3, 0.5]], np.float32)
        self.logits = losses.dislike_logits(
            self.queries, self.disliked, self.dislike_ids, self.target_ids
        )

    def _by_hand(self, negatives, offsets):
        total = 0.0
        for row, column in np.ndindex(2, 3):
            is_other = (self.dislike_ids[row] != 0) & (
                self.dislike_ids[row] != self.target_ids[row, column]
            )
            only = np.zeros((2, 3))
            only[row, column] = self.weights[row, column]
            dislikes = [[], []]
            dislikes[row] = self.disliked[row][is_other]
            total += _softmax_by_hand(
                self.queries, self.targets, negatives, offsets, only, dislikes
            )
        return total

    @parameterized.parameters(False, True)
    def test_sampled_softmax_with_extra_negatives(self, per_row):
        offsets = np.linspace(-1, 1, 5)
        ids = np.arange(31, 36)
        shape = (lambda x: np.stack([x, x])) if per_row else (lambda x: x)
        loss = losses.sampled_softmax(
            self.queries,
            self.targets,
            shape(self.negatives),
            self.target_ids,
            shape(ids),
            self.weights,
            shape(offsets),
            extra_logits=self.logits,
        )
        expected = self._by_hand(self.negatives, offsets)
        self.assertAlmostEqual(float(loss), expected, places=3)

    def test_term_of_the_full_softmax(self):
        loss = losses.dislike_loss(
            self.queries, self.targets, self.weights, self.logits
        )
        expected = self._by_hand(np.zeros((0, 4)), [])
        self.assertAlmostEqual(float(loss), expected, places=3)

    def test_gradient_of_the_extra_logits_is_numerically_right(self):
        offsets = np.zeros(5, np.float32)

        def loss(logits):
            return losses.sampled_softmax(
                self.queries,
                self.targets,
                self.negatives,
                self.target_ids,
                np.arange(31, 36),
                self.weights,
                offsets,
                extra_logits=logits,
            )

        logits = tf.constant(
            np.random.default_rng(3).normal(size=(2, 3, 2)), tf.float32
        )
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = loss(logits)
        found = tape.gradient(value, logits).numpy()
        for place in np.ndindex(2, 3, 2):
            step = np.zeros((2, 3, 2), np.float32)
            step[place] = 0.01
            slope = (loss(logits + step) - loss(logits - step)) / 0.02
            self.assertAlmostEqual(found[place], float(slope), places=2)


def _model() -> recsys.TwoTower:
    tf.keras.utils.set_random_seed(0)
    table = recsys.SharedItemEmbedding(12, 4)
    model = recsys.TwoTower(
        recsys.HistoryTower(table), recsys.CandidateTower(table)
    )
    model.build()
    values = np.random.default_rng(0).normal(size=(12, 4))
    table.embeddings.assign(values.astype(np.float32))
    return model


_BATCH = {
    "history_ids": tf.constant([[2, 3, 4], [5, 6, 0]]),
    "target_ids": tf.constant([[3, 4, 7], [6, 8, 0]]),
    "target_weights": tf.constant([[1.0, 3, 5], [1, 5, 0]]),
    "dislike_ids": tf.constant([[9, 10], [11, 0]]),
}


class ModelTest(parameterized.TestCase):
    def test_weights_multiply_the_loss_and_normalize_it(self):
        model = _model()
        plain = {k: _BATCH[k] for k in ("history_ids", "target_ids")}
        expected = 0.0
        for place in ([0, 0], [0, 1], [0, 2], [1, 0], [1, 1]):
            only = tf.scatter_nd([place], [1.0], [2, 3])
            loss, _ = model.next_item_loss(plain, False, sample_weight=only)
            expected += float(loss * _BATCH["target_weights"][tuple(place)])
        batch = {k: v for k, v in _BATCH.items() if k != "dislike_ids"}
        loss, count = model.next_item_loss(batch, False)
        self.assertAlmostEqual(float(loss), expected, places=4)
        self.assertEqual(float(count), 1 + 3 + 5 + 1 + 5)
        # Keras reports the mean: the sum over the sum of weights.
        model.compile(optimizer=tf.keras.optimizers.SGD(0.0))
        mean = model.evaluate(tf.data.Dataset.from_tensors(batch), verbose=0)
        self.assertAlmostEqual(mean, expected / 15, places=4)

    def test_full_softmax_gets_the_term_of_the_dislikes(self):
        model = _model()
        without = {k: v for k, v in _BATCH.items() if k != "dislike_ids"}
        loss, _ = model.next_item_loss(without, False)
        table = model.candidate_tower.embedding.embeddings.numpy()
        queries = model.history_tower(
            _BATCH["history_ids"], return_sequences=True
        ).numpy()
        term = _softmax_by_hand(
            queries,
            table[_BATCH["target_ids"].numpy()],
            [],
            [],
            _BATCH["target_weights"].numpy(),
            [table[[9, 10]], table[[11]]],
        )
        both, count = model.next_item_loss(_BATCH, False)
        self.assertAlmostEqual(float(both), float(loss) + term, places=3)
        self.assertEqual(float(count), 15)

    @parameterized.parameters(False, True)
    def test_a_step_pushes_the_dislikes_down(self, sampled):
        negatives = None
        if sampled:
            ids = tf.constant([2, 5, 8])
            negatives = Negatives(ids, tf.zeros(3), None)

        def scores(model):
            queries = model.history_tower(
                _BATCH["history_ids"], return_sequences=True
            )
            vectors = model.candidate_tower(_BATCH["dislike_ids"])
            products = tf.matmul(queries, vectors, transpose_b=True).numpy()
            # Padding, in history and dislikes, does not count.
            return np.append(products[0].ravel(), products[1, :2, 0])

        after = {}
        for name in ("with", "without"):
            batch = dict(_BATCH)
            if name == "without":
                del batch["dislike_ids"]
            model = _model()
            before = scores(model)
            optimizer = tf.keras.optimizers.SGD(0.1)
            optimizer.build(model.trainable_variables)
            model.update(batch, optimizer, negatives)
            after[name] = scores(model)
        self.assertLess(after["with"].sum(), before.sum())
        self.assertLess(after["with"].sum(), after["without"].sum())


class BaselinesTest(absltest.TestCase):
    """Of a: view 2, buy 3; of b: view 3, buy 2; a weight of 1 and of 5."""

    def setUp(self):
        super().setUp()
        self.train = dataclasses.replace(
            _sequences({"a": "v b v", "b": "v b"}),
            items=np.array([2, 3, 4, 3, 2], np.int32),
        )

    def _scores(self, scorer, *history):
        items = np.array(history, np.int32)
        return scorer.scores(items, np.array([0, len(items)]))[0]

    def test_popularity_counts_the_weights_of_targets(self):
        scorer = baselines.Popularity.fit(self.train, 5)
        self.assertEqual(self._scores(scorer, 2).tolist(), [0, 0, 5, 5, 0])

    def test_markov_counts_the_weights_of_what_followed(self):
        scorer = baselines.Markov.fit(self.train, 5)
        # After 2 came 3, bought; after 3 came 4, viewed, and 2, bought.
        # The prior of 2 and of 3 is 1/2.
        np.testing.assert_allclose(
            self._scores(scorer, 2)[2:], [0.5 / 6, 5.5 / 6, 0]
        )
        np.testing.assert_allclose(
            self._scores(scorer, 3)[2:], [5.5 / 6, 0.5 / 6, 0]
        )

    def test_item_knn_and_ease_count_products_of_roots(self):
        root = np.sqrt(5)
        matrix = np.array([[1, root, 1], [root, 1, 0]])
        gram = matrix.T @ matrix
        norms = np.sqrt(np.diag(gram))
        similarity = gram / np.outer(norms, norms)
        np.fill_diagonal(similarity, 0)
        scorer = baselines.ItemKNN.fit(self.train, 5, shrinkage=0.0)
        np.testing.assert_allclose(
            self._scores(scorer, 2)[2:], similarity[0], rtol=1e-5
        )
        inverse = np.linalg.inv(gram + 2 * np.eye(3))
        weights = -inverse / np.diag(inverse)
        np.fill_diagonal(weights, 0)
        scorer = baselines.EASE.fit(self.train, 5, regularization=2.0)
        np.testing.assert_allclose(
            self._scores(scorer, 2)[2:], weights[0], rtol=1e-4
        )

    def test_results_by_kind(self):
        log = {"a": "v b v", "b": "b b b", "c": "b v b"}
        every = dataclasses.replace(_KINDS, are_targets=np.ones(2, bool))
        sequences = dataclasses.replace(_sequences(log), kinds=every)
        queries = splits.leave_last_out(sequences).test
        scorer = baselines.Popularity(np.arange(6, dtype=np.float32))
        results = evaluate(scorer, queries, protocol="leave_last_out")
        found = {
            each.name: (each.evaluation.query_ids.tolist(), each.share)
            for each in by_event(results, queries)
        }
        self.assertEqual(
            found, {"view": (["a"], 1 / 3), "buy": (["b", "c"], 2 / 3)}
        )

    def test_results_by_kind_of_several_relevant_items(self):
        log = {f"u{i}": "v v v v b v" for i in range(10)}
        every = dataclasses.replace(_KINDS, are_targets=np.ones(2, bool))
        sequences = dataclasses.replace(_sequences(log), kinds=every)
        queries = splits.held_out_users(sequences, fold_in=0.6).test
        # Items 2 to 4 are given; 5 and 7 are viewed, 6 is bought and ranks
        # behind 7.
        scorer = baselines.Popularity(np.arange(8, dtype=np.float32))
        results = evaluate(scorer, queries, protocol="held_out_users")
        view, buy = by_event(results, queries)
        self.assertEqual(view.evaluation.relevant_items.tolist(), [[7, 5, 0]])
        self.assertEqual(buy.evaluation.relevant_items.tolist(), [[6, 0, 0]])
        self.assertEqual(buy.evaluation.ranks[0, 0], 2)


_ROWS = """\
user,item,timestamp,Event Type,rating
a,x,1,view,5
a,y,2,buy,4
a,x,3,view,5
a,x,4,buy,1
b,z,1,hide,
b,x,2,view,3
b,y,3,click,3
b,z,4,view,
c,q,1,hide,2
a,z,5,hide,2
a,z,6,buy,5
"""


class ReadingTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enterContext(tempfile.TemporaryDirectory())
        )
        self.path = self.folder / "log.csv"
        self.path.write_text(_ROWS)

    def _data(self, **fields):
        fields = {"split": "validation_only", **fields}
        return build_data(TrainConfig(data=str(self.path), **fields))

    def _of(self, sequences) -> dict[str, list]:
        kinds, columns = sequences.kinds, sequences.columns
        names = [kinds.names[c] for c in columns["event"]] if kinds else None
        ids = self.vocabulary.decode(sequences.items).tolist()
        rows = names and [f"{i}:{k}" for i, k in zip(ids, names, strict=True)]
        return {
            user: (rows or ids)[begin:end]
            for user, begin, end in zip(
                sequences.user_ids,
                sequences.offsets[:-1],
                sequences.offsets[1:],
                strict=True,
            )
        }

    def test_nothing_said_counts_alike_and_says_so(self):
        data = self._data()
        self.assertIn(
            "kinds of events: 4 view, 3 buy, 3 hide, 1 click rows count alike; "
            "--events=view:1,buy:1,hide:1,click:1 keeps these kinds and "
            "weights them",
            data_summary(data),
        )
        self.assertIsNone(data.split.train.kinds)
        self.assertEmpty(data.split.train.columns)
        self.assertIsNone(data.split.train.dislikes)

    def test_kinds_are_kept_weighted_and_repeat_apart(self):
        data = self._data(events="view,buy:5", dislikes="hide")
        self.vocabulary = data.vocabulary
        sequences = data.split.validation.sequences
        self.assertEqual(
            self._of(sequences),
            {
                "a": ["x:view", "y:buy", "x:buy", "z:buy"],
                "b": ["x:view", "z:view"],
            },
        )
        self.assertEqual(self._of(sequences.dislikes), {"a": ["z"], "b": ["z"]})
        # After x, y, x, x of a and before the first of b.
        self.assertEqual(sequences.dislikes.columns["place"].tolist(), [3, 0])
        summary = data_summary(data)
        self.assertIn(
            "kinds of events: 4 view (weight 1), 3 buy (weight 5)", summary
        )
        self.assertIn("rows of other kinds dropped: 1 click", summary)
        self.assertIn(
            "3 dislikes: 2 kept as negatives of their users, 1 dropped",
            summary,
        )
        self.assertIn("1 interaction dropped: 1 repeated", summary)

    def test_low_ratings_are_dislikes(self):
        data = self._data(max_rating=2.0, repeats="all")
        self.vocabulary = data.vocabulary
        sequences = data.split.validation.sequences
        self.assertEqual(
            self._of(sequences.dislikes), {"a": ["x", "z"], "b": []}
        )
        self.assertEqual(self._of(sequences)["a"], ["x", "y", "x", "z"])

    def test_totals_of_items(self):
        data = self._data(events="view:2,buy:5", target_events="buy")
        items = data.vocabulary.items
        # a trains on x:view, y:buy, x:buy; b on x:view and z:view.
        self.assertEqual(
            items.select(
                ["item_id", "train_count", "train_targets", "train_weight"]
            ).to_pydict(),
            {
                "item_id": ["x", "y", "z"],
                "train_count": [3, 1, 1],
                "train_targets": [1, 1, 0],
                "train_weight": [5.0, 5.0, 0.0],
            },
        )

    @parameterized.parameters(
        ({"events": "view:0"}, "positive"),
        ({"events": "view:1e-50"}, "positive"),
        ({"dislikes": "view,buy,hide,click"}, "Received: none of 11 rows"),
        ({"events": "view,view"}, "once"),
        ({"max_rating": float("nan")}, "--max_rating must be finite"),
        ({"target_events": " ,"}, "--target_events must name"),
        ({"events": "view", "target_events": "buy"}, "--target_events must be"),
        ({"events": "view", "dislikes": "view"}, "--dislikes must not"),
        ({"min_rating": 2.0, "max_rating": 2.0}, "--max_rating must be below"),
        ({"events": "view,purchase"}, "the log has view, buy, hide, click"),
        ({"dislikes": "hid"}, "that --dislikes names"),
        ({"event_column": "kind"}, "--event_column"),
        ({"events": "view", "event_column": ""}, "--events needs a log"),
    )
    def test_errors(self, fields, message):
        with self.assertRaisesRegex(InputError, message):
            self._data(**fields)

    def test_the_error_names_the_flag_of_kinds(self):
        with self.assertRaisesRegex(InputError, "^--dislikes needs a log"):
            self._data(dislikes="hide", max_rating=1.0, event_column="")

    def test_training_without_a_target(self):
        # All that is bought is held out.
        rows = [f"u{n},i{n + t},{t},view" for n in range(3) for t in range(3)]
        rows += [f"u{n},i{n},9,buy" for n in range(3)]
        self.path.write_text("\n".join(["user,item,time,event", *rows]))
        fields = {"events": "view,buy", "target_events": "buy"}
        options = shard_preparation.Options(
            num_shards=2, split="validation_only", **fields
        )
        message = "training interaction of buy after another. Received: none"
        with self.assertRaisesRegex(InputError, message):
            self._data(split="validation_only", **fields)
        with self.assertRaisesRegex(InputError, message):
            shard_preparation.prepare_shards(
                sources.Source(str(self.path)),
                self.folder / "shards",
                options,
                num_workers=1,
            )

    def test_max_rating_needs_ratings(self):
        with self.assertRaisesRegex(InputError, "--max_rating needs"):
            self._data(max_rating=1.0, rating_column="")

    def test_kinds_with_colons_and_numbers(self):
        self.assertEqual(
            parse_events("page:view:0.5, 3:2,cart"),
            {"page:view": 0.5, "3": 2.0, "cart": 1.0},
        )

    @parameterized.parameters(pa.int8(), pa.float64())
    def test_whole_numbers_and_missing_kinds_in_parquet(self, kind):
        table = pa.table(
            {
                "user": list("aaaaa"),
                "item": list("vwxyz"),
                "time": [1, 2, 3, 4, 5],
                "action": pa.array([1, 3, None, 1, 1], kind),
            }
        )
        self.path = self.folder / "log.parquet"
        pq.write_table(table, self.path)
        data = self._data(events="1,3:2")
        self.vocabulary = data.vocabulary
        self.assertEqual(
            self._of(data.split.validation.sequences),
            {"a": ["v:1", "w:3", "y:1", "z:1"]},
        )
        self.assertIn("dropped: 1 (blank)", data_summary(data))

    def test_yes_and_no_in_parquet(self):
        kinds = pa.array([True, True, None, False, True])
        table = pa.table({"user": list("aaaaa"), "item": list("vwxyz")})
        self.path = self.folder / "log.parquet"
        pq.write_table(table.append_column("event", kinds), self.path)
        data = self._data(events="true")
        self.assertEqual(data.vocabulary.item_ids.tolist(), ["v", "w", "z"])
        self.assertIn("dropped: 1 false, 1 (blank)", data_summary(data))

    def test_an_unnamed_column_never_takes_another_role(self):
        self.path.write_text("user,action,time\na,x,1\na,y,2\na,z,3\n")
        data = self._data(item_column="action")
        self.assertEqual(data.vocabulary.item_ids.tolist(), ["x", "y", "z"])


class ShardsTest(parameterized.TestCase):
    @parameterized.parameters(
        {"events": "view:1,buy:5", "target_events": "buy"},
        {"events": "view:1,buy:5", "dislikes": "hide"},
        {"max_rating": 2.0},
        {"max_rating": 0.0},
    )
    def test_shards_are_what_is_in_memory(self, **fields):
        folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        rng = np.random.default_rng(0)
        rows = ["user,item,timestamp,event,rating"]
        for time in range(1200):
            user, item = rng.integers(40), rng.integers(30)
            kind = rng.choice(["view", "buy", "hide"], p=[0.6, 0.3, 0.1])
            rows.append(f"u{user},i{item},{time},{kind},{rng.integers(6)}")
        (folder / "log.csv").write_text("\n".join(rows) + "\n")
        data = str(folder / "log.csv")
        config = TrainConfig(data=data, repeats="all", **fields)
        whole = build_data(config)
        options = {"num_queries": 0, "repeats": "all", **fields}
        for num_shards in (1, 3):
            output = folder / str(num_shards)
            shard_preparation.prepare_shards(
                sources.Source(data),
                output,
                shard_preparation.Options(num_shards=num_shards, **options),
                num_workers=1,
            )
            found = open_shards(output)
            build_data(dataclasses.replace(config, data=str(output)))
            notes = [
                note.replace("recsys.prepare_shards ", "")
                for note in found.notes
            ]
            self.assertSequenceEqual(notes, whole.notes)
            self.assertTrue(audit(found.split).passed)
            self.assertTrue(
                found.vocabulary.items.equals(whole.vocabulary.items)
            )
            self._assert_same_events(
                found.split.train.read_all(), whole.split.train
            )
            self._assert_same_events(
                found.split.test.sequences, whole.split.test.sequences
            )
            size = whole.vocabulary.size
            for history in ([2], [3, 4]):
                items = np.array(history, np.int32)
                offsets = np.array([0, len(items)])
                np.testing.assert_array_equal(
                    *(
                        baselines.Popularity.fit(each.split.train, size).scores(
                            items, offsets
                        )
                        for each in (found, whole)
                    )
                )
            self._assert_same_positions(found.split.train, whole.split.train)

    def _assert_same_events(self, found, expected):
        def rows(sequences):
            result = {}
            for each in filter(None, (sequences, sequences.dislikes)):
                users = np.repeat(each.user_ids, each.lengths)
                columns = sorted(each.columns.items())
                arrays = [each.items, each.timestamps] + [c for _, c in columns]
                for user, *row in zip(users, *arrays, strict=True):
                    result.setdefault((user, len(row)), []).append(row)
            return result

        self.assertEqual(rows(found), rows(expected))

    def _assert_same_positions(self, found, expected):
        """Every row of an epoch is the same, in whatever order."""

        def rows(sequences, parts):
            plan = pipeline.plan_epoch(
                sequences,
                max_length=64,
                positions_per_batch=64,
                seed=0,
                epoch=0,
            )
            result = []
            for part in parts:
                for batch in pipeline.train_dataset(
                    sequences, plan, part=part
                ).as_numpy_iterator():
                    names = (
                        "history_ids",
                        "target_ids",
                        "target_weights",
                        "dislike_ids",
                    )
                    for row in range(len(batch["history_ids"])):
                        values = [
                            tuple(np.trim_zeros(batch[n][row], "b").tolist())
                            for n in names
                            if n in batch
                        ]
                        if values[0]:
                            result.append(values)
            return sorted(result)

        expected = rows(expected, [None])
        self.assertEqual(rows(found, [None]), expected)
        two = [pipeline.Part(i, 2) for i in (0, 1)]
        self.assertEqual(rows(found, two), expected)

    def test_target_events_of_shards_need_the_kinds(self):
        with self.assertRaisesRegex(InputError, "needs --events"):
            shard_preparation.Options(target_events="buy")


if __name__ == "__main__":
    absltest.main()
