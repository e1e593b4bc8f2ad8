"""Requests that arrive together, answered in one call of the model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import tensorflow as tf

from recsys.errors import InputError

# Scores that a call may compute at once: 256 MB.
_SCORES_PER_CALL = 2**26
_MAX_ROWS = 1024

# What JSON has for a type, and what pads a history.
_KINDS: dict[tf.DType, tuple[tuple[type, ...], str, Any]] = {
    tf.string: ((str,), "texts", ""),
    tf.int32: ((int,), "whole numbers", 0),
    tf.int64: ((int,), "whole numbers", -1),
    tf.float32: ((int, float), "numbers", np.nan),
}

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Batcher(Generic[Asked, Answer]):
    """Answers requests one call after the other, all that wait at once.

    A request that comes alone is answered at once. Others wait for the call
    that is running, and no longer: the next one takes them all.

    Args:
        answer: Answers a list of requests, in their order.
        size_of: How many rows a request has.
        num_items: The number of items, which limits the rows of a call.
        observe: Gets the number of requests of each call.

    Attributes:
        max_rows: How many rows one call may have.
    """

    def __init__(
        self,
        answer: Callable[[list[Asked]], Sequence[Answer]],
        size_of: Callable[[Asked], int],
        num_items: int,
        observe: Callable[[float], None],
    ) -> None:
        self.max_rows = max(min(_SCORES_PER_CALL // num_items, _MAX_ROWS), 1)
        self._answer, self._size_of, self._observe = answer, size_of, observe
        self._waiting: list[tuple[Asked, asyncio.Future[Answer]]] = []
        self._running: asyncio.Task | None = None
        self._thread = futures.ThreadPoolExecutor(1, "recsys-batch")

    async def __call__(self, asked: Asked) -> Answer:
        """Returns the answer to a request."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((asked, future))
        if self._running is None:
            self._running = loop.create_task(self._run(loop))
        return await future

    async def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answers all that wait, and what comes meanwhile."""
        while self._waiting:
            rows = np.cumsum([self._size_of(each) for each, _ in self._waiting])
            end = max(int(np.searchsorted(rows, self.max_rows, "right")), 1)
            batch, self._waiting = self._waiting[:end], self._waiting[end:]
            # Those who have given up are not computed for.
            batch = [pair for pair in batch if not pair[1].done()]
            if not batch:
                continue
            self._observe(len(batch))
            try:
                found = await loop.run_in_executor(
                    self._thread, self._answer, [each for each, _ in batch]
                )
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), answer in zip(batch, found, strict=True):
                if not future.done():
                    future.set_result(answer)
        self._running = None


class Call(NamedTuple):
    """Arguments of a signature.

    Attributes:
        signature: Its name.
        columns: By input, arrays that have the rows as their first axis.
        is_rows: Whether the request had rows, and gets them.
    """

    signature: str
    columns: dict[str, np.ndarray]
    is_rows: bool = False

    @property
    def num_rows(self) -> int:
        """How many rows are answered."""
        return max(map(len, self.columns.values()))


class Signatures:
    """The signatures of a SavedModel, called as TensorFlow Serving does.

    Args:
        functions: By name, functions of named tensors whose inputs of text
            ignore "", as those of `recsys.serving.saved_model` do.
    """

    def __init__(self, functions: Mapping[str, Any]) -> None:
        self._functions = functions
        self._inputs = {
            name: {
                spec.name: spec
                for spec in tf.nest.flatten(function.structured_input_signature)
                if spec is not None  # The default of an argument.
            }
            for name, function in functions.items()
        }

    def read(self, request: Mapping[str, Any]) -> Call:
        """Reads the body of a request to TensorFlow Serving's REST interface.

        "instances" holds rows, each an object with every input, or the value
        of the only one; "inputs" holds columns, or the only one.

        Args:
            request: The body.

        Raises:
            InputError: It does not fit the signature that it names.
        """
        name = request.get("signature_name") or "serving_default"
        if name not in self._inputs:
            raise InputError(
                "`signature_name` must be one of "
                f"{', '.join(self._inputs)}. Received: {name!r}"
            )
        specs = self._inputs[name]
        rows, columns = request.get("instances"), request.get("inputs")
        if (rows is None) == (columns is None):
            raise InputError(
                "a request must have either `instances` or `inputs`. "
                f"Received: {'neither' if rows is None else 'both'}"
            )
        is_rows = rows is not None
        if rows is not None:
            if len(specs) == 1:
                [only] = specs
                rows = [r if isinstance(r, dict) else {only: r} for r in rows]
            for row in rows:
                if not isinstance(row, dict) or row.keys() != specs.keys():
                    raise InputError(
                        "each of `instances` must have the inputs "
                        f"{', '.join(specs)}. Received: {json.dumps(row)[:99]}"
                    )
            columns = {key: [row[key] for row in rows] for key in specs}
        elif not isinstance(columns, dict) and len(specs) == 1:
            columns = {next(iter(specs)): columns}
        if not isinstance(columns, dict) or columns.keys() != specs.keys():
            raise InputError(
                f"`inputs` must have the columns {', '.join(specs)}. "
                f"Received: {json.dumps(columns)[:99]}"
            )
        arrays = {key: _array(key, columns[key], specs[key]) for key in specs}
        for key in specs:
            if key.startswith("history_"):
                arrays[key] = _per_event(key, arrays[key], arrays["history"])
        lengths = {key: len(array) for key, array in arrays.items()}
        found = Call(name, arrays, is_rows)
        if not found.num_rows or set(lengths.values()) - {1, found.num_rows}:
            raise InputError(
                "each input must have a row or more, and all the same number "
                f"of rows, except for those with one. Received: {lengths}"
            )
        return found

    def answer(self, calls: Sequence[Call]) -> list[dict[str, np.ndarray]]:
        """Calls signatures, once for all requests that name the same.

        Args:
            calls: The requests.

        Returns:
            The outputs of each.
        """
        answers: dict[int, dict[str, np.ndarray]] = {}
        for name in {each.signature for each in calls}:
            places = [n for n, e in enumerate(calls) if e.signature == name]
            asked = [calls[place] for place in places]
            inputs = {}
            for key, spec in self._inputs[name].items():
                parts = [(each.columns[key], each.num_rows) for each in asked]
                joined = _joined(parts, _KINDS[spec.dtype][2])
                inputs[key] = tf.constant(
                    joined.tolist(), spec.dtype, joined.shape
                )
            outputs = self._functions[name](**inputs)
            outputs = {key: value.numpy() for key, value in outputs.items()}
            begin = 0
            for place, each in zip(places, asked, strict=True):
                rows = slice(begin, begin := begin + each.num_rows)
                width = slice(None)
                if "k" in each.columns:
                    width = slice(int(each.columns["k"].max()))
                answers[place] = {
                    key: value[rows, width] if value.ndim > 1 else value[rows]
                    for key, value in outputs.items()
                }
        return [answers[place] for place in range(len(calls))]


def predictions(call: Call, outputs: Mapping[str, np.ndarray]) -> dict:
    """Returns a response of TensorFlow Serving's REST interface.

    Args:
        call: The request.
        outputs: Its outputs, from `Signatures.answer`.
    """
    columns = {
        key: _texts(value) if value.dtype == object else value.tolist()
        for key, value in outputs.items()
    }
    answer: Any = columns
    if len(columns) == 1:
        [answer] = columns.values()
    elif call.is_rows:
        rows = zip(*columns.values(), strict=True)
        answer = [dict(zip(columns, row, strict=True)) for row in rows]
    return {"predictions" if call.is_rows else "outputs": answer}


def _texts(value: np.ndarray) -> list:
    texts = [each.decode() for each in value.flat]
    return np.array(texts, object).reshape(value.shape).tolist()


def _array(name: str, values: Any, spec: tf.TensorSpec) -> np.ndarray:
    """Checks and returns a column of a request."""
    kinds, expected, _ = _KINDS[spec.dtype]
    array = np.array(values, object)
    sizes = spec.shape.as_list()
    if not array.size:  # `[[]]` has no vectors to show their length.
        array = array.reshape(
            *array.shape, *(size or 0 for size in sizes[array.ndim :])
        )
    if (
        array.ndim != len(sizes)
        or any(
            size not in (None, given)
            for size, given in zip(sizes, array.shape, strict=True)
        )
        or any(type(each) not in kinds for each in array.flat)
        or (name == "k" and not all(0 < each < 2**31 for each in array))
    ):
        expected += " from 1" * (name == "k")
        if sizes[1:] and sizes[-1]:
            expected = f"lists of {sizes[-1]} {expected}"
        if sizes[1:2] == [None]:
            expected = f"lists of {expected}, all of one length (pad them)"
        raise InputError(
            f"`{name}` must have {expected}. Received: "
            f"{json.dumps(values)[:99]}"
        )
    return array


def _per_event(name: str, array: np.ndarray, history: np.ndarray) -> np.ndarray:
    """Returns a value for each event of the history; one goes for all."""
    if array.shape[1] not in (1, history.shape[1]):
        raise InputError(
            f"`{name}` must have a value for each of the {history.shape[1]} "
            f"entries of `history`, or one for all. Received: {array.shape[1]}"
        )
    whole = (len(array), history.shape[1], *array.shape[2:])
    return np.broadcast_to(array, whole)


def _joined(
    parts: Sequence[tuple[np.ndarray, int]], padding: Any
) -> np.ndarray:
    """Stacks columns of so many rows each, padding the shorter ones."""
    if parts[0][0].ndim == 1:
        return np.concatenate(
            [np.broadcast_to(array, num_rows) for array, num_rows in parts]
        )
    width = max(array.shape[1] for array, _ in parts)
    rest = parts[0][0].shape[2:]
    joined = np.full((sum(n for _, n in parts), width, *rest), padding, object)
    begin = 0
    for array, num_rows in parts:
        joined[begin : begin + num_rows, : array.shape[1]] = array
        begin += num_rows
    return joined
