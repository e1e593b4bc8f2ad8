"""Recommends with an ONNX export; needs NumPy and ONNX Runtime, nothing else.

python examples/onnx_recommend.py exported/onnx 10 ID ID …
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import onnxruntime


class OnnxRecommender:
    """The folder that `--formats=onnx` writes.

    Args:
        folder: Its path.
    """

    def __init__(self, folder: str) -> None:
        path = pathlib.Path(folder)
        self.tower = onnxruntime.InferenceSession(path / "history_tower.onnx")
        # Item i + 2 of the model is row i of each.
        self.item_ids = np.load(path / "item_ids.npy")
        self.vectors = np.load(path / "vectors.npy")
        self.popularity = np.load(path / "popularity.npy")
        self.rows = {item: row for row, item in enumerate(self.item_ids)}

    def recommend(self, history: list[str], k: int) -> list[tuple[str, float]]:
        """Returns the ids and scores of the k best, none of the history."""
        rows = [self.rows[item] for item in history if item in self.rows]
        if rows:
            ids = np.array([rows], np.int32) + 2
            [[query]] = self.tower.run(["embedding"], {"history": ids})
            scores = self.vectors @ query
        else:
            scores = self.popularity.copy()
        scores[rows] = -np.inf
        best = np.argsort(-scores, kind="stable")[:k]
        best = best[np.isfinite(scores[best])]
        return [(str(self.item_ids[i]), float(scores[i])) for i in best]


if __name__ == "__main__":
    _, folder, k, *history = sys.argv
    for item, score in OnnxRecommender(folder).recommend(history, int(k)):
        print(f"{item}\t{score:.4f}")
