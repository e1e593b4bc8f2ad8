"""Writes the formats of an export, and compares each with the model."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

import recsys
from recsys import files
from recsys.errors import MismatchError
from recsys.ids import FIRST_ITEM_INDEX, UNKNOWN_INDEX
from recsys.recommender import Recommender
from recsys.serving import (
    CARD,
    FORMATS,
    MANIFEST,
    check_output,
    litert,
    saved_model,
    vectors,
)

# Differences that rounding explains, as a share of the largest value.
_TOLERANCE = 1e-4
_HALF_PRECISION_TOLERANCE = 2e-2
_LIST_LENGTH = 20


def write_export(
    recommender: Recommender,
    output: pathlib.Path,
    names: Collection[str],
    *,
    exclude_history: bool = True,
    about: Mapping[str, Any] | None = None,
    card: str | None = None,
) -> None:
    """Writes an export, a folder with a folder for each format.

    Args:
        recommender: The model with its vocabulary.
        output: The folder, or a link to it. It appears, or is replaced, when
            all formats are written and give the model's answers.
        names: Names of formats, from `recsys.serving.FORMATS`.
        exclude_history: Whether items of the history are excluded from its
            recommendations.
        about: Further entries of `export.json`.
        card: The text of `MODEL_CARD.md`. Default: no such file.

    Raises:
        InputError: The folder has contents that are not an earlier export.
        MismatchError: A format does not give the model's answers.
        OSError: A file could not be written.
    """
    check_output(output)
    output = output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    answers = ask_model(recommender, exclude_history=exclude_history)
    with files.atomic_path(output, is_ours=True) as temporary:
        temporary.mkdir()
        for name in names:
            folder = temporary / name
            folder.mkdir()
            write, read = _functions(name, exclude_history, answers.histories)
            write(recommender, folder)
            answers.check(name, read(recommender, folder))
        if card is not None:
            (temporary / CARD).write_text(card, "utf-8")
        written = sorted(
            path.relative_to(temporary).as_posix()
            for path in temporary.rglob("*")
            if path.is_file()
        )
        files.write_json(
            temporary / MANIFEST,
            {
                "recsys": recsys.__version__,
                **(about or {}),
                "num_items": recommender.vocabulary.num_items,
                "max_history_length": recommender.max_history_length,
                "exclude_history": exclude_history,
                "formats": {name: FORMATS[name] for name in names},
                "files": written,
            },
        )


_Write = Callable[[Recommender, pathlib.Path], None]
_Read = Callable[[Recommender, pathlib.Path], dict[str, np.ndarray]]


def _functions(
    name: str, exclude_history: bool, histories: list[np.ndarray]
) -> tuple[_Write, _Read]:
    """Returns what writes a format to a folder, and what reads its answers."""
    if name == "saved_model":
        return (
            functools.partial(
                saved_model.write_saved_model, exclude_history=exclude_history
            ),
            functools.partial(
                saved_model.ask_saved_model, histories=histories, k=_LIST_LENGTH
            ),
        )
    if name == "litert":
        return (
            functools.partial(
                litert.write_litert, exclude_history=exclude_history
            ),
            functools.partial(litert.ask_litert, histories=histories),
        )
    if name == "onnx":
        # Needs the extra [onnx].
        from recsys.serving import onnx

        return (
            onnx.write_onnx,
            functools.partial(onnx.ask_onnx, histories=histories),
        )
    return {
        "parquet": (vectors.write_parquet, vectors.read_parquet),
        "numpy": (vectors.write_numpy, vectors.read_numpy),
        "projector": (vectors.write_projector, vectors.read_projector),
    }[name]


@dataclasses.dataclass(frozen=True)
class Answers:
    """The model's answers for some histories.

    Attributes:
        histories: Vocabulary indices, some of unknown items.
        arrays: The answers: `scores`, `[num_histories, k]` float32, -inf
            behind the last; `user_vectors`, `[num_histories, dim]`
            float32; `item_vectors`, `[num_items, dim]` float32; and
            `item_ids`, `[num_items]` str.
        popularity: `[num_items]` float32.
        tolerance: The largest difference allowed in vectors and scores, as a
            share of the largest value.
    """

    histories: list[np.ndarray]
    arrays: dict[str, np.ndarray]
    popularity: np.ndarray
    tolerance: float

    def check(self, name: str, received: Mapping[str, np.ndarray]) -> None:
        """Compares the answers of an export with the model's.

        Items whose scores differ only by rounding may change places.

        Args:
            name: The export's name, for messages.
            received: Some of `arrays`, and `items`, vocabulary indices like
                `scores`, 0 behind the last.

        Raises:
            MismatchError: They differ.
        """
        expected = dict(self.arrays)
        received = dict(received)
        items = received.pop("items", None)
        if items is not None:
            width = expected["scores"].shape[1]
            items = items[:, :width]
            scores = np.where(items > 0, received["scores"][:, :width], -np.inf)
            received["scores"] = scores
            received["scores of items"] = scores
            expected["scores of items"] = self._scores_of(items)
            for row in items:
                listed = row[row > 0]
                if len(np.unique(listed)) < len(listed):
                    raise MismatchError(f"{name}: an item is listed twice")
        for what, values in received.items():
            own = expected[what]
            if values.shape != own.shape:
                raise MismatchError(
                    f"{name}: expected {what} of the shape {own.shape}. "
                    f"Received: {values.shape}"
                )
            if values.dtype.kind == "f":
                self._check_close(f"{name}: {what}", values, own)
            elif not np.array_equal(values, own):
                raise MismatchError(f"{name}: {what} differ from the model's")

    def _scores_of(self, items: np.ndarray) -> np.ndarray:
        """Returns the model's scores of listed items, -inf for none."""
        rows = items - FIRST_ITEM_INDEX
        scores = np.einsum(
            "nd,nkd->nk",
            self.arrays["user_vectors"],
            self.arrays["item_vectors"][rows],
        )
        for place, history in enumerate(self.histories):
            if (history < FIRST_ITEM_INDEX).all():
                scores[place] = self.popularity[rows[place]]
        return np.where(items > 0, scores, -np.inf)

    def _check_close(
        self, what: str, values: np.ndarray, own: np.ndarray
    ) -> None:
        """Raises MismatchError if floats differ by more than rounding."""
        finite = np.isfinite(own)
        if not np.array_equal(np.isneginf(values), ~finite):
            raise MismatchError(f"{what} have other lengths than the model's")
        if not finite.any():
            return
        allowed = self.tolerance * max(float(np.abs(own[finite]).max()), 1e-6)
        difference = float(np.abs(values[finite] - own[finite]).max())
        # Not `>`, which a NaN would pass.
        if not difference <= allowed:
            raise MismatchError(
                f"{what} differ from the model's by {difference:.3g}, more "
                f"than rounding explains ({allowed:.3g})"
            )


def ask_model(recommender: Recommender, *, exclude_history: bool) -> Answers:
    """Asks the model about some random histories.

    They are empty, short, and as long as the model reads, with and without
    unknown items.

    Args:
        recommender: The model.
        exclude_history: Whether items of the history are excluded.

    Returns:
        Its answers.
    """
    rng = np.random.default_rng(0)
    length = recommender.max_history_length
    vocabulary = recommender.vocabulary
    histories = [
        rng.integers(FIRST_ITEM_INDEX, vocabulary.size, n, np.int32)
        for n in (0, 1, min(5, length), length // 2, length)
    ]
    mixed = histories[-1].copy()
    mixed[::2] = UNKNOWN_INDEX
    histories += [np.array([UNKNOWN_INDEX], np.int32), mixed]
    flat = np.concatenate(histories)
    offsets = np.cumsum([0, *map(len, histories)])
    _, scores = recommender.recommend_indices(
        flat, offsets, _LIST_LENGTH, exclude_history=exclude_history
    )
    is_half = recommender.model.history_tower.compute_dtype != "float32"
    return Answers(
        histories=histories,
        arrays={
            "scores": scores,
            "user_vectors": recommender.user_vectors(flat, offsets),
            "item_vectors": recommender.item_vectors()[FIRST_ITEM_INDEX:],
            "item_ids": vocabulary.item_ids,
        },
        popularity=recommender.popularity[FIRST_ITEM_INDEX:],
        tolerance=_HALF_PRECISION_TOLERANCE if is_half else _TOLERANCE,
    )
