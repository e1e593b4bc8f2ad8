"""ALS and BPR of the package `implicit`: the extra `[baselines]`.

Both compute a vector for each history at scoring time, so they can be
compared under any protocol on the same histories as every other recommender.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import scipy.sparse

from recsys.baselines.closed_form import binary_matrix
from recsys.data.sequences import Sequences
from recsys.errors import missing_extra


def _fitted(
    name: str, train: Sequences, vocabulary_size: int, **options: Any
) -> Any:
    """Fits a model of `implicit`, such as `als.AlternatingLeastSquares`."""
    module, _, model = name.partition(".")
    try:
        imported = importlib.import_module(f"implicit.{module}")
    except ImportError as error:
        raise missing_extra(
            "a baseline of `implicit`", "baselines", error
        ) from error
    fitted = getattr(imported, model)(**options, use_gpu=False)
    # ALS's confidence grows with the weights; BPR does not read them.
    matrix = binary_matrix(
        train.items, train.offsets, vocabulary_size, train.event_weights
    )
    fitted.fit(scipy.sparse.csr_matrix(matrix), show_progress=False)
    return fitted


class ALS:
    """Weighted matrix factorization by alternating least squares.

    Hu, Koren, Volinsky 2008, https://doi.org/10.1109/ICDM.2008.22. The vector
    of a history solves its own least-squares problem.

    Args:
        model: A fitted `implicit.cpu.als.AlternatingLeastSquares`.
    """

    name = "ALS"

    def __init__(self, model: Any) -> None:
        self._model = model

    @classmethod
    def fit(
        cls,
        train: Sequences,
        vocabulary_size: int,
        *,
        num_factors: int = 64,
        regularization: float = 10.0,
        alpha: float = 20.0,
        num_iterations: int = 15,
        seed: int = 0,
    ) -> ALS:
        """Factorizes the binary user-item matrix.

        The defaults, like those of `BPR`, were tuned on the leave-last-out
        validation queries of the bundled data.

        Args:
            train: The training sequences.
            vocabulary_size: Number of items, including padding and unknown.
            num_factors: Length of the vectors.
            regularization: Weight of their squared norms.
            alpha: Confidence in an interaction, relative to 1 in its absence.
            num_iterations: How often users and items are solved for.
            seed: Seed of the initial vectors.

        Raises:
            InputError: The package `implicit` is not installed.
        """
        return cls(
            _fitted(
                "als.AlternatingLeastSquares",
                train,
                vocabulary_size,
                factors=num_factors,
                regularization=regularization,
                alpha=alpha,
                iterations=num_iterations,
                random_state=seed,
            )
        )

    def scores(self, items: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Returns the products of history and item vectors; see `Scorer`."""
        item_factors = self._model.item_factors
        matrix = binary_matrix(items, offsets, len(item_factors))
        users = self._model.recalculate_user(
            np.arange(matrix.shape[0]), scipy.sparse.csr_matrix(matrix)
        )
        return users @ item_factors.T


class BPR:
    """Matrix factorization by Bayesian personalized ranking.

    Rendle et al. 2009, https://arxiv.org/abs/1205.2618. The item vectors are
    the trained ones. The vector u of a history maximizes, by gradient ascent,
    the mean of `log sigmoid(score(i) - mean score of all items)` over its
    items i, minus `fold_in_regularization / 2 * |u|^2`: the paper's objective
    with the mean item in place of sampled ones, which makes it deterministic.

    Args:
        vectors: `[vocabulary_size, num_factors]` float32.
        biases: `[vocabulary_size]` float32.
        fold_in_regularization: Weight of the squared norm of u.
    """

    name = "BPR"

    _NUM_STEPS = 50

    def __init__(
        self,
        vectors: np.ndarray,
        biases: np.ndarray,
        fold_in_regularization: float,
    ) -> None:
        # Only score differences matter, so the mean item is moved to zero.
        self._vectors = vectors - vectors.mean(axis=0)
        self._biases = biases - biases.mean()
        self._regularization = np.float32(fold_in_regularization)

    @classmethod
    def fit(
        cls,
        train: Sequences,
        vocabulary_size: int,
        *,
        num_factors: int = 64,
        learning_rate: float = 0.05,
        regularization: float = 0.01,
        num_epochs: int = 50,
        fold_in_regularization: float = 0.1,
        seed: int = 0,
    ) -> BPR:
        """Learns item vectors, on one thread so that they are reproducible.

        Args:
            train: The training sequences.
            vocabulary_size: Number of items, including padding and unknown.
            num_factors: Length of the vectors.
            learning_rate: Learning rate of the stochastic gradient descent.
            regularization: Weight of the squared norms.
            num_epochs: How often each interaction is sampled, on average.
            fold_in_regularization: Weight of the squared norm of a history's
                vector.
            seed: Seed of the initial vectors and of the sampling.

        Raises:
            InputError: The package `implicit` is not installed.
        """
        model = _fitted(
            "bpr.BayesianPersonalizedRanking",
            train,
            vocabulary_size,
            factors=num_factors,
            learning_rate=learning_rate,
            regularization=regularization,
            iterations=num_epochs,
            random_state=seed,
            num_threads=1,
        )
        # The last column of implicit's factors is the bias.
        vectors = np.asarray(model.item_factors)
        return cls(vectors[:, :-1], vectors[:, -1], fold_in_regularization)

    def scores(self, items: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Returns the products of history and item vectors; see `Scorer`."""
        matrix = binary_matrix(items, offsets, len(self._vectors))
        return self._fold_in(matrix) @ self._vectors.T + self._biases

    def _fold_in(self, histories: scipy.sparse.csr_array) -> np.ndarray:
        """`[num_queries, num_factors]` float32 vectors of binary histories."""
        lengths = np.diff(histories.indptr)
        rows = np.repeat(np.arange(len(lengths)), lengths)
        items = histories.indices
        # A step of 1 / curvature never overshoots; the curvature of
        # log sigmoid is at most 1/4.
        norms = np.einsum("if,if->i", self._vectors, self._vectors)
        step = 1 / (self._regularization + norms.max() / 4)
        pull = histories.copy()
        users = np.zeros((len(lengths), self._vectors.shape[1]), np.float32)
        for _ in range(self._NUM_STEPS):
            margins = self._biases[items] + np.einsum(
                "if,if->i", users[rows], self._vectors[items]
            )
            pull.data = 1 / (1 + np.exp(margins)) / lengths[rows]
            users += step * (
                pull @ self._vectors - self._regularization * users
            )
        return users.astype(np.float32)
