"""Files of histories: how they are read, answered and written."""

from __future__ import annotations

import json
import os
import pathlib
import tempfile
import threading

import numpy as np
from absl.testing import absltest, parameterized

from recsys import histories
from recsys.data.vocabulary import Vocabulary
from recsys.errors import InputError


class Latest:
    """Recommends the items with the highest index, scored by it."""

    vocabulary = Vocabulary(["a", "b", "c", "7"])
    side = None

    def __init__(self):
        self.sizes = []

    def side_of_users(self, sequences, context):
        return None

    def recommend_indices(self, items, offsets, k, *, exclude_history, **_):
        found = np.zeros((len(offsets) - 1, k), np.int32)
        for row in range(len(offsets) - 1):
            history = items[offsets[row] : offsets[row + 1]]
            left = [
                index
                for index in range(5, 1, -1)
                if not exclude_history or index not in history
            ][:k]
            found[row, : len(left)] = left
        scores = np.where(found > 0, found, -np.inf).astype(np.float32)
        self.sizes.append(len(items))
        return found[:, : self.vocabulary.num_items], scores[
            :, : self.vocabulary.num_items
        ]


class ReadQueriesTest(parameterized.TestCase):
    @parameterized.named_parameters(
        (
            "json",
            b'{"query_id": "x", "history": ["a", 7]}\n'
            b"\n"
            b'{"query_id": 5, "history": []}\r\n'
            b'{"history": ["b c"], "more": 1}',
            [("x", ["a", "7"]), ("5", []), ("4", ["b c"])],
        ),
        (
            "plain",
            b"\n a b\tc \n\nb\r\n",
            [("1", []), ("2", ["a", "b", "c"]), ("3", []), ("4", ["b"])],
        ),
        ("byte_order_mark", b"\xef\xbb\xbfa b\n", [("1", ["a", "b"])]),
        ("only_blank", b"\n\n", [("1", []), ("2", [])]),
        ("empty", b"", []),
        ("accents", "é\n".encode(), [("1", ["é"])]),
        (
            "surrogates",
            b'{"history": ["\\ud83d\\ude00"]}',
            [("1", ["\U0001f600"])],
        ),
    )
    def test_queries(self, text, expected):
        lines = text.splitlines(keepends=True)
        queries = list(histories.read_queries(lines, "file"))
        self.assertEqual(queries, expected)

    @parameterized.parameters(
        b'{"history": ["a"]',
        b'["a", "b"]',
        b'"a"',
        b'{"query_id": "x"}',
        b'{"history": "a b"}',
        b'{"history": ["a", null]}',
        b'{"history": ["a", 1.5]}',
        b'{"history": ["a", true]}',
        b'{"history": [["a"]]}',
        b'{"history": null}',
        b'{"query_id": null, "history": []}',
        b'{"query_id": [1], "history": []}',
        b'{"history": ["\xff"]}',
        b'{"history": ["a", "\\ud800"]}',
        b'{"history": ["\xed\xa0\x80"]}',
        b'{"query_id": "\\ud800", "history": []}',
        b"a b",
        b"[" * 100_000,
        b'{"history": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"history": [' + b"1" * 5_000 + b"]}",
        b'{"history": [1e999, NaN, Infinity]}',
        b'{"query_id": 1e999, "history": []}',
    )
    def test_malformed(self, line):
        lines = [b'{"history": ["a"]}\n', b"\n", line]
        with self.assertRaisesRegex(
            InputError, '^file:3: expected {"query_id".* Received: '
        ):
            list(histories.read_queries(lines, "file"))

    def test_plain_text_must_be_utf_8(self):
        with self.assertRaisesRegex(InputError, "^file:2: expected UTF-8"):
            list(histories.read_queries([b"a\n", b"\xff\n"], "file"))


class RecommendFileTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enter_context(tempfile.TemporaryDirectory())
        )
        self.histories = self.folder / "histories"
        self.output = self.folder / "output"

    def recommend(self, text, k, **options):
        """Returns the answers and the summary."""
        self.histories.write_text(text)
        summary = histories.recommend_file(
            Latest(), self.histories, self.output, k, **options
        )
        lines = self.output.read_text().splitlines()
        return [json.loads(line) for line in lines], summary

    def test_answers(self):
        answers, summary = self.recommend("a 7\n\nx b\ny z\n", 2)
        self.assertEqual(
            answers,
            [
                {"query_id": "1", "items": ["c", "b"], "scores": [4.0, 3.0]},
                {"query_id": "2", "items": ["7", "c"], "scores": [5.0, 4.0]},
                {"query_id": "3", "items": ["7", "c"], "scores": [5.0, 4.0]},
                {"query_id": "4", "items": ["7", "c"], "scores": [5.0, 4.0]},
            ],
        )
        self.assertEqual(summary.num_queries, 4)
        self.assertEqual(summary.num_unknown, 3)
        self.assertEqual(summary.num_with_unknown, 2)
        self.assertEqual(summary.num_without_known, 2)
        self.assertEqual(summary.num_short, 0)
        self.assertContainsSubsequence(
            summary.text(2).split("\n"),
            [
                "3 unknown ids in 2 histories, ignored",
                "2 histories without a known item got the most popular "
                "items, scored by their interactions",
            ],
        )

    def test_more_than_is_left(self):
        answers, summary = self.recommend("a b c 7\na b c\n\n", 1000)
        self.assertEqual(
            [answer["items"] for answer in answers],
            [[], ["7"], ["7", "c", "b", "a"]],
        )
        self.assertEqual(summary.num_short, 3)
        self.assertIn("3 lists with fewer than k=1000", summary.text(1000))

    def test_history_included(self):
        answers, _ = self.recommend("7\n", 1, exclude_history=False)
        self.assertEqual(answers[0]["items"], ["7"])

    def test_chunks_change_nothing(self):
        text = "".join(f"{'abc'[n % 3]} 7\n" for n in range(50))
        expected, _ = self.recommend(text, 2)
        self.enter_context(
            absltest.mock.patch.object(histories, "_LINES_PER_CHUNK", 7)
        )
        answers, summary = self.recommend(text, 2)
        self.assertEqual(answers, expected)
        self.assertEqual(summary.num_queries, 50)

    def test_long_histories_are_answered_in_smaller_chunks(self):
        self.enter_context(
            absltest.mock.patch.object(histories, "_ITEMS_PER_CHUNK", 10)
        )
        recommender = Latest()
        self.histories.write_text("a b c\n" * 7 + "a b " * 20 + "\nc\nc\n")
        histories.recommend_file(recommender, self.histories, self.output, 2)
        # Three lines of three; at most five, for two items are listed.
        self.assertEqual(recommender.sizes, [9, 9, 3, 40, 2])
        recommender = Latest()
        self.histories.write_text("a\n" * 12)
        histories.recommend_file(recommender, self.histories, self.output, 2)
        self.assertEqual(recommender.sizes, [5, 5, 2])

    @parameterized.parameters(np.nan, np.inf)
    def test_a_score_that_is_not_finite_is_an_error(self, value):
        self.histories.write_text("a\n")
        recommender = Latest()
        recommender.recommend_indices = lambda *_, **__: (
            np.array([[2, 3]]),
            np.array([[value, 1]], np.float32),
        )
        with self.assertRaisesRegex(FloatingPointError, "must be finite"):
            histories.recommend_file(
                recommender, self.histories, self.output, 2
            )
        self.assertFalse(self.output.exists())

    def test_mistake_leaves_the_output_alone(self):
        self.output.write_text("before")
        with self.assertRaises(InputError):
            self.recommend('{"history": ["a"]}\n{"history": 1}\n', 2)
        self.assertEqual(self.output.read_text(), "before")
        self.assertCountEqual(os.listdir(self.folder), ["histories", "output"])

    def test_a_link_stays_a_link(self):
        self.output.symlink_to(self.folder / "target")
        self.recommend("a\n", 1)
        self.assertTrue(self.output.is_symlink())
        self.assertStartsWith((self.folder / "target").read_text(), "{")

    def test_into_a_pipe(self):
        os.mkfifo(self.output)
        answers = []
        reader = threading.Thread(
            target=lambda: answers.append(self.output.read_text())
        )
        reader.start()
        self.histories.write_text("a\n")
        histories.recommend_file(Latest(), self.histories, self.output, 1)
        reader.join()
        self.assertEqual(json.loads(answers[0])["items"], ["7"])

    @parameterized.parameters(
        ("missing", "output", "--histories must be a file.*missing"),
        ("", "output", "--histories must be a file"),
        ("histories", "", "--output must be a file in a folder that exists"),
        ("histories", "no/output", "--output must be a file in a folder"),
        ("histories", "histories", "--output must be another file"),
        ("histories", "x.csv.gz", "--output must be a .csv or .parquet"),
    )
    def test_paths(self, source, output, message):
        self.histories.write_text("a\n")
        with self.assertRaisesRegex(InputError, message):
            histories.check_files(self.folder / source, self.folder / output)


if __name__ == "__main__":
    absltest.main()
