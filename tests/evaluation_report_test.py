"""Tests of the page that shows an evaluation."""

from __future__ import annotations

import base64
import dataclasses
import html.parser
import importlib.util
import json
import pathlib
import re
import tempfile
from unittest import mock
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from absl.testing import absltest, parameterized

from recsys.baselines import Markov, Popularity
from recsys.config import TrainConfig
from recsys.data.prepare import PreparedData
from recsys.data.sequences import Sequences
from recsys.data.splits import (
    Split,
    held_out_users,
    leave_last_out,
    validation_only,
)
from recsys.data.vocabulary import Vocabulary
from recsys.errors import InputError
from recsys.evaluation import (
    compare,
    evaluate,
    genre_matrix,
    health,
    list_summary,
)
from recsys.evaluation.comparison import Results
from recsys.evaluation.run import EvaluationRun, check_report
from recsys.metrics import parse_metric
from recsys.report import ReportData, map_points
from recsys.report.page import render_page
from recsys.workdir import Workdir

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

NUM_ITEMS = 40
TITLES = [
    "<script>alert(1)</script> & \"Quotes\" 'n' $x^2$ (1995)",
    "千と千尋の神隠し",
    "Word" * 30,
    *(f"Film {number} (19{number:02})" for number in range(3, NUM_ITEMS)),
]
HISTORY = [
    {
        "loss": 4.0 - epoch,
        "validation_recall@10": 0.1 * epoch,
        "validation_ndcg@10": value,
        "seconds": 2.0,
    }
    for epoch, value in enumerate([0.01, 0.06, 0.05])
]


class MeanOfVectors:
    """Scores by the mean of the history's vectors, as a model may."""

    name = "two & <two>"

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors = vectors

    def scores(self, items, offsets):
        sums = np.zeros((len(offsets) - 1, self._vectors.shape[1]))
        rows = np.repeat(np.arange(len(sums)), np.diff(offsets))
        np.add.at(sums, rows, self._vectors[items])
        return (sums @ self._vectors.T).astype(np.float32)


def make_split(protocol: str = "leave_last_out", num_users: int = 60) -> Split:
    """Splits walks around a circle of items that differ in length."""
    rng = np.random.default_rng(0)
    walks = []
    for user in range(num_users):
        begin, length = rng.integers(NUM_ITEMS), 8 + user % 16
        walk = (begin + np.arange(length)) % NUM_ITEMS
        # The early items are popular.
        walks.append(np.unique(walk // (1 + user % 3), return_index=True)[0])
        rng.shuffle(walks[-1])
    offsets = np.cumsum([0, *map(len, walks)])
    sequences = Sequences(
        user_ids=np.array([f"u{user}" for user in range(num_users)], object),
        offsets=offsets,
        items=(np.concatenate(walks) + 2).astype(np.int32),
        timestamps=np.arange(offsets[-1]),
    )
    if protocol == "held_out_users":
        return held_out_users(sequences, 0)
    if protocol == "validation_only":
        return validation_only(sequences)
    return leave_last_out(sequences)


def report_data(
    split: Split | None = None, *, titles: bool = True, **changes
) -> ReportData:
    """Evaluates a stand-in for a model beside two baselines."""
    split = split or make_split()
    ids = [f"i{number}" for number in range(NUM_ITEMS)]
    items = None
    if titles:
        genres = [["Drama", "War"], ["Comedy"], [], ["Drama"]]
        items = pa.table(
            {
                "item_id": ids,
                "title": TITLES,
                "genres": pa.array(
                    [genres[number % 4] for number in range(NUM_ITEMS)],
                    pa.list_(pa.string()),
                ),
            }
        )
    vocabulary = Vocabulary(ids, items)
    vectors = np.random.default_rng(1).normal(size=(vocabulary.size, 8))
    queries = split.test or split.validation
    results = [
        evaluate(each, queries, protocol=split.protocol)
        for each in (
            MeanOfVectors(vectors),
            Popularity.fit(split.train, vocabulary.size),
            Markov.fit(split.train, vocabulary.size),
        )
    ]
    counts = np.bincount(split.train.items, minlength=vocabulary.size)
    num_users = int(np.count_nonzero(split.train.lengths))
    data = ReportData(
        model=results[0],
        others=results[1:],
        queries=queries,
        part="test" if split.test else "validation",
        vocabulary=vocabulary,
        item_counts=counts,
        num_users=num_users,
        data_name="a<b>.csv",
        health=health(results[0], counts, vectors),
        list_metrics=list_summary(
            results[0], queries, counts, num_users, genre_matrix(vocabulary)
        ),
        item_vectors=vectors,
        history=HISTORY,
        best_epoch=1,
    )
    return dataclasses.replace(data, **changes)


class Page(html.parser.HTMLParser):
    """A page's text, its elements, and whether they are closed in order."""

    VOID = ("br", "img", "link", "meta", "source", "wbr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            raise AssertionError(f"</{tag}> closes another element")

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]

    def svgs(self) -> list[str]:
        urls = [each["src"] for each in self.all("img")]
        urls += [each["srcset"] for each in self.all("source")]
        return [
            base64.b64decode(url.partition(",")[2]).decode() for url in urls
        ]


class PageTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.data = report_data()
        cls.html = render_page(cls.data)
        cls.page = Page(cls.html)

    def test_says_what_was_asked(self):
        num_queries = len(self.data.queries)
        for text in (
            "two & <two> on a<b>.csv",
            "leave-last-out",
            "Leave-last-out leaks across users' timelines",
            "test queries",
            f"Queries{num_queries}all of them are evaluated",
            f"{NUM_ITEMS} items",
        ):
            self.assertIn(text, self.page.text)

    def test_table_has_every_recommender_with_interval(self):
        for each in self.data.recommenders:
            values = each.metrics([parse_metric("ndcg@10")])
            self.assertIn(f"{values['ndcg@10']:.4f}", self.page.text)
            self.assertIn(each.name, self.page.text)
        best = max(self.data.others, key=lambda e: e.metrics()["ndcg@10"])
        found = compare(self.data.model, best)["ndcg@10"]
        self.assertIn(
            f"{abs(found.difference.mean):.4f} "
            f"{'above' if found.difference.mean > 0 else 'below'} the best "
            f"of the others, {best.name}",
            self.page.text,
        )
        self.assertGreater(self.page.text.count("± 0."), 5)

    def test_has_every_part(self):
        self.assertEqual(
            [each["id"] for each in self.page.all("section")],
            [
                "results",
                "recall",
                "slices",
                "training",
                "popularity",
                "map",
                "examples",
            ],
        )
        self.assertLen(self.page.all("article"), 10)
        for text in ("head", "tail", "Epoch", "best", "As varied as"):
            self.assertIn(text, self.page.text)

    def test_is_semantic(self):
        self.assertEqual(self.page.open, [])
        self.assertEqual(self.page.all("html")[0]["lang"], "en")
        self.assertLen(self.page.all("h1"), 1)
        self.assertLen(self.page.all("caption"), len(self.page.all("table")))
        for head in self.page.all("th"):
            self.assertIn(head["scope"], ("col", "row"))
        links = {each["href"] for each in self.page.all("a")}
        for section in self.page.all("section"):
            self.assertIn(f"#{section['id']}", links)

    def test_titles_are_text(self):
        self.assertIn(TITLES[0], self.page.text)
        self.assertNotIn("<script", self.html)
        self.assertEmpty(self.page.all("script", "b", "two"))
        for svg in self.page.svgs():
            self.assertNotIn("<script", svg)
        written = "".join(self.page.svgs())
        self.assertIn("&lt;script&gt;", written)
        self.assertIn("千と千尋の神隠し", written)

    def test_figures_have_alternatives_with_numbers(self):
        figures = self.page.all("figure")
        alternatives = [each["alt"] for each in self.page.all("img")]
        self.assertLen(alternatives, len(figures))
        self.assertLen(alternatives, 5)
        recall = self.data.model.metrics()["recall@10"]
        self.assertIn(f"two & <two> {recall:.3f}", alternatives[0])
        for text in alternatives:
            self.assertRegex(text, r"\d")
        self.assertLen(self.page.all("figcaption"), len(figures))

    def test_needs_nothing_else(self):
        for _, attributes in self.page.elements:
            for name in ("src", "href", "srcset"):
                if name in attributes:
                    self.assertRegex(attributes[name], "^(data:|#)")
        self.assertNotRegex(self.html, r"https?:|@import|url\(")
        for svg in self.page.svgs():
            root = ElementTree.fromstring(svg)
            for each in root.iter():
                for name, value in each.attrib.items():
                    if name.endswith("href"):
                        self.assertRegex(value, "^(data:|#)")

    def test_is_the_same_again(self):
        self.assertEqual(render_page(self.data), self.html)


class VariationsTest(parameterized.TestCase):
    def test_without_titles_or_genres(self):
        page = Page(render_page(report_data(titles=False)))
        self.assertRegex(page.text, r"i\d+ rank \d+")
        self.assertIn("Genres in color: none", page.all("img")[4]["alt"])

    def test_one_user(self):
        page = Page(render_page(report_data(make_split(num_users=1))))
        self.assertLen(page.all("article"), 1)
        # Everything was interacted with once, so popularity has no ranks.
        self.assertIn("not defined", page.text)

    def test_validation_only(self):
        split = make_split("validation_only")
        page = Page(render_page(report_data(split)))
        self.assertIn("validation queries", page.text)
        self.assertNotIn("other queries than the test", page.text)

    def test_several_relevant_items(self):
        split = make_split("held_out_users")
        data = report_data(split)
        self.assertGreater(data.model.ranks.shape[1], 1)
        page = Page(render_page(data))
        self.assertIn("Queries have several relevant items", page.text)
        counts = data.model.num_relevant
        self.assertIn(f"items, {counts.mean():.1f} on average", page.text)

    def test_without_vectors_and_history(self):
        page = Page(
            render_page(
                report_data(item_vectors=None, history=(), best_epoch=None)
            )
        )
        self.assertIn("There is no map", page.text)
        self.assertIn("left no measures of its epochs", page.text)
        self.assertLen(page.all("img"), 3)

    def test_notes_skipped_rival_and_collapse(self):
        data = report_data()
        lists = np.tile(np.arange(2, 12), (len(data.queries), 10))
        short = dataclasses.replace(data.others[0], name="short", ks=(1, 5))
        page = Page(
            render_page(
                dataclasses.replace(
                    data,
                    # Everybody is shown the same ten of forty items.
                    model=dataclasses.replace(data.model, top_items=lists),
                    others=[short],
                    notes=["A <note>."],
                    skipped={"ease": "too large"},
                    rival="runs/<b>",
                    comparison=compare(
                        data.model, data.others[0], [parse_metric("mrr@10")]
                    ),
                )
            )
        )
        for text in (
            "A <note>.",
            "ease: too large.",
            "Query by query against runs/<b>",
            "short\n–",
        ):
            self.assertIn(text, page.text)

    def test_collapse(self):
        data = report_data()
        lists = np.tile(np.arange(2, 12), (len(data.queries), 1))
        model = dataclasses.replace(
            data.model, top_items=lists, num_items=10_000, ks=(1, 10)
        )
        found = health(model, data.item_counts)
        page = Page(render_page(dataclasses.replace(data, health=found)))
        self.assertEqual(page.text.count("have collapsed to few items"), 2)

    @parameterized.parameters(
        ({"top_items": None}, "lists of 10 items or more"),
        ({"ks": (1, 5)}, "lists of 10 items or more"),
    )
    def test_needs_lists(self, changes, message):
        data = report_data()
        with self.assertRaisesRegex(ValueError, message):
            dataclasses.replace(
                data, model=dataclasses.replace(data.model, **changes)
            )

    def test_needs_the_models_queries(self):
        data = report_data()
        with self.assertRaisesRegex(ValueError, "Received: 2"):
            dataclasses.replace(data, queries=data.queries.select([0, 1]))


class ExamplesTest(absltest.TestCase):
    def test_hits_are_marked_in_both_lists(self):
        data = report_data(make_split("held_out_users"))
        page = render_page(data)
        names = list(data.model.query_ids)
        cards = page.split("<article>")[1:]
        self.assertLen(cards, min(10, len(data.queries)))
        for card in cards:
            name = re.search("<h3>User (.*?)</h3>", card)[1]
            row = names.index(name)
            listed = set(data.model.top_items[row, :10].tolist())
            relevant = set(data.model.relevant_items[row].tolist())
            hits = len((listed & relevant) - {0})
            recommended, _, chosen = card.partition("<h4>Relevant")
            self.assertEqual(recommended.count("badge"), hits)
            self.assertLessEqual(chosen.count("badge"), hits)
            self.assertIn(f"{hits or 'no'} hit{'s' * (hits > 1)}<", card)

    def test_history_is_newest_first(self):
        data = report_data(titles=False)
        [card] = [
            each
            for each in render_page(data).split("<article>")
            if "<h3>User u3</h3>" in each
        ]
        history, _ = data.queries.histories(np.array([3]))
        ids = [data.vocabulary.describe(int(item)) for item in history[::-1]]
        shown = card.partition("<h4>Recommended")[0]
        expected = "".join(f"<li>{each}</li>" for each in ids[:6])
        self.assertIn(expected, shown)
        self.assertIn(f"… and {len(ids) - 6} before", shown)


class ItemMapTest(absltest.TestCase):
    def test_points_are_principal_components(self):
        rng = np.random.default_rng(0)
        vectors = rng.normal(size=(50, 4)) * [1, 5, 2, 0.1]
        # All are equally popular, so that popularity explains the mean.
        points = map_points(vectors, np.full(50, 7))
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        values, axes = np.linalg.eigh(np.cov(unit.T))
        order = np.argsort(-values)[:2]
        centered = unit - unit.mean(axis=0)
        np.testing.assert_allclose(
            np.abs(points), np.abs(centered @ axes[:, order]), atol=1e-12
        )
        largest = np.abs(points).argmax(axis=0)
        self.assertTrue((points[largest, [0, 1]] > 0).all())

    def test_popularity_explains_nothing(self):
        rng = np.random.default_rng(0)
        counts = rng.integers(1, 1000, 80)
        points = map_points(rng.normal(size=(80, 5)), counts)
        for power in range(3):
            np.testing.assert_allclose(
                points.T @ np.log(counts) ** power, 0, atol=1e-9
            )

    def test_one_dimension_has_one_axis(self):
        points = map_points(np.array([[1.0], [-1], [1], [1]]), np.full(4, 2))
        np.testing.assert_allclose(points[:, 1], 0)
        self.assertGreater(np.ptp(points[:, 0]), 0)

    def test_fewer_than_three_trained_items_are_no_map(self):
        data = report_data()
        counts = np.zeros_like(data.item_counts)
        counts[2:4] = 1
        page = Page(render_page(dataclasses.replace(data, item_counts=counts)))
        self.assertIn("There is no map", page.text)


class WritingTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(
            self.enter_context(tempfile.TemporaryDirectory())
        )

    def test_without_matplotlib(self):
        find_spec = importlib.util.find_spec
        with (
            mock.patch.object(
                importlib.util,
                "find_spec",
                lambda name, *rest: (
                    None if name == "matplotlib" else find_spec(name, *rest)
                ),
            ),
            self.assertRaisesRegex(
                InputError, r"--report needs the extra \[report\]"
            ),
        ):
            check_report(self.folder)

    def test_folder_must_be_one(self):
        check_report(self.folder / "new" / "folder")
        self.assertEmpty(list(self.folder.iterdir()))
        (self.folder / "file").write_text("")
        for path in (self.folder / "file", self.folder / "file" / "a"):
            with self.assertRaisesRegex(InputError, "--report must be a fol"):
                check_report(path)

    def test_page_of_a_run(self):
        data = report_data()
        split = make_split()
        counts = data.item_counts[2:]
        vocabulary = Vocabulary(
            data.vocabulary.item_ids,
            data.vocabulary.items.append_column("train_count", [counts]),
        )
        results = Results(
            data.model, {each.name: each for each in data.others}, {}, "test"
        )
        # What recsys.train leaves; the checkpoints are gone.
        (self.folder / "metrics.json").write_text(
            json.dumps({"training": HISTORY})
        )
        run = EvaluationRun(
            folder=Workdir(self.folder),
            config=TrainConfig(),
            data=PreparedData("a<b>.csv", vocabulary, split, 0, 0, 0),
            results=results,
            item_vectors=data.item_vectors,
        )
        page = run.write_report(self.folder / "new" / "page")
        self.assertEqual(page, self.folder / "new" / "page" / "index.html")
        self.assertEqual(page.read_text("utf-8"), render_page(data))
        self.assertLen(list(page.parent.iterdir()), 1)


class HistoryTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = Workdir(
            pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
        )

    def test_newest_checkpoint(self):
        for step, count in ((5, 1), (40, 3)):
            path = self.folder.checkpoints / f"step-{step:09d}"
            path.mkdir(parents=True)
            progress = {"epoch": 2, "history": HISTORY[:count]}
            (path / "progress.json").write_text(json.dumps(progress))
        self.assertEqual(self.folder.read_history(TrainConfig()), (HISTORY, 1))

    def test_nothing(self):
        self.assertEqual(self.folder.read_history(TrainConfig()), ([], None))


if __name__ == "__main__":
    absltest.main()
