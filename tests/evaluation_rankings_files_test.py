"""Tests of rankings files, and of the metrics against ir-measures."""

from __future__ import annotations

import itertools
import json
import pathlib
import tempfile

import ir_measures
import numpy as np
from absl.testing import absltest, parameterized

from recsys.data.sequences import Sequences
from recsys.data.splits import Queries
from recsys.data.vocabulary import Vocabulary
from recsys.errors import InputError
from recsys.evaluation import (
    Evaluation,
    evaluate,
    read_rankings,
    write_rankings,
)

_NUM_ITEMS = 60
_VOCABULARY = Vocabulary([f"i{item}" for item in range(2, _NUM_ITEMS + 2)])


class _Scores:
    """Random scores, the same for a history of the same length."""

    name = "random"

    def __init__(self, levels: int) -> None:
        rng = np.random.default_rng(levels)
        self._table = rng.integers(0, levels, (50, _NUM_ITEMS + 2)) / 8

    def scores(self, items: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        return self._table[np.diff(offsets)].astype(np.float32)


def _queries(num_queries: int = 40, max_relevant: int = 6) -> Queries:
    rng = np.random.default_rng(num_queries)
    parts = [
        (rng.integers(1, 8), rng.integers(1, max_relevant + 1))
        for _ in range(num_queries)
    ]
    lengths = np.array(parts).sum(axis=1)
    offsets = np.append(0, np.cumsum(lengths))
    sequences = Sequences(
        user_ids=np.array([f"u{row}" for row in range(num_queries)], object),
        offsets=offsets,
        items=np.concatenate(
            [rng.permutation(_NUM_ITEMS)[:length] + 2 for length in lengths]
        ).astype(np.int32),
        timestamps=np.arange(offsets[-1]),
    )
    ends = offsets[:-1] + np.array([history for history, _ in parts])
    return Queries(
        sequences, np.arange(num_queries), offsets[:-1], ends, offsets[1:]
    )


def _qrels(queries: Queries) -> list[ir_measures.Qrel]:
    items, offsets = queries.targets(np.arange(len(queries)))
    return [
        ir_measures.Qrel(f"u{row}", f"i{item}", 1)
        for row in range(len(queries))
        for item in items[offsets[row] : offsets[row + 1]]
    ]


class RankingsFilesTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = pathlib.Path(folder.name) / "mine.jsonl"

    def _read(self, queries: Queries, **options) -> Evaluation:
        return read_rankings(
            self.path, queries, _VOCABULARY, protocol="temporal", **options
        )

    def _write_lines(self, *lines: object) -> None:
        self.path.write_text(
            "\n".join(
                line if isinstance(line, str) else json.dumps(line)
                for line in lines
            ),
            encoding="utf-8",
        )

    def test_ir_measures_finds_the_same_in_an_exported_file(self):
        queries = _queries()
        # With this many levels there are no ties, which ir-measures would
        # break by name.
        result = evaluate(
            _Scores(10**6), queries, protocol="temporal", ks=(1, 5, 10, 50)
        )
        write_rankings(result, _VOCABULARY, self.path)
        run = []
        for text in self.path.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            run += [
                ir_measures.ScoredDoc(line["query_id"], item, score)
                for item, score in zip(
                    line["items"], line["scores"], strict=True
                )
            ]
        theirs = {
            "recall": ir_measures.R,
            "ndcg": ir_measures.nDCG,
            "hit_rate": ir_measures.Success,
            "precision": ir_measures.P,
            "mrr": ir_measures.RR,
            "map": ir_measures.AP,
        }
        measures = {
            f"{name}@{k}": measure @ k
            for name, measure in theirs.items()
            for k in (1, 5, 10, 50)
        }
        found = ir_measures.calc_aggregate(
            measures.values(), _qrels(queries), run
        )
        ours = result.metrics()
        self.assertEqual(sorted(ours), sorted(measures))
        for name, measure in measures.items():
            self.assertAlmostEqual(
                ours[name], found[measure], delta=1e-6, msg=name
            )

    @parameterized.parameters(1, 2)
    def test_tied_ranks_are_the_mean_over_the_orders_of_ir_measures(
        self, num_relevant
    ):
        # ir-measures orders tied items by name, so naming the four tied
        # items in every order gives every possible ranking.
        self._write_lines(
            {
                "query_id": "u0",
                "items": ["i2", "i3", "i4", "i5", "i6"],
                "scores": [2, 1, 1, 1, 1],
            }
        )
        items = [10, *range(3, 3 + num_relevant)]
        sequences = Sequences(
            user_ids=np.array(["u0"], object),
            offsets=np.array([0, len(items)]),
            items=np.array(items, np.int32),
            timestamps=np.arange(len(items)),
        )
        queries = Queries(
            sequences,
            np.array([0]),
            np.array([0]),
            np.array([1]),
            np.array([len(items)]),
        )
        ours = self._read(queries, ks=(5,))
        first_ranks = []
        for names in itertools.permutations(["a", "b", "c", "d"]):
            run = [ir_measures.ScoredDoc("u0", "best", 2.0)]
            run += [ir_measures.ScoredDoc("u0", name, 1.0) for name in names]
            qrels = [
                ir_measures.Qrel("u0", name, 1) for name in names[:num_relevant]
            ]
            found = ir_measures.calc_aggregate([ir_measures.RR], qrels, run)
            first_ranks.append(1 / found[ir_measures.RR])
        self.assertAlmostEqual(ours.ranks[0, 0], np.mean(first_ranks))

    @parameterized.parameters(5, 10**6)
    def test_written_rankings_read_back(self, levels):
        queries = _queries(max_relevant=3)
        ks = (1, 5, _NUM_ITEMS)
        result = evaluate(_Scores(levels), queries, protocol="p", ks=ks)
        write_rankings(result, _VOCABULARY, self.path)
        found = self._read(queries, ks=ks)
        self.assertEqual(found.name, "mine")
        # The longest list has all items but those of the shortest history.
        self.assertEqual(found.ks, (1, 5))
        np.testing.assert_array_equal(found.ranks, result.ranks)
        np.testing.assert_array_equal(
            found.relevant_items, result.relevant_items
        )
        np.testing.assert_array_equal(
            found.num_candidates, result.num_candidates
        )
        np.testing.assert_array_equal(found.top_items, result.top_items[:, :5])
        np.testing.assert_array_equal(
            found.top_scores, result.top_scores[:, :5]
        )

    def test_an_unlisted_item_is_not_found(self):
        queries = _queries(2, max_relevant=1)
        targets = queries.targets(np.arange(2))[0]
        self._write_lines(
            {"query_id": "u1", "items": []},
            "",
            {"query_id": "u0", "items": [f"i{targets[0]}"]},
        )
        result = self._read(queries, name="other")
        self.assertEqual(result.name, "other")
        self.assertEqual(result.ks, (1,))
        np.testing.assert_array_equal(result.ranks, [[1], [np.inf]])
        self.assertEqual(result.metrics()["recall@1"], 0.5)

    @parameterized.parameters(
        ("{", r"mine.jsonl:2: expected .*Received: '{'"),
        ("[1]", r"mine.jsonl:2: expected .*Received: '\[1\]'"),
        ({"query_id": "u0"}, r":2: .*Received: the keys \['query_id'\]"),
        ({"query_id": "u9", "items": ["i2"]}, r":2: .* Received: 'u9'"),
        ({"query_id": "u1", "items": ["i2"]}, r":2: .*'u1' again \(line 1\)"),
        ({"query_id": "u0", "items": ["x"]}, r":2: .*vocabulary.* 'x'"),
        ({"query_id": "u0", "items": ["i2", "i2"]}, r":2: .*'i2' twice"),
        (
            {"query_id": "u0", "items": ["i2"], "scores": [1, 2]},
            r":2: expected one score per item \(1\). Received: 2",
        ),
        (
            {"query_id": "u0", "items": ["i2", "i3"], "scores": [1, 2]},
            r":2: .*Received: increasing scores",
        ),
        (
            '{"query_id": "u0", "items": ["i2"], "scores": [NaN]}',
            r":2: .*Received: nan",
        ),
        (
            {"query_id": "u0", "items": ["i2"], "scores": ["high"]},
            r":2: .*Received: 'high'",
        ),
        (
            '{"query_id": "u0", "items": ["i2"], "scores": [1'
            + "0" * 320
            + "]}",
            r":2: expected finite numbers as scores. Received: 1000",
        ),
        ("[" * 200_000, r":2: expected .*Received: '\[\[\["),
        ("1" * 5000, r":2: expected .*Received: '111"),
        (
            '{"query_id": "u0", "items": ["\\ud800"]}',
            r":2: .*Received: .*ud800",
        ),
    )
    def test_an_invalid_line_is_an_error(self, line, message):
        queries = _queries(2, max_relevant=1)
        self._write_lines({"query_id": "u1", "items": ["i2"]}, line)
        with self.assertRaisesRegex(InputError, message):
            self._read(queries, exclude_history=False)

    def test_an_item_of_the_history_is_an_error_when_excluded(self):
        queries = _queries(2, max_relevant=1)
        history = queries.histories(np.array([1]))[0]
        self._write_lines(
            {"query_id": "u0", "items": []},
            {"query_id": "u1", "items": [f"i{history[0]}"]},
        )
        with self.assertRaisesRegex(
            InputError, f":2: .*own history.* 'i{history[0]}'"
        ):
            self._read(queries)
        self.assertEqual(
            self._read(queries, exclude_history=False).num_queries, 2
        )

    def test_a_query_without_a_line_is_an_error(self):
        self._write_lines({"query_id": "u1", "items": ["i2"]})
        with self.assertRaisesRegex(
            InputError, "each of 3 queries. Received: none for 2, first 'u0'"
        ):
            self._read(_queries(3), exclude_history=False)

    def test_a_file_that_cannot_be_read_is_an_error(self):
        with self.assertRaisesRegex(InputError, "mine.jsonl: expected a file"):
            self._read(_queries(2))
        self.path.write_bytes(b"\xff\xfe")
        with self.assertRaisesRegex(InputError, "mine.jsonl: expected a file"):
            self._read(_queries(2))

    def test_lists_that_are_too_short_for_every_cutoff_are_an_error(self):
        self._write_lines(
            {"query_id": "u0", "items": []}, {"query_id": "u1", "items": []}
        )
        with self.assertRaisesRegex(InputError, "at least 5.* at most 0"):
            self._read(_queries(2), ks=(5, 10))

    def test_lists_are_needed_for_writing(self):
        result = evaluate(_Scores(3), _queries(2), protocol="p", lists=False)
        with self.assertRaisesRegex(ValueError, "Received: none"):
            write_rankings(result, _VOCABULARY, self.path)


if __name__ == "__main__":
    absltest.main()
