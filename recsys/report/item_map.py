"""The item table in two dimensions."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse

from recsys.data.vocabulary import Vocabulary
from recsys.evaluation.recommendation_health import genre_matrix
from recsys.ids import FIRST_ITEM_INDEX

# More points than that hide each other.
_MAX_ITEMS = 1200
MAX_GENRES = 6
OTHER_GENRE = -1


@dataclasses.dataclass(frozen=True)
class ItemMap:
    """Where items are.

    Attributes:
        items: `[num_shown]` int32 vocabulary indices, most popular first.
        points: `[num_shown, 2]` float64.
        explained: `[2]` float64, the share of the variance along each axis.
        genres: Names of the genres that have a colour.
        genre_of: `[num_shown]` int, the place of each item's genre among
            them, or `OTHER_GENRE`.
    """

    items: np.ndarray
    points: np.ndarray
    explained: np.ndarray
    genres: list[str]
    genre_of: np.ndarray


def map_items(
    item_vectors: np.ndarray, item_counts: np.ndarray, vocabulary: Vocabulary
) -> ItemMap | None:
    """Projects the most popular items onto their two principal axes.

    The vectors get unit length first, and lose what a parabola in the
    logarithm of their popularity explains: otherwise popularity would be
    most of what one sees.

    Args:
        item_vectors: `[vocabulary_size, embedding_dim]` float.
        item_counts: `[vocabulary_size]` int, training interactions of items.
        vocabulary: The items.

    Returns:
        The map; None when fewer than three items were trained.
    """
    items = np.argsort(-item_counts, kind="stable")
    # Items without interactions are where they were initialised.
    items = items[(item_counts[items] > 0) & (items >= FIRST_ITEM_INDEX)]
    items = items[:_MAX_ITEMS].astype(np.int32)
    if len(items) < 3:
        return None
    vectors = item_vectors[items].astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors /= np.where(norms > 0, norms, 1)
    vectors = _without_popularity(vectors, item_counts[items])
    points, explained = principal_components(vectors)
    matrix = genre_matrix(vocabulary)
    genres: list[str] = []
    genre_of = np.full(len(items), OTHER_GENRE)
    if matrix is not None:
        columns = _telling_genres(points, matrix[items])
        names = _genre_names(vocabulary)
        genres = [names[column] for column in columns]
        genre_of = _rarest(matrix[items][:, columns].toarray() > 0)
    return ItemMap(items, points, explained, genres, genre_of)


def _without_popularity(vectors: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns the residuals of `[n, dim]` vectors regressed on `[n]` counts."""
    powers = np.log(counts)[:, np.newaxis] ** np.arange(3)
    coefficients = np.linalg.lstsq(powers, vectors)[0]
    return vectors - powers @ coefficients


def principal_components(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns positions along the two axes of the largest variance.

    Args:
        vectors: `[n, dim]` float64.

    Returns:
        `[n, 2]` float64, and `[2]` shares of the variance. An axis that does
        not exist is zero. The largest position of each axis is positive.
    """
    centred = vectors - vectors.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(vectors), 2))
    found = min(2, len(sizes))
    points[:, :found] = (left * sizes)[:, :found]
    furthest = points[np.abs(points).argmax(axis=0), [0, 1]]
    points *= np.where(furthest < 0, -1, 1)
    total = (sizes**2).sum()
    explained = np.zeros(2)
    if total > 0:
        explained[:found] = sizes[:found] ** 2 / total
    return points, explained


def _telling_genres(
    points: np.ndarray, matrix: scipy.sparse.csr_array
) -> list[int]:
    """Chooses the genres whose items lie furthest from the middle.

    The distance is that of a genre's mean in its standard errors, so that a
    few stray items do not make a genre. The most frequent one comes first.
    """
    has_genre = matrix.toarray() > 0
    counts = has_genre.sum(axis=0)
    least = max(3, 0.02 * len(points))
    spread = np.sqrt(points.var(axis=0).sum())
    if not spread:
        return []
    means = (has_genre.T @ points) / np.maximum(counts, 1)[:, np.newaxis]
    distances = np.linalg.norm(means, axis=1) * np.sqrt(counts) / spread
    distances[counts < least] = -1
    best = np.argsort(-distances, kind="stable")[:MAX_GENRES]
    chosen = [int(column) for column in best if distances[column] >= 0]
    return sorted(chosen, key=lambda column: -counts[column])


def _rarest(has_genre: np.ndarray) -> np.ndarray:
    """Gives each item the rarest of its genres, which says most of it.

    Args:
        has_genre: `[n, num_genres]` bool.

    Returns:
        `[n]` int columns, `OTHER_GENRE` for none.
    """
    result = np.full(len(has_genre), OTHER_GENRE)
    for column in np.argsort(-has_genre.sum(axis=0), kind="stable"):
        result[has_genre[:, column]] = column
    return result


def _genre_names(vocabulary: Vocabulary) -> list[str]:
    """Returns the names of `genre_matrix`'s columns."""
    lists = vocabulary.items["genres"].to_pylist()
    return list(dict.fromkeys(g for genres in lists for g in genres or ()))
