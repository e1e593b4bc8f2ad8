from __future__ import annotations

import json
import pathlib
import tempfile
import threading
import zipfile
from unittest import mock

import keras
import numpy as np
import pyarrow as pa
from absl.testing import absltest, parameterized
from commands import run

import recsys
from recsys import files, recommend
from recsys import recommender as recommender_lib
from recsys.config import TrainConfig
from recsys.data import pipeline
from recsys.data.vocabulary import Vocabulary
from recsys.errors import InputError
from recsys.recommender import Recommender
from recsys.workdir import Workdir

# Indices 2 to 7.
ITEM_IDS = ["10", "20", "30", "40", "50", "60"]
TITLES = ["Alien (1979)", "Brazil (1985)", "Cube (1997)", "Dune (1984)", None]
COUNTS = [3, 9, 1, 9, 0, 5]


def _vocabulary() -> Vocabulary:
    return Vocabulary(
        ITEM_IDS,
        pa.table(
            {
                "item_id": ITEM_IDS,
                "title": [*TITLES, "Fargo (1996)"],
                "train_count": COUNTS,
            }
        ),
    )


def _model(rows: int = 8) -> recsys.TwoTower:
    table = recsys.SharedItemEmbedding(rows, 3)
    model = recsys.TwoTower(
        recsys.HistoryTower(table, encoder=recsys.MeanPooling()),
        recsys.CandidateTower(table),
    )
    model.build()
    table.embeddings.assign(np.random.default_rng(0).normal(size=(rows, 3)))
    return model


def _plain_scores(
    recommender: Recommender, history: list[int]
) -> dict[int, float]:
    """The dot product of the mean of the history with every item."""
    table = recommender.model.variables[0].numpy()
    query = np.mean([table[item] for item in history], axis=0)
    return {item: float(query @ table[item]) for item in range(2, 8)}


class RecommenderTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.recommender = Recommender(_model(), _vocabulary(), 4)

    def test_the_ranking_is_that_of_the_dot_products(self):
        scores = _plain_scores(self.recommender, [2, 5, 4])
        expected = sorted(scores, key=scores.get, reverse=True)
        got = self.recommender.recommend(
            ["10", "40", "30"], k=6, exclude_history=False
        )
        self.assertEqual(
            [r.item_id for r in got], [ITEM_IDS[i - 2] for i in expected]
        )
        np.testing.assert_allclose(
            [r.score for r in got], [scores[i] for i in expected], rtol=1e-5
        )

    def test_titles_and_ids_name_the_same_items(self):
        by_title = self.recommender.recommend(["alien (1979)", "Cube (1997)"])
        self.assertEqual(by_title, self.recommender.recommend(["10", "30"]))
        titles = {r.item_id: r.title for r in by_title}
        self.assertEqual(
            titles,
            {
                "20": "Brazil (1985)",
                "40": "Dune (1984)",
                "50": "50",
                "60": "Fargo (1996)",
            },
        )

    def test_the_history_is_excluded(self):
        got = self.recommender.recommend(["10", "20", "10"], k=3)
        self.assertLen(got, 3)
        self.assertTrue({"10", "20"}.isdisjoint(r.item_id for r in got))

    def test_k_larger_than_what_is_left(self):
        got = self.recommender.recommend(["10", "20"], k=100)
        self.assertCountEqual(
            [r.item_id for r in got], ["30", "40", "50", "60"]
        )
        self.assertLen(self.recommender.recommend(ITEM_IDS, k=5), 0)

    @parameterized.parameters(True, False)
    def test_padding_in_a_history_is_ignored(self, exclude_history):
        padded, plain = (
            self.recommender.recommend_indices(
                np.array(items, np.int32),
                np.array(offsets, np.int64),
                6,
                exclude_history=exclude_history,
            )
            for items, offsets in (
                ([0, 2, 0, 5, 0], [0, 4, 5]),
                ([2, 5], [0, 2, 2]),
            )
        )
        np.testing.assert_array_equal(padded, plain)

    def test_popular_items_are_found_only_where_needed(self):
        with mock.patch.object(
            recommender_lib, "top_columns", side_effect=AssertionError
        ):
            self.recommender.recommend(["10"])

    def test_an_empty_history_gets_popular_items(self):
        got = self.recommender.recommend([], k=4)
        # Equal counts in the order of the vocabulary.
        self.assertEqual([r.item_id for r in got], ["20", "40", "60", "10"])
        self.assertEqual([r.score for r in got], [9, 9, 5, 3])

    def test_many_histories_at_once(self):
        histories = [[2, 5], [], [1, 7], [1, 1], [3, 4, 5, 6, 7]]
        items, scores = self.recommender.recommend_indices(
            np.concatenate(histories).astype(np.int32),
            np.cumsum([0, *map(len, histories)]),
            k=5,
        )
        self.assertEqual(items.shape, (5, 5))
        # Nothing known: the most popular. An unknown item is never listed.
        popular = [3, 5, 7, 2, 4]
        self.assertEqual(items[1].tolist(), popular)
        self.assertEqual(items[3].tolist(), popular)
        self.assertFalse((items == 1).any())
        # One item is left, then nothing: 0 with a score of -inf.
        self.assertEqual(items[4].tolist(), [2, 0, 0, 0, 0])
        self.assertTrue(np.isneginf(scores[4, 1:]).all())
        for row, history in ((0, [2, 5]), (2, [7])):
            left = {
                item: score
                for item, score in _plain_scores(
                    self.recommender, history
                ).items()
                if item not in history
            }
            expected = sorted(left, key=left.get, reverse=True)[:5]
            got = items[row][items[row] > 0]
            self.assertEqual(got.tolist(), expected)

    def test_only_the_newest_items_are_read_but_all_are_excluded(self):
        # max_history_length is 4.
        history = ["10", "20", "30", "40", "50"]
        [got] = self.recommender.recommend(history)
        self.assertEqual(got.item_id, "60")
        expected = _plain_scores(self.recommender, [3, 4, 5, 6])[7]
        self.assertAlmostEqual(got.score, expected, places=5)

    def test_scores_and_vectors(self):
        items = np.array([2, 5, 3], np.int32)
        offsets = np.array([0, 2, 2, 3])
        scores = self.recommender.scores(items, offsets)
        self.assertEqual(scores.shape, (3, 8))
        for row, history in ((0, [2, 5]), (2, [3])):
            expected = _plain_scores(self.recommender, history)
            np.testing.assert_allclose(
                scores[row, 2:], list(expected.values()), rtol=1e-5
            )
        vectors = self.recommender.user_vectors(items, offsets)
        np.testing.assert_array_equal(vectors[1], np.zeros(3))
        np.testing.assert_allclose(
            vectors @ self.recommender.item_vectors().T, scores, rtol=1e-5
        )

    def test_many_batches_are_encoded_as_they_are_made(self):
        recommender = Recommender(_model(), _vocabulary(), 4)
        encode = recommender._encode.get_concrete_function()
        num_made = num_encoded = most_waiting = 0

        def make(*args, **kwargs):
            nonlocal num_made, most_waiting
            for batch in history_batches(*args, **kwargs):
                num_made += 1
                most_waiting = max(most_waiting, num_made - num_encoded)
                yield batch

        def encode_and_count(history_ids):
            nonlocal num_encoded
            vectors = encode(history_ids)
            with lock:
                num_encoded += 1
            return vectors

        lock = threading.Lock()
        stub = mock.Mock()
        stub.get_concrete_function.return_value = encode_and_count
        history_batches = pipeline.history_batches
        with (
            mock.patch.object(recommender, "_encode", stub),
            mock.patch.object(pipeline, "history_batches", make),
            mock.patch.object(recommender_lib, "_POSITIONS_PER_BATCH", 8),
        ):
            # [2, 3, 4], [5, 6, 7] and so on, two to a batch.
            vectors = recommender.user_vectors(
                np.tile(np.arange(2, 8, dtype=np.int32), 50),
                np.arange(0, 301, 3),
            )
        self.assertEqual((num_made, num_encoded), (50, 50))
        self.assertLessEqual(most_waiting, recommender_lib._NUM_WORKERS)
        table = recommender.model.variables[0].numpy()
        means = [table[[2, 3, 4]].mean(axis=0), table[[5, 6, 7]].mean(axis=0)]
        np.testing.assert_allclose(vectors, means * 50, rtol=1e-5)

    def test_an_error_of_a_batch_is_raised(self):
        def fail(*args, **kwargs):
            yield np.array([0]), np.array([[2]], np.int32), np.array([[0]])
            raise MemoryError("no batch")

        with (
            mock.patch.object(pipeline, "history_batches", fail),
            self.assertRaisesRegex(MemoryError, "no batch"),
        ):
            self.recommender.user_vectors(np.array([2]), np.array([0, 1]))

    def test_similar_items_by_the_cosine_of_vectors(self):
        table = self.recommender.model.variables[0].numpy()
        lengths = np.linalg.norm(table, axis=1)
        cosines = {
            item: table[3] @ table[item] / lengths[3] / lengths[item]
            for item in (2, 4, 5, 6, 7)
        }
        expected = sorted(cosines, key=cosines.get, reverse=True)
        got = self.recommender.similar("Brazil (1985)", k=9)
        self.assertEqual(
            [r.item_id for r in got], [ITEM_IDS[i - 2] for i in expected]
        )
        np.testing.assert_allclose(
            [r.score for r in got], [cosines[i] for i in expected], rtol=1e-5
        )
        self.assertEqual(self.recommender.similar("20", k=1), got[:1])
        with self.assertRaisesRegex(InputError, "`k` must be positive"):
            self.recommender.similar("20", k=0)

    def test_explains_by_leaving_items_of_the_history_out(self):
        # 2 is beyond max_history_length; without another it is read again.
        history = [2, 5, 3, 5, 4]
        whole = _plain_scores(self.recommender, history[1:])[7]
        expected = {
            "40": whole - _plain_scores(self.recommender, [2, 3, 4])[7],
            "20": whole - _plain_scores(self.recommender, [2, 5, 5, 4])[7],
            "30": whole - _plain_scores(self.recommender, [2, 5, 3, 5])[7],
        }
        got = self.recommender.explain(
            [ITEM_IDS[item - 2] for item in history], "Fargo (1996)"
        )
        self.assertEqual(
            [each.item_id for each in got],
            sorted(expected, key=lambda i: -abs(expected[i])),
        )
        for each in got:
            self.assertAlmostEqual(
                each.change, expected[each.item_id], places=5
            )
        self.assertEqual(got[0].title, TITLES[int(got[0].item_id) // 10 - 1])

    def test_explains_where_nothing_is_left(self):
        [got] = self.recommender.explain(["10", "10"], "60")
        self.assertAlmostEqual(
            got.change, _plain_scores(self.recommender, [2])[7], places=5
        )
        self.assertEqual(self.recommender.explain([], "60"), [])

    def test_item_vectors_are_computed_once(self):
        recommender = Recommender(_model(), _vocabulary(), 4)
        tower = recommender.model.candidate_tower
        with mock.patch.object(
            tower, "all_candidates", wraps=tower.all_candidates
        ) as all_candidates:
            for _ in range(3):
                recommender.recommend(["10"])
                recommender.similar("10")
                recommender.explain(["10"], "20")
            all_candidates.assert_called_once()
        with self.assertRaisesRegex(ValueError, "read-only"):
            recommender.item_vectors()[2] = 0

    def test_refresh_follows_further_training(self):
        recommender = Recommender(_model(), _vocabulary(), 4)
        before = recommender.scores(np.array([2, 3]), np.array([0, 2]))
        kept = recommender.item_vectors().copy()
        recommender.model.variables[0].assign_add(np.ones((8, 3)))
        np.testing.assert_array_equal(recommender.item_vectors(), kept)
        recommender.refresh()
        np.testing.assert_allclose(recommender.item_vectors(), kept + 1)
        after = recommender.scores(np.array([2, 3]), np.array([0, 2]))
        self.assertGreater(np.abs(after - before).min(), 0)

    def test_lists_are_no_longer_than_the_catalog(self):
        items, scores = self.recommender.recommend_indices(
            np.array([2], np.int32), np.array([0, 1, 1]), k=10**15
        )
        self.assertEqual((items.shape, scores.shape), ((2, 6), (2, 6)))
        self.assertLen(self.recommender.similar("20", k=10**15), 5)

    def test_vectors_that_are_not_finite_are_an_error(self):
        recommender = Recommender(_model(), _vocabulary(), 4)
        table = recommender.model.variables[0]
        table.assign(np.where(np.arange(24).reshape(8, 3) == 7, np.nan, table))
        with self.assertRaisesRegex(FloatingPointError, "finite user vectors"):
            recommender.recommend(["10"])
        with self.assertRaisesRegex(FloatingPointError, "finite item vectors"):
            recommender.recommend(["20"])

    @parameterized.parameters(0, -3)
    def test_k_must_be_positive(self, k):
        with self.assertRaisesRegex(
            InputError, f"`k` must be positive. Received: {k}"
        ):
            self.recommender.recommend(["10"], k=k)

    def test_an_unknown_title_gets_suggestions(self):
        with self.assertRaisesRegex(InputError, "close: 'Brazil.*Received: "):
            self.recommender.recommend(["Brasil (1985)"])

    def test_the_vocabulary_must_fit_the_table(self):
        with self.assertRaisesRegex(
            ValueError, "`vocabulary` must have the 9 rows .*Received: 8"
        ):
            Recommender(_model(rows=9), _vocabulary(), 4)


class LoadTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.workdir = Workdir(
            pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        )

    def _write(self, vocabulary: Vocabulary | None = None) -> Recommender:
        model, vocabulary = _model(), vocabulary or _vocabulary()
        files.write_json(
            self.workdir.config, TrainConfig(max_history_length=4).to_dict()
        )
        vocabulary.save(self.workdir.vocabulary)
        model.save(self.workdir.model)
        return Recommender(model, vocabulary, 4)

    def test_recommends_as_before(self):
        saved = self._write()
        loaded = recsys.load(str(self.workdir.path))
        self.assertIsInstance(loaded, recsys.Recommender)
        history = ["Alien (1979)", "20", "30", "40", "50"]
        self.assertEqual(loaded.recommend(history), saved.recommend(history))
        self.assertEqual(loaded.recommend([]), saved.recommend([]))

    def test_no_such_folder(self):
        with self.assertRaisesRegex(InputError, r"\(no such folder\)"):
            recsys.load(self.workdir.path / "nowhere")

    def test_no_model(self):
        with self.assertRaisesRegex(InputError, r"\(no model\)"):
            recsys.load(self.workdir.path)

    def test_a_damaged_model(self):
        self._write()
        self.workdir.model.write_bytes(b"PK\3\4 half")
        with self.assertRaisesRegex(
            InputError, "model.keras: expected a model of this version"
        ):
            recsys.load(self.workdir.path)

    def _members(self) -> dict[str, bytes]:
        with zipfile.ZipFile(self.workdir.model) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    def _pack(self, members: dict[str, bytes], kind=zipfile.ZIP_STORED):
        with zipfile.ZipFile(self.workdir.model, "w", kind) as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    def test_models_damaged_in_many_ways(self):
        self._write()
        members = self._members()
        weights = members["model.weights.h5"]
        config = members["config.json"]
        another = {"class_name": "Nowhere", "registered_name": "recsys>Nowhere"}
        for changes in (
            {"config.json": None},
            {"config.json": b""},
            {"config.json": b"[]"},
            {"config.json": b"\xff"},
            {"config.json": b"[" * 100_000},
            {"config.json": json.dumps(another).encode()},
            {"config.json": config.replace(b"embedding_dim", b"dim")},
            {"config.json": config.replace(b": 8", b": 9")},
            {"model.weights.h5": None},
            {"model.weights.h5": b""},
            {"model.weights.h5": weights[:-100]},
            {"model.weights.h5": weights[:200] + bytes(len(weights) - 200)},
        ):
            left = {**members, **changes}
            self.assertNotEqual(left, members)
            self._pack({k: v for k, v in left.items() if v is not None})
            with (
                self.subTest(changes),
                self.assertRaisesRegex(
                    InputError,
                    f"^{self.workdir.model}: expected a model of this version "
                    "of .*Received: .",
                ),
            ):
                recsys.load(self.workdir.path)

    def test_a_model_whose_bits_flipped(self):
        self._write()
        members = self._members()
        self._pack(members, zipfile.ZIP_DEFLATED)
        content = self.workdir.model.read_bytes()
        found = set()
        for place in range(0, len(content), len(content) // 60):
            damaged = bytearray(content)
            damaged[place] ^= 0x5A
            self.workdir.model.write_bytes(damaged)
            try:
                recsys.load(self.workdir.path)
            except InputError as error:
                self.assertStartsWith(str(error), f"{self.workdir.model}: ")
                found.add(type(error.__cause__).__name__)
        # zlib's and zipfile's own errors among them.
        self.assertContainsSubset({"error", "BadZipFile"}, found)

    def test_a_model_of_another_kind(self):
        self._write()
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.save(self.workdir.model)
        with self.assertRaisesRegex(
            InputError, "a TwoTower. Received: a Keras model of class Seq"
        ):
            recsys.load(self.workdir.path)

    def test_a_model_of_other_items(self):
        self._write()
        _model(rows=9).save(self.workdir.model)
        with self.assertRaisesRegex(
            InputError,
            "model.keras: expected a model of this version of recsys with the "
            "8 rows of vocabulary.parquet. Received: a table of 9 rows",
        ):
            recsys.load(self.workdir.path)

    def test_weights_that_are_not_finite(self):
        saved = self._write()
        for value in (np.nan, np.inf):
            saved.model.variables[0].assign(np.full((8, 3), value))
            saved.model.save(self.workdir.model)
            with self.assertRaisesRegex(
                InputError, "model.keras: expected finite weights. Received: "
            ):
                recsys.load(self.workdir.path)

    def test_recommending_with_weights_that_are_not_finite(self):
        saved = self._write()
        saved.model.variables[0].assign(np.full((8, 3), np.nan))
        saved.model.save(self.workdir.model)
        flag = f"--workdir={self.workdir.path}"
        histories = self.workdir.path / "histories"
        histories.write_text("10\n")
        output = self.workdir.path / "output"
        for arguments in (
            ["--history=10"],
            ["--similar_to=10"],
            [f"--histories={histories}", f"--output={output}"],
        ):
            code, out, err = run(recommend, flag, *arguments)
            self.assertEqual((code, out), (2, ""))
            self.assertLen(err.splitlines(), 1)
            self.assertIn("model.keras: expected finite weights", err)
        self.assertFalse(output.exists())

    def test_titles_and_ids_cannot_control_the_terminal(self):
        ids = ["10", "20", "30", "40", "50", "6\x9b2J\n"]
        titles = [f"\x1b]0;owned\x07\xa0film\u202e {i}" for i in ids]
        self._write(
            Vocabulary(ids, pa.table({"item_id": ids, "title": titles}))
        )
        for arguments in (
            ["--history=10", "--explain"],
            ["--similar_to=10"],
            ["--history="],
        ):
            code, out, err = run(
                recommend, f"--workdir={self.workdir.path}", *arguments
            )
            self.assertEqual((code, err), (0, ""))
            for character in "\x1b\x07\u202e\x9b":
                self.assertNotIn(character, out)
            self.assertIn(r"\x1b]0;owned\x07" + "\xa0film" + r"\u202e", out)
            self.assertIn(r"id 6\x9b2J\n", out)

    def test_a_missing_vocabulary(self):
        self._write()
        self.workdir.vocabulary.unlink()
        with self.assertRaisesRegex(InputError, "a vocabulary file must exist"):
            recsys.load(self.workdir.path)


if __name__ == "__main__":
    absltest.main()
