from __future__ import annotations

import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

from recsys import losses


def _plain(
    queries: np.ndarray,
    candidates: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    known: np.ndarray | None = None,
) -> tuple[float, np.ndarray, np.ndarray]:
    """The loss and its two gradients, in float64, all logits at once."""
    queries, candidates, weights = (
        x.astype(np.float64) for x in (queries, candidates, weights)
    )
    logits = queries @ candidates.T
    for row, items in enumerate(() if known is None else known):
        length = len(queries) // len(known)
        for position in range(length):
            query = row * length + position
            seen = items[: len(items) - length + position + 1]
            seen = seen[(seen >= 0) & (seen != targets[query])]
            logits[query, seen] = -np.inf
    shifted = logits - logits.max(axis=1, keepdims=True)
    softmax = np.exp(shifted)
    softmax /= softmax.sum(axis=1, keepdims=True)
    rows = np.arange(len(targets))
    log_sum = np.log(np.exp(shifted).sum(axis=1))
    value = np.sum(weights * (log_sum - shifted[rows, targets]))
    error = softmax.copy()
    error[rows, targets] -= 1
    error *= weights[:, np.newaxis]
    return value, error @ candidates, error.T @ queries


@tf.function(reduce_retracing=True)
def _fused(queries, candidates, targets, weights, chunk_size, known=None):
    with tf.GradientTape() as tape:
        tape.watch([queries, candidates])
        value = losses.full_softmax(
            queries, candidates, targets, weights, chunk_size, known
        )
    gradients = tape.gradient(value, [queries, candidates])
    return value, [tf.convert_to_tensor(gradient) for gradient in gradients]


def _case(
    num_queries: int, num_candidates: int = 11, scale: float = 1.0, seed=0
) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    return (
        (scale * rng.normal(size=(num_queries, 5))).astype(np.float32),
        rng.normal(size=(num_candidates, 5)).astype(np.float32),
        rng.integers(0, num_candidates, num_queries).astype(np.int32),
        rng.uniform(0.1, 2, num_queries).astype(np.float32),
    )


class FullSoftmaxTest(parameterized.TestCase):
    def _check(self, case: tuple[np.ndarray, ...], chunk_size: int) -> None:
        expected = _plain(*case)
        value, gradients = _fused(*map(tf.constant, case), chunk_size)
        np.testing.assert_allclose(value, expected[0], rtol=1e-5, atol=1e-6)
        for got, wanted in zip(gradients, expected[1:]):
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)

    def test_by_hand(self):
        # One query (1, 0), candidates (0, 0), (log 3, 7): the softmax is
        # 1/4 and 3/4, so the losses of the targets are log 4, log 4/3.
        queries = tf.constant([[1.0, 0.0], [1.0, 0.0]])
        candidates = tf.constant([[0.0, 0.0], [np.log(3.0), 7.0]])
        value = losses.full_softmax(
            queries, candidates, tf.constant([0, 1]), tf.constant([1.0, 2.0])
        )
        self.assertAlmostEqual(
            float(value), np.log(4) + 2 * np.log(4 / 3), places=5
        )

    def test_known_by_hand(self):
        # One row of two positions, three candidates of logit 0: the first is
        # known from the first position, the second from the next one on.
        # Softmaxes over two candidates and over one: losses log 2 and 0.
        arguments = (
            tf.zeros([2, 1]),
            tf.zeros([3, 1]),
            tf.constant([2, 2]),
            tf.ones([2]),
        )
        value = losses.full_softmax(*arguments, known=tf.constant([[0, 1]]))
        self.assertAlmostEqual(float(value), np.log(2), places=6)
        # A target is compared although it is known: log 3 twice.
        value = losses.full_softmax(*arguments, known=tf.constant([[2, 2]]))
        self.assertAlmostEqual(float(value), 2 * np.log(3), places=6)

    @parameterized.product(
        num_known=(3, 4, 6), dtype=(np.int32, np.int64), scale=(1, 100)
    )
    def test_known(self, num_known, dtype, scale):
        # Three rows of four positions; with three columns the first position
        # knows nothing, with six the first two are known from the start.
        case = _case(12, scale=scale)
        case[3][[1, 6, 7, 11]] = 0
        rng = np.random.default_rng(1)
        known = rng.integers(-2, 11, (3, num_known)).astype(dtype)
        expected = _plain(*case, known)
        for chunk_size in (1, 5, 64):
            value, gradients = _fused(
                *map(tf.constant, case), chunk_size, tf.constant(known)
            )
            np.testing.assert_allclose(value, expected[0], rtol=1e-5)
            for got, wanted in zip(gradients, expected[1:]):
                np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)

    def test_known_with_xla(self):
        case = _case(12)
        known = np.array([[0, 1, 2, 3], [4, -1, 5, 99], [6, 6, 7, 8]])
        compiled = tf.function(losses.full_softmax, jit_compile=True)
        value = compiled(*map(tf.constant, case), known=tf.constant(known))
        # 99 is no candidate.
        expected = _plain(*case, np.where(known == 99, -1, known))
        np.testing.assert_allclose(value, expected[0], rtol=1e-5)

    @parameterized.parameters(1, 4)
    def test_known_of_other_queries(self, num_rows):
        case = map(tf.constant, _case(6))
        if num_rows == 1:
            losses.full_softmax(*case, known=tf.zeros([num_rows, 2], tf.int32))
            return
        with self.assertRaisesRegex(
            tf.errors.InvalidArgumentError, "as many for each row of `known`"
        ):
            losses.full_softmax(*case, known=tf.zeros([num_rows, 2], tf.int32))

    @parameterized.parameters(1, 2, 3, 7, 10, 64)
    def test_any_chunk_size(self, chunk_size):
        self._check(_case(10), chunk_size)

    def test_default_chunk_size_over_several_chunks(self):
        case = _case(2 * losses.CHUNK_SIZE + 5, num_candidates=3)
        value = losses.full_softmax(*map(tf.constant, case))
        np.testing.assert_allclose(value, _plain(*case)[0], rtol=1e-5)

    def test_weight_zero_counts_nothing(self):
        queries, candidates, targets, weights = _case(10)
        weights[[0, 4, 5, 9]] = 0
        # Where the weight is 0 the target may be anything.
        anything = targets.copy()
        anything[[0, 4, 5, 9]] = [-2, 10**6, -(2**31), 2**31 - 1]
        expected = _plain(queries, candidates, targets, weights)
        value, gradients = _fused(
            *map(tf.constant, (queries, candidates, anything, weights)), 3
        )
        np.testing.assert_allclose(value, expected[0], rtol=1e-5)
        for got, wanted in zip(gradients, expected[1:]):
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(gradients[0][0], np.zeros(5))

    def test_all_weights_zero(self):
        queries, candidates, targets, weights = _case(7)
        value, gradients = _fused(
            *map(tf.constant, (queries, candidates, targets, 0 * weights)), 3
        )
        self.assertEqual(float(value), 0)
        np.testing.assert_array_equal(gradients[0], 0 * queries)
        np.testing.assert_array_equal(gradients[1], 0 * candidates)

    def test_targets_of_64_bits(self):
        queries, candidates, targets, weights = _case(4)
        value = losses.full_softmax(
            *map(tf.constant, (queries, candidates)),
            tf.constant(targets.astype(np.int64)),
            tf.constant(weights),
        )
        expected = _plain(queries, candidates, targets, weights)[0]
        np.testing.assert_allclose(value, expected, rtol=1e-5)

    def test_no_queries(self):
        value, gradients = _fused(*map(tf.constant, _case(0)), 3)
        self.assertEqual(float(value), 0)
        np.testing.assert_array_equal(gradients[1], np.zeros((11, 5)))

    def test_one_candidate_is_certain(self):
        case = _case(4, num_candidates=1)
        value, gradients = _fused(*map(tf.constant, case), 3)
        self.assertAlmostEqual(float(value), 0, places=6)
        np.testing.assert_allclose(gradients[0], np.zeros((4, 5)), atol=1e-6)

    def test_extreme_logits_stay_finite(self):
        # Logits of ±1e4: right and certain, wrong and certain.
        queries = np.outer([1, -1, 1], [1, 0, 0, 0, 0]).astype(np.float32)
        candidates = np.outer([1e4, -1e4, 0], np.ones(5)).astype(np.float32)
        targets = np.array([0, 0, 1], np.int32)
        weights = np.ones(3, np.float32)
        # -log softmax: 0, 2e4 and 2e4.
        value, gradients = _fused(
            *map(tf.constant, (queries, candidates, targets, weights)), 2
        )
        np.testing.assert_allclose(value, 4e4, rtol=1e-6)
        expected = _plain(queries, candidates, targets, weights)
        for got, wanted in zip(gradients, expected[1:]):
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)

    @parameterized.parameters(59.0, 61.0, 88.0, 120.0)
    def test_large_logits_on_either_side_of_the_plain_exponential(self, size):
        # Targets of the highest and of the lowest logit; float32's exp ends
        # at 88.7 above and is no longer exact below -87.3.
        queries = np.zeros([3, 5], np.float32)
        queries[:, :2] = [[size, 0], [-size, 0], [1, 1]]
        candidates = np.zeros([3, 5], np.float32)
        candidates[:, :2] = [[1, 0], [-1, 0], [0.5, 0.5]]
        case = (queries, candidates, np.array([0, 0, 2]), np.ones(3))
        value, gradients = _fused(
            *(tf.constant(x, tf.float32) for x in case[:2]),
            tf.constant(case[2], tf.int32),
            tf.constant(case[3], tf.float32),
            2,
        )
        # 0, the distance 2 * size, and log(e + 1/e + e) - 1.
        np.testing.assert_allclose(
            value, 2 * size + np.log(2 + np.exp(-2)), rtol=1e-5
        )
        for got, wanted in zip(gradients, _plain(*case)[1:]):
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)

    def test_a_query_that_is_no_number_makes_the_loss_none(self):
        queries, candidates, targets, weights = _case(4)
        queries[1, 2] = np.nan
        value, _ = _fused(
            *map(tf.constant, (queries, candidates, targets, weights)), 2
        )
        self.assertTrue(np.isnan(value))

    @parameterized.parameters(tf.float16, tf.bfloat16)
    def test_half_precision_is_summed_in_float32(self, dtype):
        queries, candidates, targets, weights = _case(400)
        queries, candidates = (tf.cast(x, dtype) for x in (queries, candidates))
        value, gradients = _fused(
            queries, candidates, tf.constant(targets), tf.constant(weights), 64
        )
        expected = _plain(
            *(tf.cast(x, tf.float32).numpy() for x in (queries, candidates)),
            targets,
            weights,
        )
        self.assertEqual(value.dtype, tf.float32)
        np.testing.assert_allclose(value, expected[0], rtol=1e-5)
        self.assertEqual([g.dtype for g in gradients], [dtype, dtype])
        np.testing.assert_allclose(
            tf.cast(gradients[1], tf.float32),
            expected[2],
            rtol=0.02,
            atol=0.02 * np.abs(expected[2]).max(),
        )

    def test_gradient_of_the_weights_is_each_query_s_loss(self):
        queries, candidates, targets, weights = _case(6)
        tensor = tf.constant(weights)
        with tf.GradientTape() as tape:
            tape.watch(tensor)
            value = losses.full_softmax(
                *map(tf.constant, (queries, candidates, targets)),
                tensor,
                chunk_size=4,
            )
        expected = [
            _plain(
                queries[i : i + 1], candidates, targets[i : i + 1], np.ones(1)
            )[0]
            for i in range(6)
        ]
        gradient = tf.convert_to_tensor(tape.gradient(value, tensor))
        np.testing.assert_allclose(gradient, expected, rtol=1e-5)

    def test_gradient_is_that_of_finite_differences(self):
        queries, candidates, targets, weights = _case(4)
        _, gradients = _fused(
            *map(tf.constant, (queries, candidates, targets, weights)), 3
        )
        step = 1e-4
        for row, column in ((0, 0), (3, 4)):
            moved = [queries.astype(np.float64) for _ in range(2)]
            moved[0][row, column] += step
            moved[1][row, column] -= step
            up, down = (
                _plain(q, candidates, targets, weights)[0] for q in moved
            )
            self.assertAlmostEqual(
                float(gradients[0][row, column]),
                (up - down) / (2 * step),
                places=4,
            )


if __name__ == "__main__":
    absltest.main()
