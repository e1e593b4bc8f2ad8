from __future__ import annotations

import itertools
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from recsys.baselines import Markov, Popularity
from recsys.config import TrainConfig
from recsys.data import sources, synthetic
from recsys.data.interactions import Interactions
from recsys.data.prepare import prepare_log
from recsys.errors import InputError
from recsys.evaluation import evaluate
from recsys.metrics import parse_metric

_START = 1_577_836_800
_YEARS = 3 * 365 * 86_400


def _numbers(log: Interactions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users, items, and the item before (-1 at a user's first)."""
    users = log.user_ids.astype(int)[log.users]
    items = log.item_ids.astype(int)[log.items]
    before = np.append(-1, items[:-1])
    before[np.append(True, users[1:] != users[:-1])] = -1
    return users, items, before


class _TrueProbabilities:
    """The law itself as a recommender for queries of a split."""

    name = "truth"

    def __init__(self, law, data):
        self._law = law
        self._ids = data.vocabulary.item_ids.astype(int)
        queries = data.split.test
        sequences = queries.sequences
        self._asked = {}
        for user, end in zip(queries.users, queries.history_ends):
            history = sequences.items[sequences.offsets[user] : end]
            self._asked[history.tobytes()] = (
                int(sequences.user_ids[user]),
                sequences.timestamps[end],
            )

    def scores(self, items, offsets):
        rows = [items[begin:end] for begin, end in itertools.pairwise(offsets)]
        asked = [self._asked[row.tobytes()] for row in rows]
        found = self._law.probabilities(
            np.array([user for user, _ in asked]),
            np.array([self._ids[row[-1] - 2] for row in rows]),
            np.array([time for _, time in asked]),
        )
        scores = np.zeros((len(rows), len(self._ids) + 2), np.float32)
        scores[:, 2:] = found[:, self._ids]
        return scores


class SyntheticTest(parameterized.TestCase):
    def test_sizes(self):
        law = synthetic.SyntheticLog(700, 300, 20_011, seed=3)
        log = law.interactions_in_memory()
        self.assertLen(log, 20_011)
        self.assertLen(log.user_ids, 700)
        self.assertLessEqual(len(log.item_ids), 300)
        self.assertGreaterEqual(np.bincount(log.users).min(), 3)

    def test_is_chronological_within_three_years(self):
        log = synthetic.SyntheticLog(50, 100, 5_000).interactions_in_memory()
        same_user = log.users[1:] == log.users[:-1]
        self.assertTrue((np.diff(log.timestamps)[same_user] >= 0).all())
        self.assertBetween(log.timestamps.min(), _START, _START + _YEARS)
        self.assertBetween(log.timestamps.max(), _START, _START + _YEARS)

    def test_depends_only_on_the_seed(self):
        one, same, other = (
            synthetic.SyntheticLog(
                40, 100, 2_000, seed
            ).interactions_in_memory()
            for seed in (1, 1, 2)
        )
        np.testing.assert_array_equal(_numbers(one), _numbers(same))
        self.assertFalse(np.array_equal(_numbers(one)[1], _numbers(other)[1]))

    def test_chunks_make_up_the_log(self):
        self.enterContext(
            mock.patch.object(synthetic, "_CHUNK_INTERACTIONS", 1_000)
        )
        law = synthetic.SyntheticLog(900, 200, 6_000, seed=2)
        self.assertGreater(law.num_chunks, 1)
        chunks = [_numbers(chunk) for chunk in law.chunks()]
        np.testing.assert_array_equal(
            np.concatenate(chunks, axis=1),
            _numbers(law.interactions_in_memory()),
        )

    def test_item_frequencies_match_the_probabilities(self):
        law = synthetic.SyntheticLog(400, 150, 40_000, seed=5)
        log = law.interactions_in_memory()
        users, items, before = _numbers(log)
        expected = np.zeros(150)
        for begin in range(0, len(users), 5_000):
            rows = slice(begin, begin + 5_000)
            found = law.probabilities(
                users[rows], before[rows], log.timestamps[rows]
            )
            np.testing.assert_allclose(found.sum(axis=1), 1)
            expected += found.sum(axis=0)
        observed = np.bincount(items, minlength=150)
        # Pearson's statistic has mean 149 and standard deviation 17.
        statistic = ((observed - expected) ** 2 / expected).sum()
        self.assertLess(statistic, 149 + 5 * 17)

    def test_popularity_is_skewed(self):
        log = synthetic.SyntheticLog(
            2_000, 6_400, 200_000
        ).interactions_in_memory()
        counts = np.sort(np.bincount(log.items))[::-1]
        top = counts[: len(counts) // 10].sum() / counts.sum()
        self.assertGreater(top, 0.3)

    def test_popularity_drifts(self):
        log = synthetic.SyntheticLog(
            3_000, 12_800, 200_000
        ).interactions_in_memory()
        _, items, _ = _numbers(log)
        share = (log.timestamps - _START) / _YEARS
        early, late = (
            np.bincount(items[part], minlength=12_800)
            for part in (share < 0.2, share > 0.8)
        )
        # Trends move from the first of 200 ranks to the fiftieth.
        rank = np.arange(12_800) // 64
        end = (rank >= 40) & (rank < 60)
        self.assertGreater(
            late[end].sum() / late.sum(), 1.2 * early[end].sum() / early.sum()
        )

    def test_structure_can_be_recovered(self):
        data_name = "synthetic:users=1500,items=400,interactions=60000,seed=1"
        data = prepare_log(sources.read(data_name), TrainConfig(repeats="all"))
        truth = _TrueProbabilities(synthetic.parse(data_name), data)
        size = data.vocabulary.size
        ndcg = {}
        for recommender in (
            Popularity.fit(data.split.train, size),
            Markov.fit(data.split.train, size),
            truth,
        ):
            evaluation = evaluate(
                recommender,
                data.split.test,
                protocol="leave_last_out",
                ks=(10,),
                exclude_history=False,
            )
            found = evaluation.metrics([parse_metric("ndcg@10")])
            ndcg[recommender.name] = found["ndcg@10"]
        popularity, markov, true = ndcg.values()
        self.assertGreater(markov, 2 * popularity)
        self.assertGreater(true, 1.1 * markov)

    @parameterized.parameters(
        "synthetic:",
        "synthetic:users=10",
        "synthetic:users=ten,items=100,interactions=1000",
        "synthetic:users=10,items=100,interactions=1000,size=3",
        "synthetic:users=10,items=100,interactions=19",
        "synthetic:users=0,items=100,interactions=1000",
        "synthetic:users=10,items=3,interactions=1000",
    )
    def test_invalid_descriptions(self, data):
        with self.assertRaisesRegex(InputError, "synthetic.*Received"):
            sources.read(data)

    def test_column_names_are_an_error(self):
        with self.assertRaisesRegex(InputError, "user_column.*file or folder"):
            sources.read(
                "synthetic:users=9,items=99,interactions=99", user_column="u"
            )


if __name__ == "__main__":
    absltest.main()
