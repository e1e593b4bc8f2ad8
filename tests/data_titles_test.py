from __future__ import annotations

from absl.testing import absltest, parameterized

from recsys.data.vocabulary import TitleIndex

_TITLES = [
    "Toy Story (1995)",
    "Toy Story 2 (1999)",
    None,
    "Avventura, L' (Adventure, The) (1960)",
    "Seven (a.k.a. Se7en) (1995)",
    "Emma (1996)",
    "Emma (1996)",
    "American President, The (1995)",
    "Fantastic Four (2005)",
    "Psycho (1960)",
    "Psycho",
]


class TitleIndexTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.index = TitleIndex(_TITLES)

    @parameterized.parameters(
        ("toy story", [0]),
        ("Toy Story (1995)", [0]),
        ("Toy Story (1994)", []),
        ("L'Avventura (1960)", [3]),
        ("the adventure", [3]),
        ("Se7en", [4]),
        ("seven (1995)", [4]),
        ("Emma", [5, 6]),
        ("The American President", [7]),
        ("American President, The", [7]),
        # The full title of one film wins over the short one of another.
        ("Psycho", [10]),
        ("", []),
    )
    def test_find(self, text: str, rows: list[int]):
        self.assertEqual(self.index.find(text), rows)

    @parameterized.parameters(
        ("toy stori", 0),
        ("fantastic", 8),
        ("president", 7),
        ("Fantastik Four", 8),
    )
    def test_suggests_the_closest_first(self, text: str, row: int):
        self.assertEqual(self.index.suggest(text)[0], row)

    def test_suggests_each_row_once_and_no_more_than_asked(self):
        rows = self.index.suggest("emm", count=2)
        self.assertEqual(rows, [5, 6])
        self.assertLen(self.index.suggest("emma", count=1), 1)

    def test_suggests_nothing_for_nothing_close(self):
        self.assertEqual(self.index.suggest("zzzzzz"), [])


if __name__ == "__main__":
    absltest.main()
