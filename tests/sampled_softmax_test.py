from __future__ import annotations

import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

from recsys import losses
from recsys.negatives import NegativeSampler, alias_table


def _plain(
    queries,
    target_vectors,
    negative_vectors,
    target_ids,
    negative_ids,
    weights,
    log_counts=None,
    known_ids=None,
) -> float:
    """The loss as its formula reads, query by query, in float64."""
    total = 0.0
    for row, column in np.ndindex(*target_ids.shape):
        own = np.ndim(negative_ids) == 2
        ids = negative_ids[row] if own else negative_ids
        vectors = negative_vectors[row] if own else negative_vectors
        query = queries[row, column].astype(np.float64)
        logit = query @ target_vectors[row, column]
        terms = np.exp(logit)
        for j, item in enumerate(ids):
            if item == target_ids[row, column]:
                continue
            if known_ids is not None and item in _known(
                known_ids[row], column, target_ids.shape[1]
            ):
                continue
            count = 0.0
            if log_counts is not None:
                count = log_counts[row, j] if own else log_counts[j]
            terms += np.exp(query @ vectors[j] - count)
        total += weights[row, column] * (np.log(terms) - logit)
    return total


def _known(items, position: int, length: int):
    """What a row knows at a position: the last `length` items in turn."""
    return items[: len(items) - length + position + 1]


# Two items that rows know from the start, then four histories.
_KNOWN = np.array(
    [[2, 3, 4, 5, 2, 6], [4, 0, 7, 7, 0, 0], [0, 0, 0, 8, 9, 3]], np.int32
)


def _case(per_row: bool, seed: int = 0) -> dict[str, np.ndarray]:
    """Three rows of four positions, items 2 to 9, five negatives."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(10, 3)).astype(np.float32)
    target_ids = rng.integers(2, 10, (3, 4)).astype(np.int32)
    negative_ids = rng.integers(2, 10, (3, 5) if per_row else 5)
    weights = rng.uniform(0.5, 2, (3, 4)).astype(np.float32)
    weights[0, 1] = weights[2, 3] = 0
    return {
        "queries": rng.normal(size=(3, 4, 3)).astype(np.float32),
        "target_vectors": table[target_ids],
        "negative_vectors": table[negative_ids],
        "target_ids": target_ids,
        "negative_ids": negative_ids.astype(np.int32),
        "weights": weights,
        "log_counts": rng.normal(size=negative_ids.shape).astype(np.float32),
    }


def _loss(case: dict[str, np.ndarray], **more) -> tf.Tensor:
    return losses.sampled_softmax(*map(tf.constant, case.values()), **more)


class SampledSoftmaxTest(parameterized.TestCase):
    def test_by_hand(self):
        # One position, target item 5 of logit log 2; negatives 7 of logit
        # log 3, expected half a time, and 5 itself, an accidental hit:
        # log(2 + 3 / 0.5) - log 2 = log 4.
        loss = losses.sampled_softmax(
            tf.constant([[[1.0, 0.0]]]),
            tf.math.log(tf.constant([[[2.0, 9.0]]])),
            tf.math.log(tf.constant([[3.0, 9.0], [2.0, 9.0]])),
            tf.constant([[5]]),
            tf.constant([7, 5]),
            tf.constant([[1.0]]),
            tf.math.log(tf.constant([0.5, 0.5])),
        )
        self.assertAlmostEqual(float(loss), np.log(4), places=5)

    def test_known_by_hand(self):
        # Two positions of target 5, logit 0, against 7 and 8 of logit log 3:
        # 7 is known from the start, 8 from the second position on. The losses
        # are log(1 + 3) and log 1.
        loss = losses.sampled_softmax(
            tf.ones([1, 2, 1]),
            tf.zeros([1, 2, 1]),
            tf.fill([2, 1], np.float32(np.log(3))),
            tf.constant([[5, 5]]),
            tf.constant([7, 8]),
            tf.ones([1, 2]),
            known_ids=tf.constant([[7, 0, 8]]),
        )
        self.assertAlmostEqual(float(loss), np.log(4), places=5)

    @parameterized.product(
        per_row=(False, True),
        known=(False, True),
        corrected=(False, True),
        logits_per_chunk=(1, 15, 2**20),
    )
    def test_value(self, per_row, known, corrected, logits_per_chunk):
        case = _case(per_row)
        more = {}
        if known:
            more["known_ids"] = _KNOWN
        if not corrected:
            del case["log_counts"]
        with self.chunks_of(logits_per_chunk):
            got = _loss(case, **more)
        np.testing.assert_allclose(got, _plain(**case, **more), rtol=1e-5)

    def chunks_of(self, logits_per_chunk):
        return absltest.mock.patch.object(
            losses, "_LOGITS_PER_CHUNK", logits_per_chunk
        )

    @parameterized.product(per_row=(False, True), chunk=(10, 2**20))
    def test_gradient_is_that_of_finite_differences(self, per_row, chunk):
        case = _case(per_row)
        names = ("queries", "target_vectors", "negative_vectors", "weights")

        @tf.function
        def gradients(tensors):
            with tf.GradientTape() as tape:
                tape.watch(tensors)
                value = losses.sampled_softmax(
                    *tensors.values(), known_ids=tf.constant(_KNOWN)
                )
            return tape.gradient(value, [tensors[name] for name in names])

        with self.chunks_of(chunk):
            got = gradients({k: tf.constant(v) for k, v in case.items()})
        for name, gradient in zip(names, got):
            for number in (0, 4, 5, 10):
                index = np.unravel_index(number, case[name].shape)
                values = []
                for step in (1e-4, -1e-4):
                    moved = {**case, name: case[name].astype(np.float64)}
                    moved[name][index] += step
                    values.append(_plain(**moved, known_ids=_KNOWN))
                expected = (values[0] - values[1]) / 2e-4
                np.testing.assert_allclose(
                    gradient.numpy()[index], expected, atol=2e-3
                )

    def test_infinite_count_is_no_negative(self):
        case = _case(per_row=False)
        case["log_counts"][[1, 3]] = np.inf
        fewer = {**case}
        for name in ("negative_vectors", "negative_ids", "log_counts"):
            fewer[name] = case[name][[0, 2, 4]]
        np.testing.assert_allclose(_loss(case), _plain(**fewer), rtol=1e-5)

    def test_nothing_but_hits_costs_nothing(self):
        case = _case(per_row=False)
        case["target_ids"][:] = case["negative_ids"][:] = 4
        self.assertEqual(float(_loss(case)), 0)

    @parameterized.parameters(False, True)
    def test_weights_of_zero(self, per_row):
        case = _case(per_row)
        case["weights"][:] = 0
        case["queries"][:] = 1e3
        self.assertEqual(float(_loss(case)), 0)

    @parameterized.product(
        per_row=(False, True), known=(False, True), in_graph=(False, True)
    )
    def test_no_rows(self, per_row, known, in_graph):
        # As of one row of a batch that is computed in two halves.
        case = _case(per_row)
        by_row = ["queries", "target_vectors", "target_ids", "weights"]
        if per_row:
            by_row += ["negative_vectors", "negative_ids", "log_counts"]
        case.update({name: case[name][:0] for name in by_row})
        if known:
            by_row.append("known_ids")
            case["known_ids"] = np.zeros((0, 2), np.int32)

        def loss_and_gradient(**tensors):
            with tf.GradientTape() as tape:
                tape.watch(tensors["negative_vectors"])
                loss = losses.sampled_softmax(
                    log_expected_counts=tensors.pop("log_counts"), **tensors
                )
            return loss, tape.gradient(loss, tensors["negative_vectors"])

        tensors = {name: tf.constant(value) for name, value in case.items()}
        if in_graph:
            # A graph that does not know how many rows there will be.
            specs = {
                name: tf.TensorSpec(
                    [None if name in by_row else len(value), *value.shape[1:]],
                    value.dtype,
                    name,
                )
                for name, value in tensors.items()
            }
            loss_and_gradient = tf.function(
                loss_and_gradient
            ).get_concrete_function(**specs)
        loss, gradient = loss_and_gradient(**tensors)
        self.assertEqual(float(loss), 0)
        np.testing.assert_array_equal(
            gradient, np.zeros_like(case["negative_vectors"])
        )

    def test_extreme_logits_stay_finite(self):
        case = _case(per_row=False)
        case["queries"] *= 1e4
        with tf.GradientTape() as tape:
            tensors = {k: tf.constant(v) for k, v in case.items()}
            tape.watch(tensors)
            value = losses.sampled_softmax(*tensors.values())
        gradient = tape.gradient(value, tensors["queries"])
        self.assertTrue(np.isfinite(value) and np.isfinite(gradient).all())

    @parameterized.parameters(tf.float16, tf.bfloat16)
    def test_half_precision_is_summed_in_float32(self, dtype):
        case = {k: tf.constant(v) for k, v in _case(per_row=False).items()}
        for name in ("queries", "target_vectors", "negative_vectors"):
            case[name] = tf.cast(case[name], dtype)
        value = losses.sampled_softmax(*case.values())
        self.assertEqual(value.dtype, tf.float32)
        plain = {k: tf.cast(v, tf.float64).numpy() for k, v in case.items()}
        np.testing.assert_allclose(value, _plain(**plain), rtol=1e-5)


def _full_softmax(table, queries, targets):
    """Value and gradients of the full softmax over items 2 and above."""
    with tf.GradientTape() as tape:
        tape.watch([table, queries])
        logits = tf.matmul(queries, table[2:], transpose_b=True)
        value = tf.reduce_sum(
            tf.nn.sparse_softmax_cross_entropy_with_logits(targets - 2, logits)
        )
    return value, *tape.gradient(value, [table, queries])


class TowardsTheFullSoftmaxTest(parameterized.TestCase):
    """Over many draws, value and gradient come near to the full softmax's."""

    def _error(self, source, num_negatives, num_draws=20, **options):
        """The relative error of the mean gradient, and of the mean value."""
        rng = np.random.default_rng(0)
        counts = np.append([0, 0], 1000 / np.arange(1, 31)).astype(int)
        shares = counts / counts.sum()
        table = tf.constant(rng.normal(size=(32, 4)), tf.float32)
        # As many targets as a batch has, in proportion to the counts.
        targets = rng.choice(32, (20, 30), p=shares).astype(np.int32)
        targets[0, :] = 0  # A row of padding.
        queries = tf.constant(rng.normal(size=(20, 30, 4)), tf.float32)
        weights = tf.cast(targets > 0, tf.float32)
        sampler = NegativeSampler(
            source, num_negatives, 32, counts=counts, **options
        )
        batches = [
            # Other batches of the same data, from which negatives come.
            rng.choice(32, (20, 30), p=shares).astype(np.int32)
            for _ in range(num_draws)
        ]

        @tf.function
        def gradients(batch, seed):
            negatives = sampler.draw(
                {"target_ids": batch, "history_ids": batch}, seed
            )
            with tf.GradientTape() as tape:
                tape.watch([table, queries])
                value = losses.sampled_softmax(
                    queries,
                    tf.gather(table, targets),
                    tf.gather(table, negatives.ids),
                    targets,
                    negatives.ids,
                    weights,
                    negatives.log_expected_counts,
                )
            found = tape.gradient(value, [table, queries])
            return value, *map(tf.convert_to_tensor, found)

        sums = [0.0, 0.0, 0.0]
        for number, batch in enumerate(batches):
            found = gradients(tf.constant(batch), tf.constant([7, number]))
            sums = [s + f.numpy() / num_draws for s, f in zip(sums, found)]
        expected = _full_softmax(
            table, tf.reshape(queries[1:], [-1, 4]), targets[1:].ravel()
        )
        expected_queries = np.zeros((20, 30, 4), np.float32)
        expected_queries[1:] = tf.reshape(expected[2], [19, 30, 4])
        wanted = [expected[0], expected[1], expected_queries]
        return [
            float(np.linalg.norm(got - want) / np.linalg.norm(want))
            for got, want in zip(sums, wanted)
        ]

    @parameterized.parameters(
        ("in_batch", False),
        ("uniform", False),
        ("popularity", False),
        ("mixed", False),
        ("mixed", True),
    )
    def test_error_vanishes_with_more_negatives(self, source, per_row):
        few = self._error(source, 10, per_row=per_row)
        many = self._error(source, 1000, per_row=per_row)
        self.assertLess(max(many), 0.08)
        for one, other in zip(few, many):
            self.assertLess(other, one)

    @parameterized.parameters("in_batch", "mixed")
    def test_without_correction_it_does_not(self, source):
        errors = self._error(source, 1000, corrected=False)
        self.assertGreater(min(errors[1:]), 0.1)


class DrawTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        # Items 2, 3, 4, 5 with 6, 3, 1, 0 interactions.
        self.counts = np.array([99, 99, 6, 3, 1, 0])
        self.batch = {
            "history_ids": tf.constant([[3, 2, 2], [2, 4, 0]]),
            "target_ids": tf.constant([[2, 2, 3], [4, 0, 1]]),
        }

    def _draw(self, source, num_negatives=6, seed=(1, 2), **options):
        sampler = NegativeSampler(
            source, num_negatives, 6, counts=self.counts, **options
        )
        return sampler.draw(self.batch, tf.constant(seed))

    # Four targets: a draw is another position's with probability 3 / 4.
    # Popularity weights are 7, 4, 2, 1 of 14; an item never counted counts
    # once in batch. k of items 2, 3, 4, 5 for six negatives:
    @parameterized.parameters(
        ("in_batch", [6 * 0.75 * p for p in (0.6, 0.3, 0.1, 0.1)]),
        ("uniform", [6 / 4] * 4),
        ("popularity", [6 * p / 14 for p in (7, 4, 2, 1)]),
        ("mixed", [3 * 0.75 * p + 3 / 4 for p in (0.6, 0.3, 0.1, 0.1)]),
    )
    def test_expected_counts_by_hand(self, source, expected):
        for per_row in (False, True):
            negatives = self._draw(source, per_row=per_row)
            np.testing.assert_allclose(
                np.exp(negatives.log_expected_counts),
                np.array(expected)[negatives.ids - 2],
                rtol=1e-6,
            )

    # As above, with item 5 left out.
    @parameterized.parameters(
        ("uniform", [1 / 3] * 3, [6000 / 3] * 3),
        ("popularity", [p / 13 for p in (7, 4, 2)], None),
        (
            "mixed",
            [(share + 1 / 3) / 2 for share in (0.5, 0.25, 0.25)],
            [3000 * 0.75 * p + 3000 / 3 for p in (0.6, 0.3, 0.1)],
        ),
    )
    def test_trained_items_alone(self, source, shares, expected):
        negatives = self._draw(source, num_negatives=6000, trained_only=True)
        drawn = np.bincount(negatives.ids, minlength=6) / 6000
        np.testing.assert_allclose(drawn[2:5], shares, atol=0.03)
        self.assertEqual(drawn[:2].sum() + drawn[5], 0)
        expected = np.array(expected or np.multiply(6000, shares))
        np.testing.assert_allclose(
            np.exp(negatives.log_expected_counts),
            expected[negatives.ids - 2],
            rtol=1e-5,
        )

    @parameterized.parameters(
        ("in_batch", [0.5, 0.25, 0.25, 0]),
        ("uniform", [0.25] * 4),
        ("popularity", [7 / 14, 4 / 14, 2 / 14, 1 / 14]),
        ("mixed", [0.375, 0.25, 0.25, 0.125]),
    )
    def test_shares_of_many_draws(self, source, expected):
        ids = self._draw(source, 40_000).ids
        shares = np.bincount(ids, minlength=6) / 40_000
        np.testing.assert_allclose(shares[2:], expected, atol=0.01)
        self.assertEqual(shares[:2].tolist(), [0, 0])

    @parameterized.parameters("in_batch", "uniform", "popularity", "mixed")
    def test_depends_on_the_seed_alone(self, source):
        first, again = self._draw(source), self._draw(source)
        np.testing.assert_array_equal(first.ids, again.ids)
        others = [self._draw(source, seed=(1, n)).ids for n in (3, 4)]
        self.assertFalse(
            all(np.array_equal(first.ids, other) for other in others)
        )

    def test_per_row(self):
        shared = self._draw("mixed", 100)
        own = self._draw("mixed", 100, per_row=True)
        self.assertEqual(shared.ids.shape, [100])
        self.assertEqual(own.ids.shape, [2, 100])
        self.assertTrue(np.any(own.ids[0] != own.ids[1]))

    def test_known_items(self):
        self.assertIsNone(self._draw("uniform").known_ids)
        np.testing.assert_array_equal(
            self._draw("uniform", masks_known=True).known_ids,
            self.batch["history_ids"],
        )
        # Negatives from the batch: the targets are known from the start.
        np.testing.assert_array_equal(
            self._draw("mixed", masks_known=True).known_ids,
            [[2, 2, 3, 3, 2, 2], [4, 0, 1, 2, 4, 0]],
        )

    @parameterized.parameters("in_batch", "mixed")
    def test_batch_without_targets(self, source):
        self.batch["target_ids"] = tf.zeros([2, 3], tf.int32)
        negatives = self._draw(source, per_row=True)
        loss = losses.sampled_softmax(
            tf.ones([2, 3, 1]),
            tf.ones([2, 3, 1]),
            tf.ones([2, 6, 1]),
            self.batch["target_ids"],
            negatives.ids,
            tf.zeros([2, 3]),
            negatives.log_expected_counts,
        )
        self.assertEqual(float(loss), 0)

    @parameterized.parameters(
        ({"source": "random"}, "`source` must be one of in_batch, "),
        ({"num_negatives": 0}, "`num_negatives` must be at least 1"),
        (
            {"source": "mixed", "num_negatives": 1},
            "`num_negatives` must be at least 2",
        ),
        ({"counts": np.ones(5)}, "`counts` must have 6 entries. Received: 5"),
        ({"source": "popularity"}, "`counts` must be given with"),
        ({"source": "mixed"}, "`counts` must be given with"),
        ({"trained_only": True}, "`counts` must be given .*trained_only=True"),
        (
            {"trained_only": True, "counts": np.zeros(6)},
            "`counts` must hold at least one interaction",
        ),
        (
            {"source": "mixed", "counts": np.zeros(6)},
            "`counts` must hold at least one interaction",
        ),
    )
    def test_errors(self, options, message):
        options = {"source": "uniform", "num_negatives": 4, **options}
        with self.assertRaisesRegex(ValueError, message):
            NegativeSampler(vocabulary_size=6, **options)


class AliasTableTest(parameterized.TestCase):
    @parameterized.parameters(
        ([1],),
        ([3, 3, 3],),
        ([0.1] * 7,),
        ([1, 0, 0, 3],),
        ([6, 3, 1, 0],),
        ([1, 1, 1, 97],),
        ([97, 1, 1, 1],),
        ([5, 5, 1, 1, 4, 4],),
    )
    def test_shares(self, weights):
        self._check(np.array(weights, np.float64))

    def test_power_law(self):
        rng = np.random.default_rng(0)
        self._check(rng.permutation(1 / np.arange(1, 10_001) ** 1.1))

    def _check(self, weights):
        own_share, alias = alias_table(weights)
        self.assertTrue(((own_share >= 0) & (own_share <= 1)).all())
        shares = own_share.copy()
        np.add.at(shares, alias, 1 - own_share)
        np.testing.assert_allclose(
            shares / len(weights), weights / weights.sum(), atol=1e-12
        )


if __name__ == "__main__":
    absltest.main()
