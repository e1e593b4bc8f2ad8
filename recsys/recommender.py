"""A trained model together with its vocabulary: raw ids in, raw ids out."""

from __future__ import annotations

import dataclasses
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from recsys import workdir as workdir_lib
from recsys.config import FEATURE_FIELDS, TrainConfig
from recsys.data import pipeline
from recsys.data.prepare import counted, train_counts
from recsys.data.sequences import Sequences, concatenated_ranges, offsets_of
from recsys.data.side_information import (
    Request,
    Side,
    SideEncoder,
    history_side,
)
from recsys.data.splits import Queries
from recsys.data.vocabulary import Vocabulary
from recsys.errors import InputError
from recsys.files import num_usable_cores
from recsys.ids import FIRST_ITEM_INDEX
from recsys.models.two_tower import TwoTower
from recsys.reranking import Rules, Search
from recsys.retrieval import top_columns, top_k

# Positions encoded at once: enough for few calls, and few enough that the
# activations take some tens of megabytes.
_POSITIONS_PER_BATCH = 6_400
# Batches encoded in parallel: many operations use one core only.
_NUM_WORKERS = min(4, num_usable_cores())


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """One recommended item.

    Attributes:
        item_id: The raw id.
        title: The title, or the raw id where no title is known.
        score: The dot product of the history's and the item's vector.
    """

    item_id: str
    title: str
    score: float


@dataclasses.dataclass(frozen=True)
class Influence:
    """How an item of a history, or a feature, changed the score of another.

    Attributes:
        item_id: The raw id; of a feature its name, such as "context: gap".
        title: The title, or the raw id where no title is known.
        change: The score given all that is known minus the score without the
            item or the feature.
    """

    item_id: str
    title: str
    change: float


class Recommender:
    """A two-tower model with its vocabulary.

    The vectors of the items are computed once. After further training of the
    model, call `refresh`.

    Args:
        model: The model; its table has a row for every vocabulary index.
        vocabulary: The items.
        max_history_length: How many items of a history are read, its newest.
        name: The model's name in results.
        side: Encodes what the model reads of events, requests and users.

    Raises:
        ValueError: The model's table and the vocabulary differ in size.
    """

    def __init__(
        self,
        model: TwoTower,
        vocabulary: Vocabulary,
        max_history_length: int,
        name: str = "two-tower",
        side: SideEncoder | None = None,
    ) -> None:
        rows = model.candidate_tower.embedding.vocabulary_size
        if rows != vocabulary.size:
            raise ValueError(
                f"`vocabulary` must have the {rows} rows of the model's "
                f"table. Received: {vocabulary.size}"
            )
        self.model = model
        self.vocabulary = vocabulary
        self.name = name
        self._max_length = max_history_length
        self._item_vectors: np.ndarray | None = None
        self._popularity = train_counts(vocabulary).astype(np.float32)
        self.side = side
        self._encode = tf.function(
            lambda ids: model.history_tower(ids, training=False),
            input_signature=[tf.TensorSpec([None, None], tf.int32)],
        )
        self._encode_side = tf.function(
            lambda ids, features: model.history_tower(
                ids, training=False, features=features
            ),
            reduce_retracing=True,
        )

    @property
    def max_history_length(self) -> int:
        """How many items of a history are read, its newest."""
        return self._max_length

    @property
    def popularity(self) -> np.ndarray:
        """`[vocabulary_size]` float32, each item's training interactions."""
        return self._popularity

    def refresh(self) -> None:
        """Discards the item vectors, so that the next call computes them."""
        self._item_vectors = None

    def user_vectors(
        self, items: np.ndarray, offsets: np.ndarray, side: Side | None = None
    ) -> np.ndarray:
        """Encodes histories.

        Unknown items are ignored: their row of the table is never trained.

        Args:
            items: `[total]` int32 vocabulary indices, one history after the
                other, each oldest first.
            offsets: `[num_queries + 1]` int64.
            side: What is known of events, requests and users. Default:
                nothing.

        Returns:
            `[num_queries, dim]` float32; zero for a history that is
            empty or has only unknown items, unless its user has features.

        Raises:
            FloatingPointError: A vector has a NaN or an infinite value.
        """
        items, offsets, side = _without_unknown(items, offsets, side)
        return self._encode_known(items, offsets, side)

    def _encode_known(
        self, items: np.ndarray, offsets: np.ndarray, side: Side | None = None
    ) -> np.ndarray:
        """Encodes histories of known items; see `user_vectors`."""
        dim = self.model.history_tower.output_dim
        vectors = np.zeros((len(offsets) - 1, dim), np.float32)
        batches = pipeline.history_batches(
            items,
            offsets,
            max_length=self._max_length,
            positions_per_batch=_POSITIONS_PER_BATCH,
        )
        # Traced here, once, rather than by whichever worker is first.
        encode = self._encode.get_concrete_function()
        if side is not None:
            encode = self._encode_side.get_concrete_function(*_side_specs(side))
        lock = threading.Lock()

        def encode_batches() -> None:
            # Each worker fetches its next batch itself, so that there are
            # never more batches than workers.
            while True:
                with lock:
                    batch = next(batches, None)
                if batch is None:
                    return
                rows, history_ids, positions = batch
                inputs = [tf.constant(history_ids)]
                if side is not None:
                    found = side.batch(rows, positions, offsets[rows + 1])
                    inputs.append(
                        {name: tf.constant(x) for name, x in found.items()}
                    )
                vectors[rows] = encode(*inputs).numpy()

        # Few items are encoded sooner than threads start.
        num_workers = min(_NUM_WORKERS - 1, len(items) // _POSITIONS_PER_BATCH)
        with futures.ThreadPoolExecutor(_NUM_WORKERS) as pool:
            workers = [pool.submit(encode_batches) for _ in range(num_workers)]
            encode_batches()
        for worker in workers:
            worker.result()  # Raises what the worker raised.
        if side is None or "user" not in side.parts:
            return _finite(vectors, "user")
        # Without features either, there is nothing to tell users apart.
        vectors[~_are_known(offsets, side)] = 0
        return _finite(vectors, "user")

    def item_vectors(self) -> np.ndarray:
        """Returns the vectors of all items.

        Returns:
            `[vocabulary_size, dim]` float32, read-only.

        Raises:
            FloatingPointError: A vector has a NaN or an infinite value.
        """
        if self._item_vectors is None:
            tower = self.model.candidate_tower
            if isinstance(tower.embedding.embeddings.value, tf.Variable):
                # After an optimizer updated single rows, TensorFlow copies
                # the table at each read; a view of it is enough.
                tf.raw_ops.DisableCopyOnRead(
                    resource=tower.embedding.embeddings.handle
                )
            vectors = np.asarray(tower.all_candidates())
            vectors = vectors.astype(np.float32, copy=False).view()
            vectors.flags.writeable = False
            self._item_vectors = _finite(vectors, "item")
        return self._item_vectors

    def scores(self, items: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Scores every item for each history.

        Args:
            items: As for `user_vectors`.
            offsets: As for `user_vectors`.

        Returns:
            `[num_queries, vocabulary_size]` float32; columns 0 and 1 are not
            candidates.
        """
        return self.user_vectors(items, offsets) @ self.item_vectors().T

    def query_scores(
        self,
        queries: Queries,
        rows: np.ndarray,
        indices: np.ndarray | None = None,
    ) -> np.ndarray:
        """Scores every item for queries, with what is known of them.

        Args:
            queries: The queries.
            rows: `[n]` integers, the numbers of some of them.
            indices: The index in the vocabulary for each item of the queries,
                if they are of another one.

        Returns:
            `[n, vocabulary_size]` float32, as `scores`.
        """
        items, offsets = queries.histories(rows)
        if indices is not None:
            items = indices[items]
        side = self.side_of_queries(queries, rows)
        vectors = self.user_vectors(items, offsets, side)
        return vectors @ self.item_vectors().T

    def recommend(
        self,
        history: Sequence[str | Mapping[str, Any]],
        k: int = 10,
        *,
        user: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
        exclude_history: bool = True,
        dislikes: Sequence[str] = (),
        rules: Rules | None = None,
        **filters: Any,
    ) -> list[Recommendation]:
        """Recommends items for one history.

        Args:
            history: Raw item ids or titles, oldest first, all known (see
                `Vocabulary.find`); or mappings with such an "item" and what
                else is known of the event: "time", "rating", ….
            k: How many items.
            user: What is known of the user, by the names of the features.
            context: What is known of the request, likewise, and its "time".
            exclude_history: Whether items of the history are excluded.
            dislikes: Items that are excluded anyway, named as in `history`.
            rules: Which items may be recommended, and in which order.
                Default: all, by score.
            **filters: Arguments of `Rules.make`, instead of `rules`:
                `items=[…]` allows, `exclude=[…]` forbids items by id.

        Returns:
            At most `k` items, best first; fewer if no more are left.

        Raises:
            InputError: An entry of the history is not found or ambiguous, or
                a filter or what is known cannot be used.
        """
        request = Request.of(history, user, context)
        (indices, offsets), disliked = (
            (
                np.array([self.vocabulary.find(n) for n in names], np.int32),
                np.array([0, len(names)], np.int64),
            )
            for names in (request.items, dislikes)
        )
        items, scores = self.recommend_indices(
            indices,
            offsets,
            k,
            exclude_history=exclude_history,
            dislikes=disliked if dislikes else None,
            rules=self._rules(rules, filters),
            side=self._read(request),
        )
        return self.named(items[0], scores[0])

    def side_of(
        self, requests: Sequence[Request]
    ) -> tuple[Side | None, int, dict[str, int]]:
        """Encodes what is known of requests.

        Args:
            requests: The requests.

        Returns:
            What the model reads of it, None where nothing is known; how many
            requests lack some of it, which counts as unknown; and the number
            of values of each feature that are new to the model.

        Raises:
            InputError: A model of items alone is given features, or a name or
                a value cannot be used.
        """
        if not any(request.has_features for request in requests):
            return None, len(requests) * (self.side is not None), {}
        if self.side is None:
            raise _reads_items_only()
        side, unseen = self.side.of_requests(requests)
        return side, sum(map(self.side.lacks, requests)), unseen

    def side_of_queries(
        self, queries: Queries, rows: np.ndarray
    ) -> Side | None:
        """Encodes what is known of queries.

        Args:
            queries: The queries.
            rows: `[n]` integers, the numbers of some of them.

        Returns:
            What the model reads of it; None for a model of items alone.
        """
        if self.side is None:
            return None
        return history_side(
            self.side,
            queries.sequences,
            queries.history_starts[rows],
            queries.history_ends[rows],
            queries.users[rows],
            are_followed=True,
        )

    def side_of_users(
        self, sequences: Sequences, context: Mapping[str, Any]
    ) -> Side | None:
        """Encodes what is known of users of a log; see `SideEncoder.of_users`.

        Raises:
            InputError: As `side_of`.
        """
        if self.side is not None:
            return self.side.of_users(sequences, context)
        if context:
            raise _reads_items_only()
        return None

    def side_of_one(self, request: Request) -> tuple[Side | None, list[str]]:
        """Encodes what is known of a request.

        Args:
            request: The request.

        Returns:
            As `side_of`, and lines on what is not given or new to the model.

        Raises:
            InputError: As `side_of`.
        """
        side, num_lacking, unseen = self.side_of([request])
        notes = []
        if num_lacking and self.side is not None:
            notes.append(
                "the request lacks some features, which count as unknown; "
                + self.side.describe()
            )
        notes += [
            f"{counted(number, 'new value')} of {name}, ignored"
            for name, number in unseen.items()
        ]
        return side, notes

    def _read(self, request: Request) -> Side | None:
        """Encodes a request; prints its notes."""
        side, notes = self.side_of_one(request)
        print("".join(f"{note}\n" for note in notes), end="", file=sys.stderr)
        return side

    def _rules(
        self, rules: Rules | None, filters: Mapping[str, Any]
    ) -> Rules | None:
        """Returns rules, or makes them of filters and prints their notes."""
        if not filters:
            return rules
        if rules is not None:
            raise InputError(
                "`rules` must hold all filters. Received: rules and "
                + ", ".join(filters)
            )
        made = Rules.make(self.vocabulary, **filters)
        for note in made.notes:
            print(note, file=sys.stderr)
        return made

    def similar(self, item: str, k: int = 10) -> list[Recommendation]:
        """Finds the items whose vectors are most similar to an item's.

        Args:
            item: A raw item id or a title; see `Vocabulary.find`.
            k: How many items.

        Returns:
            At most `k` items without the item itself, best first, scored by
            the cosine similarity of the vectors.

        Raises:
            InputError: The item is not found or ambiguous, or `k` is not
                positive.
        """
        if k < 1:
            raise InputError(f"`k` must be positive. Received: {k}")
        row = self.vocabulary.find(item) - FIRST_ITEM_INDEX
        vectors = self.item_vectors()[FIRST_ITEM_INDEX:]
        # A vector of zeros is similar to none.
        norms = np.maximum(np.linalg.norm(vectors, axis=1), 1e-6)
        cosines = vectors @ (vectors[row] / norms[row]) / norms
        cosines[row] = -np.inf
        rows, scores = top_columns(
            cosines[np.newaxis], min(k, self.vocabulary.num_items)
        )
        return self.named(_indices(rows)[0], scores[0])

    def explain(
        self,
        history: Sequence[str | Mapping[str, Any]],
        item: str,
        *,
        user: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> list[Influence]:
        """Computes how each item of a history changes the score of an item.

        Args:
            history: As for `recommend`.
            item: The item that is scored, by raw id or title.
            user: As for `recommend`.
            context: As for `recommend`.

        Returns:
            The items of the history that the model reads and the features that
            are known, the largest changes first.

        Raises:
            InputError: An item is not found or ambiguous.
        """
        request = Request.of(history, user, context)
        indices = np.array(
            [self.vocabulary.find(text) for text in request.items], np.int32
        )
        scored = np.array([self.vocabulary.find(item)])
        side = self._read(request)
        [influences] = self.explain_indices(indices, scored, side)
        return influences

    def explain_indices(
        self,
        history: np.ndarray,
        items: np.ndarray,
        side: Side | None = None,
    ) -> list[list[Influence]]:
        """Computes how items of a history, and features, change scores.

        The history is encoded without each of its items in turn (all
        occurrences of it) and compared with the whole: exact for any encoder.
        Where nothing else is left, the score without the item is 0.

        Args:
            history: `[length]` int32 vocabulary indices, oldest first;
                unknown items are ignored.
            items: `[n]` integer indices of the items that are scored.
            side: What is known of the request; each feature is left out in
                turn, too.

        Returns:
            For each of `items`, the known items among the newest
            `max_history_length` of the history and the features of `side`,
            the largest changes first.
        """
        is_known = history >= FIRST_ITEM_INDEX
        known = history[is_known]
        side = side and side.keep(is_known)
        left_out = np.unique(known[-self._max_length :])
        kept = [np.ones(len(known), bool), *(known != i for i in left_out)]
        vectors = self._encode_known(
            np.concatenate([known[each] for each in kept]),
            np.cumsum([0, *map(np.count_nonzero, kept)]),
            side and side.repeat(kept),
        )
        named = [
            (str(name), self.vocabulary.describe(index))
            for name, index in zip(
                self.vocabulary.decode(left_out),
                left_out.tolist(),
                strict=True,
            )
        ]
        if side is not None and self.side is not None:
            for name, other in self.side.without_each(side):
                named.append((name, name))
                vector = self._encode_known(
                    known, np.array([0, len(known)]), other
                )
                vectors = np.concatenate([vectors, vector])
        scores = vectors @ self.item_vectors()[items].T
        changes = scores[0] - scores[1:]
        return [
            [
                Influence(
                    named[place][0], named[place][1], float(column[place])
                )
                for place in np.argsort(-np.abs(column), kind="stable")
            ]
            for column in changes.T
        ]

    def recommend_indices(
        self,
        items: np.ndarray,
        offsets: np.ndarray,
        k: int,
        *,
        exclude_history: bool = True,
        dislikes: Lists | None = None,
        rules: Rules | None = None,
        side: Side | None = None,
        vectors: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Recommends items for many histories.

        A history that is empty or has only unknown items has no vector, unless
        its user has features that the model reads; its recommendations are the
        items with the most training interactions, scored by that number.

        Args:
            items: As for `user_vectors`.
            offsets: As for `user_vectors`.
            k: How many items for each history.
            exclude_history: Whether items of a history are excluded.
            dislikes: Items to exclude, by the same two arrays, all known.
            rules: Which items, in which order. Default: all, by score.
            side: As for `user_vectors`.
            vectors: What `user_vectors` returns for these, if it was called.

        Returns:
            `[num_queries, min(k, num_items)]` int32 vocabulary indices, best
            first, 0 where no item is left, and their scores, -inf there.

        Raises:
            InputError: `k` is not positive.
            FloatingPointError: As for `user_vectors`.
        """
        if k < 1:
            raise InputError(f"`k` must be positive. Received: {k}")
        rules = rules or Rules()
        items, offsets, side = _without_unknown(items, offsets, side)
        has_history = _are_known(offsets, side)
        shape = (len(has_history), min(k, self.vocabulary.num_items))
        found, scores = np.empty(shape, np.int64), np.empty(shape, np.float32)
        seen = (items, offsets) if exclude_history else None
        excluded = _joined(seen, dislikes)
        if vectors is None:
            vectors = self._encode_known(items, offsets, side)
        candidates = self.item_vectors()[FIRST_ITEM_INDEX:]
        counts = self._popularity[FIRST_ITEM_INDEX:, np.newaxis]
        for asking, among, is_theirs in (
            (vectors, candidates, has_history),
            (np.ones((len(found), 1), np.float32), counts, ~has_history),
        ):
            queries = np.flatnonzero(is_theirs)
            # Without dislikes, all get the same of the most popular items.
            is_one = among is counts and dislikes is None
            if len(queries):
                search = _search(asking, among, excluded, rules.rows)
                some = queries[:1] if is_one else queries
                ranked = rules.rank(search, some, shape[1], candidates)
                found[queries], scores[queries] = ranked
        return _indices(found), scores

    def named(
        self, items: np.ndarray, scores: np.ndarray
    ) -> list[Recommendation]:
        """Looks up the ids and titles of a list.

        Args:
            items: `[k]` int32 vocabulary indices, 0 for none.
            scores: `[k]` float32.
        """
        found = items > 0
        ids = self.vocabulary.decode(items[found])
        return [
            Recommendation(
                item_id, self.vocabulary.describe(int(index)), float(score)
            )
            for item_id, index, score in zip(
                ids, items[found], scores[found], strict=True
            )
        ]


# Items of many queries: one after the other, and where each begins and ends.
Lists = tuple[np.ndarray, np.ndarray]


def _joined(first: Lists | None, second: Lists | None) -> Lists | None:
    """Returns the items of each query in either of two lists."""
    if first is None or second is None:
        return first or second
    queries = np.concatenate(
        [
            np.repeat(np.arange(len(o) - 1), np.diff(o))
            for _, o in (first, second)
        ]
    )
    items = np.append(first[0], second[0])
    return items[np.argsort(queries, kind="stable")], first[1] + second[1]


def _search(
    queries: np.ndarray,
    candidates: np.ndarray,
    excluded: Lists | None,
    rows: np.ndarray | None,
) -> Search:
    """Returns the search by dot product for some of the queries."""

    def search(which: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        exclusions = None
        if excluded is not None:
            items, offsets = excluded
            lengths = np.diff(offsets)[which]
            taken = concatenated_ranges(offsets[which], lengths)
            exclusions = items[taken] - FIRST_ITEM_INDEX, offsets_of(lengths)
        return top_k(
            queries[which], candidates, k, exclusions=exclusions, rows=rows
        )

    return search


def _indices(rows: np.ndarray) -> np.ndarray:
    """Returns the int32 vocabulary indices of rows, 0 for none."""
    return np.where(rows < 0, 0, rows + FIRST_ITEM_INDEX).astype(np.int32)


def _finite(vectors: np.ndarray, kind: str) -> np.ndarray:
    """Returns `[n, dim]` vectors if they are finite."""
    # No array of flags, which would take a quarter of the vectors' memory.
    if vectors.size and not np.isfinite([vectors.min(), vectors.max()]).all():
        raise FloatingPointError(
            f"the model must give finite {kind} vectors; its weights are "
            "damaged, or its training diverged and needs a lower "
            "--learning_rate. Received: NaN or infinite values"
        )
    return vectors


def _without_unknown(
    items: np.ndarray, offsets: np.ndarray, side: Side | None = None
) -> tuple[np.ndarray, np.ndarray, Side | None]:
    """Drops unknown items, and padding, from histories."""
    known = items >= FIRST_ITEM_INDEX
    if known.all():
        return items, offsets, side
    before = np.zeros(len(items) + 1, np.int64)
    np.cumsum(known, out=before[1:])
    return items[known], before[offsets], side and side.keep(known)


def _are_known(offsets: np.ndarray, side: Side | None) -> np.ndarray:
    """`[num_queries]` bool: whether anything tells a query apart."""
    has_history = np.diff(offsets) > 0
    return has_history if side is None else has_history | side.knows_user


def _reads_items_only() -> InputError:
    return InputError(
        "this model reads items alone: a history must be ids, without features "
        "of events, users or context. Received: such features"
    )


def _side_specs(side: Side) -> tuple[Any, ...]:
    """Returns the signature of a batch with what is known."""
    none = np.zeros(0, np.int64)
    entries = side.batch(none, none[:, np.newaxis], none)
    specs = {
        name: tf.TensorSpec([None] * array.ndim, array.dtype, name)
        for name, array in entries.items()
    }
    return tf.TensorSpec([None, None], tf.int32), specs


def restore(
    folder: workdir_lib.Workdir,
    config: TrainConfig | None = None,
    vocabulary: Vocabulary | None = None,
) -> Recommender:
    """Loads the best model of a training run.

    Args:
        folder: The workdir.
        config: Its configuration, if already read.
        vocabulary: Its vocabulary, likewise.

    Returns:
        The model with its vocabulary.

    Raises:
        InputError: The model cannot be loaded, is another one, or has a
            weight that is NaN or infinite.
    """
    config = config or folder.read_config()
    vocabulary = vocabulary or folder.read_vocabulary()
    expected = f"{folder.model}: expected a model of this version of recsys"
    try:
        model = keras.saving.load_model(folder.model, compile=False)
    except MemoryError:
        raise
    except Exception as error:
        # zipfile, zlib, h5py, json and Keras each raise errors of their own.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(
            f"{expected}. Received: a file that cannot be loaded: {reason}"
        ) from error
    if not isinstance(model, TwoTower):
        raise InputError(
            f"{expected}, a TwoTower. Received: a Keras model of class "
            f"{type(model).__name__}"
        )
    rows = model.candidate_tower.embedding.vocabulary_size
    if rows != vocabulary.size:
        raise InputError(
            f"{expected} with the {vocabulary.size} rows of "
            f"{folder.vocabulary.name}. Received: a table of {rows} rows"
        )
    for variable in model.weights:
        values = variable.numpy()
        if values.size and not np.isfinite([values.min(), values.max()]).all():
            raise InputError(
                f"{folder.model}: expected finite weights. Received: NaN or "
                f"infinite values in {variable.path}"
            )
    side = None
    if any(getattr(config, name) for name in FEATURE_FIELDS):
        side = SideEncoder.load(folder.side_information)
    return Recommender(model, vocabulary, config.max_history_length, side=side)
