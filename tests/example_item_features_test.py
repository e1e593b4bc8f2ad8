"""The examples of item features and of further inputs, as they stand."""

from __future__ import annotations

import contextlib
import io
import pathlib
import runpy
import tempfile

import keras
import numpy as np
from absl.testing import absltest

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


class ExamplesTest(absltest.TestCase):
    def test_new_films_are_found_by_their_features(self):
        example = runpy.run_path(str(EXAMPLES / "item_features.py"))
        scores = example["main"]()
        self.assertGreater(scores["new horror film"], scores["new comedy"] + 1)

    def test_extra_inputs(self):
        example = runpy.run_path(str(EXAMPLES / "extra_inputs.py"))
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            model = example["main"]()
        first, last = (
            float(words.split()[0])
            for words in printed.getvalue().split("accuracy: ")[1].split(", ")
        )
        # One candidate of five: 0.2 by chance.
        self.assertLess(first, 0.8)
        self.assertGreater(last, 0.95)
        self._check_every_input_counts(model)
        path = pathlib.Path(
            self.enterContext(tempfile.TemporaryDirectory()), "x.keras"
        )
        model.save(path)
        loaded = keras.models.load_model(path)
        self.assertLen(loaded.weights, len(model.weights))
        inputs = self._inputs()
        np.testing.assert_allclose(loaded(inputs), model(inputs), atol=1e-6)

    def _inputs(self, **changed):
        rng = np.random.default_rng(0)
        inputs = {
            "history_ids": np.array([[3, 4, 0], [5, 6, 7]]),
            "country": np.array([0, 2]),
            "candidate_ids": np.array([[8, 9], [10, 11]]),
            "text": rng.standard_normal((2, 2, 8)).astype("float32"),
            **changed,
        }
        return [inputs[name] for name in inputs]

    def _check_every_input_counts(self, model):
        scores = model(self._inputs()).numpy()
        for name, value in (
            ("history_ids", np.array([[30, 4, 0], [5, 6, 8]])),
            ("country", np.array([1, 1])),
            ("candidate_ids", np.array([[18, 19], [20, 21]])),
            ("text", np.ones((2, 2, 8), np.float32)),
        ):
            other = model(self._inputs(**{name: value})).numpy()
            self.assertGreater(np.abs(other - scores).min(), 0, name)


if __name__ == "__main__":
    absltest.main()
