"""The newest model of a folder, loaded beside the one that is being served."""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
import pathlib
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import rapidfuzz
import tensorflow as tf

from recsys.config import TrainConfig
from recsys.data import side_information
from recsys.data.columns import is_list
from recsys.data.prepare import build_data
from recsys.data.sequences import concatenated_ranges, offsets_of
from recsys.data.vocabulary import Vocabulary
from recsys.errors import InputError
from recsys.ids import FIRST_ITEM_INDEX, UNKNOWN_INDEX
from recsys.recommender import Recommender, restore
from recsys.report import map_points
from recsys.reranking import Rules, item_columns
from recsys.serving.batching import Batcher, Call, Signatures
from recsys.serving.saved_model import ServedModel
from recsys.serving.vectors import PARQUET_FILE, read_items
from recsys.workdir import Workdir

# Similarity of spelling, of 100, from which a word stands in for another.
_CLOSE = 65
_NUM_CLOSE = 5
# Items whose columns are kept as JSON needs them.
_NUM_ITEMS_KEPT = 2**14
_NUM_RULES_KEPT = 100
# What JSON shows of an item's columns.
_PLAIN = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_boolean,
)


class NotFoundError(InputError):
    """There is no such item, user or model, or the model cannot answer."""


@dataclasses.dataclass(frozen=True)
class Place:
    """A model in a folder.

    Attributes:
        folder: Its folder.
        saved_model: The SavedModel; None for a workdir.
        version: The number of the folder, or the time of the newest file in
            seconds since 1970.
        files: Path, time and size of everything that is loaded.
    """

    folder: pathlib.Path
    saved_model: pathlib.Path | None
    version: int
    files: tuple[tuple[str, int, int], ...]

    @classmethod
    def find(cls, path: pathlib.Path) -> Place:
        """Finds the newest model of a folder.

        Args:
            path: A workdir, an export, its SavedModel, or a folder of such
                with numbers as names, as TensorFlow Serving has them.

        Raises:
            InputError: There is none.
        """
        own = Workdir(path)
        if own.config.is_file() and own.model.is_file():
            features = [own.item_features, own.side_information]
            paths = [own.config, own.vocabulary, own.model, *features]
            return cls._of(path, None, paths)
        numbered = [
            each
            for each in (path.iterdir() if path.is_dir() else ())
            if each.name.isdecimal()
        ]
        numbered.sort(key=lambda each: int(each.name), reverse=True)
        for folder in (path, *numbered):
            for saved_model in (folder, folder / "saved_model"):
                if (saved_model / "saved_model.pb").is_file():
                    paths = sorted(folder.rglob("*"))
                    return cls._of(folder, saved_model, paths)
        raise InputError(
            "--workdir must be a folder of a trained model, or of an export "
            f"with a SavedModel. Received: {path}"
        )

    @classmethod
    def _of(
        cls,
        folder: pathlib.Path,
        saved_model: pathlib.Path | None,
        paths: Sequence[pathlib.Path],
    ) -> Place:
        found = [
            (str(path), (at := path.stat()).st_mtime_ns, at.st_size)
            for path in paths
            if path.is_file()
        ]
        version = max(time for _, time, _ in found) // 10**9
        if saved_model is not None and folder.name.isdecimal():
            version = int(folder.name)
        return cls(folder, saved_model, version, tuple(found))


class Catalog:
    """The items of a model, to describe and to search.

    Args:
        vocabulary: The items.
        vectors: `[num_items, dim]` float32.
        counts: `[num_items]`, training interactions; None where unknown.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        vectors: np.ndarray,
        counts: np.ndarray | None,
    ) -> None:
        self.vocabulary = vocabulary
        size = vocabulary.num_items
        self._vectors = vectors
        self._counts = np.ones(size) if counts is None else counts
        columns = {
            name: column
            for name, column in item_columns(vocabulary).items()
            if name not in ("item_id", "title")
            and any(
                test(
                    column.type.value_type
                    if is_list(column.type)
                    else column.type
                )
                for test in _PLAIN
            )
        }
        self._columns = pa.table(columns) if columns else None
        self._item = functools.lru_cache(_NUM_ITEMS_KEPT)(self._read)
        self._placed = functools.lru_cache(2)(self._place)
        names = [vocabulary.describe(i + FIRST_ITEM_INDEX) for i in range(size)]
        self._texts = pa.array([f" {_plain(name)} " for name in names])
        words = pc.list_flatten(pc.utf8_split_whitespace(self._texts))
        self._words = words.unique().to_pylist()

    @property
    def columns(self) -> dict[str, str]:
        """The type of each column that conditions may name."""
        schema = [] if self._columns is None else self._columns.schema
        return {field.name: str(field.type) for field in schema}

    def about(self, indices: Iterable[int]) -> list[dict[str, Any]]:
        """Returns the id, the title and the other columns of items.

        Args:
            indices: `[n]` vocabulary indices.
        """
        return [self._item(int(index)) for index in indices]

    def listed(
        self, indices: np.ndarray, scores: np.ndarray
    ) -> list[dict[str, Any]]:
        """Returns what `about` does for a list, with scores.

        Args:
            indices: `[n]` vocabulary indices, 0 where no item is left.
            scores: `[n]` float32.
        """
        items = self.about(indices[indices > 0])
        pairs = zip(items, scores.tolist(), strict=False)
        return [{**item, "score": score} for item, score in pairs]

    def _read(self, index: int) -> dict[str, Any]:
        row = index - FIRST_ITEM_INDEX
        others = self._columns and self._columns.slice(row, 1).to_pylist()[0]
        return {
            "item_id": self.vocabulary.item_ids[row],
            "title": self.vocabulary.describe(index),
            "metadata": others or {},
        }

    def search(self, text: str, limit: int) -> np.ndarray:
        """Finds items by the beginnings of the words of their titles.

        A word with which no word of a title begins stands for those of a
        similar spelling. Items that match more of the words go first, then
        titles that begin with these words, then with the text, then popular
        ones.

        Args:
            text: What is typed: words, or an id. The most popular items are
                found for none.
            limit: How many.

        Returns:
            `[n]` vocabulary indices.
        """
        words = _plain(text).split()
        hits = np.zeros(len(self._texts))
        for word in words:
            found = self._beginning(word)
            if not found.any() and not word.isdecimal():
                close = rapidfuzz.process.extract(
                    word,
                    self._words,
                    scorer=rapidfuzz.fuzz.ratio,
                    score_cutoff=_CLOSE,
                    limit=_NUM_CLOSE,
                )
                for spelling, score, _ in close:
                    likeness = self._beginning(spelling) * (score / 100)
                    found = np.maximum(found, likeness)
            hits = hits + found
        begins = f" {' '.join(words)}"
        starts, whole = (
            pc.starts_with(self._texts, each).to_numpy(zero_copy_only=False)
            for each in (begins, f"{begins} ")
        )
        best = hits > hits.max(initial=0) - 0.5
        order = np.lexsort((-self._counts, ~starts, ~whole, -hits))
        found = order[best[order] & (hits[order] > 0 if words else True)]
        # A number may be in a title, too.
        by_id = self.vocabulary.encode([text.strip()])[0] - FIRST_ITEM_INDEX
        if by_id >= 0 and by_id not in found[:limit]:
            found = np.append(found[: limit - 1], by_id)
        return found[:limit] + FIRST_ITEM_INDEX

    def _beginning(self, word: str) -> np.ndarray:
        found = pc.match_substring(self._texts, f" {word}")
        return found.to_numpy(zero_copy_only=False).astype(float)

    def points(self, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """Places the most popular items on a map.

        Args:
            limit: How many.

        Returns:
            `[n]` indices, the most popular first, and `[n, 2]` positions
            between -1 and 1; see `recsys.report.map_points`.
        """
        return self._placed(limit)

    def _place(self, limit: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.argsort(-self._counts, kind="stable")[:limit]
        # The vectors of others are still where they were initialized.
        rows = rows[self._counts[rows] > 0]
        if not len(rows):
            return rows, np.zeros((0, 2))
        points = map_points(self._vectors[rows], self._counts[rows])
        low, high = points.min(axis=0), points.max(axis=0)
        points = 2 * (points - low) / np.maximum(high - low, 1e-9) - 1
        return rows + FIRST_ITEM_INDEX, points


def _plain(text: str) -> str:
    """Returns the words of a text in lower case, without accents."""
    letters = unicodedata.normalize("NFKD", text.casefold())
    kept = "".join(c for c in letters if not unicodedata.combining(c))
    return " ".join(rapidfuzz.utils.default_process(kept).split())


class UserLog:
    """Users of the log that a model was trained on.

    Args:
        config: The configuration, which names the log.
        recommender: The model.

    Raises:
        InputError: The log cannot be read.
    """

    def __init__(self, config: TrainConfig, recommender: Recommender) -> None:
        data = build_data(config)
        self._queries, self.part = data.split.reported
        self._sequences = self._queries.sequences
        self._query_of = {
            int(user): query for query, user in enumerate(self._queries.users)
        }
        self._recommender = recommender
        self._indices = recommender.vocabulary.indices_of(data.vocabulary)
        self._excludes = config.excludes_history

    def search(self, text: str, limit: int) -> list[dict[str, Any]]:
        """Finds users whose ids begin with a text, those of the log first."""
        lengths = self._sequences.lengths
        found: list[dict[str, Any]] = []
        for row, user_id in enumerate(self._sequences.user_ids):
            if len(found) == limit:
                break
            if lengths[row] and str(user_id).startswith(text):
                found.append({"user_id": user_id, "length": int(lengths[row])})
        return found

    def show(self, user_id: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns what a user did before and after a query, and its ranks.

        Args:
            user_id: The raw id.

        Returns:
            `[length]` indices of the history, oldest first; `[n]` indices of
            what came next, held out from training; and `[n]` float64, their
            expected ranks among all candidates, NaN for an unknown item.

        Raises:
            NotFoundError: The log has no such user.
        """
        rows = np.flatnonzero(self._sequences.user_ids == user_id)
        if not len(rows):
            raise NotFoundError(
                f"a user must be one of the {self._sequences.num_users:,} of "
                f"the log. Received: {user_id!r}"
            )
        query = self._query_of.get(int(rows[0]))
        if query is None:
            offsets = self._sequences.offsets
            history = self._sequences.items[slice(*offsets[rows[0] :][:2])]
            return self._indices[history], np.zeros(0, int), np.zeros(0)
        asked = np.array([query])
        history = self._indices[self._queries.histories(asked)[0]]
        targets = self._indices[self._queries.targets(asked)[0]]
        [scores] = self._recommender.query_scores(
            self._queries, asked, self._indices
        )
        scores[:FIRST_ITEM_INDEX] = -np.inf
        if self._excludes:
            scores[history] = -np.inf
        theirs = scores[targets][:, np.newaxis]
        above = np.count_nonzero(scores > theirs, axis=1)
        tied = np.count_nonzero(scores == theirs, axis=1)
        ranks = np.where(
            targets == UNKNOWN_INDEX, np.nan, above + (tied + 1) / 2
        )
        return history, targets, ranks


# A list of items, best first: each as `Catalog.listed` describes it.
Answer = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Asked:
    """What one request for recommendations asks for.

    Attributes:
        items: `[length]` int32 indices of the history, unknown ones included.
        known: What is known of its events, its user and itself.
        side: The same, encoded.
        unknown: The entries of the history that name no item.
        notes: Lines on features that are missing or unknown.
        k: How many items.
        exclude_history: Whether items of the history are excluded.
        rules: Which items may be recommended, and in which order.
    """

    items: np.ndarray
    known: side_information.Request
    side: side_information.Side | None
    unknown: list[str]
    notes: list[str]
    k: int = 10
    exclude_history: bool = True
    rules: Rules = dataclasses.field(default_factory=Rules)


def read_asked(
    recommender: Recommender,
    history: Sequence[str | int | Mapping[str, Any]],
    user: Mapping[str, Any] | None = None,
    context: Mapping[str, Any] | None = None,
    **options: Any,
) -> Asked:
    """Reads a request for recommendations.

    Args:
        recommender: The model.
        history: Oldest first: raw ids or titles, or objects that have one as
            `item`, and what is known of the event.
        user: What is known of the user.
        context: What is known of the request.
        **options: Other attributes of `Asked`.

    Raises:
        InputError: A title is ambiguous, or the model cannot read something.
    """
    known = side_information.Request.of(history, user, context)
    side, notes = recommender.side_of_one(known)
    vocabulary = recommender.vocabulary
    texts = np.array(known.items, object)
    items = vocabulary.encode(texts)
    for place in np.flatnonzero(items == UNKNOWN_INDEX):
        if vocabulary.matching(texts[place]):
            items[place] = vocabulary.find(texts[place])
    unknown = texts[items == UNKNOWN_INDEX].tolist()
    return Asked(items, known, side, unknown, notes, **options)


def answer_together(
    recommender: Recommender, asked: Sequence[Asked]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Answers requests of any kinds, whose histories are encoded at once.

    Args:
        recommender: The model.
        asked: The requests.

    Returns:
        Of each, `[n]` indices, best first, 0 where none is left, and scores.
    """
    items = np.concatenate([each.items for each in asked])
    offsets = offsets_of(np.array([len(each.items) for each in asked]))
    side = asked[0].side
    if len(asked) > 1:
        side, *_ = recommender.side_of([each.known for each in asked])
    vectors = recommender.user_vectors(items, offsets, side)
    alike: dict[tuple[int, bool, int], list[int]] = {}
    for place, each in enumerate(asked):
        key = (each.k, each.exclude_history, id(each.rules))
        alike.setdefault(key, []).append(place)
    answers: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for (k, exclude_history, _), places in alike.items():
        lengths = np.diff(offsets)[places]
        taken = concatenated_ranges(offsets[places], lengths)
        found = recommender.recommend_indices(
            items[taken],
            offsets_of(lengths),
            k,
            exclude_history=exclude_history,
            rules=asked[places[0]].rules,
            side=side and side.select(np.array(places), taken),
            vectors=vectors[places],
        )
        answers.update(zip(places, zip(*found, strict=True), strict=True))
    return [answers[place] for place in range(len(asked))]


class LiveModel:
    """A model of a folder, and all that is made of it.

    Args:
        name: Its name in requests.
        place: Where it is.
        observe: Gets the number of requests of each call of the model.

    Attributes:
        catalog: The items; None for a SavedModel alone.
        recommend: Answers what `request` returns.
        predict: Answers what `signatures.read` returns.
    """

    def __init__(
        self, name: str, place: Place, observe: Callable[[float], None]
    ) -> None:
        self.name, self.place = name, place
        self.catalog: Catalog | None = None
        self._recommender: Recommender | None = None
        self._lock = threading.Lock()
        self._users: UserLog | None = None
        num_items = 1
        if place.saved_model is None:
            folder = Workdir(place.folder)
            self._config = folder.read_config()
            vocabulary = folder.read_vocabulary()
            recommender = restore(folder, self._config, vocabulary)
            self._recommender = recommender
            # Requests with equal rules share them, and are ranked together.
            self._rules_of = functools.lru_cache(_NUM_RULES_KEPT)(
                lambda text: Rules.make(vocabulary, **json.loads(text))
            )
            # Python owns the tables of a model: as long as it is held.
            self._held: Any = ServedModel(recommender, exclude_history=True)
            functions = self._held.signatures()
            vectors = recommender.item_vectors()[FIRST_ITEM_INDEX:]
            counts = recommender.popularity[FIRST_ITEM_INDEX:]
            catalog = self.catalog = Catalog(vocabulary, vectors, counts)

            def answer(asked: list[Any]) -> list[Answer]:
                found = answer_together(recommender, asked)
                return [catalog.listed(*each) for each in found]

            answer([read_asked(recommender, vocabulary.item_ids[:1].tolist())])
        else:
            self._held = tf.saved_model.load(str(place.saved_model))
            functions = self._held.signatures
            parquet = place.folder / "parquet"
            if (parquet / PARQUET_FILE).is_file():
                table, vectors = read_items(parquet)
                ids = table["item_id"].combine_chunks()
                self.catalog = Catalog(Vocabulary(ids, table), vectors, None)
        if self.catalog is not None:
            num_items = self.catalog.vocabulary.num_items
            self.catalog.vocabulary.matching("")  # Makes the index of titles.
        self.signatures = Signatures(functions)
        self.recommend: Batcher[Any, Answer] = Batcher(
            answer if self._recommender else self._answer_from_export,
            lambda _: 1,
            num_items,
            observe,
        )
        self.predict: Batcher[Call, dict[str, np.ndarray]] = Batcher(
            self.signatures.answer,
            lambda call: call.num_rows,
            num_items,
            observe,
        )

    @property
    def recommender(self) -> Recommender:
        """The model itself.

        Raises:
            NotFoundError: There is an export only.
        """
        if self._recommender is None:
            raise NotFoundError(
                "this needs the workdir of a model, and the server has an "
                f"export. Received: {self.place.folder.name}"
            )
        return self._recommender

    @property
    def items(self) -> Catalog:
        """The items.

        Raises:
            NotFoundError: They are not known.
        """
        if self.catalog is None:
            raise NotFoundError(
                "this needs the items, which are in a workdir and in an export "
                "with the format parquet. Received: a SavedModel alone"
            )
        return self.catalog

    @property
    def users(self) -> UserLog:
        """The users of the log, which is read when they are first asked for."""
        recommender = self.recommender
        with self._lock:
            if self._users is None:
                self._users = UserLog(self._config, recommender)
            return self._users

    def find(self, text: str) -> int:
        """Returns the index of an item by its id or title.

        Raises:
            NotFoundError: There is none.
        """
        vocabulary = self.items.vocabulary
        try:
            return vocabulary.find(text)
        except InputError as error:
            raise NotFoundError(str(error)) from error

    def similar(self, item: str, k: int) -> Answer:
        """Returns the items most similar to one, given by id or title."""
        if self._recommender is None:
            columns = {"item_ids": np.array([item], object), "k": np.array([k])}
            return self._answer_from_export([Call("similar_items", columns)])[0]
        vocabulary = self.items.vocabulary
        item_id = vocabulary.decode([self.find(item)])[0]
        found = self._recommender.similar(item_id, k)
        indices = vocabulary.encode([each.item_id for each in found])
        scores = np.array([each.score for each in found])
        return self.items.listed(indices, scores)

    def request(
        self,
        history: Sequence[str | int | Mapping[str, Any]],
        user: Mapping[str, Any] | None,
        context: Mapping[str, Any] | None,
        *,
        k: int,
        exclude_history: bool,
        **filters: Any,
    ) -> Asked | Call:
        """Reads a request for recommendations.

        Args:
            history: As for `read_asked`.
            user: Likewise.
            context: Likewise.
            k: How many items.
            exclude_history: Whether items of the history are excluded.
            **filters: Arguments of `Rules.make`.

        Returns:
            What `recommend` takes.

        Raises:
            InputError: It asks for what cannot be.
        """
        filters = {name: value for name, value in filters.items() if value}
        if self._recommender is not None:
            return read_asked(
                self._recommender,
                history,
                user,
                context,
                k=k,
                exclude_history=exclude_history,
                rules=self._rules_of(json.dumps(filters)),
            )
        unread = sorted(filters.keys() - {"items", "exclude"})
        unread += [*(user or ()), *(context or ())]
        if unread or not exclude_history:
            raise InputError(
                "an export recommends by `history`, `k`, `items` and `exclude` "
                f"alone. Received: {', '.join(unread) or 'exclude_history'}"
            )
        lists = {"history": history, "exclude": (), **filters}
        columns = {
            name: np.array([list(map(str, ids)) or [""]], object)
            for name, ids in lists.items()
        }
        name = "recommend_among" if "items" in filters else "recommend"
        return Call(name, {**columns, "k": np.array([k])})

    def _answer_from_export(self, calls: list[Any]) -> list[Answer]:
        """Answers calls of one row each that give lists."""
        answers = []
        for found in self.signatures.answer(calls):
            ids = [each.decode() for each in found["item_ids"][0] if each]
            scores = found["scores"][0]
            if self.catalog is not None:
                indices = self.catalog.vocabulary.encode(ids)
                answers.append(self.catalog.listed(indices, scores))
                continue
            answers.append(
                [
                    {"item_id": i, "title": i, "metadata": {}, "score": s}
                    for i, s in zip(ids, scores.tolist(), strict=False)
                ]
            )
        return answers


class Folder:
    """A folder whose newest model is served.

    Args:
        path: See `Place.find`.
        name: The name of the model in requests.
        observe: Gets the number of requests of each call of the model.

    Attributes:
        model: The model that answers; replaced as a whole.
        num_swaps: How many times it was.

    Raises:
        InputError: The folder has no usable model.
    """

    def __init__(
        self,
        path: pathlib.Path,
        name: str,
        observe: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.path, self.name, self._observe = path, name, observe
        self.model = LiveModel(name, Place.find(path), observe)
        self.num_swaps = self.num_refused = 0
        # What was there at the last poll, and what could not be loaded.
        self._seen = self._refused = self.model.place.files

    def poll(self) -> None:
        """Loads a model that has replaced the one that is served.

        One that is still being written is left until it has not changed
        between two calls; one that cannot be loaded, until it changes.
        """
        try:
            place = Place.find(self.path)
        except (InputError, OSError):
            return  # Being replaced: the one in memory answers.
        seen, self._seen = self._seen, place.files
        if place.files in (self.model.place.files, self._refused) or (
            place.files != seen
        ):
            return
        try:
            model = LiveModel(self.name, place, self._observe)
            if Place.find(self.path).files != place.files:
                return  # Two halves, perhaps.
        except Exception as error:
            self._refused = place.files
            self.num_refused += 1
            reason = " ".join(str(error).split())[:300]
            print(
                f"{self.name}: the model that answered before goes on "
                f"answering; the new one cannot be loaded: {reason}",
                file=sys.stderr,
            )
            return
        self.model = model
        self.num_swaps += 1
        print(f"{self.name}: serving version {place.version}", file=sys.stderr)
        del model
        gc.collect()
