from __future__ import annotations

from decimal import Decimal

from absl.testing import absltest, parameterized

from recsys.config import Cutoff, parse_cutoff
from recsys.errors import InputError


class ParseCutoffTest(parameterized.TestCase):
    @parameterized.parameters(
        ("0.8", Cutoff(share=0.8)),
        ("1e-3", Cutoff(share=0.001)),
        ("0", Cutoff(seconds=Decimal(0))),
        ("1", Cutoff(seconds=Decimal(1))),
        ("-5", Cutoff(seconds=Decimal(-5))),
        ("1435622400.5", Cutoff(seconds=Decimal("1435622400.5"))),
        # `date --utc --date=2015-06-30 +%s`
        ("2015-06-30", Cutoff(seconds=Decimal(1435622400), is_date=True)),
        (
            "2015-06-30T01:00:00.25+02:00",
            Cutoff(seconds=Decimal("1435618800.25"), is_date=True),
        ),
        ("1969-12-31", Cutoff(seconds=Decimal(-86400), is_date=True)),
    )
    def test_by_hand(self, text, expected):
        self.assertEqual(parse_cutoff(text, "test_from"), expected)

    @parameterized.parameters(
        "",
        "soon",
        "nan",
        "-inf",
        "2015-13-01",
        "0,8",
        "1e999999999",
        "-1e999999999",
        "9223372036854775808",
        "1e-999999999",
    )
    def test_what_is_no_cutoff(self, text):
        with self.assertRaisesRegex(
            InputError, f"^--test_from must be a share .*Received: '{text}'$"
        ):
            parse_cutoff(text, "test_from")


if __name__ == "__main__":
    absltest.main()
