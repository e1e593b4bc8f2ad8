"""ALS and BPR of the package `implicit`: the extra `[baselines]`.

Both give every history a vector of its own when they are asked, so that they
can be compared under any protocol and see the same histories as everybody
else.
"""

from __future__ import annotations

import importlib
import types
from typing import Any

import numpy as np
import scipy.sparse

from recsys.baselines.counting import binary_matrix
from recsys.data.sequences import Sequences
from recsys.errors import InputError


class ALS:
    """Weighted matrix factorization by alternating least squares.

    Hu, Koren, Volinsky 2008, https://doi.org/10.1109/ICDM.2008.22. A history
    gets the vector that solves its own least squares problem.

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
        """Factorizes the binary matrix of users and items.

        Args:
            train: The training sequences.
            vocabulary_size: Number of items, padding and unknown included.
            num_factors: Length of the vectors.
            regularization: Weight of their squared norms. This and `alpha`
                were chosen, as the defaults of `BPR`, on the validation
                queries of the bundled data, leave-last-out.
            alpha: Confidence in an interaction, against 1 in its absence.
            num_iterations: How often users and items are solved for.
            seed: Of the first vectors.

        Returns:
            The recommender.

        Raises:
            InputError: The package `implicit` is not installed.
        """
        als = _implicit("als")
        model = als.AlternatingLeastSquares(
            factors=num_factors,
            regularization=regularization,
            alpha=alpha,
            iterations=num_iterations,
            random_state=seed,
            use_gpu=False,
        )
        _fit(model, train, vocabulary_size)
        return cls(model)

    def scores(self, items: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Returns the products of history vectors and item vectors.

        Args:
            items: `[total]` int32 histories; their order does not matter.
            offsets: `[num_queries + 1]` int64.

        Returns:
            `[num_queries, vocabulary_size]` float32.
        """
        item_factors = self._model.item_factors
        matrix = binary_matrix(items, offsets, len(item_factors))
        users = self._model.recalculate_user(
            np.arange(matrix.shape[0]), scipy.sparse.csr_matrix(matrix)
        )
        return users @ item_factors.T


class BPR:
    """Matrix factorization by Bayesian personalized ranking.

    Rendle et al. 2009, https://arxiv.org/abs/1205.2618. The item vectors are
    those of training. A history gets the vector u that maximises, by gradient
    ascent, the mean of `log sigmoid(score(i) - mean score of all items)` over
    its items i, less `fold_in_regularization / 2 * |u|^2`: the objective of
    the paper with the mean item in place of sampled ones, which makes it the
    same for the same history.

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
        # Only differences of scores count, so the mean item may be at zero.
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
        """Learns item vectors, on one thread so that a seed decides them.

        Args:
            train: The training sequences.
            vocabulary_size: Number of items, padding and unknown included.
            num_factors: Length of the vectors.
            learning_rate: Of the stochastic gradient.
            regularization: Weight of the squared norms.
            num_epochs: How often each interaction is drawn, on average.
            fold_in_regularization: Weight of the squared norm of a history's
                vector.
            seed: Of the first vectors and of the draws.

        Returns:
            The recommender.

        Raises:
            InputError: The package `implicit` is not installed.
        """
        bpr = _implicit("bpr")
        model = bpr.BayesianPersonalizedRanking(
            factors=num_factors,
            learning_rate=learning_rate,
            regularization=regularization,
            iterations=num_epochs,
            random_state=seed,
            num_threads=1,
            use_gpu=False,
        )
        _fit(model, train, vocabulary_size)
        # The last column of implicit's factors is the bias.
        vectors = np.asarray(model.item_factors)
        return cls(vectors[:, :-1], vectors[:, -1], fold_in_regularization)

    def scores(self, items: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Returns the products of history vectors and item vectors.

        Args:
            items: `[total]` int32 histories; their order does not matter.
            offsets: `[num_queries + 1]` int64.

        Returns:
            `[num_queries, vocabulary_size]` float32.
        """
        matrix = binary_matrix(items, offsets, len(self._vectors))
        return self._fold_in(matrix) @ self._vectors.T + self._biases

    def _fold_in(self, histories: scipy.sparse.csr_array) -> np.ndarray:
        """Finds the vector of each history.

        Args:
            histories: `[num_queries, vocabulary_size]` float32, binary.

        Returns:
            `[num_queries, num_factors]` float32; zero for an empty history.
        """
        lengths = np.diff(histories.indptr)
        rows = np.repeat(np.arange(len(lengths)), lengths)
        items = histories.indices
        # A step of 1 / curvature never overshoots: the curvature of
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


def _fit(model: Any, train: Sequences, vocabulary_size: int) -> None:
    """Fits a model of `implicit` to the binary matrix of users and items."""
    matrix = binary_matrix(train.items, train.offsets, vocabulary_size)
    model.fit(scipy.sparse.csr_matrix(matrix), show_progress=False)


def _implicit(module: str) -> types.ModuleType:
    """Imports a module of `implicit`, which is not always installed."""
    try:
        return importlib.import_module(f"implicit.{module}")
    except ImportError as error:
        raise InputError(
            "the ALS and BPR baselines need the package `implicit`: install "
            f"recsys[baselines]. Received: {error}"
        ) from error
