from __future__ import annotations

import importlib.util
import json
import pathlib
import tempfile
from unittest import mock

import numpy as np
import tensorflow as tf
from absl.testing import absltest, parameterized

from recsys import retrieval
from recsys.errors import InputError
from recsys.retrieval import approximate, exact

HAS_FAISS = importlib.util.find_spec("faiss") is not None

# Fails a search of all candidates.
NO_EXACT_SEARCH = mock.patch.object(
    retrieval.ExactIndex, "_search", side_effect=AssertionError
)

IDS = ["a", "b", "c", "d", "e"]
# Against [1, 0]: a 1, b 3, c 3, d 0, e 2. Against [0, 1]: 0, 0, 1, 5, 2.
VECTORS = np.array([[1, 0], [3, 0], [3, 1], [0, 5], [2, 2]], np.float32)


def _slow_top_k(queries, candidates, k, exclusions=None, rows=None):
    """Sorts everything, lowest row first among equals."""
    k = min(k, len(candidates))
    found = np.full((len(queries), k), -1)
    scores = np.full((len(queries), k), -np.inf)
    for i, query in enumerate(queries):
        products = [
            (-float(query @ c), row) for row, c in enumerate(candidates)
        ]
        left = [
            (product, row)
            for product, row in sorted(products)
            if (exclusions is None or row not in exclusions[i])
            and (rows is None or row in rows)
        ][:k]
        found[i, : len(left)] = [row for _, row in left]
        scores[i, : len(left)] = [-product for product, _ in left]
    return found, scores


def _flat(lists):
    return np.concatenate(lists), np.cumsum([0, *map(len, lists)])


def _whole_numbers(rng, shape, largest):
    """Products of these are exact, and of small ones often equal."""
    return rng.integers(-largest, largest + 1, shape).astype(np.float32)


def _slow_columns(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """By a full stable sort of each row."""
    items = np.full((len(scores), k), -1)
    best = np.full((len(scores), k), -np.inf, scores.dtype)
    for row, values in enumerate(scores):
        order = np.argsort(-values, kind="stable")[:k]
        order = order[values[order] > -np.inf]
        items[row, : len(order)] = order
        best[row, : len(order)] = values[order]
    return items, best


class TopColumnsTest(parameterized.TestCase):
    @parameterized.product(
        num_rows=(1, 20),
        num_columns=(5, 163, 1024),
        k=(1, 10, 64),
        kind=("distinct", "ties", "one value", "few finite"),
        dtype=(np.float32, np.float64),
    )
    def test_equals_a_full_sort(self, num_rows, num_columns, k, kind, dtype):
        rng = np.random.default_rng(num_columns + k)
        scores = rng.standard_normal((num_rows, num_columns)).astype(dtype)
        if kind == "ties":
            scores = np.round(scores, 1)
        elif kind == "one value":
            scores[::2] = 0.5
        elif kind == "few finite":
            scores[rng.random(scores.shape) < 0.95] = -np.inf
            scores[3:4] = -np.inf
        before = scores.copy()
        items, best = retrieval.top_columns(scores, k)
        expected_items, expected_best = _slow_columns(scores, k)
        np.testing.assert_array_equal(items, expected_items)
        np.testing.assert_array_equal(best, expected_best)
        self.assertEqual(best.dtype, dtype)
        np.testing.assert_array_equal(scores, before)

    def test_no_rows(self):
        items, best = retrieval.top_columns(np.zeros((0, 400), np.float32), 10)
        self.assertEqual(items.shape, (0, 10))
        self.assertEqual(best.shape, (0, 10))


class ExactTopKTest(parameterized.TestCase):
    @parameterized.product(
        sizes=[
            # queries, candidates, k
            (1, 1, 1),
            (3, 5, 10),
            (3, 40, 40),
            (7, 700, 3),
            (530, 100, 4),
        ],
        largest=[1, 100],
        has_exclusions=[False, True],
        has_rows=[False, True],
    )
    def test_against_sorting(self, sizes, largest, has_exclusions, has_rows):
        num_queries, num_candidates, k = sizes
        rng = np.random.default_rng(num_candidates)
        queries = _whole_numbers(rng, (num_queries, 4), largest)
        candidates = _whole_numbers(rng, (num_candidates, 4), largest)
        exclusions = rows = None
        if has_exclusions:
            exclusions = [
                rng.integers(num_candidates, size=rng.integers(30))
                for _ in range(num_queries)
            ]
        if has_rows:
            rows = np.flatnonzero(rng.random(num_candidates) < 0.4)
        expected = _slow_top_k(queries, candidates, k, exclusions, rows)
        got = retrieval.top_k(
            queries,
            candidates,
            k,
            exclusions=_flat(exclusions) if has_exclusions else None,
            rows=rows,
        )
        np.testing.assert_array_equal(got[0], expected[0])
        np.testing.assert_array_equal(got[1], expected[1])

    @parameterized.parameters(False, True)
    def test_many_chunks(self, rising):
        # Of rising scores, each is better than all before: the most is kept.
        rng = np.random.default_rng(0)
        candidates = _whole_numbers(rng, (1003, 4), 3)
        if rising:
            candidates = candidates[np.argsort(candidates.sum(axis=1))]
        queries = np.concatenate(
            [np.ones((1, 4)), np.zeros((1, 4)), _whole_numbers(rng, (9, 4), 3)]
        ).astype(np.float32)
        exclusions = [rng.integers(1003, size=50) for _ in queries]
        with (
            mock.patch.object(exact, "_SCORES_PER_CHUNK", 512),
            mock.patch.object(exact, "_QUERIES_PER_BLOCK", 7),
        ):
            got = retrieval.top_k(
                queries,
                candidates,
                5,
                exclusions=_flat(exclusions),
            )
        expected = _slow_top_k(queries, candidates, 5, exclusions)
        np.testing.assert_array_equal(got[0], expected[0])
        np.testing.assert_array_equal(got[1], expected[1])

    def test_memory_does_not_grow_with_k(self):
        found, scores = retrieval.top_k(VECTORS, VECTORS, 10**15)
        self.assertEqual((found.shape, scores.shape), ((5, 5), (5, 5)))
        index = retrieval.ExactIndex(IDS, VECTORS)
        self.assertEqual(index.top_k([[1, 0]], 10**15).scores.shape, (1, 5))

    def test_a_tensor_of_candidates(self):
        found, _ = retrieval.top_k(VECTORS[:1], tf.constant(VECTORS), 2)
        self.assertEqual(found.tolist(), [[1, 2]])

    def test_no_query_or_no_candidate(self):
        candidates = VECTORS
        found, scores = retrieval.top_k(np.zeros((0, 2), "f4"), candidates, 3)
        self.assertEqual((found.shape, scores.shape), ((0, 3), (0, 3)))
        found, scores = retrieval.top_k(
            VECTORS[:1], candidates, 2, rows=np.zeros(0, np.int64)
        )
        self.assertEqual(found.tolist(), [[-1, -1]])
        self.assertTrue(np.isneginf(scores).all())


class ExactIndexTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.index = retrieval.ExactIndex(IDS, VECTORS)

    def test_best_first_with_ties_in_the_order_given(self):
        result = self.index.top_k([[1, 0], [0, 1]], 3)
        self.assertEqual(
            result.identifiers.tolist(), [["b", "c", "e"], ["d", "e", "c"]]
        )
        self.assertEqual(result.scores.tolist(), [[3, 3, 2], [5, 2, 1]])
        self.assertEqual(result.counts.tolist(), [3, 3])

    def test_exclusions_are_of_each_query(self):
        result = self.index.top_k(
            [[1, 0], [1, 0], [1, 0]], 2, exclusions=[["b"], [], ["c", "other"]]
        )
        self.assertEqual(
            result.identifiers.tolist(), [["c", "e"], ["b", "c"], ["b", "e"]]
        )

    def test_lists_are_shorter_where_fewer_are_left(self):
        result = self.index.top_k(
            [[1, 0], [1, 0]], 4, exclusions=[["a", "b", "c"], IDS]
        )
        self.assertEqual(result.counts.tolist(), [2, 0])
        self.assertEqual(
            result.identifiers.tolist(), [["e", "d", "", ""], [""] * 4]
        )
        self.assertTrue(np.isneginf(result.scores[0, 2:]).all())
        self.assertEqual(list(result), [[("e", 2.0), ("d", 0.0)], []])

    def test_masks_and_allow_lists(self):
        num_views = np.array([9, 1, 7, 8, 0])
        result = self.index.top_k([[1, 0]], 3, mask=num_views >= 7)
        self.assertEqual(result.identifiers.tolist(), [["c", "a", "d"]])
        allowed = self.index.mask(["e", "a"])
        self.assertEqual(allowed.tolist(), [True, False, False, False, True])
        result = self.index.top_k([[1, 0]], 3, mask=allowed, exclusions=[["e"]])
        self.assertEqual(list(result), [[("a", 1.0)]])

    def test_similar(self):
        result = self.index.similar(["c", "d"], 2, mask=np.arange(5) != 4)
        # c: a 3, b 9, d 5. d: a 0, b 0, c 5.
        self.assertEqual(
            list(result),
            [[("b", 9.0), ("d", 5.0)], [("c", 5.0), ("a", 0.0)]],
        )

    def test_integers_as_identifiers(self):
        index = retrieval.ExactIndex([7, -1, 0, 3, 10**12], VECTORS)
        result = index.top_k([[0, 1]], 5, exclusions=[[7, 0]])
        self.assertEqual(result.identifiers.tolist(), [[3, 10**12, -1, -1, -1]])
        self.assertEqual(result.counts.tolist(), [3])

    def test_adding_and_replacing(self):
        self.index.top_k([[1, 0]], 1, exclusions=[["a"]])
        self.index.update(["a", "a long name"], [[9, 0], [8, 0]])
        self.assertEqual(self.index.identifiers[5], "a long name")
        for number in range(20):
            self.index.update([f"n{number}"], [[-number, -1]])
        result = self.index.top_k([[1, 0]], 3, exclusions=[["b"]])
        self.assertEqual(
            list(result), [[("a", 9.0), ("a long name", 8.0), ("c", 3.0)]]
        )
        self.assertLen(self.index, 26)
        self.assertEqual(self.index.vectors.shape, (26, 2))
        np.testing.assert_array_equal(self.index.vectors[-1], [-19, -1])

    @parameterized.parameters((IDS,), ([5, 4, 3, 2, 1],))
    def test_lists_of_no_identifiers(self, ids):
        index = retrieval.ExactIndex(ids, VECTORS)
        self.assertFalse(index.mask([]).any())
        similar = index.similar([], 2)
        self.assertEqual(similar.identifiers.shape, (0, 2))
        index.update([], np.zeros((0, 2)))
        self.assertEqual(index.identifiers.dtype, np.array(ids).dtype)
        self.assertEqual(index.identifiers.tolist(), ids)

    def test_an_empty_index_can_be_filled(self):
        index = retrieval.ExactIndex(np.zeros(0, int), np.zeros((0, 2)))
        self.assertEqual(index.top_k([[1, 0]], 2).counts.tolist(), [0])
        index.update([4], [[1, 1]])
        self.assertEqual(list(index.top_k([[1, 0]], 2)), [[(4, 1.0)]])

    def test_save_and_load(self):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        for ids in (IDS, [5, 4, 3, 2, 1]):
            index = retrieval.ExactIndex(ids, VECTORS)
            index.update(ids[:1], [[7, 7]])
            index.save(folder)
            loaded = retrieval.load(folder)
            np.testing.assert_array_equal(loaded.identifiers, ids)
            np.testing.assert_array_equal(loaded.vectors, index.vectors)
            loaded.update(ids[1:2], [[70, 70]])
            self.assertEqual(
                loaded.top_k([[1, 0]], 1).identifiers[0, 0], ids[1]
            )

    @parameterized.parameters(
        ({"queries": [[1, 0, 0]]}, r"`queries` must have the shape \[n, 2\]"),
        ({"queries": [[1, np.nan]]}, "`queries` must be finite.*row 0"),
        ({"k": 0}, "`k` must be at least 1. Received: 0"),
        ({"exclusions": [["a"], ["b"]]}, "each of the 1 queries. Received: 2"),
        ({"exclusions": ["a"]}, None),
        ({"exclusions": [3]}, "Received: an identifier where a list"),
        ({"mask": np.ones(4, bool)}, r"`mask` must be bool of shape \(5,\)"),
        ({"mask": np.ones(5)}, "`mask` must be bool .*float64"),
    )
    def test_misuse(self, arguments, message):
        arguments = {"queries": [[1, 0]], "k": 1, **arguments}
        if message is None:
            message = "Received: an identifier where a list"
        with self.assertRaisesRegex(InputError, message):
            self.index.top_k(**arguments)

    @parameterized.parameters(
        (["a"], [[1, np.inf]], "`vectors` must be finite"),
        (["x", "y"], [[1, 0]], "the same length. Received: 2 and 1"),
        (
            ["x", "x"],
            [[1, 0], [2, 0]],
            "must be unique. Received a duplicate: 'x'",
        ),
        ([1], [[1, 0]], "must be of the type of the others"),
        (["x", 1], [[1, 0], [2, 0]], "all strings or all integers"),
        ([2**63], [[1, 0]], "integers below 2.*63.*Received: 9223372036854775"),
        (np.array([2**64 - 1], np.uint64), [[1, 0]], "integers below 2"),
        ([1.5], [[1, 0]], "all strings or all integers"),
    )
    def test_a_wrong_update_changes_nothing(self, ids, vectors, message):
        with self.assertRaisesRegex(InputError, message):
            self.index.update(ids, vectors)
        self.assertLen(self.index, 5)
        np.testing.assert_array_equal(self.index.vectors, VECTORS)

    def test_unknown_identifiers_and_folders(self):
        with self.assertRaisesRegex(InputError, "unknown one: 'z'"):
            self.index.similar(["a", "z"], 2)
        with self.assertRaisesRegex(InputError, "unknown one: 'z'"):
            self.index.mask(["z"])
        with self.assertRaisesRegex(InputError, "a folder with an index"):
            retrieval.load(pathlib.Path("nowhere"))

    def test_large_values_are_finite(self):
        index = retrieval.ExactIndex(["x"], [[3e38, 3e38]])
        self.assertEqual(index.top_k([[1, 0]], 1).identifiers.tolist(), [["x"]])


@absltest.skipUnless(HAS_FAISS, "faiss is not installed (extra [ann])")
class ApproximateIndexTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        rng = np.random.default_rng(0)
        centres = rng.normal(size=(40, 16))
        cls.vectors = (
            centres[rng.integers(40, size=3000)]
            + 0.5 * rng.normal(size=(3000, 16))
        ).astype(np.float32)
        cls.queries = cls.vectors[:50] + 0.1
        cls.ids = [f"i{row}" for row in range(3000)]
        cls.exact = retrieval.ExactIndex(cls.ids, cls.vectors)
        cls.index = retrieval.ApproximateIndex(
            cls.ids, cls.vectors, num_leaves=30, leaves_to_search=20
        )

    def _assert_recall(self, got, expected, least):
        np.testing.assert_array_equal(got.counts, expected.counts)
        common = [
            len({*one[:count].tolist()} & {*other[:count].tolist()})
            for one, other, count in zip(
                got.identifiers, expected.identifiers, got.counts, strict=True
            )
        ]
        self.assertGreaterEqual(sum(common), least * got.counts.sum())
        self.assertTrue((got.scores[:, 1:] <= got.scores[:, :-1]).all())

    def test_finds_nearly_all_with_their_exact_scores(self):
        got = self.index.top_k(self.queries, 20)
        self._assert_recall(got, self.exact.top_k(self.queries, 20), 0.95)
        rows = np.vectorize(lambda text: int(text[1:]))(got.identifiers)
        expected = np.einsum("qkd,qd->qk", self.vectors[rows], self.queries)
        np.testing.assert_allclose(got.scores, expected, rtol=1e-4)

    @parameterized.parameters(3, 700)
    def test_excluded_candidates_are_replaced(self, num_excluded):
        best = self.exact.top_k(self.queries, num_excluded).identifiers
        arguments = {"k": 10, "exclusions": best.tolist()}
        got = self.index.top_k(self.queries, **arguments)
        self._assert_recall(
            got, self.exact.top_k(self.queries, **arguments), 0.9
        )
        for found, excluded in zip(got.identifiers, best, strict=True):
            self.assertFalse(set(found) & set(excluded))

    @parameterized.parameters(0.9, 0.01, 0.002, 0)
    def test_masks(self, share):
        mask = np.arange(3000) % 1000 < 1000 * share
        got = self.index.top_k(self.queries, 10, mask=mask)
        expected = self.exact.top_k(self.queries, 10, mask=mask)
        self._assert_recall(got, expected, 0.9)
        found = got.identifiers[got.identifiers != ""]
        self.assertTrue(all(mask[int(text[1:])] for text in found))

    def test_more_than_there_are(self):
        got = self.index.top_k(self.queries[:2], 3100)
        expected = self.exact.top_k(self.queries[:2], 3100)
        np.testing.assert_array_equal(got.identifiers, expected.identifiers)
        self.assertEqual(got.counts.tolist(), [3000, 3000])
        self.assertEqual(got.scores.shape, (2, 3000))

    def test_searches_again_if_the_partitions_hold_too_few(self):
        # Nothing near the query is allowed, so its partitions hold nothing.
        mask = self.vectors @ self.queries[0] < 0
        with mock.patch.object(approximate, "_LARGEST_FETCH", 1.0):
            got = self.index.top_k(self.queries[:1], 300, mask=mask)
        expected = self.exact.top_k(self.queries[:1], 300, mask=mask)
        self.assertEqual(got.counts.tolist(), [300])
        self._assert_recall(got, expected, 0.9)

    def test_adds_replaces_saves_and_loads(self):
        index = retrieval.ApproximateIndex(self.ids, self.vectors)
        query = np.ones((1, 16), np.float32)
        index.update(
            ["new", "i5", "newer"],
            [np.full(16, 80), np.full(16, 90), np.full(16, 70)],
        )
        expected = [("i5", 1440.0), ("new", 1280.0), ("newer", 1120.0)]
        self.assertEqual(list(index.top_k(query, 3)), [expected])
        self.assertEqual(index.similar(["i5"], 1).identifiers[0, 0], "new")
        folder = self.enterContext(tempfile.TemporaryDirectory())
        saved = pathlib.Path(folder, "saved")
        index.save(saved)
        loaded = retrieval.load(saved.rename(pathlib.Path(folder, "moved")))
        self.assertIsInstance(loaded, retrieval.ApproximateIndex)
        with NO_EXACT_SEARCH:
            self.assertEqual(list(loaded.top_k(query, 3)), [expected])
        np.testing.assert_array_equal(
            loaded.top_k(self.queries, 9).identifiers,
            index.top_k(self.queries, 9).identifiers,
        )
        loaded.update(["new"], [np.full(16, 100)])
        self.assertEqual(loaded.top_k(query, 1).identifiers[0, 0], "new")

    def test_few_candidates_are_searched_exactly_until_there_are_more(self):
        index = retrieval.ApproximateIndex(IDS, VECTORS)
        self.assertEqual(
            list(index.top_k([[1, 0]], 2)), [[("b", 3.0), ("c", 3.0)]]
        )
        folder = self.enterContext(tempfile.TemporaryDirectory())
        index.save(folder)
        loaded = retrieval.load(folder)
        rng = np.random.default_rng(0)
        more = [f"m{number}" for number in range(2000)]
        loaded.update(more, rng.normal(size=(2000, 2)))
        with NO_EXACT_SEARCH:
            self.assertEqual(loaded.top_k([[0, 1]], 1).identifiers[0, 0], "d")

    def test_few_changes_are_exact_and_many_train_it_again(self):
        index = retrieval.ApproximateIndex(
            self.ids, self.vectors, num_leaves=30, leaves_to_search=20
        )
        folder = pathlib.Path(
            self.enterContext(tempfile.TemporaryDirectory()), "saved"
        )
        for count, num_changed in ((300, 300), (301, 0)):
            # Longer than the others, so that they are often among the best.
            changed = self.vectors.copy()
            changed[:count] *= 3
            index.update(self.ids[:count], changed[:count])
            with NO_EXACT_SEARCH:
                got = index.top_k(self.queries, 20)
            exact_index = retrieval.ExactIndex(self.ids, changed)
            self._assert_recall(got, exact_index.top_k(self.queries, 20), 0.95)
            for row in got.identifiers:
                self.assertLen(set(row), 20)
            index.save(folder)
            self.assertLen(np.load(folder / "changed_rows.npy"), num_changed)

    def test_an_odd_number_of_dimensions(self):
        vectors = self.vectors[:, :15]
        got = retrieval.ApproximateIndex(self.ids, vectors).top_k(
            self.queries[:, :15], 20
        )
        exact_index = retrieval.ExactIndex(self.ids, vectors)
        expected = exact_index.top_k(self.queries[:, :15], 20)
        self._assert_recall(got, expected, 0.85)

    def test_what_scann_saved_is_trained_again_and_says_so(self):
        folder = pathlib.Path(
            self.enterContext(tempfile.TemporaryDirectory()), "saved"
        )
        self.exact.save(folder)
        about = {
            "kind": "scann",
            "num_leaves": 30,
            "leaves_to_search": 20,
            "has_searcher": True,
        }
        (folder / "index.json").write_text(json.dumps(about))
        with self.assertWarnsRegex(UserWarning, "saved by ScaNN.*train"):
            index = retrieval.load(folder)
        self.assertIs(type(index), retrieval.ScannIndex)
        np.testing.assert_array_equal(
            index.top_k(self.queries, 9).identifiers,
            self.index.top_k(self.queries, 9).identifiers,
        )
        index.save(folder)
        self.assertEqual(
            list(retrieval.load(folder).top_k(self.queries, 9)),
            list(index.top_k(self.queries, 9)),
        )

    def test_a_damaged_searcher_is_reported(self):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        self.index.save(folder)
        pathlib.Path(folder, "searcher.faiss").write_bytes(b"x")
        with self.assertRaisesRegex(InputError, "expected searcher.faiss"):
            retrieval.load(folder)

    def test_misuse(self):
        with self.assertRaisesRegex(InputError, "`num_leaves` must be at"):
            retrieval.ApproximateIndex(IDS, VECTORS, num_leaves=0)


class WithoutFaissTest(absltest.TestCase):
    def test_the_error_says_how_to_install_it(self):
        with (
            mock.patch.dict("sys.modules", {"faiss": None}),
            self.assertRaisesRegex(
                InputError, r"pip install 'recsys-towers\[ann\]'"
            ),
        ):
            retrieval.ApproximateIndex(IDS, VECTORS)


if __name__ == "__main__":
    absltest.main()
