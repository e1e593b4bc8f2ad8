"""Kills, full disks and damaged files: nothing lost, nothing read as data."""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import json
import pathlib
import re
import shutil
import signal
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import h5py
import numpy as np
import tensorflow as tf
from torture_world import (
    Ended,
    Stop,
    Try,
    World,
    copy,
    digest,
    flags,
    run_forked,
    run_process,
)

import recsys
from recsys import files
from recsys.data import prepare
from recsys.errors import InputError
from recsys.serving import check_output
from recsys.training import build
from recsys.training.checkpoints import Checkpoints
from recsys.workdir import Workdir, checkpoint_paths

# Measures of a run that are not the same in another.
_TIMES = ("seconds", "interactions_per_second")


def model_of(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns the architecture and the weights of a model, by name."""
    found: dict[str, Any] = {}
    with zipfile.ZipFile(workdir / "model.keras") as archive:
        architecture = archive.read("config.json").decode()
        # Keras numbers shared objects by their addresses, and models of the
        # same kind in the order in which a process made them.
        found["architecture"] = re.sub(
            r'"shared_object_id": \d+|(?<=[a-z])_\d+(?=")', "", architecture
        )
        content = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(content) as file:

        def keep(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                found[f"weights/{name}"] = item[()]

        file.visititems(keep)
    return found


def combined(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns all that a combination leaves, by name."""
    found: dict[str, Any] = digest(workdir)
    # These hold the time.
    timed = [found.pop(n, None) for n in ("model.keras", "checksums.json")]
    if None in timed:
        return found
    Workdir(workdir).check_checksums()
    return found | model_of(workdir)


def trained(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns all that a training leaves, by name, except for its times."""
    found = model_of(workdir)
    # An older one stays if a run was killed between the last and its removal.
    *_, checkpoint = checkpoint_paths(workdir / "checkpoints")
    variables = tf.train.load_checkpoint(str(checkpoint / "variables"))
    for name in variables.get_variable_to_dtype_map():
        found[f"checkpoint/{name}"] = variables.get_tensor(name)
    # It names the objects of a process.
    found.pop("checkpoint/_CHECKPOINTABLE_OBJECT_GRAPH", None)
    metrics = files.read_json(workdir / "metrics.json")
    for epoch in metrics["training"]:
        for name in _TIMES:
            epoch.pop(name)
    found["metrics"] = metrics
    for name in ("config.json", "item_features.json", "vocabulary.parquet"):
        found[name] = (workdir / name).read_bytes()
    return found


def difference(found: Any, expected: Any, name: str = "") -> str | None:
    """Names what differs between two results; None if nothing does."""
    if isinstance(expected, dict) and isinstance(found, dict):
        if found.keys() != expected.keys():
            others = sorted(found.keys() ^ expected.keys())
            return f"{name}: other parts: {others}"
        for key, value in expected.items():
            differs = difference(found[key], value, f"{name}.{key}")
            if differs:
                return differs
        return None
    if isinstance(expected, np.ndarray):
        same = np.array_equal(found, expected)
    else:
        same = found == expected
    if same:
        return None
    return f"{name}: {str(found)[:200]!r} for {str(expected)[:200]!r}"


def leftovers(folder: pathlib.Path) -> str | None:
    """Names temporary files that were left; None if there are none."""
    left = sorted(path.name for path in folder.rglob(".recsys-*"))
    return f"left behind: {left}" if left else None


@dataclasses.dataclass
class Stage:
    """A command that is stopped and run again.

    Attributes:
        name: The command.
        world: What it works on.
        folder: Where it works.
        run: Runs it for a target; may be stopped.
        result: Returns what it leaves, without what differs between runs.
        prepare: Makes the state that it finds.
        replaces: Whether it replaces what it finds, which must survive.
        refuses_finished: Whether it refuses what it has finished.
        made: Where the world has run it, if it has.
    """

    name: str
    world: World
    folder: pathlib.Path
    run: Callable[[pathlib.Path, Stop | None], Ended]
    result: Callable[[pathlib.Path], dict[str, Any]]
    prepare: Callable[[pathlib.Path], object] = lambda target: None
    replaces: bool = False
    refuses_finished: bool = False
    made: pathlib.Path | None = None

    @functools.cached_property
    def whole(self) -> tuple[dict[str, Any], float, int]:
        """The result without a stop, the seconds, and the file events."""
        if self.made is not None:
            events = self.world.num_events(self.name)
            return self.result(self.made), self.world.seconds[self.name], events
        target = self._fresh()
        name = f"{self.folder.name}-{self.name}"
        ended = self.run(target, self.world.counting(name, target.parent))
        ended.check(self.name)
        events = self.world.num_events(name)
        return self.result(target), ended.seconds, events

    def _fresh(self) -> pathlib.Path:
        """Returns the target, always the same, as the command will find it."""
        parent = self.folder / self.name
        shutil.rmtree(parent, ignore_errors=True)
        parent.mkdir(parents=True)
        self.prepare(parent / "target")
        return parent / "target"

    def attack(self, **stop: float | int) -> str | None:
        """Stops the command, then runs it again.

        Args:
            **stop: Attributes of `Stop`.

        Returns:
            What did not hold, or None.
        """
        expected, *_ = self.whole
        target = self._fresh()
        parent = target.parent
        old = self.result(target) if self.replaces else {}
        ended = self.run(target, Stop(str(parent), **stop))
        # With a full disk it fails by itself.
        is_killed = {"kill_event", "kill_after"} & stop.keys()
        fault = ended.fault(0, -signal.SIGKILL if is_killed else 1)
        if fault is None and self.replaces:
            fault = self._lost(target, old, expected)
        if fault is None:
            again = self.run(target, None)
            # What is finished is not replaced, not even by the same.
            found = self.result(target) if self.refuses_finished else None
            refused = found and difference(found, expected) is None
            fault = again.fault(*((0, 2) if refused else (0,)))
            fault = fault and f"run again: {fault}"
        return (
            fault
            or difference(self.result(target), expected)
            or leftovers(parent)
        )

    def _lost(
        self,
        target: pathlib.Path,
        old: dict[str, Any],
        expected: dict[str, Any],
    ) -> str | None:
        found = self.result(target)
        if found in (old, expected):
            return None
        return f"neither the old state nor the new one: {sorted(found)}"


def stages(world: World, campaign: str) -> dict[str, Stage]:
    """Returns the commands that write, by name."""

    def export(target: pathlib.Path, stop: Stop | None) -> Ended:
        return run_forked(
            "export",
            flags(
                workdir=world.workdir,
                output=target,
                formats="parquet,numpy,projector",
            ),
            stop,
        )

    def old_export(target: pathlib.Path) -> None:
        copy(world.export, target)

    def extend(target: pathlib.Path, stop: Stop | None) -> Ended:
        arguments = flags(
            workdir=world.workdir,
            data=world.later,
            output_workdir=target,
            num_epochs=1,
        )
        return run_forked("extend", arguments, stop)

    def combine(target: pathlib.Path, stop: Stop | None) -> Ended:
        arguments = flags(
            workdirs=f"{world.workdir},{world.other}", output_workdir=target
        )
        return run_forked("combine", arguments, stop)

    def shard(target: pathlib.Path, stop: Stop | None) -> Ended:
        return run_process("prepare_shards", world.shard_flags(target), stop)

    def train(target: pathlib.Path, stop: Stop | None) -> Ended:
        return run_forked("train", world.train_flags(target), stop)

    at = (world, world.folder / campaign)
    found = (
        Stage(
            "prepare_shards",
            *at,
            shard,
            digest,
            refuses_finished=True,
            made=world.shards,
        ),
        Stage("export", *at, export, digest, old_export, replaces=True),
        Stage("train", *at, train, trained, made=world.workdir),
        Stage("extend", *at, extend, trained),
        Stage("combine", *at, combine, combined, refuses_finished=True),
    )
    return {stage.name: stage for stage in found}


_ENDS = {
    "prepare_shards": "the same command succeeds, with equal bytes",
    "export": "the old export or the new one is whole, and nothing is left",
    "train": "a resumed run ends bit for bit as an uninterrupted one",
    "extend": "a resumed extension ends bit for bit as an uninterrupted one",
    "combine": "the same command succeeds or finds the same model there",
}


def kills(world: World, rng: np.random.Generator) -> Iterator[Try]:
    """Kills the commands that write, and runs them again."""
    found = stages(world, "kills")
    for number, (name, stage) in enumerate(itertools.cycle(found.items())):
        _, seconds, events = stage.whole
        if number // len(found) % 2:
            kind = "SIGKILL at a random moment"
            stop = {"kill_after": float(rng.uniform(0, seconds))}
        else:
            kind = "SIGKILL before a file event"
            stop = {"kill_event": int(rng.integers(1, events + 1))}
        fault = stage.attack(**stop)
        detail = fault and f"{name}, {stop}: {fault}"
        yield Try(f"{name}: {_ENDS[name]}", kind, detail)


def disk(world: World, rng: np.random.Generator) -> Iterator[Try]:
    """Lets the commands that write run into a full disk."""
    found = stages(world, "disk")
    # The other way round, so that a few tries of both reach more commands.
    order = itertools.cycle(reversed(found.items()))
    for number, (name, stage) in enumerate(order):
        events = stage.whole[2]
        if number // len(found) % 2:
            kind = "files that cannot grow (RLIMIT_FSIZE)"
            stop = {"file_size": int(2 ** rng.uniform(4, 17))}
        else:
            kind = "no space left from a file event on"
            stop = {"full_event": int(rng.integers(1, events + 1))}
        fault = stage.attack(**stop)
        detail = fault and f"{name}, {stop}: {fault}"
        yield Try(f"{name}: one error line; then {_ENDS[name]}", kind, detail)


_ODD_JSON = (
    b"",
    b"null",
    b"[]",
    b"{}",
    b"3",
    b'"text"',
    b"[" * 5000,
    b'{"a":' * 3000,
    b"1" * 5000,
    b"\xff\xfe{}",
    b'{"a": NaN}',
    b'{"a": 1e999}',
)


def break_file(path: pathlib.Path, rng: np.random.Generator) -> tuple[str, str]:
    """Damages a file; returns the kind of damage and its details."""
    content = bytearray(path.read_bytes())
    kinds = ["flipped bits", "cut short", "deleted", "emptied"]
    if path.suffix == ".json":
        kinds.append("odd JSON")
    # Most of all bits, which are the hardest to notice.
    weights = np.array([8, 2, 1, 1, 4][: len(kinds)], float)
    kind = str(rng.choice(kinds, p=weights / weights.sum()))
    detail = path.name
    if kind == "flipped bits" and content:
        bits = rng.integers(len(content) * 8, size=rng.integers(1, 3))
        for bit in bits.tolist():
            content[bit // 8] ^= 1 << bit % 8
        detail += f", bits {bits.tolist()}"
    elif kind == "cut short":
        content = content[: int(rng.integers(len(content) + 1))]
        detail += f", to {len(content)} bytes"
    elif kind == "odd JSON":
        content = bytearray(odd_json(bytes(content), rng))
        detail += f", {bytes(content[:200])!r}"
    elif kind == "emptied":
        content = bytearray()
    if kind == "deleted":
        path.unlink()
    else:
        path.write_bytes(content)
    return kind, detail


def odd_json(content: bytes, rng: np.random.Generator) -> bytes:
    """Returns other JSON, or the same with one value replaced or removed."""
    value = json.loads(content)
    if rng.random() < 0.3 or not isinstance(value, (dict, list)) or not value:
        return _ODD_JSON[rng.integers(len(_ODD_JSON))]
    holder = value
    while True:
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        key = keys[rng.integers(len(keys))]
        inner = holder[key]
        if isinstance(inner, (dict, list)) and inner and rng.random() < 0.8:
            holder = inner
            continue
        break
    odd = (None, True, -1, 2**70, 1.5, float("nan"), "", "text", [], {}, [[]])
    if rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = odd[rng.integers(len(odd))]
    return json.dumps(value).encode()


class Readers:
    """What reads each of the folders, and what it read of whole ones."""

    def __init__(self, world: World) -> None:
        self._recommender = recsys.load(world.workdir)
        config = Workdir(world.workdir).read_config()
        self._model = self._recommender.model
        self._optimizer = build.build_optimizer(config, 27, 25)
        self._optimizer.build(self._model.trainable_variables)

    def workdir(self, folder: pathlib.Path) -> dict[str, Any]:
        """Reads all of a workdir that a command reads."""
        found = Workdir(folder)
        recommender = recsys.load(folder)
        config = found.read_config()
        vocabulary = recommender.vocabulary
        items = np.arange(2, vocabulary.size, dtype=np.int32)
        lists = recommender.recommend_indices(
            items, np.arange(0, len(items) + 1, 5), 10
        )
        state = [*self._model.variables, *self._optimizer.variables]
        for variable in state:
            variable.assign(np.zeros(variable.shape, variable.dtype))
        checkpoints = Checkpoints(
            found.checkpoints, self._model, self._optimizer
        )
        progress = checkpoints.restore()
        checkpoints.runtime_changes()
        return {
            "config": config,
            "ids": vocabulary.item_ids,
            "titles": vocabulary.titles,
            "columns": vocabulary.items.to_pydict(),
            "lists": lists[0],
            "scores": lists[1],
            "progress": progress,
            "history": found.read_history(config),
            "entries": found.training_entries(),
            "text": found.stored_results(),
            **{f"state {i}": each.numpy() for i, each in enumerate(state)},
        }

    def shards(self, folder: pathlib.Path) -> dict[str, Any]:
        """Reads all of a folder of shards."""
        data = prepare.open_shards(folder)
        train = data.split.train
        groups = np.arange(len(train.paths))
        items = train.read_group(groups)
        queries = data.split.reported[0]
        return {
            "summary": dataclasses.replace(data, vocabulary=None, split=None),
            "columns": data.vocabulary.items.to_pydict(),
            "lengths": train.lengths,
            "counts": train.item_counts(data.vocabulary.size),
            **fields("group", items),
            **fields("queries", queries),
        }

    def export(self, folder: pathlib.Path) -> dict[str, Any]:
        """Asks the SavedModel, and whether the export may be replaced."""
        check_output(folder)
        signatures = tf.saved_model.load(str(folder / "saved_model")).signatures
        ids = tf.constant([[f"i{i}" for i in range(9)], ["i3", ""] + [""] * 7])
        return {
            name: value.numpy()
            for name, value in signatures["recommend"](
                history=ids, exclude=tf.constant([[""]]), k=tf.constant([9])
            ).items()
        }


def fields(prefix: str, value: Any) -> dict[str, Any]:
    """Returns the fields of a data class, those of its fields too."""
    if not dataclasses.is_dataclass(value):
        return {prefix: value}
    return {
        name: inner
        for field in dataclasses.fields(value)
        for name, inner in fields(
            f"{prefix}.{field.name}", getattr(value, field.name)
        ).items()
    }


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files that we read: TensorBoard's logs are not."""
    return [
        path.relative_to(folder)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "logs" not in path.parts and path.name != ".lock"
    ]


def damage(world: World, rng: np.random.Generator) -> Iterator[Try]:
    """Damages files one at a time, and reads what they belong to."""
    readers = Readers(world)
    subjects = {
        "a workdir": (world.workdir, readers.workdir, InputError),
        "shards": (world.shards, readers.shards, InputError),
        # TensorFlow reads a SavedModel, and has errors of its own.
        "an export": (world.export, readers.export, Exception),
    }
    whole = {name: read(folder) for name, (folder, read, _) in subjects.items()}
    for name, (folder, read, allowed) in itertools.cycle(subjects.items()):
        broken = copy(folder, world.folder / "damaged")
        paths = _files(broken)
        if name == "an export":
            paths = [
                path
                for path in paths
                if path.name == "export.json" or path.parent.name == "variables"
            ]
        path = broken / paths[rng.integers(len(paths))]
        kind, detail = break_file(path, rng)
        fault = None
        try:
            fault = difference(read(broken), whole[name])
        except allowed as error:
            message = str(error)
            names = (path.name, path.parent.name, path.stem)
            if allowed is InputError and not any(n in message for n in names):
                fault = f"the file is not named: {message[:300]}"
        except Exception as error:
            fault = f"a stack trace: {type(error).__name__}: {error}"[:400]
        yield Try(
            f"{name}: the same answers, or an error that names the file",
            kind,
            fault and f"{detail}: {fault}",
        )
